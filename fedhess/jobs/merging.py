"""Merge several jobs of one protocol into one job, so that one table shows the strategies of all."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedhess.alignment.loading import find_method
from fedhess.alignment.server_step import is_server_setting
from fedhess.base.errors import UsageError
from fedhess.jobs.directory import FREE_SETTINGS, describe_differences
from fedhess.jobs.job import Job, PlannedRun, history, variant_number, with_defaults
from fedhess.jobs.variants import VARIED, describe
from fedhess.settings.assignments import Scalar

# Jobs of one protocol may differ in what a method does in a round, which tables name, and in the machine.
OF_A_METHOD = (*VARIED, "server_optimizer_args")
OF_A_MACHINE = ("device", "threads", "compile", "deterministic", "data_dir")
LONGEST_NAME = 200  # bytes, of a directory


@dataclass
class _Method:
    """A strategy with its settings, as found in one or several of the jobs."""

    strategy: str
    args: Mapping[str, Scalar]
    settings: Mapping[str, Any]  # the settings in OF_A_METHOD
    variants: list[dict[str, Any]] = field(compare=False)
    # What determines its variants: the search if they are drawn for each trial, else the variants themselves
    made_by: Any
    draws: int  # see `Job.draws`; 0 if all variants are known
    job: Path = field(compare=False)

    @property
    def values(self) -> dict[str, Scalar]:
        """The settings that distinguish it from other methods; a plain Flower strategy ignores server settings."""
        own = find_method(self.strategy).is_flower
        settings = {key: value for key, value in self.settings.items() if not (own and is_server_setting(key))}
        args = settings.pop("server_optimizer_args", {})
        return settings | {f"server_optimizer_args.{key}": value for key, value in args.items()} | dict(self.args)

    def as_variant(self, keys: set[str]) -> dict[str, Any]:
        """Return its only setting as a variant, named by the keys that other methods vary."""
        named = {key: value for key, value in self.values.items() if key in keys}
        return {"settings": named, "arguments": self.args, "number": 0}


def merge_jobs(jobs: Sequence[Job]) -> Job:
    """Put the runs of several jobs into one job; nothing is written.

    A strategy that occurs with different settings is named by the settings that differ. Of duplicate runs, the one with
    more completed rounds is kept. ``path`` is a directory beside the first job's, named after all jobs.
    """
    if len(jobs) == 1:
        return jobs[0]
    for one, other in itertools.combinations(jobs, 2):  # unknown data of a deployed run matches any other
        _require_one_protocol(one, other)
    methods: list[_Method] = []
    owner: dict[tuple[int, str], int] = {}  # index of the method, by job and strategy
    for number, job in enumerate(jobs):
        for method in _methods(job):
            if method in methods:
                there = methods[methods.index(method)].variants
                there += [each for each in method.variants if each not in there]
            else:
                methods.append(method)
            owner[number, method.strategy] = methods.index(method)
    labels = _labels(methods)
    several = any(method.variants for method in methods)
    varied = {key for method in methods for each in method.variants for key in each["settings"]}
    variants = [
        {**each, "strategies": [label], "arguments": {label: each["arguments"]}, "method": label}
        for method, label in zip(methods, labels, strict=True)
        for each in (method.variants or [method.as_variant(varied)])
    ]
    begin = {label: next(at for at, each in enumerate(variants) if each["method"] == label) for label in labels}
    runs: dict[tuple[Any, ...], PlannedRun] = {}
    for number, job in enumerate(jobs):
        for run in job.runs:
            at = owner[number, run.strategy]
            label, among = labels[at], methods[at].variants
            place = among.index(_variant_of(job.record, run.strategy, run.variant)) if among else 0
            variant = begin[label] + place if several else 0
            key = (label, variant, run.scenario.name, run.config.seed)
            runs[key] = _further(runs.get(key), replace(run, strategy=label, variant=variant))
    known = next((job for job in jobs if job.data["digest"]), jobs[0])
    kept = ("settings", "strategies", "arguments", "number")
    record = {
        "dataset": known.data,
        "strategies": {label: method.args for label, method in zip(labels, methods, strict=True)},
        "targets": list(dict.fromkeys(name for job in jobs for name in job.record["targets"])),
        "seeds": sorted({seed for job in jobs for seed in job.seeds}),
        "settings": jobs[0].record["settings"],
        "variants": [{key: each[key] for key in kept} for each in variants] if several else [],
        "draws": {label: method.draws for label, method in zip(labels, methods, strict=True) if method.draws},
        "environment": {str(job.path): job.record.get("environment", {}) for job in jobs},
        "additions": [entry for job in jobs for entry in history(job.record)],
    }
    return Job(_path(jobs), tuple(_ordered(runs.values(), labels)), record, jobs[0].selection)


def _methods(job: Job) -> Iterable[_Method]:
    record = with_defaults(job.record)
    settings = {key: record["settings"][key] for key in OF_A_METHOD}
    for strategy, args in record["strategies"].items():
        variants = [
            _variant_of(record, strategy, index)
            for index, each in enumerate(record["variants"])
            if strategy in each["strategies"]
        ]
        drawn = job.search.get("kind") == "random"
        made_by = [job.search["draws"], job.search["spaces"][strategy]] if drawn else variants
        yield _Method(strategy, args, settings, variants, made_by, job.draws.get(strategy, 0), job.path)


def _variant_of(record: Mapping[str, Any], strategy: str, index: int) -> dict[str, Any]:
    each = record["variants"][index]
    arguments = each["arguments"][strategy]
    return {"settings": each["settings"], "arguments": arguments, "number": variant_number(index, each)}


def _labels(methods: Sequence[_Method]) -> list[str]:
    """Name each method by its strategy, and by the settings in which methods differ."""
    named: list[str] = []
    everywhere = {key for key in OF_A_METHOD if len({json.dumps(m.settings[key]) for m in methods}) > 1}
    for method in methods:
        alike = [other for other in methods if other.strategy == method.strategy]
        found = [other.values for other in alike]
        keys = [k for k in method.values if any(each.get(k) != method.values[k] for each in found)]
        keys += [k for k in method.values if k.partition(".")[0] in everywhere and k not in keys]
        own = describe({key: method.values[key] for key in keys}) if keys else ""
        named.append(f"{method.strategy} ({own})" if own else method.strategy)
    return [
        name if named.count(name) == 1 else f"{name} of {method.job}"
        for name, method in zip(named, methods, strict=True)
    ]


def _require_one_protocol(one: Job, other: Job) -> None:
    there, here = _protocol(one), _protocol(other)
    made_alike = one.data["options"].get("seed") == other.data["options"].get("seed")
    if one.data["digest"] and other.data["digest"] and made_alike:  # a deployed run does not know its nodes' data
        there["dataset.digest"], here["dataset.digest"] = one.data["digest"], other.data["digest"]
    if lines := describe_differences(there, here, words=(f"in {one.path}", f"in {other.path}")):
        listed = "".join(f"\n  {line}" for line in lines)
        raise UsageError(
            f"{one.path} and {other.path} are not of one protocol, so that one table would compare what cannot be "
            f"compared; report each by itself. What differs:{listed}"
        )


def _protocol(job: Job) -> dict[str, Any]:
    """Return what all jobs of one table must have in common."""
    free = {name.removeprefix("settings.").removesuffix(":") for name in FREE_SETTINGS} | {*OF_A_METHOD, *OF_A_MACHINE}
    settings = with_defaults(job.record)["settings"]
    options = {key: value for key, value in job.data["options"].items() if key not in ("data_dir", "seed")}
    if "seed" in job.data["options"]:  # a random benchmark is generated from the trial's seed
        options["seed of the first trial"] = int(job.data["options"]["seed"]) - int(job.record["seeds"][0])
    return {
        "settings": {key: value for key, value in settings.items() if key not in free},
        "dataset": {"title": job.data["title"], "domains": sorted(job.data["counts"]), "options": options},
        "selection": job.selection,
    }


def _further(one: PlannedRun | None, other: PlannedRun) -> PlannedRun:
    if one is None:
        return other
    inner = one.inner and other.inner
    done = [run.directory.completed_round() or 0 for run in (one, other)]
    return replace(other if done[1] > done[0] else one, inner=inner)


def _ordered(runs: Iterable[PlannedRun], labels: Sequence[str]) -> list[PlannedRun]:
    scenarios: dict[str, int] = {}
    runs = list(runs)
    for run in runs:
        scenarios.setdefault(run.scenario.name, len(scenarios))

    def place(run: PlannedRun) -> tuple[int, ...]:
        return run.inner, scenarios[run.scenario.name], labels.index(run.strategy), run.variant, run.config.seed

    return sorted(runs, key=place)


def _path(jobs: Sequence[Job]) -> Path:
    names = [path.name for path in dict.fromkeys(job.path.resolve() for job in jobs)]
    name = "+".join(names)
    return jobs[0].path.parent / (name if len(name.encode()) <= LONGEST_NAME else f"{names[0]}+{len(names) - 1}")
