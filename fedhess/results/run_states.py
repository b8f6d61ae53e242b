"""The state of every run of a job: complete, at a round, failed, running or not begun."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedhess.base.tables import markdown_table
from fedhess.jobs.directory import is_held
from fedhess.jobs.job import Job, PlannedRun
from fedhess.jobs.progress import scores
from fedhess.jobs.variants import describe


def list_runs(job: Job) -> list[dict[str, Any]]:
    """Describe every run of a job, in the job's order, as JSON.

    Returns:
        For each run: ``strategy``, ``settings`` (if there are several to select among), ``target``, ``seed``,
        ``directory``, ``state`` (``"complete"``, ``"running"``, ``"interrupted"``, ``"failed"`` or ``"not begun"``),
        ``round`` and ``rounds``, ``reason`` of a failure, and ``accuracy`` of the last evaluation in words.
    """
    held = is_held(job.path)
    return [
        {
            "strategy": run.strategy,
            **({"settings": describe(job.variants[run.variant])} if job.variants else {}),
            "target": run.scenario.name,
            "seed": run.config.seed,
            "directory": str(run.directory.path),
            **_state(run, held=held),
        }
        for run in job.runs
    ]


def _state(run: PlannedRun, *, held: bool) -> dict[str, Any]:
    done, reason, rows = run.directory.completed_round(), run.directory.failure(), run.directory.rows()
    state = "interrupted"
    if done == run.config.rounds:
        state = "complete"
    elif reason is not None:
        state = "failed"
    elif done is None and not run.directory.path.exists():
        state = "not begun"
    elif held and (is_held(run.directory.path) or not (run.directory.path / ".lock").exists()):
        state = "running"
    last = [row for row in rows if row["round"] == rows[-1]["round"]]
    return {
        "state": state,
        "round": done or 0,
        "rounds": run.config.rounds,
        "reason": reason if state == "failed" else None,
        "accuracy": scores(last) if last else None,
    }


def states_table(listed: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Render the results of `list_runs` by job: a line for each run, and below the table why runs failed."""
    return "\n\n".join(f"{path}: {_counted(runs)}\n\n{_table(runs)}" for path, runs in listed.items())


def _counted(runs: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(run["state"] for run in runs)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _table(runs: Sequence[Mapping[str, Any]]) -> str:
    several = any("settings" in run for run in runs)
    heads = ["strategy", *(["settings"] if several else []), "target", "seed", "state", "last accuracy"]
    lines: list[list[str]] = []
    for run in runs:
        at = "" if run["state"] in ("complete", "not begun") else f" at round {run['round']} of {run['rounds']}"
        settings = [run["settings"]] if several else []
        lines.append(
            [run["strategy"], *settings, run["target"], str(run["seed"]), run["state"] + at, run["accuracy"] or ""]
        )
    reasons = [f"- {run['directory']}: {run['reason']}" for run in runs if run["reason"]]
    return "\n".join([markdown_table(heads, lines, left=len(heads)), *(["", "failed:", *reasons] if reasons else [])])
