"""A job in words: the header before it runs, warnings about its data, the protocol line above its tables."""

from collections.abc import Mapping, Sequence

import torch

from fedhess.alignment.server_step import describe_server
from fedhess.jobs.job import Job, PlannedRun
from fedhess.jobs.variants import VARIED, describe
from fedhess.settings.privacy import privacy_words
from fedhess.settings.run_config import RunConfig

# How a protocol line names each split; the usual one is left out.
SPLITS = {"sources": "", "every": "every domain split, ", "domainbed": "every domain split as DomainBed does, "}
# Settings that have their own place in the protocol line; it reads "varied" if they vary.
NAMED = (
    "server_optimizer",
    "server_lr",
    "batch_size",
    "client_optimizer",
    "local_steps",
    "local_epochs",
    "weighting",
    "lr",
)
UNNAMED_OPTIONS = (
    *("data_dir", "seed", "stand_in_for", "dataset"),
    *("domains", "classes", "domain_names", "class_names", "input_shape"),
)  # named elsewhere, or specific to one machine


def header(job: Job, *, engine: str) -> dict[str, str]:
    """Return what a reader must know about a job before its results."""
    config = job.runs[0].config
    args = {run.config.strategy: run.config.strategy_args for run in job.runs}
    server = describe_server(f"{config.server_optimizer} lr {config.server_lr:.4g}{config.server_rate.words}", args)
    lr = f"{config.lr:g}{config.client_rate.words}"
    batch = "all examples" if config.batch_size == 0 else f"{config.batch_size} examples"
    runs = {"runs": cost(job)} if job.variants or job.selection == "lodo" else {}
    return {
        "data": job.data["title"],
        "domains": ", ".join(job.data["counts"]),
        "model": ", ".join([config.model, *_unusual(config)]),
        "strategies": ", ".join(job.strategies),
        "federation": f"{config.rounds} rounds, server {server}{config.average_words}{privacy_words(config)}",
        **({"partition": config.describe_clients()} if config.describe_clients() else {}),
        "clients": f"{config.local_work} a round on {batch}, {config.client_optimizer} lr {lr}",
        "engine": engine,
        "device": f"{config.device_here}, {config.threads or torch.get_num_threads()} thread(s)",
        "seeds": ", ".join(map(str, job.seeds)),
        **runs,
        "directory": str(job.path),
    }


def incomplete_warning(job: Job) -> str:
    """Return a warning if the data is known to be an incomplete copy, else an empty string."""
    if not job.differences:
        return ""
    return (
        f"This is not the complete {job.data['name']}: {'; '.join(job.differences)}. Results are not comparable with "
        "published ones. `python -m fedhess.data check` looks the data through."
    )


def _unusual(config: RunConfig) -> list[str]:
    """List what is unusual about how a model is made, run and fed."""
    unusual = {
        "not pretrained": not config.pretrained,
        "bf16": config.precision == "bf16",
        "compiled": config.compile,
        "deterministic": config.deterministic,
        "batch norms averaged": config.batchnorm == "averaged",
        f"augmentation {config.augment}": config.augment != "none",
        "images decoded whenever used": config.images == "streamed",
    }
    return [text for text, applies in unusual.items() if applies]


def cost(job: Job) -> str:
    """Count the runs of a job with several settings or with cross-validation."""
    outer, rounds = len(job.outer_runs), sum(run.config.rounds for run in job.runs)
    inner = len(job.runs) - outer
    several = f", {job.settings_each} settings among them" if job.variants else ""
    if job.search.get("kind") == "optuna":
        return f"{outer}, then Optuna suggests up to {job.search['draws']} settings for each strategy, target and seed"
    more = f" and {inner} more for cross-validation" if inner else ""
    return f"{outer}{several}{more}: {len(job.runs)} runs, {rounds:,} rounds of training"


def stand_in_warning(job: Job) -> str:
    """Return a warning if other data stands in for the requested data, else an empty string."""
    name, wanted = job.data["name"], job.data["stand_in_for"]
    if not wanted:
        return ""
    return (
        f"{name} stands in for {wanted}, which could not be had. The results below are about {name} and say nothing "
        f"about {wanted}. --require-real fails instead and lists the ways to get the data."
    )


