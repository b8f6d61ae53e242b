"""A job's results as one HTML file that needs no network: tables, charts, bars, confusion matrices, settings.

The page is readable without scripts; its only script sorts tables. Charts are drawn by matplotlib and embedded as SVG.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from fedhess.base.tables import short, warnings_of
from fedhess.jobs.description import incomplete_warning, stand_in_warning
from fedhess.jobs.job import Job, history
from fedhess.jobs.metrics import Confusion
from fedhess.results.counts import counts_lines
from fedhess.results.figures import Panel, panel_svg
from fedhess.results.formats import (
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
    not_averaged,
)
from fedhess.results.paired import explain, shown_difference, stars
from fedhess.results.published import published_values
from fedhess.results.summary import DISTANCES

MOST_CLASSES = 20  # in a complete confusion matrix; with more classes, the pairs most often confused are shown
MOST_PAIRS = 10
FEW = 10  # a warning with at most this many lines is shown open


def render_page(
    job: Job, summary: Summary, panels: Sequence[Panel], confusions: Mapping[str, Mapping[str, Confusion]]
) -> str:
    """Render the page of a job, finished or not."""
    charts = "".join(_chart(panel, list(summary["strategies"])) for panel in panels)
    sections = {
        "Accuracy": _accuracy(summary),
        "Published values": _published(job, summary),
        "Each domain": _bars(summary),
        "Round by round": f'<div class="grid">{charts}</div>',
        "Balance and calibration": _counted(summary),
        "What is taken for what": _confusions(confusions, job.classes),
        "What was selected": _selected(summary),
        "What was sent": _sent(summary),
        "Settings": _settings(job, summary),
    }
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections.items() if content)
    template = Template(files("fedhess.results").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(f"{summary['title']}: fedhess report"), body=_top(job, summary) + body)


def _top(job: Job, summary: Summary) -> str:
    unfinished, failures = len(summary["unfinished"]), sum(of["failures"] for of in summary["strategies"].values())
    warnings = [
        *(text for text in (stand_in_warning(job), incomplete_warning(job)) if text),
        *(
            [f"Unfinished: {unfinished} of {summary['runs']} runs. What stands below is of the rounds that there are."]
            if unfinished
            else []
        ),
        *([f"{failures} failure(s) of clients: see rounds.jsonl"] if failures else []),
        *not_averaged(summary),
    ]
    listed = [
        f"<details{' open' if len(lines) <= FEW else ''}><summary>{escape(what[0].upper() + what[1:])}</summary>"
        f"{_listed(lines)}</details>"
        for what, lines in warnings_of(summary).items()
        if lines
    ]
    boxes = "".join(f'<div class="warn" role="note">{text}</div>' for text in [*map(escape, warnings), *listed])
    title, _, what = heading(summary).partition(": accuracy")
    return (
        f"<header><h1>{escape(title)}</h1><p>Accuracy{escape(what).replace('+-', '&plusmn;')}</p>"
        f'<p class="faint">{escape(summary["protocol"])}</p>{boxes}</header>'
    )


def _accuracy(summary: Summary) -> str:
    columns, marks, compared = accuracy_columns(summary), mark_best(summary), comparison_columns(summary)
    heads = ["strategy", *columns, *compared, "sources", *DISTANCES.values()]
    lines = []
    for name, result in summary["strategies"].items():
        cells = [f'<th scope="row">{escape(name)}</th>']
        cells += [_number(cell_of(result, column), marks[name, column]) for column in columns]
        cells += [_difference(cell) for cell in differences_of(summary, name)]
        cells.append(_number(result["sources"], frozenset()))
        for key in DISTANCES:
            before, after = short(result[key]["before"]), short(result[key]["after"])
            cells.append(f'<td data-value="{_value(result[key]["after"])}"><small>{before} &rarr;</small> {after}</td>')
        lines.append("".join(cells))
    notes = ["<b>best</b>, <u>second</u>, ~: within one standard error of the best"] if any(marks.values()) else []
    notes += [escape(explain(summary["comparison"]))] if compared else []
    notes.append(
        "sources: on their held-out examples, where they hold some out; distances: squared, of the sources' head "
        "statistics to their mean, before and after training; a click on a head sorts"
    )
    return _table(heads, lines) + "".join(f'<p class="faint">{note}</p>' for note in notes)


def _number(cell: Mapping[str, Any], marks: frozenset[str]) -> str:
    if cell["mean"] is None:
        return '<td data-value="">n/a</td>'
    text = f"{cell['mean']:.1f}"
    text = f"<b>{text}</b>" if BEST in marks else f"<u>{text}</u>" if SECOND in marks else text
    text += f" <small>&plusmn; {cell['standard_error']:.1f}</small>" if cell["standard_error"] is not None else ""
    text += ' <span title="within one standard error of the best">~</span>' if TIED in marks else ""
    text += ' <span title="not all of its runs have ended">!</span>' if INCOMPLETE in marks else ""
    return f'<td data-value="{_value(cell["mean"])}">{text}</td>'


def _difference(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return '<td data-value="0"><small>baseline</small></td>'
    text = escape(shown_difference(cell))
    verdict = "" if cell["p"] is None or stars(cell) else ' <span class="noise">may be noise</span>'
    return f'<td data-value="{_value(cell["difference"])}">{text}{verdict}</td>'


def _published(job: Job, summary: Summary) -> str:
    """List published values beside ours; for a stand-in there are none, as its original's values do not apply."""
    if summary["stand_in_for"]:
        return (
            f"<p>None: this is a stand-in. What is published of {escape(summary['stand_in_for'])} cannot stand beside "
            "it.</p>"
        )
    lines, cited = [], dict[str, int]()  # sources, in the order they are cited
    of_some = len(summary["targets"]) != len(job.data["counts"])  # published averages are over all domains
    shown = {"average": f"average (ours over {', '.join(summary['targets'])} alone)"} if of_some else {}
    for name, result in summary["strategies"].items():
        for column, published in published_values(summary["title"], name, job.data["options"]):
            if column in (*accuracy_columns(summary), "sources"):
                ours = result["sources"] if column == "sources" else cell_of(result, column)
                value = "not verified" if published.value is None else f"{published.value:.1f}"
                value += "" if published.deviation is None else f" <small>(sd {published.deviation:.1f})</small>"
                lines.append(
                    f'<th scope="row">{escape(name)}</th><td class="left">{escape(shown.get(column, column))}</td>'
                    f'{_number(ours, frozenset())}<td data-value="{_value(published.value)}">{value}</td>'
                    f"<td>{cited.setdefault(published.source, len(cited) + 1)}</td>"
                )
    if not lines:
        return ""
    sources = "".join(f"<li>{escape(source)}</li>" for source in cited)
    note = f"Ours: {summary['protocol']}. A difference in protocol can be larger than one between methods."
    table = _table(["strategy", "column", "ours", "published", "source"], lines)
    return f'{table}<p class="faint">{escape(note)} Sources, with their protocols:</p><ol class="faint">{sources}</ol>'


