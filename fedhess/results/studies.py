"""Optuna's search: each setting of a sweep depends on the source validation of the settings before it.

There is one study for each strategy, target and trial. A study over several targets would leak a target into the
choice: the target's held-out examples are part of the other targets' source validation.

For every setting, the study is rebuilt from the recorded rows, with a sampler seeded by (seed, strategy, target,
number). An interrupted sweep therefore continues with the settings that it would have had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedhess.alignment.loading import resolved_args
from fedhess.base.errors import UsageError
from fedhess.base.seeds import derive_seed
from fedhess.federation.engines.choice import Engine
from fedhess.jobs.directory import amend_config
from fedhess.jobs.job import Job, make_job, variant_number
from fedhess.jobs.progress import Progress
from fedhess.jobs.running import run_job
from fedhess.jobs.search import recorded_spaces, variant_of
from fedhess.jobs.selectors import DEFAULT
from fedhess.jobs.variants import is_run_setting
from fedhess.results.selection import Cell, cells_of, choose, read_rows
from fedhess.settings.assignments import Scalar
from fedhess.settings.ranges import Range

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def require_optuna() -> None:
    """Check that Optuna is installed."""
    try:
        import optuna  # noqa: F401, PLC0415
    except ImportError as error:
        raise UsageError(
            f"--search optuna: Optuna cannot be imported ({error}); pip install 'fedhess[optuna]', or take --search "
            "random"
        ) from error


def run_studies(job: Job, progress: Progress, *, engine: Engine) -> Job:
    """Run a sweep's first settings; then, until all have run, ask every study for its next setting and run these."""
    run_job(job, progress, engine=engine)
    while suggested := suggest(job):
        record = {**job.record, "variants": [*job.record["variants"], *suggested]}
        longer = make_job(job.path, record, inner=False, selection=job.selection, benchmark=job.benchmark)
        amend_config(job.path, {"variants": record["variants"]})
        progress.note(f"\nsuggested by Optuna: setting {suggested[0]['number'] + 1} of {job.search['draws']}")
        known = {run.directory.path for run in job.runs}
        longer = replace(longer, trackers=job.trackers)
        runs = tuple(run for run in longer.runs if run.directory.path not in known)
        run_job(replace(longer, runs=runs), progress, engine=engine)
        job = longer
    return job


def suggest(job: Job) -> list[dict[str, Any]]:
    """Ask every incomplete study for its next setting, based on the recorded rows of its earlier settings."""
    recorded, spaces = read_rows(job), recorded_spaces(job.record)
    suggested: list[dict[str, Any]] = []
    for strategy, space in spaces.items():
        for cell in cells_of(recorded, strategy) if space else ():
            numbers = [variant_number(index, job.record["variants"][index]) for index in cell.variants]
            number = max(numbers) + 1
            if number >= job.search["draws"]:
                continue
            first = job.record["variants"][cell.variants[numbers.index(0)]]
            seed = derive_seed(cell.seed, "optuna", strategy, cell.scenario.name, number) % 2**32
            drawn = _ask(_history(job, cell, first["arguments"][strategy]), space, seed=seed)
            own = {key: value for key, value in drawn.items() if not is_run_setting(key)}
            args = resolved_args(strategy, first["arguments"][strategy] | own)
            suggested.append(variant_of(strategy, number, drawn, args, seed=cell.seed, target=cell.scenario.name))
    return suggested


def _history(job: Job, cell: Cell, defaults: Mapping[str, Scalar]) -> list[tuple[Mapping[str, Scalar], float | None]]:
    """Return the values of each setting that was run and its source validation, None if no round can be selected."""
    config = job.record["settings"]
    server = {f"server_optimizer_args.{key}": value for key, value in config["server_optimizer_args"].items()}
    results = []
    for index, candidate in zip(cell.variants, cell.candidates, strict=True):
        choice = choose(DEFAULT, [candidate], ())
        settings = job.variants[index] or {**config, **server, **defaults}
        results.append((settings, None if choice is None else choice.accuracy))
    return results


def _ask(
    history: Sequence[tuple[Mapping[str, Scalar], float | None]], space: Mapping[str, Range], *, seed: int
) -> dict[str, Scalar]:
    """Ask a study with a history for a setting; the history includes only settings that lie in the ranges."""
    import optuna  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(each) for key, each in space.items()}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for settings, value in history:
        if all(key in settings and each.within(settings[key]) for key, each in space.items()):
            study.add_trial(_trial({key: settings[key] for key in space}, distributions, value))
    asked = study.ask(distributions)
    return {key: asked.params[key] for key in space}


def _trial(
    settings: Mapping[str, Scalar], distributions: Mapping[str, "BaseDistribution"], value: float | None
) -> "FrozenTrial":
    from optuna.trial import TrialState, create_trial  # noqa: PLC0415

    state = TrialState.FAIL if value is None else TrialState.COMPLETE
    return create_trial(state=state, value=value, params=dict(settings), distributions=dict(distributions))


def _distribution(space: Range) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: PLC0415

    if space.choices:
        return CategoricalDistribution(space.choices)
    low, high = space.ends
    if space.whole:
        low = max(low, 1.0) if space.base else low
        return IntDistribution(int(low), int(high), log=bool(space.base))
    return FloatDistribution(low, high, log=bool(space.base))
