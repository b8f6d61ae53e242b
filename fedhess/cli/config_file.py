"""``--config``: options of a command from a TOML file, or from the config.json of an earlier job."""

import json
import tomllib
from collections.abc import Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.settings.ranges import GIVEN
from fedhess.settings.schedules import current_settings

# What a value of a recorded job goes with: it is left out where the command line has another of that.
GOES_WITH = {
    "local_steps": "local_epochs",
    "local_epochs": "local_steps",
    "average_args": "average",
    "server_optimizer_args": "server_optimizer",
}


def read_config_file(context: click.Context, path: Path | None) -> Path | None:
    """Take the options of a file as defaults of a command."""
    if path is None:
        return None
    known = {parameter.name: parameter for parameter in context.command.params if parameter.name}
    try:
        text = path.read_text(encoding="utf-8")
        recorded = json.loads(text) if path.suffix == ".json" else None
        given = tomllib.loads(text) if recorded is None else options_of_job(recorded, known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--config: {path} cannot be read ({type(error).__name__}: {error}); expected TOML with options as keys, "
            "or a job's config.json"
        ) from error
    options = {key.replace("-", "_"): value for key, value in given.items()}
    for key in options:
        if key not in known or key in ("config", "list_all"):
            raise UsageError(f"--config: {path}: there is no option {key!r}; {did_you_mean(key, known)}")
    if recorded is None:
        context.default_map = options
        return path

    @cache
    def beside_the_command_line() -> dict[str, Any]:
        sources = {key: context.get_parameter_source(key) for key in context.params}
        line = {key: context.params[key] for key in sources if sources[key] is ParameterSource.COMMANDLINE}
        return options_of_job(recorded, known, line)

    # Click asks for defaults when it has read the command line
    context.default_map = {key: partial(lambda key: beside_the_command_line().get(key), key) for key in options}
    return path


def options_of_job(
    recorded: Mapping[str, Any], known: Collection[str], line: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the options that run a recorded job again; ``out`` is not among them.

    Args:
        recorded: Its config.json.
        known: Names of the command's options.
        line: Options of the command line, which go over these: what means nothing beside them is left out.
    """
    from fedhess.alignment.loading import find_method  # noqa: PLC0415 (seconds that no other option needs)
    from fedhess.alignment.server_step import SERVER_SETTINGS  # noqa: PLC0415

    line = line or {}
    dataset, recorded_args, seeds = recorded["dataset"], recorded["strategies"], sorted(recorded["seeds"])
    if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        raise ValueError(f"its seeds are {seeds}, which --seed and --trials cannot name")
    named = line.get("strategy") or ",".join(recorded_args)
    strategies = [name.strip() for name in named.split(",") if name.strip()]

    def joined(values: Mapping[str, Any]) -> str:
        gone = recorded_args.keys() - set(strategies)
        kept = {key: value for key, value in values.items() if key.rpartition(".")[0] not in gone}
        return ",".join(f"{key}={value}" for key, value in kept.items() if value not in ("", None))

    settings = current_settings(recorded["settings"])
    settings = {key: value for key, value in settings.items() if key in known and value is not None}
    settings.pop("local_steps" if settings.get("local_epochs") else "local_epochs", None)
    if all(find_method(name).is_flower for name in strategies):  # whose server is their own
        settings = {key: value for key, value in settings.items() if key not in SERVER_SETTINGS}
    settings = {key: joined(value) if isinstance(value, dict) else value for key, value in settings.items()}
    data = {key: value for key, value in dataset["options"].items() if key != "data_dir"}
    if "seed" in data:  # of the first trial; it is the trial's own where none was given
        data["seed"] = int(data["seed"]) + seeds[0] - recorded["seeds"][0]
        data = {key: value for key, value in data.items() if key != "seed" or value != seeds[0]}
    args = {f"{name}.{key}": value for name, of in recorded_args.items() for key, value in of.items()}
    own = joined({"lr": recorded["settings"].get("lr")})  # names a setting that changes nothing of the job's
    variants = list(dict.fromkeys(joined(each["settings"]) or own for each in recorded.get("variants", [])))
    several: dict[str, Any] = {"variants": "; ".join(variants)} if variants not in ([], [own]) else {}
    search = recorded.get("search")
    if bool(search) != ("draws" in known):
        kind, command = ("a", "sweep") if search else ("no", "simulate")
        raise UsageError(
            f"--config: it is the config.json of {kind} sweep; run it again with fedhess {command} --config"
        )
    if search:
        drawn, first = _of_ranges(recorded)
        settings = {key: value for key, value in settings.items() if key not in drawn}  # what is given is not drawn
        args |= first
        several = {"draws": search["draws"] or None, "grid": search["grid"], "ranges": search["ranges"]}
        several |= {"search": search["kind"]}
    options = settings | {
        "domains": dataset["name"],
        "domains_args": joined(data),
        "strategy": ",".join(recorded_args),
        "strategy_args": joined(args),
        **several,
        "target": ",".join(recorded["targets"]),
        "trials": len(seeds),
        "seed": seeds[0],
        "selection": recorded.get("selection", "source"),
    }
    other = {key for key in GOES_WITH.values() if str(line.get(key) or options.get(key)) != str(options.get(key))}
    return {key: value for key, value in options.items() if GOES_WITH.get(key) not in other}


def _of_ranges(recorded: Mapping[str, Any]) -> tuple[set[str], dict[str, Any]]:
    """Return what a sweep drew where nothing was given, and by ``NAME.key`` its first setting's arguments elsewhere."""
    spaces = recorded["search"]["spaces"]
    drawn = {key for space in spaces.values() for key, each in space.items() if each["source"] != GIVEN}
    first = [each["arguments"] for each in recorded["variants"] if each["number"] == 0]
    args = {(name, key): value for of in first for name in of for key, value in of[name].items()}
    given = {(name, key) for name in spaces for key, each in spaces[name].items() if each["source"] == GIVEN}
    return drawn, {f"{name}.{key}": value for (name, key), value in args.items() if (name, key) in given}