def _bars(summary: Summary) -> str:
    cards = []
    marks = mark_best(summary)
    for column in accuracy_columns(summary):
        bars = ""
        for name, result in summary["strategies"].items():
            cell = cell_of(result, column)
            mean, error = cell["mean"], cell["standard_error"]
            drawn = "" if mean is None else f'<i style="width:{mean:.2f}%"></i>'
            if mean is not None and error is not None:
                drawn += f'<s style="left:{mean - error:.2f}%;width:{2 * error:.2f}%"></s>'
            value = "n/a" if mean is None else f"{mean:.1f}" + ("" if error is None else f" &plusmn; {error:.1f}")
            best = " best" if BEST in marks[name, column] else ""
            bars += (
                f'<div class="bar{best}"><span title="{escape(name)}">{escape(name)}</span>'
                f'<div class="track">{drawn}</div><b>{value}</b></div>'
            )
        cards.append(f'<div class="card"><h3>{escape(column)}</h3>{bars}</div>')
    whiskers = "" if len(summary["seeds"]) == 1 else "; whiskers: standard error of the mean"
    return f'<div class="grid">{"".join(cards)}</div><p class="faint">accuracy (%), from 0 to 100{whiskers}</p>'


def _chart(panel: Panel, strategies: Sequence[str]) -> str:
    what = escape(f"{panel.label}, by {panel.across}")
    svg = panel_svg(panel, strategies).replace("<svg ", f'<svg role="img" aria-label="{what}" ', 1)
    return f"<figure>{svg}<figcaption>{what}</figcaption></figure>"


def _counted(summary: Summary) -> str:
    """Show the metrics computed from counts of predictions, as the summary does below its table."""
    found = counts_lines(summary)
    if found is None:
        return ""
    note, heads, lines = found
    rows = []
    for line in lines:
        cells = (f'<td class="left">{escape(cell)}</td>' for cell in line if isinstance(cell, str))
        rows.append("".join(cells) + "".join(_number(cell, frozenset()) for cell in line if not isinstance(cell, str)))
    return f'{_table(heads, rows)}<p class="faint">{escape(note)}</p>'


def _confusions(confusions: Mapping[str, Mapping[str, Confusion]], classes: Sequence[str]) -> str:
    render = _confusion if len(classes) <= MOST_CLASSES else _most_confused
    parts: list[str] = []
    for target, by_strategy in confusions.items():
        cards = ""
        for name, confusion in by_strategy.items():
            counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
            for label, guess, count in confusion:
                counts[label, guess] = count
            cards += (
                f'<div class="card"><h3>{escape(name)}</h3><div class="scroll">{render(counts, classes)}</div></div>'
            )
        if cards:
            opened = "" if parts else " open"
            inside = f'<summary>{escape(target)}</summary><div class="grid">{cards}</div>'
            parts.append(f"<details{opened}>{inside}</details>")
    note = "rows: true classes, columns: predicted; share (%) of the true class, over all trials, at the selected round"
    return f'<p class="faint">{note}</p>{"".join(parts)}' if parts else ""


