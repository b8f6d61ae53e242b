"""The results of a scenario on disk: rows of several invocations in one JSON file, and their means over seeds.

A row is identified by its benchmark, strategy, seed, the options given for it (``given``, without defaults) and its
data (``digest``). A job that is run again replaces its row, even if settings were added or defaults changed since.
"""

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedhess.base.errors import UsageError
from fedhess.base.files import cache_directory, replace_file, writing
from fedhess.base.tables import mean, mean_and_error
from fedhess.jobs.selectors import ORACLE
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.scenarios.outputs import is_reproducible

Row = dict[str, Any]
Record = dict[str, Any]
Cell = Mapping[str, Any]  # percent, as `mean_and_error` returns it


@dataclass(frozen=True)
class Line:
    """The results of one strategy with one choice of settings, over its seeds."""

    strategy: str
    label: str  # the strategy, with the settings that distinguish it from its other lines
    seeds: tuple[int, ...]  # that finished
    stopped: Mapping[int, str]  # by seed, why the others did not finish
    irreproducible: tuple[int, ...]  # seeds whose rows were made with uncommitted changes
    cells: Mapping[str, Cell]  # sources, targets, and the average over several targets
    settings: Mapping[str, Any]
    protocol: str  # how the first seed's numbers were obtained; empty if every seed stopped
    rows: Sequence[Row]  # of the seeds that finished

    def by_seed(self, column: str) -> dict[str, float | None]:
        """Return a column's values by seed, percent."""
        return {
            str(row["seed"]): row["average"] if column == "average" else row["accuracy"].get(column)
            for row in self.rows
        }


def load_record(path: Path, *, quick: bool) -> Record:
    """Read the results so far.

    Raises:
        UsageError: The file is damaged, or holds full results where quick ones are to be written, or the reverse.
    """
    if not path.exists():
        return {"quick": quick, "rows": []}
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        found = bool(record["quick"])
        for row in record.get("rows", ()):
            _identity(row)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); delete it, or give another --out") from error
    if found != quick:
        kinds = {True: "quick", False: "full"}
        raise UsageError(
            f"--out: {path} holds {kinds[found]} results, {kinds[quick]} ones are not mixed with them; choose another "
            "folder"
        )
    return record