def name_run(job: Job, run: PlannedRun) -> str:
    """Name a run by its strategy, its setting if the job has several, its target and its seed."""
    return f"{run.strategy}{describe_setting(job, run)}, target {run.scenario.name}, seed {run.config.seed}"


def describe_failures(job: Job, failures: Mapping[int, str]) -> str:
    """Name the runs that failed, each with the reason."""
    lines = [f"\n  {name_run(job, job.runs[number])}: {failures[number]}" for number in sorted(failures)]
    return f"{len(failures)} of {len(job.runs)} runs failed:{''.join(lines)}"


def describe_setting(job: Job, run: PlannedRun) -> str:
    """Return a run's setting in brackets if its job has several, else an empty string."""
    return f" ({describe(job.variants[run.variant])})" if job.variants else ""


def protocol(job: Job, rules: Sequence[str]) -> str:
    """Describe in one line how the numbers of a table came about."""
    config = job.runs[0].config
    varied = {key for variant in job.variants for key in variant}
    varied |= {key for key in VARIED if len({getattr(run.config, key) for run in job.outer_runs}) > 1}

    def shown(key: str, value: str) -> str:
        return "varied" if key in varied else value

    sources = " or ".join(sorted({str(len(run.config.sources)) for run in job.outer_runs}))
    server_lr = shown("server_lr", f"{config.server_lr:.4g}") + config.server_rate.words
    server = f"{shown('server_optimizer', config.server_optimizer)} lr {server_lr}"
    lr = shown("lr", f"{config.lr:g}") + config.client_rate.words
    batch = shown("batch_size", "all" if config.batch_size == 0 else str(config.batch_size))
    adam = shown("client_optimizer", "Adam" if config.client_optimizer == "Adam" else "")
    adam += " " if adam else ""
    work = "varied local work" if {"local_steps", "local_epochs"} & varied else config.local_work
    weighting = "" if config.weighting == RunConfig.model_fields["weighting"].default else f", by {config.weighting}"
    weighting = ", weighting varied" if "weighting" in varied else weighting
    options = {key: value for key, value in job.data["options"].items() if key not in UNNAMED_OPTIONS and value}
    data = f"data {', '.join(f'{key}={value}' for key, value in options.items())}; " if options else ""
    if job.differences:
        data = f"not the complete {job.data['name']}; {data}"
    args = {run.config.strategy: run.config.strategy_args for run in job.outer_runs}
    clients = "".join(f", {text}" for text in (config.describe_clients(),) if text)
    weights = "" if config.pretrained else " (not pretrained)"
    others_varied = sorted(key for key in varied if key in RunConfig.model_fields and key not in NAMED)
    others = f"; varied: {', '.join(others_varied)}" if others_varied else ""
    kind = {"random": " drawn at random", "grid": " of a grid", "optuna": " suggested by Optuna"}
    among = f" among {job.settings_each} settings{kind.get(job.search.get('kind', ''), '')}" if job.variants else ""
    server = describe_server(server + weighting, args)
    server += config.robust_words + config.average_words + privacy_words(config)
    return (
        f"{data}{sources} source domains{clients}, {SPLITS[config.split]}{config.rounds} rounds x {work}, "
        f"model {config.model}{weights}, batch {batch}, client {adam}lr {lr}, "
        f"server {server}, seeds {', '.join(map(str, job.seeds))}, "
        f"selection{among} by {' and '.join(rules)}{others}"
    )


def whole_protocol(job: Job, rules: Sequence[str]) -> str:
    """Describe in one line how the numbers came about, with the arguments of every strategy."""
    return "; ".join([protocol(job, rules), *(f"{name} {text}" for name, text in describe_arguments(job).items())])


def describe_arguments(job: Job) -> dict[str, str]:
    """Return each strategy's arguments, defaults included; varied arguments and strategies without any are left out."""
    varied = {key for variant in job.variants for key in variant}
    described = {
        name: ", ".join(f"{key}={value}" for key, value in args.items() if not {key, f"{name}.{key}"} & varied)
        for name, args in job.record["strategies"].items()
    }
    return {name: text for name, text in described.items() if text}
