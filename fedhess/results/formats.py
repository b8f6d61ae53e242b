"""A job's table as Markdown (also the table of selectors), LaTeX with booktabs, and CSV; shared code comes first."""

import csv
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.tables import markdown_table, notes, short, shown
from fedhess.jobs.job import slug
from fedhess.jobs.selectors import SELECTORS
from fedhess.results.choices import choice_lines
from fedhess.results.counts import counts_section
from fedhess.results.paired import explain, shown_difference, signed, stars
from fedhess.results.summary import DISTANCES

Summary = Mapping[str, Any]  # what `summary.summarise` returns

BEST, SECOND, TIED, INCOMPLETE = "best", "second", "tied", "incomplete"
MARKS = "**best**, _second_, ~: within one standard error of the best, !: not all of its runs have ended"
SAME = 1e-9  # percent: means this close are equal up to rounding
ONE_COLUMN = 3  # columns of numbers that fit one of two text columns
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''",  # \textquotedbl is an error in LaTeX's default font encoding
}  # fmt: skip
CSV_COLUMNS = (
    *("dataset", "protocol", "strategy", "column", "mean", "standard_error", "trials", "mark"),
    *("baseline", "difference", "low", "high", "p", "p_holm", "pairs"),
)


def accuracy_columns(summary: Summary) -> list[str]:
    """Name the columns of accuracies: the targets, and their average if it is meaningful."""
    return [*summary["targets"], *(["average"] if summary["averaged"] else [])]