def add_row(path: Path, row: Row, *, quick: bool) -> Record:
    """Merge a row into the file, replacing a row of the same identity; several processes may do so at once."""
    with writing(path), FileLock(cache_directory() / "results.lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        record = load_record(path, quick=quick)
        rows = {_identity(other): other for other in record["rows"]} | {_identity(row): row}
        record["rows"] = list(rows.values())
        replace_file(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return record


def environments_of(row: Row) -> list[dict[str, Any]]:
    """Return the environment in which a row's job was begun, and each other one in which it was continued."""
    return [row["environment"], *row.get("continued", ())]


def _identity(row: Row) -> str:
    return json.dumps([row[key] for key in ("benchmark", "strategy", "seed", "given", "digest")], sort_keys=True)


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Group the rows of one strategy, one choice of settings and the same data; strategies in order of appearance.

    Rows older than a setting get its default. Parts of a seed that each ran some of the targets (``--target``) are
    joined; an average is over all targets that any row has.
    """
    targets = dict.fromkeys(column for row in rows for column in _targets(row))
    fields = RunConfig.model_fields
    defaults = {key: fields[key].default for row in rows for key in row["settings"] if key in fields}
    groups: dict[str, dict[str, list[Row]]] = {}
    for row, data in zip(rows, _data_of(rows), strict=True):
        settings = {**defaults, **row["settings"], **({"data": data} if data else {})}
        by_settings = groups.setdefault(row["strategy"], {})
        by_settings.setdefault(json.dumps(settings, sort_keys=True), []).append(row | {"settings": settings})
    lines = []
    for strategy, by_settings in groups.items():
        several = list(by_settings.values())
        for group, suffix in zip(several, _differences([group[0]["settings"] for group in several]), strict=True):
            joined = [each for seed in sorted({row["seed"] for row in group}) for each in _joined(group, seed)]
            lines.append(_line(joined, targets=list(targets), label=strategy + suffix))
    return lines


def _targets(row: Row) -> list[str]:
    return [column for column in row["accuracy"] if column not in ("sources", ORACLE)]


def _joined(rows: Sequence[Row], seed: int) -> list[Row]:
    """Join the parts of a seed; a later part replaces an earlier one on the same target.

    The accuracies of the sources and of the oracle are means over the targets' runs. They are unknown if two parts
    have a target in common.
    """
    mine = [row for row in rows if row["seed"] == seed]
    begun = sorted(mine, key=lambda row: str(row["environment"].get("started", "")))
    done = [row for row in begun if "stopped" not in row]
    done = [row for n, row in enumerate(done) if not any(set(_targets(row)) <= set(_targets(b)) for b in done[n + 1 :])]
    if len(done) < 2:
        return [*(row for row in mine if "stopped" in row), *done]
    whole, counts = dict(done[-1]), [len(_targets(row)) for row in done]
    of_targets = {target: row["accuracy"][target] for row in done for target in _targets(row)}
    over_runs: dict[str, float | None] = {}
    for column in dict.fromkeys(column for row in done for column in row["accuracy"] if column not in of_targets):
        values = [row["accuracy"].get(column) for row in done]
        known = sum(counts) == len(of_targets) and None not in values
        over_runs[column] = sum(map(operator.mul, values, counts)) / sum(counts) if known else None
    whole["accuracy"], whole["average"] = over_runs | of_targets, mean([*of_targets.values()])
    whole["warnings"] = [text for row in done for text in row.get("warnings", ())]
    whole["continued"] = [machine for row in done for machine in environments_of(row)][1:]
    return [*(row for row in mine if "stopped" in row), whole]


def _data_of(rows: Sequence[Row]) -> list[str]:
    """Name the data of each row by the start of its digest; the name is empty if all rows have the same data.

    Random data has a different digest for each seed, but its ``options`` include the seed. So digests are told apart
    only among rows with the same options.
    """
    digests: dict[str, list[str]] = {}
    numbers = []
    for row in rows:
        known = digests.setdefault(json.dumps(row["options"], sort_keys=True), [])
        known += [] if row["digest"] in known else [row["digest"]]
        numbers.append(known.index(row["digest"]))
    names = {number: row["digest"][:8] for row, number in reversed([*zip(rows, numbers, strict=True)])}
    return [names[number] if len(names) > 1 else "" for number in numbers]


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe how several settings differ: `` (rounds=501)``; empty for a single one."""
    flat = [{**each, **each.get("strategy_args", {})} for each in settings]
    keys = [key for key in dict.fromkeys(key for each in flat for key in each) if key != "strategy_args"]
    differing = [key for key in keys if len({json.dumps(each.get(key)) for each in flat}) > 1]
    shown = (", ".join(f"{key}={each.get(key, 'default')}" for key in differing) for each in flat)
    return [f" ({text})" if text else "" for text in shown]


def _line(rows: Sequence[Row], *, targets: Sequence[str], label: str) -> Line:
    done = [row for row in rows if "stopped" not in row]
    columns = dict.fromkeys(column for row in done for column in row["accuracy"])
    values = {column: [row["accuracy"].get(column) for row in done] for column in columns}
    rows = [row if set(targets) <= row["accuracy"].keys() else row | {"average": None} for row in rows]
    done = [row for row in rows if "stopped" not in row]
    if len(targets) > 1:
        values["average"] = [row["average"] for row in done]
    return Line(
        strategy=rows[0]["strategy"],
        label=label,
        seeds=tuple(row["seed"] for row in done),
        stopped={row["seed"]: row["stopped"] for row in rows if "stopped" in row},
        irreproducible=tuple(row["seed"] for row in rows if not all(map(is_reproducible, environments_of(row)))),
        cells={column: mean_and_error(found, unit=1.0) for column, found in values.items() if None not in found},
        settings=rows[0]["settings"],
        protocol=next((row["protocol"] for row in done if "protocol" in row), ""),
        rows=done,
    )