def _confusion(counts: Any, classes: Sequence[str]) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
    rows = ""
    for true, name in enumerate(classes):
        total = max(int(counts[true].sum()), 1)
        cells = ""
        for predicted, count in enumerate(counts[true].tolist()):
            share = count / total
            kind = ("true " if true == predicted else "") + ("dark" if share > 0.55 else "")
            style = f' style="background:rgba(0,114,178,{share:.2f})"' if count else ""
            cells += f'<td class="{kind}"{style}>' + (f"{100 * share:.0f}" if count else "") + "</td>"
        rows += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return f'<table class="confusion"><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _most_confused(counts: Any, classes: Sequence[str]) -> str:
    """List the pairs of classes confused most often."""
    wrong = counts - np.diag(np.diag(counts))
    lines = []
    for place in wrong.ravel().argsort(kind="stable")[::-1][:MOST_PAIRS].tolist():
        true, predicted = divmod(place, len(classes))
        if count := int(wrong[true, predicted]):
            lines.append(
                f'<th scope="row">{escape(classes[true])}</th><td class="left">{escape(classes[predicted])}</td>'
                f"<td>{count}</td><td>{100 * count / int(counts[true].sum()):.0f}</td>"
            )
    return _table(["true", "predicted", "examples", "% of the class"], lines)


def _selected(summary: Summary) -> str:
    """List the rounds (and settings) that were selected: a line for each strategy, a column for each target's run."""
    results = summary["strategies"].values()  # in merged jobs, not all have every scenario
    scenarios = list(dict.fromkeys(scenario for result in results for scenario in result["selected_rounds"]))
    lines = []
    for name, result in summary["strategies"].items():
        cells = ""
        for scenario in scenarios:
            rounds = result["selected_rounds"].get(scenario, [])
            settings = result.get("selected_settings", {}).get(scenario, [None] * len(rounds))
            chosen = zip(rounds, settings, strict=True)
            texts = [("none" if n is None else str(n)) + (f" ({setting})" if setting else "") for n, setting in chosen]
            cells += f'<td class="left">{escape(", ".join(texts))}</td>'
        lines.append(f'<th scope="row">{escape(name)}</th>{cells}')
    several = any("selected_settings" in result for result in summary["strategies"].values())
    note = f"Round{' (and setting)' if several else ''} of each seed, selected by {' and '.join(summary['selection'])}."
    return f'<p class="faint">{escape(note)}</p>{_table(["strategy", *scenarios], lines)}'


def _sent(summary: Summary) -> str:
    heads = ["strategy", "from", "to", "record", "shape", "discloses", "times", "bytes"]
    lines = [
        "".join(f'<td class="left">{escape(each[head])}</td>' for head in heads[:6])
        + "".join(f'<td data-value="{each[head]}">{each[head]:,}</td>' for head in heads[6:])
        for each in summary["sent"]
    ]
    return (
        f"<details><summary>By whom, to whom, and what it discloses</summary>{_table(heads, lines)}</details>"
        if lines
        else ""
    )


def _settings(job: Job, summary: Summary) -> str:
    record = job.record
    commands = [shlex.join(entry["command"]) for entry in history(record)]
    environment = record.get("environment", {})
    data = {key: job.data.get(key) for key in ("name", "options", "digest", "differences") if job.data.get(key)}
    examples = {domain: sum(counts.values()) for domain, counts in job.data["counts"].items() if counts}
    parts = [
        f"<pre>{escape(chr(10).join(commands))}</pre>" if commands else "",
        "<h3>Strategies</h3>" + _pairs({name: summary["arguments"].get(name, "") or "none" for name in job.strategies}),
        "<h3>Data</h3>" + _pairs({**data, **({"examples": examples} if examples else {}), "classes": job.classes}),
        "<h3>Run</h3>" + _pairs({**record.get("settings", {}), "seeds": job.seeds}),
        "<h3>Environment</h3>" + _pairs(environment) if environment else "",
    ]
    return f"{parts[0]}<details><summary>Everything that was set</summary>{''.join(parts[1:])}</details>"


def _pairs(values: Mapping[str, Any]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(str(k))}</dt><dd>{escape(_text(v))}</dd>' for k, v in values.items())}</dl>"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _table(heads: Sequence[str], lines: Iterable[str]) -> str:
    row = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="scroll" tabindex="0"><table class="sortable sticky"><thead><tr>{row}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _listed(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _value(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"