def cell_of(result: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return mean and standard error of a strategy in a column of accuracies."""
    found: dict[str, Any] = result["accuracy"].get(column) or result["average"]
    return found


def comparison_columns(summary: Summary) -> list[str]:
    """Name the columns of differences to the baseline: of the average, or of each target if there is no average."""
    if not summary["comparison"]:
        return []
    baseline = summary["comparison"]["baseline"]
    compared = _compared(summary)
    return [f"to {baseline}" if len(compared) == 1 else f"{column} to {baseline}" for column in compared]


def differences_of(summary: Summary, strategy: str) -> list[Mapping[str, Any] | None]:
    """List a strategy's differences by comparison column, marked if a side is ``incomplete``; None for the baseline."""
    if not summary["comparison"]:
        return []
    found = summary["comparison"]["strategies"].get(strategy)
    sides = [summary["strategies"][name] for name in (strategy, summary["comparison"]["baseline"])]
    return [
        None if found is None else {**found[column], "incomplete": any(_lacks(side, column) for side in sides)}
        for column in _compared(summary)
    ]


def _lacks(result: Mapping[str, Any], column: str) -> bool:
    """Whether not all runs behind a strategy's cell have ended."""
    lacking = result["incomplete"]
    return column in lacking or (column == "average" and bool(lacking))


def _compared(summary: Summary) -> list[str]:
    return list(next(iter(summary["comparison"]["strategies"].values())))


def mark_best(summary: Summary) -> dict[tuple[str, str], frozenset[str]]:
    """Mark in each column the best mean, the second, means within one standard error of the best, and incomplete ones.

    Equal best means are all marked best, and then none is marked second. The standard error is that of the best mean.
    If fewer than two strategies have a mean, only incomplete cells are marked.
    """
    marks: dict[tuple[str, str], frozenset[str]] = {}
    for column in accuracy_columns(summary):
        cells = {name: cell_of(result, column) for name, result in summary["strategies"].items()}
        means = {name: cell["mean"] for name, cell in cells.items() if cell["mean"] is not None}
        best = max(means.values(), default=0.0)
        winners = {name for name, value in means.items() if value >= best - SAME}
        others = [value for name, value in means.items() if name not in winners]
        error = max((cells[name]["standard_error"] or 0.0 for name in winners), default=0.0)
        for name in cells:
            found: set[str] = set()
            if len(means) > 1 and name in means:
                found |= {BEST} if name in winners else set()
                second = name not in winners and len(winners) == 1 and means[name] >= max(others) - SAME
                found |= {SECOND} if second else set()
                found |= {TIED} if name not in winners and means[name] >= best - error else set()
            found |= {INCOMPLETE} if _lacks(summary["strategies"][name], column) else set()
            marks[name, column] = frozenset(found)
    return marks


def marked_text(text: str, marks: frozenset[str]) -> str:
    """Write the marks of a cell in Markdown: bold or italic, followed by ``~`` and ``!``.

    >>> marked_text("70.1 +- 0.4", frozenset({SECOND, TIED}))
    '_70.1 +- 0.4_ ~'
    """
    around = "**" if BEST in marks else "_" if SECOND in marks else ""
    return f"{around}{text}{around}" + (" ~" if TIED in marks else "") + (" !" if INCOMPLETE in marks else "")


def heading(summary: Summary) -> str:
    """Name the data (a stand-in as such), the measure and the trials."""
    trials = "one trial" if len(summary["seeds"]) == 1 else "mean +- standard error over trials"
    return f"{summary['title']}: accuracy (%) on the target domain, {trials}"


def warnings(summary: Summary) -> list[str]:
    """List what a reader must not miss: unfinished runs, failed clients, and reported models that are not averages."""
    lacking = summary["unfinished"]
    failures = sum(result["failures"] for result in summary["strategies"].values())
    unfinished = f"UNFINISHED: {len(lacking)} of {summary['runs']} runs"
    return [
        *([unfinished] if lacking else []),
        *([f"{failures} failure(s) of clients: see rounds.jsonl"] if failures else []),
        *not_averaged(summary),
    ]


def not_averaged(summary: Summary) -> list[str]:
    """Name the strategies for which some reported models are not averages, although the run was to report averages."""
    counted = ", ".join(
        f"{name} {of['not_averaged']}" for name, of in summary["strategies"].items() if of["not_averaged"]
    )
    return [f"no average had begun, so that the model itself is reported: {counted}"] if counted else []


def table(summary: Summary) -> str:
    """Render the summary as a Markdown table that also reads well on a terminal."""
    columns = accuracy_columns(summary)
    marks = mark_best(summary)
    compared = summary["comparison"]
    heads = ["strategy", *columns, *comparison_columns(summary), "sources", *DISTANCES.values()]
    lines: list[list[str]] = []
    for name, result in summary["strategies"].items():
        cells = [name, *(marked_text(shown(cell_of(result, column)), marks[name, column]) for column in columns)]
        cells += [shown_difference(cell) if cell else "" for cell in differences_of(summary, name)]
        cells.append(shown(result["sources"]))
        cells += [f"{short(result[key]['before'])} -> {short(result[key]['after'])}" for key in DISTANCES]
        lines.append(cells)
    return "\n".join(
        [
            heading(summary),
            summary["protocol"],
            *warnings(summary),
            "sources: accuracy (%) on their held-out examples, where they hold some out; distances: squared, of their "
            "head statistics to the mean, averaged over the domains, before -> after training",
            *([f"in each column {MARKS}"] if any(marks.values()) else []),
            *([explain(compared)] if compared else []),
            "",
            markdown_table(heads, lines),
            *choice_lines(summary["strategies"]),
            *counts_section(summary),
            *notes(summary),
        ]
    )


def selector_table(compared: Mapping[str, Any]) -> str:
    """Render a column for each selector, a row for each strategy and target, and the selections.

    Args:
        compared: By selector, the result of `summary.summarise` or ``{"left_out": why}``; at least one is not left out.
    """
    left_out = {name: found["left_out"] for name, found in compared.items() if "left_out" in found}
    compared = {name: found for name, found in compared.items() if name not in left_out}
    first = next(iter(compared.values()))
    columns = {name: SELECTORS[name] if name != "source" else found["selection"][0] for name, found in compared.items()}
    heads = ["strategy", "target", *columns.values()]
    lines: list[list[str]] = []
    for strategy in first["strategies"]:
        results = [found["strategies"][strategy] for found in compared.values()]
        lines += [
            [strategy, target, *(_cell_of_selector(result, target) for result in results)]
            for target in accuracy_columns(first)
        ]
    trials = "one trial" if len(first["seeds"]) == 1 else "mean +- standard error over trials"
    protocol = first["protocol"].partition(", selection")
    rest = protocol[2].partition(";")[2]
    lines_above = [f"{first['title']}: accuracy (%) on the target domain by what it was selected by, {trials}"]
    lines_above.append(protocol[0] + (f";{rest}" if rest else ""))
    if "oracle" in compared:
        lines_above.append(
            "the oracle takes the last round, and the setting that is best on the target: a bound, no result"
        )
    lines_above += [f"left out: {SELECTORS[name]}: {why}" for name, why in left_out.items()]
    tables = [markdown_table(heads, lines, left=2), markdown_table(heads, _selected(compared), left=len(heads))]
    lines_above += dict.fromkeys(text for found in compared.values() for text in warnings(found))
    below = notes(*compared.values())
    return "\n".join([*lines_above, "", tables[0], "", "selected, seed by seed:", "", tables[1], *below])


def _cell_of_selector(result: Mapping[str, Any], column: str) -> str:
    return shown(cell_of(result, column)) + (" !" if _lacks(result, column) else "")


def _selected(compared: Mapping[str, Any]) -> list[list[str]]:
    """List the rounds (and settings) that each selector chose, seed by seed."""
    first = next(iter(compared.values()))
    lines: list[list[str]] = []
    for strategy, result in first["strategies"].items():
        for scenario in result["selected_rounds"]:
            cells = []
            for found in compared.values():
                own = found["strategies"][strategy]
                rounds = own["selected_rounds"][scenario]
                settings = own.get("selected_settings", {}).get(scenario, [None] * len(rounds))
                cells.append(
                    "; ".join(_named(number, setting) for number, setting in zip(rounds, settings, strict=True))
                )
            lines.append([strategy, scenario, *cells])
    return lines


def _named(server_round: int | None, setting: str | None) -> str:
    if server_round is None:
        return "none"
    return f"round {server_round}" + (f" ({setting})" if setting else "")


def latex_text(text: str) -> str:
    r"""Escape what LaTeX would take for a command; line breaks and control characters become spaces.

    >>> print(latex_text("50 % of a_b {x}"))
    50 \% of a\_b \{x\}
    """
    printable = "".join(character if character.isprintable() else " " for character in text)
    return "".join(LATEX.get(character, character) for character in printable)


def latex_table(summary: Summary) -> str:
    """Render the table for LaTeX with booktabs: best bold, second underlined, a tie within one standard error marked.

    A table with many columns spans two text columns. The caption names data, protocol, seeds and selection; a comment
    above has the strategies' arguments.
    """
    columns, marks, compared = accuracy_columns(summary), mark_best(summary), comparison_columns(summary)
    heads = ["strategy", *columns, *compared]
    lines = [_row([latex_text(head) for head in heads])]
    lines.append(r"    \midrule")
    for name, result in summary["strategies"].items():
        cells = [latex_text(name)]
        cells += [_latex_cell(cell_of(result, column), marks[name, column]) for column in columns]
        cells += [_latex_difference(cell) if cell else "" for cell in differences_of(summary, name)]
        lines.append(_row(cells))
    star = "*" if len(columns) + 2 * len(compared) > ONE_COLUMN else ""
    caption = [latex_text(heading(summary)).replace("+-", r"$\pm$")]
    caption += [latex_text(part) for part in (summary["protocol"], *warnings(summary))]
    if any(marks.values()):
        caption.append(
            r"\textbf{Best} and \underline{second}; $^\dagger$: within one standard error of the best; "
            r"$^\ddagger$: not all of its runs have ended"
        )
    if compared:
        explained = latex_text(explain(summary["comparison"]))
        caption.append(explained[0].upper() + explained[1:])
    comments = [f"{name}: {args}" for name, args in summary["arguments"].items()]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            *(f"% {' '.join(comment.split())}" for comment in comments),
            rf"\begin{{table{star}}}",
            r"  \centering\small",
            rf"  \caption{{{'. '.join(caption)}.}}",
            rf"  \label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', slug(summary['title'])).lower()}}}",
            rf"  \begin{{tabular}}{{l{'r' * len(columns)}{'l' * len(compared)}}}",
            r"    \toprule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}",
            rf"\end{{table{star}}}",
        ]
    )


