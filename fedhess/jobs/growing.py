"""Continue a recorded job, or add to it: omitted options come from the record, and nothing recorded changes."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhess.alignment.loading import find_method
from fedhess.base.environment import describe_environment
from fedhess.base.errors import UsageError
from fedhess.cli.config_file import open_args, unvaried_args
from fedhess.cli.options import JobOptions
from fedhess.domains import FOLDER, HUGGING_FACE, Benchmark, Opening, find_benchmark, open_benchmark
from fedhess.domains.domain import Notify
from fedhess.domains.images.hugging_face import settle_hugging_face
from fedhess.domains.scenarios import choose_scenarios
from fedhess.jobs.directory import amend_config, refuse_differences
from fedhess.jobs.job import OF_A_RUN, Job, own_code, strategy_folders
from fedhess.jobs.reopening import moved_to, read_config
from fedhess.jobs.variants import Variant, describe, is_of_server_args, parse_variants
from fedhess.settings.assignments import Scalar, parse_assignments
from fedhess.settings.ranges import GIVEN, OF_STEPS
from fedhess.settings.run_config import RunConfig

Record = Mapping[str, Any]


# -- What the command is about -----------------------------------------------------------------------------------------


def read_begun(options: JobOptions) -> dict[str, Any] | None:
    """Read the record of the job in ``--out``; None if the job was killed before it wrote one."""
    assert options.out is not None, "a job that is continued has a directory"
    file = options.out / "config.json"
    return read_config(file) if file.exists() else None


def open_again(recorded: Record, options: JobOptions, given: Mapping[str, Any], notify: Notify) -> Benchmark:
    """Open the data of a recorded job, as it is now."""
    was, changed = recorded["dataset"], parse_assignments(options.domains_args, option="--domains-args")
    if options.require_real and was["stand_in_for"]:
        raise UsageError(f"--require-real: the job in {options.out} is on {was['title']}; begin another one")
    if given.get("domains") is not None:
        _, folder = find_benchmark(options.domains)
        if not _is_of(options.domains, was):
            raise UsageError(
                f"--domains: the job in {options.out} is on {was['title']}, got {options.domains}; leave the option out"
            )
        changed |= {"data_dir": str(folder.resolve())} if folder else {}
    changed |= moved_to(options.data_dir, was["title"], was["options"])
    changed |= {"skip_bad_images": True} if options.skip_bad_images and "skip_bad_images" in was["options"] else {}
    try:
        benchmark = open_benchmark(was["name"], options=was["options"] | changed, notify=notify)
    except UsageError as error:
        raise UsageError(f"--domains {was['name']}: {error}") from error
    return replace(benchmark, stand_in_for=was["stand_in_for"])


def _is_of(domains: str, was: Mapping[str, Any]) -> bool:
    """Whether ``--domains`` names the recorded data; a folder may have moved."""
    name, folder = find_benchmark(domains)
    if name == "module:Class":
        return domains.strip() == str(was["name"])
    if name == "hf:NAME":
        _, columns = settle_hugging_face(Opening(name, name=domains.strip()))
        return str(was["name"]).startswith(HUGGING_FACE) and columns.items() <= was["options"].items()
    return name in (was["name"], was["stand_in_for"]) or (folder is not None and str(was["name"]).startswith(FOLDER))


def complete_options(
    recorded: Record, benchmark: Benchmark, options: JobOptions, given: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `plan_job` for a recorded job with everything that is added to it.

    Args:
        recorded: From `read_begun`.
        benchmark: From `open_again`.
        options: As read from ``given``; its defaults are ignored.
        given: The given options by name; None for an option that was not given.
        settings: The given settings.
    """
    assert options.out is not None, "its record was read"
    chosen = {name for name, value in given.items() if value is not None}
    known, changed = recorded["strategies"], parse_assignments(options.strategy_args, option="--strategy-args")
    names = [name.strip() for name in options.strategy.split(",") if name.strip()] if "strategy" in chosen else [*known]
    strategies = list(dict.fromkeys([*known, *names]))
    args, before = _owned(changed, names), unvaried_args(recorded)
    targets = recorded["targets"]
    if "target" in chosen:
        targets = [scenario.name for scenario in choose_scenarios(benchmark, options.target)]
    variants = parse_variants(options.variants, fewest=1 if options.add else 2)
    first, trials = recorded["seeds"][0], 1
    if {"seed", "trials"} & chosen:
        first = settings.get("seed", first)
        trials = options.trials if "trials" in chosen else len(recorded["seeds"])
    old, now = _with_settings(recorded, {}), _with_settings(recorded, settings)

    there: dict[str, Any] = {"dataset.options": recorded["dataset"]["options"]}
    here: dict[str, Any] = {"dataset.options": dict(benchmark.options)}
    there |= {f"settings.{key}": getattr(old, key) for key in settings if key != "seed"}
    here |= {f"settings.{key}": getattr(now, key) for key in settings if key != "seed"}
    there |= {f"strategies.{key}": before.get(key) for key in args if key.rpartition(".")[0] in known}
    here |= {f"strategies.{key}": args[key] for key in args if key.rpartition(".")[0] in known}
    if options.add:
        if now.rounds > old.rounds:
            _require_unbound(options.out, old, recorded, now.rounds)
            del there["settings.rounds"], here["settings.rounds"]
        refuse_differences(options.out, there, here, "--add")
    else:
        all_variants = [variant["settings"] for variant in recorded["variants"]]
        seeds = list(range(first, first + trials)) if {"seed", "trials"} & chosen else recorded["seeds"]
        there |= {"seeds": recorded["seeds"], "targets": sorted(recorded["targets"]), "strategies": sorted(known)}
        here |= {"seeds": seeds, "targets": sorted(targets), "strategies": sorted(names)}
        there, here = there | {"variants": all_variants}, here | {"variants": variants or all_variants}
        refuse_differences(options.out, there, here, "--resume")
    return {
        "strategies": strategies,
        "strategy_args": before | args,
        "target": ",".join(dict.fromkeys([*recorded["targets"], *targets])),
        "trials": trials,
        "overrides": now.model_dump(exclude=OF_A_RUN) | {"seed": first},
        "variants": [] if "search" in recorded else _all_variants(recorded, variants, strategies),
        "recorded": recorded,
    }


