"""What each selector makes of a recorded job, side by side."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhess.base.averages import shown
from fedhess.base.files import replace_file, writing
from fedhess.base.tables import markdown_table, notes
from fedhess.jobs.job import Job
from fedhess.jobs.selectors import SELECTORS


def selector_table(compared: Mapping[str, Any]) -> str:
    """Render a column for each selector, a row for each strategy and target, and what was selected.

    Args:
        compared: By selector, what `report.summarise` returns for it, or ``{"left_out": why}``; one is not left out.
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
            [strategy, target, *(shown(result["accuracy"][target]) for result in results)]
            for target in first["targets"]
        ]
        if first["averaged"]:
            lines.append([strategy, "average", *(shown(result["average"]) for result in results)])
    trials = "one trial" if len(first["seeds"]) == 1 else "mean +- standard error over trials"
    protocol = first["protocol"].partition(", selection")
    rest = protocol[2].partition(";")[2]
    said = [f"{first['title']}: accuracy (%) on the target domain by what it was selected by, {trials}"]
    said.append(protocol[0] + (f";{rest}" if rest else ""))
    if "oracle" in compared:
        said.append("the oracle takes the last round, and the setting that is best on the target: a bound, no result")
    said += [f"left out: {SELECTORS[name]}: {why}" for name, why in left_out.items()]
    tables = [markdown_table(heads, lines, left=2), markdown_table(heads, _selected(compared), left=len(heads))]
    return "\n".join([*said, "", tables[0], "", "selected, seed by seed:", "", tables[1], *notes(first)])


def write_selection(job: Job, compared: Mapping[str, Any]) -> list[Path]:
    """Write selection.json and selection.md; the title in them names a stand-in.

    Raises:
        StorageError: They cannot be written.
    """
    as_json, as_text = job.path / "selection.json", job.path / "selection.md"
    with writing(job.path):
        replace_file(as_json, (json.dumps(compared, indent=2, allow_nan=False) + "\n").encode())
        replace_file(as_text, (selector_table(compared) + "\n").encode())
    return [as_json, as_text]


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
