"""A job's table for papers and programs: LaTeX with booktabs, and CSV; Markdown is the summary's own."""

import csv
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.jobs.job import slug
from fedhess.results.columns import (
    BEST,
    INCOMPLETE,
    SECOND,
    TIED,
    Summary,
    accuracy_columns,
    cell_of,
    comparison_columns,
    differences_of,
    heading,
    mark_best,
    warnings,
)
from fedhess.results.paired import explain, signed, stars
from fedhess.results.summary import table

ONE_COLUMN = 3  # as many columns of numbers fit one of two columns of text
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''",  # \textquotedbl is an error in LaTeX's own encoding of fonts
}  # fmt: skip
CSV_COLUMNS = (
    *("dataset", "protocol", "strategy", "column", "mean", "standard_error", "trials", "mark"),
    *("baseline", "difference", "low", "high", "p", "p_holm", "pairs"),
)


def latex_text(text: str) -> str:
    r"""Escape what LaTeX would take for a command; line breaks and control characters become spaces.

    >>> print(latex_text("50 % of a_b {x}"))
    50 \% of a\_b \{x\}
    """
    printable = "".join(character if character.isprintable() else " " for character in text)
    return "".join(LATEX.get(character, character) for character in printable)


def latex_table(summary: Summary) -> str:
    """Render the table for LaTeX with booktabs: best bold, second underlined, a tie within one standard error marked.

    It spans two columns of text where it has many of its own. The caption names data, protocol, seeds and selection; a
    comment above has the strategies' arguments.
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
            r"$^\ast$: not all of its runs have ended"
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
    """Render a row for each strategy and column, in full precision; data and protocol stand in each.

    Columns: ``mean`` and ``standard_error`` in percent over ``trials``; ``mark`` is best, second,
    tied or incomplete, or several of them;
    ``difference`` to the ``baseline`` with interval, p-values and number of pairs, where the column is compared.
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
    text += r"$^\ast$" if INCOMPLETE in marks else ""
    return text + (rf" $\pm$ {cell['standard_error']:.1f}" if cell["standard_error"] is not None else "")


def _latex_difference(cell: Mapping[str, Any]) -> str:
    if cell["difference"] is None:
        return "n/a"
    interval = "" if cell["low"] is None else f" $[{signed(cell['low'])}, {signed(cell['high'])}]$"
    return f"${signed(cell['difference'])}${interval}" + (rf"$^{{{stars(cell)}}}$" if stars(cell) else "")


FORMATS: Mapping[str, Callable[[Summary], str]] = {"markdown": table, "latex": latex_table, "csv": csv_table}


def format_table(summary: Summary, form: str) -> str:
    """Render the table in a form, a key of :data:`FORMATS`."""
    if form not in FORMATS:
        raise UsageError(f"--format: unknown format {form!r}; {did_you_mean(form, FORMATS)}")
    return FORMATS[form](summary)
