"""One job of a scenario: its configuration, and running it to a row of results."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer

from fedhess.base.environment import check_device
from fedhess.base.errors import FederationError
from fedhess.base.files import digest_of
from fedhess.domains import open_benchmark
from fedhess.domains.domain import Notify
from fedhess.jobs.description import cost, describe_failures, stand_in_warning, whole_protocol
from fedhess.jobs.directory import job_directory
from fedhess.jobs.growing import record_growth
from fedhess.jobs.job import Job, slug
from fedhess.jobs.plan import plan_job
from fedhess.jobs.progress import Progress
from fedhess.jobs.running import run_job
from fedhess.jobs.selectors import DEFAULT, ORACLE
from fedhess.results.summary import summarise
from fedhess.settings.assignments import Scalar
from fedhess.simulations.scenarios.records import Row


@dataclass(frozen=True)
class Configuration:
    """One job of a scenario: one strategy, one seed, every target; settings in addition to the recipes."""

    benchmark: str
    strategy: str
    seed: int  # of the run, and of the benchmark where that is made at random
    options: Mapping[str, Scalar] = field(default_factory=dict)  # of the benchmark
    strategy_args: Mapping[str, Scalar] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)  # settings, by their name in RunConfig
    target: str = "all"
    variants: Sequence[Mapping[str, Scalar]] = ()
    selection: str = DEFAULT
    oracle: bool = False  # whether the oracle's average stands in a column of its own
    require_real: bool = False  # whether a stand-in for the data is refused


def measure(configuration: Configuration, *, folder: Path, device: str = "auto") -> Row:
    """Run one job, or continue it, in the directory that `plan` gives it.

    Returns:
        JSON: what ran on which data, settings, environment, accuracy (percent) on sources and targets; or the reason
        why the federation stopped.
    """
    progress = Progress(silent=not sys.stdout.isatty())
    job = plan(configuration, folder=folder, device=device, notify=progress.note)
    progress.warn(stand_in_warning(job))
    if job.variants or job.selection != DEFAULT:
        typer.echo(f"{job.path.name}: {cost(job)}")
    with job_directory(job.path, job.record, resume=True, selection=job.selection) as changes:
        record_growth(job, changed=bool(changes))
        try:
            failures = run_job(job, progress)
            if failures and len(failures) == len(job.runs):
                raise FederationError(" ".join(describe_failures(job, failures).split()))
        except FederationError as error:
            return describe(job, configuration) | {"accuracy": {}, "stopped": str(error).splitlines()[0]}
    summary = summarise(job)
    result = summary["strategies"][configuration.strategy]
    accuracy = {"sources": result["sources"]["mean"]}
    accuracy |= {target: cell["mean"] for target, cell in result["accuracy"].items()}
    if configuration.oracle:
        best = summarise(job, selection="oracle")["strategies"][configuration.strategy]
        alone = [cell["mean"] for cell in best["accuracy"].values()]
        accuracy[ORACLE] = best["average"]["mean"] if len(alone) > 1 else alone[0]
    return describe(job, configuration) | {
        "accuracy": accuracy,
        "average": result["average"]["mean"],
        "protocol": whole_protocol(job, summary["selection"]),
        **warnings_of(summary),
        "seconds": round(seconds_of_rounds(job), 1),
    }


def warnings_of(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what a reader must know about a row's accuracies, as ``warnings``; empty if there is nothing."""
    (result,) = summary["strategies"].values()
    found = [f"UNFINISHED: {run}: {how}" for run, how in result["unfinished"].items()]
    found += [f"incomplete: {target}: {what}" for target, what in result["incomplete"].items()]
    found += [f"sick: {run}: {sign}" for run, sign in result["sick"].items()]
    found += [f"too few source clients evaluated: {gap}" for gap in result["gaps"]]
    found += [f"{result['failures']} failure(s) of clients"] if result["failures"] else []
    found += [f"no average had begun: {result['not_averaged']} models"] if result["not_averaged"] else []
    return {"warnings": found} if found else {}


def seconds_of_rounds(job: Job) -> float:
    """Return the seconds of all rounds of a job's runs, evaluation included, over all invocations."""
    by_round = {(run.directory.path, row["round"]): row["seconds"] for run in job.runs for row in run.directory.rows()}
    return float(sum(by_round.values()))


def plan(configuration: Configuration, *, folder: Path, device: str, notify: Notify) -> Job:
    """Open the data and plan the job, in a directory below ``folder`` whose name identifies the configuration.

    Raises:
        UsageError: Data or settings are invalid.
    """
    benchmark = open_benchmark(
        configuration.benchmark,
        require_real=configuration.require_real,
        seed=configuration.seed,
        options=configuration.options,
        notify=notify,
    )
    name = f"{slug(benchmark.title)}-{configuration.strategy}-{configuration.seed}"
    return plan_job(
        benchmark,
        strategies=[configuration.strategy],
        strategy_args=configuration.strategy_args,
        target=configuration.target,
        trials=1,
        overrides={**configuration.overrides, "seed": configuration.seed, "device": check_device(device)},
        variants=configuration.variants,
        selection=configuration.selection,
        out=folder / f"{name}-{digest_of([json.dumps(asdict(configuration), sort_keys=True)])[:8]}",
    )


def given(configuration: Configuration) -> dict[str, Any]:
    """Return the given options of a job that decide its results, without those that have their default."""
    usual = asdict(Configuration("", "", 0))
    chosen = asdict(configuration) | {
        "options": {key: value for key, value in configuration.options.items() if key != "data_dir"}
    }
    elsewhere = ("benchmark", "strategy", "seed", "oracle", "require_real")
    return {key: value for key, value in chosen.items() if key not in elsewhere and value != usual[key]}


def describe(job: Job, configuration: Configuration) -> Row:
    """Describe a job that has begun as a row without results and without the paths of this machine."""
    config, dataset = job.runs[0].config, job.record["dataset"]
    kept = {key: value for key, value in job.record["settings"].items() if key not in ("data_dir", "device")}
    several: dict[str, Any] = {"variants": len(job.variants)} if job.variants else {}  # settings are the first's
    several |= {"selection": job.selection} if job.selection != DEFAULT else {}
    record = json.loads((job.path / "config.json").read_text(encoding="utf-8"))
    continued = record.get("additions", [])  # in another environment, with runs left to do
    return {
        "benchmark": job.data["title"],
        "strategy": config.strategy,
        "seed": config.seed,
        "given": given(configuration),
        "per_domain": int(config.domains_options.get("per_domain", 0)),
        "settings": kept | {"strategy_args": dict(config.strategy_args)} | several,
        "options": {key: value for key, value in dataset["options"].items() if key != "data_dir"},
        "counts": dataset["counts"],
        "digest": dataset["digest"],
        "device": config.device_here,
        "environment": record["environment"],
        **({"continued": [each["environment"] for each in continued]} if continued else {}),
    }
