"""Show a scenario's results beside the published ones: Markdown tables and a figure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhess.base.files import writing
from fedhess.jobs.selectors import ORACLE
from fedhess.results.figures import drawing, line_look, written
from fedhess.simulations.scenarios.differences import own_particulars, shared_protocol
from fedhess.simulations.scenarios.outputs import describe_revision
from fedhess.simulations.scenarios.published_results import Published, Table
from fedhess.simulations.scenarios.records import Cell, Line, Record, Row, lines_of

Judge = Callable[[str, Mapping[str, Cell]], str]


@dataclass(frozen=True)
class Comparison:
    """How a scenario's results are shown.

    Attributes:
        name: Of the scenario's module and files.
        title: What it shows.
        published: Published values by the benchmark's title.
        scripts: What authors' code gave here, in the same form; in a column of its own, since nobody published it.
        labels: Names of columns where they differ from the domain's.
        average: Whether the mean over the targets says something.
        balance: Whether the classes of every client are listed.
        judge: Says of a strategy's means over all examples whether they reach what was set; None for nothing set.
        variety: Tells one way to run the scenario from others, as the arguments of its command; empty for the usual.
        notes: What a reader must know of every table.
    """

    name: str
    title: str
    published: Mapping[str, Table]
    scripts: Mapping[str, Table] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    average: bool = True
    balance: bool = False
    judge: Judge | None = None
    variety: str = ""
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Name of the scenario's files, without an ending."""
        return "-".join([self.name, *self.variety.split()[1:]])

    def label(self, column: str) -> str:
        """Name a column."""
        return self.labels.get(column, column)

    def columns(self, lines: list[Line]) -> list[str]:
        """List the columns of a table; the average comes last, and after it only what looks at the target."""
        found = dict.fromkeys(column for line in lines for column in line.cells)
        last = [*(["average"] if self.average else []), ORACLE]
        return [column for column in found if column not in ("average", ORACLE)] + [c for c in last if c in found]


def render(comparison: Comparison, record: Record) -> str:
    """Render the results as Markdown: a table for each benchmark and number of examples, then the sources."""
    lines = [f"# {comparison.title}", ""]
    if record["quick"]:
        lines += ["QUICK: few examples and rounds, to see that it works. These numbers are no results.", ""]
    command = " ".join(filter(None, [comparison.name, comparison.variety, "--quick" if record["quick"] else ""]))
    lines += [
        "Accuracy (%), mean +- standard error over seeds; sd: a published standard deviation over restarts. Made by "
        f"`python -m fedhess.simulations.{command}`; seeds and examples a domain may come from several invocations.",
    ]
    lines += ["", *(f"- {note}" for note in comparison.notes)] if comparison.notes else []
    for rows in _tables(record):
        lines += ["", *_render_table(comparison, rows, quick=record["quick"])]
    return "\n".join(lines)


def _tables(record: Record) -> list[list[Row]]:
    tables: dict[tuple[str, int], list[Row]] = {}
    for row in record["rows"]:
        tables.setdefault((row["benchmark"], row["per_domain"]), []).append(row)
    return list(tables.values())


def _heading(rows: list[Row]) -> str:
    per_domain = rows[0]["per_domain"]
    examples = f"the first {per_domain:,} examples of each domain" if per_domain else "all examples"
    return f"{rows[0]['benchmark']}, {examples}"


def _render_table(comparison: Comparison, rows: list[Row], *, quick: bool) -> list[str]:
    published, scripts = (each.get(rows[0]["benchmark"], {}) for each in (comparison.published, comparison.scripts))
    full = not quick and not rows[0]["per_domain"]
    judge = comparison.judge if full else None
    lines, sources = lines_of(rows), _Sources()
    columns = comparison.columns(lines)
    compared = [column for column in columns if any(column in values for values in published.values())]
    heads = ["strategy", "seeds"]
    for column in columns:
        heads += [comparison.label(column), *(["published"] if column in compared else [])]
    heads += [f"authors' script ({' / '.join(map(comparison.label, columns))})"] if scripts else []
    heads += [*(["source"] if published else []), *(["bar"] if judge else [])]
    table = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for line in lines:
        known, script = published.get(line.strategy, {}), scripts.get(line.strategy, {})
        cells = [line.label, ", ".join(map(str, line.seeds)) or "none"]
        for column in columns:
            cells += [_shown(line, column), *([_quoted(known.get(column))] if column in compared else [])]
        cells += [" / ".join(_quoted(script[column]) for column in columns if column in script)] if scripts else []
        cells += [sources.marks([*known.values(), *script.values()])] if published else []
        cells += [judge(line.strategy, line.cells) if line.cells else ""] if judge else []
        table.append("| " + " | ".join(cells) + " |")
    notes = [f"- {line.label}, seed {seed}: stopped: {why}" for line in lines for seed, why in line.stopped.items()]
    notes += [
        f"- {line.label}, seed {seed}: UNCOMMITTED CHANGES, cannot be made again"
        for line in lines
        for seed in line.irreproducible
    ]
    notes += sources.notes()
    if published and not full:
        notes.append("- the published values are of all examples and rounds: this table cannot be held against them")
    return [
        f"## {_heading(rows)}",
        "",
        shared_protocol(lines),
        "",
        *table,
        "",
        *(f"- {text}" for text in own_particulars(lines)),
        *notes,
        *(_balance(rows) if comparison.balance else []),
        *_environments(rows),
    ]


