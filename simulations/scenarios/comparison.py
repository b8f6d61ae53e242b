"""Show a scenario's results beside the published ones: Markdown tables and a figure."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fedhess.alignment.loading import find_method, known_strategies
from fedhess.alignment.server_step import describe_server, is_server_setting
from fedhess.base.files import writing
from fedhess.base.tables import shown
from fedhess.jobs.selectors import ORACLE
from fedhess.jobs.variants import VARIED
from fedhess.results.figures import drawing, line_look, written
from fedhess.results.paired import BASELINE, compare_paired, explain, shown_difference
from fedhess.results.published import Published, Table
from fedhess.settings.partition import PartitionSettings
from fedhess.simulations.scenarios.outputs import describe_revision
from fedhess.simulations.scenarios.records import Cell, Line, Record, Row, environments_of, lines_of

BEYOND = ("strategy_args", "variants", "selection")  # keys of a line's settings that are not settings of the run
Judge = Callable[[str, Mapping[str, Cell]], str]


@dataclass(frozen=True)
class Comparison:
    """How a scenario's results are shown."""

    name: str  # of the scenario's module and files
    title: str
    published: Mapping[str, Table]  # by the benchmark's title
    scripts: Mapping[str, Table] = field(default_factory=dict)  # what the authors' code gave when run here; unpublished
    labels: Mapping[str, str] = field(default_factory=dict)  # of columns, where they differ from the domain's
    average: bool = True  # whether the mean over the targets is meaningful
    balance: bool = False  # whether the classes of every client are listed
    judge: Judge | None = None  # tells whether a strategy's means over all examples reach a bar
    variety: str = ""  # arguments of the command that select this variant of the scenario
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Name of the scenario's files, without an ending."""
        return "-".join([self.name, *self.variety.split()[1:]])

    def label(self, column: str) -> str:
        """Name a column."""
        return self.labels.get(column, column)

    def columns(self, lines: list[Line]) -> list[str]:
        """List the columns of a table; the average comes last, then only the oracle, which looks at the target."""
        found = dict.fromkeys(column for line in lines for column in line.cells)
        last = [*(["average"] if self.average else []), ORACLE]
        return [column for column in found if column not in ("average", ORACLE)] + [c for c in last if c in found]


def render(comparison: Comparison, record: Record) -> str:
    """Render the results as Markdown: a table with notes for each benchmark, number of examples and partition."""
    lines = [f"# {comparison.title}", ""]
    if record["quick"]:
        lines += ["QUICK: few examples and rounds, to see that it works. These numbers are no results.", ""]
    command = " ".join(filter(None, [comparison.name, comparison.variety, "--quick" if record["quick"] else ""]))
    lines += [
        "Accuracy (%), mean +- standard error over seeds; sd: a published standard deviation over restarts. Made by "
        f"`python -m fedhess.simulations.{command}`; seeds and examples a domain may come from several invocations.",
    ]
    lines += ["", *(f"- {note}" for note in comparison.notes)] if comparison.notes else []
    for rows in tables(record):
        lines += ["", *_render_table(comparison, rows, quick=record["quick"])]
    return "\n".join(lines)


def tables(record: Record) -> list[list[Row]]:
    """Split the rows by benchmark, number of examples and partition."""
    found: dict[tuple[str, int, str], list[Row]] = {}
    for row in record["rows"]:
        found.setdefault((row["benchmark"], row["per_domain"], _partition(row)), []).append(row)
    return list(found.values())


def heading(rows: Sequence[Row]) -> str:
    """Describe a table's rows: their benchmark, number of examples, and partition into clients."""
    per_domain = rows[0]["per_domain"]
    examples = f"the first {per_domain:,} examples of each domain" if per_domain else "all examples"
    return ", ".join(filter(None, [rows[0]["benchmark"], examples, _partition(rows[0])]))


def _partition(row: Row) -> str:
    names = [each.name for each in fields(PartitionSettings)]
    return PartitionSettings(**{name: row["settings"][name] for name in names if name in row["settings"]}).describe()