def _require_unbound(path: Path, config: RunConfig, recorded: Record, rounds: int) -> None:
    """Check that the trained rounds do not depend on the total number of rounds."""
    bound, named, search = [*config.bound_to_rounds], recorded["strategies"], recorded.get("search", {})
    bound += [f"strategy {name}" for name in named if getattr(find_method(name).cls, "bound_to_rounds", False)]
    bound += ["Optuna, whose settings follow from results"] if search.get("kind") == "optuna" else []
    for name, space in search.get("spaces", {}).items():
        known = [key for key, each in space.items() if each["source"] != GIVEN and not each["choices"]]
        bound += [f"the range of {name}'s {key}" for key in known if key.endswith(OF_STEPS)]
    if config.average == "swad" and config.rounds % config.evaluate_every:
        bound = [*bound, f"average (swad has the loss of round {config.rounds}, which is evaluated only as the last)"]
    if bound:
        raise UsageError(
            f"--rounds {rounds}: what the rounds of the job in {path} did depends on how many there are, "
            f"{config.rounds}, through {' and '.join(bound)}; leave the option out, or begin another job"
        )


def _with_settings(recorded: Record, settings: Mapping[str, Any]) -> RunConfig:
    """Check a recorded job's settings with ``settings`` in their place; all domains serve as sources."""
    domains = tuple(recorded["dataset"]["counts"])
    return RunConfig.checked({**recorded["settings"], **settings, "sources": domains, "targets": ()})


def _owned(args: Mapping[str, Scalar], names: Sequence[str]) -> dict[str, Scalar]:
    """Prefix arguments with their strategies: an argument without an owner applies to each strategy that has it."""
    owned: dict[str, Scalar] = {}
    for key, value in args.items():
        has_it = [name for name in names if key in find_method(name).parameters]
        owned |= {key: value} if "." in key else dict.fromkeys((f"{name}.{key}" for name in has_it or names), value)
    return owned


# -- The record of both ------------------------------------------------------------------------------------------------


def grown(recorded: Record, planned: Record) -> dict[str, Any]:
    """Merge the record of a job with an extended plan; every recorded run keeps its settings and its directory.

    Args:
        recorded: From `read_begun`.
        planned: The record of all strategies, targets and variants, with the recorded ones first.
    """
    known, variants = recorded["strategies"], [dict(variant) for variant in planned["variants"]]
    before = recorded["variants"]
    if "search" in planned:  # each variant of a sweep belongs to one strategy
        there = [_identity(variant) for variant in before]
        variants, before = [*before, *(each for each in variants if _identity(each) not in there)], []
    elif variants and not before:  # the job's one setting becomes the first of several
        before = [{"strategies": list(known), "arguments": known, "folder": ""}]
    for old, variant in zip(before, variants, strict=False):
        added = [name for name in variant["strategies"] if name not in known]
        arguments = {name: variant["arguments"][name] for name in added} | old["arguments"]
        variant |= {**old, "strategies": sorted([*old["strategies"], *added]), "arguments": arguments}
    folders = strategy_folders(recorded) if len(planned["strategies"]) > 1 else {}
    return {
        **planned,
        "dataset": recorded["dataset"],
        "strategies": planned["strategies"] if variants else {**planned["strategies"], **known},
        "targets": list(dict.fromkeys([*recorded["targets"], *planned["targets"]])),
        "seeds": list(dict.fromkeys([*recorded["seeds"], *planned["seeds"]])),
        "variants": variants,
        **({"folders": folders} if folders else {}),
    }