def csv_table(summary: Summary) -> str:
    """Render one row for each strategy and column, in full precision; every row has data and protocol.

    Columns: ``mean`` and ``standard_error`` in percent over ``trials``; ``mark``, one or several of best, second, tied
    and incomplete; ``difference`` to the ``baseline`` with interval, p-values and number of pairs, if the column is
    compared.
    """
    marks, comparison = mark_best(summary), summary["comparison"] or {"baseline": "", "strategies": {}}
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for name, result in summary["strategies"].items():
        for column in (*accuracy_columns(summary), "sources"):
            cell = result["sources"] if column == "sources" else cell_of(result, column)
            difference = comparison["strategies"].get(name, {}).get(column)
            known = {"baseline": comparison["baseline"], **difference} if difference else {}
            row = {"dataset": summary["title"], "protocol": summary["protocol"], "strategy": name, "column": column}
            row |= {"mark": " ".join(sorted(marks.get((name, column), ())))} | cell | known
            writer.writerow({key: "" if value is None else value for key, value in row.items()})
    return stream.getvalue().rstrip("\n")


def _row(cells: list[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"


def _latex_cell(cell: Mapping[str, Any], marks: frozenset[str]) -> str:
    if cell["mean"] is None:
        return "n/a"
    text = f"{cell['mean']:.1f}"
    text = rf"\textbf{{{text}}}" if BEST in marks else rf"\underline{{{text}}}" if SECOND in marks else text
    text += r"$^\dagger$" if TIED in marks else ""
    text += r"$^\ddagger$" if INCOMPLETE in marks else ""
    return text + (rf" $\pm$ {cell['standard_error']:.1f}" if cell["standard_error"] is not None else "")


def _latex_difference(cell: Mapping[str, Any]) -> str:
    if cell["difference"] is None:
        return "n/a"
    interval = "" if cell["low"] is None else f" $[{signed(cell['low'])}, {signed(cell['high'])}]$"
    marks = stars(cell) + (r"\ddagger" if cell["incomplete"] else "")
    return f"${signed(cell['difference'])}${interval}" + (f"$^{{{marks}}}$" if marks else "")


FORMATS: Mapping[str, Callable[[Summary], str]] = {"markdown": table, "latex": latex_table, "csv": csv_table}


def format_table(summary: Summary, form: str) -> str:
    """Render the table in the given format, a key of :data:`FORMATS`."""
    if form not in FORMATS:
        raise UsageError(f"--format: unknown format {form!r}; {did_you_mean(form, FORMATS)}")
    return FORMATS[form](summary)