class _Sources:
    """Numbers the sources of a table in the order they are cited."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def marks(self, cited: Sequence[Published]) -> str:
        sources = dict.fromkeys(value.source for value in cited)
        return " ".join(f"[{self._numbers.setdefault(source, len(self._numbers) + 1)}]" for source in sources)

    def notes(self) -> list[str]:
        return [f"- [{number}] {source}" for source, number in self._numbers.items()]


def _shown(line: Line, column: str) -> str:
    if column not in line.cells:
        return "n/a"
    error = _standard_error(line, column)
    return f"{line.cells[column].mean:.1f}" + ("" if error is None else f" +- {error:.1f}")


def _standard_error(line: Line, column: str) -> float | None:
    deviation = line.cells[column].deviation
    return None if deviation is None else deviation / math.sqrt(len(line.seeds))


def _quoted(value: Published | None) -> str:
    if value is None:
        return ""
    if value.value is None:
        return "not verified"
    return f"{value.value:.1f}" + ("" if value.deviation is None else f" (sd {value.deviation:.1f})")


def _balance(rows: list[Row]) -> list[str]:
    """List the classes of every client, of the lowest seed."""
    row = min(rows, key=lambda row: int(row["seed"]))
    lines = [f"- classes of {domain}: {balance}" for domain, balance in class_balance(row).items()]
    return [*lines, f"- class counts are of seed {row['seed']}; noise and shuffle differ by seed"]


def class_balance(row: Row) -> dict[str, str]:
    """Describe the classes of every client of a row: count and share."""
    described = {}
    for domain, counts in row["counts"].items():
        total = sum(counts.values())
        shares = (f"{name} {count:,} ({100 * count / total:.1f} %)" for name, count in counts.items())
        described[domain] = ", ".join(shares)
    return described


def _environments(rows: list[Row]) -> list[str]:
    places: dict[str, None] = {}
    for row in rows:
        machine = row["environment"]
        versions = machine["versions"]
        places[
            f"- {machine['platform']}, {machine['cpu_count']} cores, {row['device']}, torch {versions['torch']}, "
            f"flwr {versions['flwr']}, {describe_revision(machine)}"
        ] = None
    return list(places)


def draw(comparison: Comparison, record: Record, path: Path) -> list[Path]:
    """Draw a row of panels for each table: our means with their standard errors, published values as marks.

    Args:
        comparison: How the results are shown.
        record: The results.
        path: The PNG file.

    Returns:
        The files; none where there is nothing to show.

    Raises:
        StorageError: A file cannot be written.
    """
    tables = [rows for rows in _tables(record) if any(line.cells for line in lines_of(rows))]
    if not tables:
        return []
    panels = [_panels(comparison, lines_of(rows)) for rows in tables]
    most = max(len(lines_of(rows)) for rows in tables)
    shape, size = (len(tables), max(map(len, panels))), (4, 1.2 + 0.22 * most)
    title = comparison.title + (" (QUICK: no result)" if record["quick"] else "")
    note = "bars: standard error of the mean over seeds, where there are several; each panel has a scale of its own"
    with writing(path), drawing(path, shape, size=size, title=title, note=note, sharey="row") as axes:
        for rows, columns, row_of_axes in zip(tables, panels, axes, strict=True):
            published = comparison.published.get(rows[0]["benchmark"], {})
            lines = [line for line in lines_of(rows) if line.cells]
            for axis in row_of_axes[len(columns) :]:
                axis.axis("off")
            for column, axis in zip(columns, row_of_axes, strict=False):
                _draw_column(axis, lines, column, published)
                axis.set_title(f"{_heading(rows)}: {comparison.label(column)}", fontsize=9)
            row_of_axes[0].set_yticks(range(len(lines)), [line.label for line in lines])
            row_of_axes[0].set_ylim(len(lines) - 0.5, -0.5)
    return written(path)


def _draw_column(axis: Any, lines: list[Line], column: str, published: Table) -> None:
    ours, theirs = line_look(0), line_look(1)
    places = [place for place, line in enumerate(lines) if column in line.cells]
    means = [lines[place].cells[column].mean for place in places]
    errors = [_standard_error(lines[place], column) or 0.0 for place in places]
    axis.plot(means, places, ours["marker"], color=ours["color"], label="ours, mean over seeds")
    axis.errorbar(means, places, xerr=errors, fmt="none", color=ours["color"], capsize=2)
    known = {place: published.get(line.strategy, {}).get(column) for place, line in enumerate(lines)}
    marks = [(each.value, place) for place, each in known.items() if each and each.value is not None]
    if marks:
        values, places = map(list, zip(*marks, strict=True))
        axis.plot(
            values, places, theirs["marker"], color=theirs["color"], fillstyle="none", markersize=8, label="published"
        )
    axis.set(xlabel="accuracy (%)")
    axis.grid(alpha=0.3)


def _panels(comparison: Comparison, lines: list[Line]) -> list[str]:
    columns = comparison.columns(lines)
    return ["sources", "average"] if "average" in columns else columns