def _render_table(comparison: Comparison, rows: list[Row], *, quick: bool) -> list[str]:
    published, scripts = (each.get(rows[0]["benchmark"], {}) for each in (comparison.published, comparison.scripts))
    full = not quick and not rows[0]["per_domain"]
    judge = comparison.judge if full else None
    lines = lines_of(rows)
    cited: dict[str, int] = {}  # sources, in the order they are cited
    columns = comparison.columns(lines)
    compared = [column for column in columns if any(column in values for values in published.values())]
    tested = ["average"] if "average" in columns else [each for each in columns if each not in ("sources", ORACLE)]
    ended = [line for line in lines if line.rows]
    base = next((line for line in ended if line.strategy == BASELINE), ended[0] if ended else None)
    alike = [line for line in ended if base is not None and line.settings.get("data") == base.settings.get("data")]
    paired = compare_paired({line.label: {each: line.by_seed(each) for each in tested} for line in alike})
    heads = ["strategy", "seeds"]
    for column in columns:
        heads += [comparison.label(column), *([f"to {paired['baseline']}"] if paired and column in tested else [])]
        heads += ["published"] if column in compared else []
    heads += [f"authors' script ({' / '.join(map(comparison.label, columns))})"] if scripts else []
    heads += [*(["source"] if published else []), *(["bar"] if judge else [])]
    table = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for line in lines:
        known, script = published.get(line.strategy, {}), scripts.get(line.strategy, {})
        cells = [line.label, ", ".join(map(str, line.seeds)) or "none"]
        for column in columns:
            cells.append(shown(line.cells[column]) if column in line.cells else "n/a")
            if paired and column in tested:
                difference = paired["strategies"].get(line.label, {}).get(column)
                cells.append("" if difference is None else shown_difference(difference))
            cells += [_quoted(known.get(column))] if column in compared else []
        cells += [" / ".join(_quoted(script[column]) for column in columns if column in script)] if scripts else []
        sources = dict.fromkeys(value.source for value in [*known.values(), *script.values()])
        cells += [" ".join(f"[{cited.setdefault(each, len(cited) + 1)}]" for each in sources)] if published else []
        cells += [judge(line.strategy, line.cells) if line.cells else ""] if judge else []
        table.append("| " + " | ".join(cells) + " |")
    notes = [*own_particulars(lines), *troubles(lines)]
    notes += [explain(paired)] if paired else []
    notes += [f"[{number}] {source}" for source, number in cited.items()]
    if published and not full:
        notes.append("the published values are of all examples and rounds: this table cannot be held against them")
    notes += [*(_balance(rows) if comparison.balance else []), *dict.fromkeys(map(describe_machine, rows))]
    return [f"## {heading(rows)}", "", shared_protocol(lines), "", *table, "", *(f"- {note}" for note in notes)]


def troubles(lines: Sequence[Line]) -> list[str]:
    """List by strategy and seed what stopped, what the numbers lack, and what cannot be reproduced."""
    found = [f"{line.label}, seed {seed}: stopped: {why}" for line in lines for seed, why in line.stopped.items()]
    for line in lines:
        found += [f"{line.label}, seed {row['seed']}: {text}" for row in line.rows for text in row.get("warnings", ())]
    return found + [
        f"{line.label}, seed {seed}: UNCOMMITTED CHANGES, cannot be made again"
        for line in lines
        for seed in line.irreproducible
    ]


# -- What the strategies of a table have in common, and what each has of its own: by settings and protocol line --------


def shared_protocol(lines: Sequence[Line]) -> str:
    """Return what most lines of a table have in common: the protocol, and the rule of selection."""
    return ", selection ".join(filter(None, _usual_parts(lines)))


def own_particulars(lines: Sequence[Line]) -> list[str]:
    """List each strategy that has arguments, or differs from the others in a setting, its server or its selection.

    Returns:
        Items of a list, as ``irm: weight=0.1, anneal_steps=0``.
    """
    head, rule = _usual_parts(lines)
    keys = dict.fromkeys(key for line in lines for key in line.settings if key not in BEYOND)
    usual = {key: json.loads(_commonest(json.dumps(line.settings.get(key)) for line in lines)) for key in keys}
    listed: list[str] = []
    for line in lines:
        own_head, own_rule, args = _parts(line)
        differing = [*_overrides(line, usual), *_server(line, head)]
        differing += [own_head] if own_head not in ("", head) and not differing else []
        differing += [f"selection {own_rule}"] if own_rule not in ("", rule) else []
        if args or differing:
            listed.append(f"{line.label}: {'; '.join(filter(None, [args, *differing]))}")
    if len(listed) < len(lines):
        listed.append("others: their own defaults" if listed else "every strategy: its own defaults")
    return listed


def _parts(line: Line) -> tuple[str, str, str]:
    """Split a line's protocol into what the run was, its rule of selection, and the strategy's arguments."""
    head, _, rest = line.protocol.partition(", seeds ")
    if not rest:  # every seed stopped
        return "", "", ", ".join(f"{key}={value}" for key, value in line.settings.get("strategy_args", {}).items())
    rule, *own = rest.partition(", selection ")[2].split("; ")
    return head, rule, "; ".join(text.removeprefix(f"{line.strategy} ") for text in own)


def _usual_parts(lines: Sequence[Line]) -> tuple[str, str]:
    heads, rules, _ = zip(*map(_parts, lines), strict=True)
    return _commonest(heads), _commonest(rules)


def _commonest(texts: Iterable[str]) -> str:
    counted = Counter(filter(None, texts))
    return counted.most_common(1)[0][0] if counted else ""


