"""Show a scenario's results beside the published ones: Markdown tables and a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhess.runs import writing
from fedhess.selection import ORACLE
from simulations.outputs import describe_revision
from simulations.particulars import own_particulars, shared_protocol
from simulations.published import Published, Table
from simulations.records import Cell, Line, Record, Row, lines_of

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
        f"Accuracy (%), mean +- standard deviation (n - 1) over seeds. Made by `python -m simulations.{command}`; "
        "seeds and examples a domain may come from several invocations.",
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
            cells += [_shown(line.cells.get(column)), *([_quoted(known.get(column))] if column in compared else [])]
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


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "n/a"
    return f"{cell.mean:.1f}" + ("" if cell.deviation is None else f" +- {cell.deviation:.1f}")


def _quoted(value: Published | None) -> str:
    if value is None:
        return ""
    return "not verified" if value.value is None else _shown(Cell(value.value, value.deviation))


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


def draw(comparison: Comparison, record: Record, path: Path) -> None:
    """Draw a row of panels for each table: our means with their deviations, published values as marks.

    Raises:
        StorageError: The file cannot be written.
    """
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    tables = [rows for rows in _tables(record) if any(line.cells for line in lines_of(rows))]
    if not tables:
        return
    panels = [_panels(comparison, lines_of(rows)) for rows in tables]
    widest = max(map(len, panels))
    size = (4.5 * widest, 3.8 * len(tables))
    figure, axes = plt.subplots(len(tables), widest, figsize=size, squeeze=False, constrained_layout=True)
    for rows, columns, row_of_axes in zip(tables, panels, axes, strict=True):
        published = comparison.published.get(rows[0]["benchmark"], {})
        for column, axis in zip([*columns, *[None] * (widest - len(columns))], row_of_axes, strict=True):
            if column is None:
                axis.axis("off")
                continue
            lines = [line for line in lines_of(rows) if column in line.cells]
            cells = [line.cells[column] for line in lines]
            places = range(len(lines))
            axis.barh(
                places, [c.mean for c in cells], xerr=[c.deviation or 0.0 for c in cells], alpha=0.7, label="ours"
            )
            known = [published.get(line.strategy, {}).get(column) for line in lines]
            marks = [
                (place, k.value, k.deviation or 0.0) for place, k in zip(places, known, strict=True) if k and k.value
            ]
            if marks:
                at, values, errors = zip(*marks, strict=True)
                axis.errorbar(values, at, xerr=errors, fmt="kD", markersize=5, label="published")
                axis.legend(fontsize=7)
            axis.set_yticks(places, [line.label for line in lines])
            axis.invert_yaxis()
            axis.set(xlabel="accuracy (%)", xlim=(0, 100))
            axis.set_title(f"{comparison.label(column)}\n{_heading(rows)}", fontsize=9)
    figure.suptitle(comparison.title + (" (QUICK: no result)" if record["quick"] else ""))
    with writing(path):
        figure.savefig(path, dpi=110)
    plt.close(figure)


def _panels(comparison: Comparison, lines: list[Line]) -> list[str]:
    columns = comparison.columns(lines)
    return ["sources", "average"] if "average" in columns else columns