def _identity(variant: Mapping[str, Any]) -> list[Any]:
    return [variant.get(key) for key in ("strategies", "number", "seeds", "targets")]


def _all_variants(recorded: Record, added: Sequence[Variant], strategies: Sequence[str]) -> list[Variant]:
    """List a job's settings to select among: the recorded ones, then added ones that differ from them."""
    there: list[Variant] = [variant["settings"] for variant in recorded["variants"]]
    arguments = {name: args for each in recorded["variants"] for name, args in each["arguments"].items()}
    always = {f"{name}.{key}" for name, args in arguments.items() for key in args} - open_args(recorded).keys()
    for variant in added:
        for key in sorted(always):
            if not {key, key.rpartition(".")[2]} & variant.keys():
                raise UsageError(
                    f"--variants: {describe(variant)!r} leaves {key} open, of which each of the job's settings has its "
                    "own value; expected a value of it too"
                )
    if added and not there:
        there = [_as_variant(recorded, {key for variant in added for key in variant}, strategies)]
    return [*there, *(variant for variant in added if variant not in there)]


def _as_variant(recorded: Record, keys: set[str], strategies: Sequence[str]) -> Variant:
    """Describe the only setting of a recorded job by the keys that the added variants vary."""
    settings, found = recorded["settings"], dict[str, Scalar]()
    for key in sorted(keys):
        owner, dot, name = key.rpartition(".")
        if key in RunConfig.model_fields:
            found[key] = settings[key]
        elif is_of_server_args(key):
            found |= {key: settings["server_optimizer_args"][name]} if name in settings["server_optimizer_args"] else {}
        else:
            values = {one: args[name] for one, args in recorded["strategies"].items() if name in args}
            values = {one: value for one, value in values.items() if not dot or one == owner}
            shared = not dot and len(set(values.values())) == 1 and set(strategies) == set(recorded["strategies"])
            found |= (
                {name: next(iter(values.values()))} if shared else {f"{one}.{name}": v for one, v in values.items()}
            )
    return found


def describe_growth(job: Job) -> str:
    """Describe in one line what is added to a recorded job; empty if nothing is added."""
    added = _added(job)
    if "variants" in added and "search" not in job.record:  # for a sweep it is their number
        added["variants"] = [describe(variant) for variant in added["variants"]]
    return "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in added.items())


def record_growth(job: Job, *, changed: bool, command: Sequence[str] | None = None) -> None:
    """Record what is added to a job, and the environment its runs continue in; this process must hold its directory.

    The selector and trackers of this command are recorded, so that an interrupted addition continues with them.
    ``additions`` in config.json gets an entry with the command, what it adds, the environment, and the round from which
    it trains each incomplete run, by directory, so that the environment of each round is known. There is no entry if
    nothing is added and the environment is unchanged or no run is incomplete.
    """
    amend_config(job.path, {"selection": job.selection, "trackers": list(job.trackers)})
    rounds = {run.directory.path: (run.directory.completed_round() or 0, run.config.rounds) for run in job.runs}
    left = {str(path.relative_to(job.path)): done for path, (done, last) in rounds.items() if done < last}
    grows = job.before is not None and any(job.before.get(key) != value for key, value in job.record.items())
    if not grows and not (changed and left):
        return
    earlier = json.loads((job.path / "config.json").read_text(encoding="utf-8")).get("additions", [])
    environment = describe_environment(own_code(job.record))
    entry = {"command": list(command or sys.argv), "adds": _added(job), "from_round": left, "environment": environment}
    amend_config(job.path, {**job.record, "additions": [*earlier, entry]})


def _added(job: Job) -> dict[str, list[Any]]:
    before, now = job.before or job.record, job.record
    added = {key: [each for each in now[key] if each not in before[key]] for key in ("strategies", "targets", "seeds")}
    more = now["variants"][len(before["variants"]) :]
    added["variants"] = [len(more)] if more and "search" in now else [variant["settings"] for variant in more]
    added["rounds"] = [now["settings"]["rounds"]] if now["settings"]["rounds"] != before["settings"]["rounds"] else []
    return {key: values for key, values in added.items() if values}
