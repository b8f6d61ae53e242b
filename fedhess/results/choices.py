"""What a sweep searched and what was chosen, in words, with warnings of choices at the edge of a searched range."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedhess.base.tables import markdown_table
from fedhess.jobs.job import Job, variant_number
from fedhess.jobs.search import recorded_spaces
from fedhess.jobs.variants import describe
from fedhess.results.selection import Cell, Recorded, unfinished
from fedhess.settings.ranges import Range

EDGE = 0.05  # share of a range, on the scale of its draws
FEWEST_VALUES = 3  # in a grid; with two, both are at an edge


def range_table(job: Job) -> str:
    """Render what a sweep searches, by strategy, with the source of each range."""
    lines = [
        [name, key, each.describe(), each.source]
        for name, space in recorded_spaces(job.record).items()
        for key, each in (space or {"": Range(choices=("the defaults alone",), source="")}).items()
    ]
    return markdown_table(["strategy", "setting", "searched", "source"], lines, left=4)


def choice_of(job: Job, strategy: str, cell: Cell, variant: int | None) -> dict[str, Any]:
    """Describe the choice for one target and trial: its number, its values, and which values lie at an edge."""
    found: dict[str, Any] = {"target": cell.scenario.name, "seed": cell.seed, "number": None, "settings": {}}
    if variant is None:
        return found | {"edges": {}}
    space = recorded_spaces(job.record)[strategy]
    settings = job.variants[variant]
    ends = {key: _end(space[key], value) for key, value in settings.items() if key in space}
    return found | {
        "number": variant_number(variant, job.record["variants"][variant]),
        "settings": dict(settings),
        "edges": {key: end for key, end in ends.items() if end},
    }


def _end(space: Range, value: Any) -> str:
    """Name the end of a range at which a value lies; empty if it lies at neither."""
    if space.choices:
        ordered = sorted(each for each in space.choices if type(each) in (int, float))
        if len(ordered) < FEWEST_VALUES or value not in (ordered[0], ordered[-1]):
            return ""
        return "low" if value == ordered[0] else "high"
    place = space.place(float(value))
    return "low" if place < EDGE else "high" if place > 1 - EDGE else ""


def edge_warnings(job: Job, strategy: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a warning by setting if at least half of the choices lie at one edge: better values may lie beyond it."""
    made = [choice for choice in choices if choice["number"] is not None]
    warnings: dict[str, str] = {}
    for key, space in recorded_spaces(job.record)[strategy].items():
        for end in ("low", "high"):
            count = sum(choice["edges"].get(key) == end for choice in made)
            if count and 2 * count >= len(made):
                warnings[key] = f"{count} of {len(made)} choices lie at the {end} end of {space.describe()}; widen it"
    return warnings


def choice_lines(strategies: Mapping[str, Any]) -> list[str]:
    """Render the lines below a table that show the setting chosen for each strategy, target and trial."""
    lines = [
        [name, choice["target"], str(choice["seed"]), *_shown(choice)]
        for name, result in strategies.items()
        for choice in result.get("choices", ())
    ]
    if not lines:
        return []
    heads = ["strategy", "target", "seed", "number", "chosen setting", "at an edge of what was searched"]
    return ["", markdown_table(heads, lines, left=len(heads))]


def _shown(choice: Mapping[str, Any]) -> list[str]:
    if choice["number"] is None:
        return ["none", "", ""]
    edges = ", ".join(f"{key}: {end}" for key, end in choice["edges"].items())
    return [str(choice["number"]), describe(choice["settings"]), edges]


def incomplete(job: Job, recorded: Recorded, strategy: str, *, selection: str) -> dict[str, str]:
    """Return, by target, what is missing of the runs from which a strategy's accuracy is chosen.

    For ``"lodo"`` these include the runs that also leave out one of the sources.
    """
    mine = [(run, rows) for run, rows in recorded if run.strategy == strategy]
    found: dict[str, str] = {}
    for scenario in dict.fromkeys(run.scenario for run, _ in mine if not run.inner):
        own = [(run, rows) for run, rows in mine if run.scenario == scenario]
        there = {run.config.seed for run, _ in own}
        # The total includes suggestions that Optuna has not been asked for yet
        parts = _lacking(own, "runs", total=max(len(own), job.draws.get(strategy, 0) * len(there)))
        if selection == "lodo":
            without = [{*scenario.targets, source} for source in scenario.sources]
            inner = [(run, rows) for run, rows in mine if set(run.scenario.targets) in without]
            parts += _lacking(inner, "cross-validation runs")
        absent = [str(seed) for seed in job.seeds if seed not in there]  # in merged jobs
        parts += [f"no run of seed {', '.join(absent)}"] if absent else []
        found |= {scenario.name: "; ".join(parts)} if parts else {}
    return found


def _lacking(recorded: Recorded, what: str, *, total: int | None = None) -> list[str]:
    missing, total = unfinished(recorded), total or len(recorded)
    failed = sum(run.directory.failure() is not None for run in missing)
    left = len(missing) - failed + total - len(recorded)
    return [f"of {total} {what} {failed} failed, {left} left to run"] if failed or left else []
