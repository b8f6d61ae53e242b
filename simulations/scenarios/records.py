"""The results of a scenario on disk: rows of several invocations in one JSON file, and their statistics.

A row is known by its benchmark, strategy, seed, what was given for it (``given``: nothing that has its default) and its
data (``digest``): a job that is run again replaces its row, also where there are new settings or other defaults since.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhess.base.errors import UsageError
from fedhess.base.files import replace_file, writing
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.scenarios.outputs import is_reproducible

if sys.platform != "win32":
    import fcntl

Row = dict[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One accuracy over seeds.

    Attributes:
        mean: Percent.
        deviation: Standard deviation over the seeds, with n - 1; None for a single one.
    """

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Line:
    """What one strategy with one choice of settings reached.

    Attributes:
        strategy: Its name.
        label: The name, with the settings that tell it from other lines of the strategy.
        seeds: Those that came to their end.
        stopped: Why others did not, by seed.
        irreproducible: Seeds whose rows were made with uncommitted changes.
        cells: By column: sources, targets, and ``average`` over several targets.
        settings: Of every seed; those that a row is too old to have are defaults.
        protocol: How the first seed's numbers came about; empty where every seed stopped.
    """

    strategy: str
    label: str
    seeds: tuple[int, ...]
    stopped: Mapping[int, str]
    irreproducible: tuple[int, ...]
    cells: Mapping[str, Cell]
    settings: Mapping[str, Any]
    protocol: str


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
    """Merge a row into the file; one of the same identity is replaced.

    Several processes may add rows at a time.

    Returns:
        The results with it.

    Raises:
        UsageError: As `load_record`.
        StorageError: The file cannot be written.
    """
    with writing(path), _alone(path):
        record = load_record(path, quick=quick)
        rows = {_identity(other): other for other in record["rows"]} | {_identity(row): row}
        record["rows"] = list(rows.values())
        replace_file(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return record


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Put the seeds of one strategy, one choice of settings and the same data together, strategies as they first come.

    Rows from before a setting existed have its default.
    """
    defaults = {
        key: RunConfig.model_fields[key].default
        for row in rows
        for key in row["settings"]
        if key in RunConfig.model_fields
    }
    complete = [
        row | {"settings": {**defaults, **row["settings"], **({"data": data} if data else {})}}
        for row, data in zip(rows, _data_of(rows), strict=True)
    ]
    groups: dict[str, list[Row]] = {}
    for row in complete:
        groups.setdefault(json.dumps([row["strategy"], row["settings"]], sort_keys=True), []).append(row)
    by_strategy: dict[str, list[list[Row]]] = {}
    for group in groups.values():
        by_strategy.setdefault(group[0]["strategy"], []).append(sorted(group, key=lambda row: int(row["seed"])))
    return [
        _line(group, label=strategy + suffix)
        for strategy, several in by_strategy.items()
        for group, suffix in zip(several, _differences([group[0]["settings"] for group in several]), strict=True)
    ]


def _data_of(rows: Sequence[Row]) -> list[str]:
    """Name the data of each row where there are several: by the start of a digest.

    Data that is made at random has another digest for each seed, which its ``options`` have: what counts is how many
    digests the same options have.
    """
    digests: dict[str, dict[str, int]] = {}
    numbers = []
    for row in rows:
        known = digests.setdefault(json.dumps(row["options"], sort_keys=True), {})
        numbers.append(known.setdefault(row["digest"], len(known)))
    names = {number: row["digest"][:8] for row, number in reversed([*zip(rows, numbers, strict=True)])}
    return [names[number] if len(names) > 1 else "" for number in numbers]


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what tells several settings apart: `` (rounds=501)``; nothing for one alone."""
    flat = [{**each, **each.get("strategy_args", {})} for each in settings]
    keys = [key for key in dict.fromkeys(key for each in flat for key in each) if key != "strategy_args"]
    differing = [key for key in keys if len({json.dumps(each.get(key)) for each in flat}) > 1]
    shown = (", ".join(f"{key}={each.get(key, 'default')}" for key in differing) for each in flat)
    return [f" ({text})" if text else "" for text in shown]


def _line(rows: Sequence[Row], *, label: str) -> Line:
    done = [row for row in rows if "stopped" not in row]
    columns = dict.fromkeys(column for row in done for column in row["accuracy"])
    values = {column: [row["accuracy"].get(column) for row in done] for column in columns}
    if len(columns) > 2:
        values["average"] = [row["average"] for row in done]
    return Line(
        strategy=rows[0]["strategy"],
        label=label,
        seeds=tuple(row["seed"] for row in done),
        stopped={row["seed"]: row["stopped"] for row in rows if "stopped" in row},
        irreproducible=tuple(row["seed"] for row in rows if not is_reproducible(row["environment"])),
        cells={column: statistics(found) for column, found in values.items() if None not in found},
        settings=rows[0]["settings"],
        protocol=next((row["protocol"] for row in done if "protocol" in row), ""),
    )


def statistics(values: Sequence[float]) -> Cell:
    """Return mean and standard deviation (n - 1) over seeds.

    >>> statistics([60.0, 70.0])
    Cell(mean=65.0, deviation=7.0710678118654755)
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Cell(mean, None)
    return Cell(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)))


def _identity(row: Row) -> str:
    return json.dumps([row[key] for key in ("benchmark", "strategy", "seed", "given", "digest")], sort_keys=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes out of the file's folder while it is read and written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # folders cannot be opened there: one process at a time
        yield
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