def _overrides(line: Line, usual: Mapping[str, Any]) -> list[str]:
    without_effect = set(filter(is_server_setting, usual)) if _is_plain(line.strategy) else set()
    without_effect |= set(VARIED) if "variants" in line.settings else set()  # they are those of the first variant
    differing = [key for key in usual if line.settings.get(key) != usual[key] and key not in without_effect]
    return [f"{key}={_short(line.settings.get(key))} instead of {_short(usual[key])}" for key in differing]


def _server(line: Line, head: str) -> list[str]:
    """Describe the server step of a plain Flower strategy, if the table's protocol does not."""
    if not _is_plain(line.strategy):
        return []
    server = f"server {describe_server('', {line.strategy: line.settings.get('strategy_args', {})})}"
    return [] if server in head else [server]


def _is_plain(strategy: str) -> bool:
    return strategy in known_strategies() and find_method(strategy).is_flower


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- Cells and figure --------------------------------------------------------------------------------------------------


def _quoted(value: Published | None) -> str:
    if value is None:
        return ""
    if value.value is None:
        return "not verified"
    return f"{value.value:.1f}" + ("" if value.deviation is None else f" (sd {value.deviation:.1f})")


def _balance(rows: list[Row]) -> list[str]:
    """List the classes of every client, for the lowest seed."""
    row = min(rows, key=lambda row: int(row["seed"]))
    lines = [f"classes of {domain}: {balance}" for domain, balance in class_balance(row).items()]
    return [*lines, f"class counts are of seed {row['seed']}; noise and shuffle differ by seed"]


def class_balance(row: Row) -> dict[str, str]:
    """Describe the classes of every client of a row: count and share."""
    described = {}
    for domain, counts in row["counts"].items():
        total = sum(counts.values())
        shares = (f"{name} {count:,} ({100 * count / total:.1f} %)" for name, count in counts.items())
        described[domain] = ", ".join(shares)
    return described


def describe_machine(row: Row) -> str:
    """Describe where a row was measured: machine, versions, revision; several if its job was continued."""
    return "; continued on ".join(
        f"{machine['platform']}, {machine['cpu_count']} cores, {row['device']}, torch {machine['versions']['torch']}, "
        f"flwr {machine['versions']['flwr']}, {describe_revision(machine)}"
        for machine in environments_of(row)
    )


def draw(comparison: Comparison, record: Record, path: Path) -> list[Path]:
    """Draw a row of panels for each table: our means with their standard errors, published values as marks.

    Returns:
        The files, PNG and SVG; none where there is nothing to show.
    """
    drawn = [(rows, [line for line in lines_of(rows) if line.cells]) for rows in tables(record)]
    drawn = [(rows, lines) for rows, lines in drawn if lines]
    if not drawn:
        return []
    panels = [_panels(comparison, lines) for _, lines in drawn]
    shape = len(drawn), max(map(len, panels))
    size = 4, 1.2 + 0.22 * max(len(lines) for _, lines in drawn)
    title = comparison.title + (" (QUICK: no result)" if record["quick"] else "")
    note = "bars: standard error of the mean over seeds, where there are several; each panel has a scale of its own"
    with writing(path), drawing(path, shape, size=size, title=title, note=note, sharey="row") as axes:
        for (rows, lines), columns, row_of_axes in zip(drawn, panels, axes, strict=True):
            published = comparison.published.get(rows[0]["benchmark"], {})
            for column, axis in zip(columns, row_of_axes, strict=False):
                _draw_column(axis, lines, column, published)
                axis.set_title(f"{heading(rows)}: {comparison.label(column)}", fontsize=9)
            row_of_axes[0].set_yticks(range(len(lines)), [line.label for line in lines])
            row_of_axes[0].set_ylim(len(lines) - 0.5, -0.5)
    return written(path)


def _panels(comparison: Comparison, lines: list[Line]) -> list[str]:
    columns = comparison.columns(lines)
    return ["sources", "average"] if "average" in columns else columns


def _draw_column(axis: Any, lines: list[Line], column: str, published: Table) -> None:
    ours, theirs = line_look(0), line_look(1)
    cells = {place: line.cells[column] for place, line in enumerate(lines) if column in line.cells}
    means = [cell["mean"] for cell in cells.values()]
    errors = [cell["standard_error"] or 0.0 for cell in cells.values()]
    axis.plot(means, list(cells), ours["marker"], color=ours["color"], label="ours, mean over seeds")
    axis.errorbar(means, list(cells), xerr=errors, fmt="none", color=ours["color"], capsize=2)
    known = {place: published.get(line.strategy, {}).get(column) for place, line in enumerate(lines)}
    marks = {place: each.value for place, each in known.items() if each and each.value is not None}
    if marks:
        look = {"color": theirs["color"], "fillstyle": "none", "markersize": 8, "label": "published"}
        axis.plot(list(marks.values()), list(marks), theirs["marker"], **look)
    axis.set(xlabel="accuracy (%)")
    axis.grid(alpha=0.3)
