"""Find the model of a finished run, at the selected round or the last one, and load it."""

from dataclasses import dataclass

from torch import Tensor

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.jobs.job import Job, PlannedRun
from fedhess.jobs.reopening import require_finished, with_inner_runs
from fedhess.jobs.selectors import DEFAULT, SELECTORS
from fedhess.models.building import build_model
from fedhess.models.headed import AUXILIARY, HeadedModel
from fedhess.results.selection import Cell, cells_of, read_rows, selection_rule

SELECTED, BY_SOURCES, LAST = "selected", "source", "last"
ROUNDS = (SELECTED, BY_SOURCES, LAST)
ROUND_HELP = (
    "Which round's model: selected, the one that the job's tables report; source, the one that the run kept by source "
    "validation; or last."
)


@dataclass(frozen=True)
class RunModel:
    """A model of a finished run."""

    run: PlannedRun
    server_round: int
    chosen_by: str

    def load(self, *, device: str | None = None) -> HeadedModel:
        """Build the model with the weights that were evaluated at its round, in evaluation mode."""
        require_finished(self.run)
        directory = self.run.directory
        kept, last = directory.selected_round(), self.run.config.rounds
        if self.server_round == last:
            checkpoint = directory.load_checkpoint()
            assert checkpoint is not None, "a finished run has a checkpoint"
            return _build(self.run, checkpoint.evaluated(), device)
        if self.server_round == kept:
            return _build(self.run, directory.load_selected(), device)
        there = f"round {last} (--round last)"
        if kept is None:
            there += " alone, as earlier versions did"
        else:
            there += f" and of round {kept} (--round source: by source validation as the run went)"
        raise UsageError(
            f"{directory.path}: round {self.server_round} is selected by {self.chosen_by}, and the run kept the model "
            f"of {there}; choose one that is there"
        )


def find_models(job: Job, which: str = SELECTED) -> list[RunModel]:
    """Find the model of every strategy, target and seed of a job, in the order of its runs.

    If a strategy has several settings, the model is of the setting that the job's selector chooses, whatever the round.

    Args:
        job: A job with finished runs, including those for cross-validation if it selects by cross-validation.
        which: One of :data:`ROUNDS`.
    """
    if which not in ROUNDS:
        raise UsageError(f"--round: unknown {which!r}; {did_you_mean(which, ROUNDS)}")
    recorded = read_rows(job)
    found = [_find(job, strategy, cell, which) for strategy in job.strategies for cell in cells_of(recorded, strategy)]
    for model in found:
        require_finished(model.run)
    return sorted(found, key=lambda model: job.runs.index(model.run))


def narrowed(job: Job, *, strategy: str | None = None, target: str | None = None, seed: int | None = None) -> Job:
    """Keep only the runs of a strategy, target and seed; None keeps all."""
    wanted = (strategy, target, seed)
    meant = [
        run for run in job.outer_runs if all(value in (None, own) for value, own in zip(wanted, _key(run), strict=True))
    ]
    if not meant:
        raise UsageError(f"expected strategy, target and seed of a run of {job.path}: {_listed(job)}")
    return with_inner_runs(job, meant)


def find_model(job: Job, which: str = SELECTED) -> RunModel:
    """Find the model of a job's one strategy, target and seed; see `find_models`."""
    if len({_key(run) for run in job.outer_runs}) != 1:
        raise UsageError(f"expected strategy, target and seed of one run of {job.path}, got several: {_listed(job)}")
    (model,) = find_models(job, which)
    return model


def _listed(job: Job) -> str:
    return "; ".join(dict.fromkeys(", ".join(map(str, _key(run))) for run in job.outer_runs))


def _key(run: PlannedRun) -> tuple[str, str, int]:
    return run.strategy, run.scenario.name, run.config.seed


def _find(job: Job, strategy: str, cell: Cell, which: str) -> RunModel:
    choice, rows = cell.choose(job.selection)
    if choice is None and (which == SELECTED or len(cell.variants) > 1):
        raise UsageError(
            f"{job.path}: no round of {strategy}, target {cell.scenario.name}, seed {cell.seed} can be selected by "
            f"{SELECTORS[job.selection]}: too few clients evaluated any of them; name one run's directory and give "
            "--round last"
        )
    variant = cell.variants[0] if choice is None else cell.variants[choice.candidate]
    run = next(
        run for run in job.outer_runs if (*_key(run), run.variant) == (strategy, cell.scenario.name, cell.seed, variant)
    )
    if which == LAST:
        return RunModel(run, run.config.rounds, "nothing: the last round's model")
    kept = run.directory.selected_round()
    if which == BY_SOURCES and kept is not None:
        return RunModel(run, kept, f"{selection_rule(rows)} as the run went")
    if which == BY_SOURCES or choice is None:
        raise UsageError(
            f"{run.directory.path} was recorded before models of selected rounds were kept; give --round last"
        )
    rule = selection_rule(rows) if job.selection == DEFAULT else SELECTORS[job.selection]
    return RunModel(run, choice.server_round, rule)


def _build(run: PlannedRun, stored: dict[str, Tensor], device: str | None) -> HeadedModel:
    config = run.config if device is None else run.config.model_copy(update={"device": device})
    model = build_model(config, initial=False)
    stored = {name: tensor for name, tensor in stored.items() if not name.startswith(AUXILIARY)}
    wanted = model.state_dict()
    shapes, expected = ({name: value.shape for name, value in state.items()} for state in (stored, wanted))
    if shapes != expected:
        different = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
        raise UsageError(
            f"{run.directory.path}: its checkpoint does not fit the model {run.config.model!r} and differs in: "
            f"{', '.join(different)}; open it with the version of fedhess that trained it"
        )
    model.load_state_dict(stored)
    return model.eval()
