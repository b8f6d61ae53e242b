"""What was sent from whom to whom in the runs of a job, what it discloses and its privacy cost, all from the rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedhess.alignment.loading import find_method
from fedhess.alignment.statistics import disclosed_by
from fedhess.base.errors import UsageError
from fedhess.base.tables import markdown_table
from fedhess.domains.benchmark import SOURCE
from fedhess.federation import protocol
from fedhess.federation.server.evaluation import ALIGNMENT
from fedhess.federation.server.run_directory import Row
from fedhess.results.selection import Recorded
from fedhess.settings.run_config import RunConfig

# Keyed by direction and record; a statistic's docstring states what it discloses.
DISCLOSES = {
    ("up", protocol.IDENTITY): "domain, numbers of examples, class names, a digest of the data, versions",
    ("up", protocol.MODEL): "of one step on one example its label and all features of the head; of more, inputs may be "
    "rebuilt from the gradients that add up in it",
    ("up", protocol.MOMENTUM): "a mean of the gradients of the client's steps",
    ("up", f"{protocol.TRAIN} {protocol.METRICS}"): "loss and objective of the first step, number of examples, seconds",
    ("up", f"{protocol.EVALUATE} {protocol.METRICS}"): "loss, accuracy and number of evaluated examples; of a constant "
    "model, which a server can send, examples by class",
    ("up", protocol.HELD_OUT): "loss and accuracy of what the client began from and trained, on examples held out",
    ("up", protocol.COUNTS): "examples by class and prediction, so labels are counted; how confident the model was",
    ("down", protocol.MODEL): "the mean of the source clients' updates so far; where domains train in turn (fish), the "
    "update of the one before",
    ("down", protocol.MOMENTUM): "where domains train in turn (fish), the gradients of the one before",
    ("down", protocol.REFERENCE): "means of statistics over the source domains, or the domain's own; with relative "
    "penalties how many examples all clients hold of the domain",
    ("down", protocol.GIVEN): "what the clients' next statistic is computed with, such as a mean over the domains",
}
# The same for source clients of a private run.
PRIVATE = {
    protocol.IDENTITY: "domain, numbers of examples, class names, versions",
    f"{protocol.TRAIN} {protocol.METRICS}": "number of examples, seconds",
}
# The same for targets whose node protects its counts.
PROTECTED = "protected target"
OF_PROTECTED = {
    protocol.IDENTITY: "domain, numbers of examples, class names, versions, how its counts are protected",
    protocol.METRICS: "number of evaluated examples, and the accuracy that follows from the protected counts",
    protocol.COUNTS: "examples by class and prediction, as multiples or with noise, or both",
}


def summarise_sent(recorded: Recorded) -> list[dict[str, Any]]:
    """Add up what was sent in all runs, by strategy, sender and record; settings in messages are left out.

    Returns:
        For each record: ``strategy``, ``from``, ``to``, ``record``, ``shape``, ``times``, total ``bytes``, and what it
        ``discloses``. Runs recorded before rows had ``sent`` are left out.
    """
    found: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for run, rows in recorded:
        for role, way, name, (times, size, shape) in _records(rows):
            ends = [f"{role} clients", "server"]
            sender, receiver = ends if way == "up" else reversed(ends)
            entry = found.setdefault(
                (run.strategy, role, way, name),
                {"strategy": run.strategy, "from": sender, "to": receiver, "record": name, "shape": shape}
                | {"times": 0, "bytes": 0, "discloses": _discloses(run.config, role, way, name)},
            )
            entry["times"] += times
            entry["bytes"] += size
    order = {strategy: place for place, (strategy, *_) in enumerate(found)}
    return [found[key] for key in sorted(found, key=lambda key: (order[key[0]], key[1] != SOURCE, key[2] == "down"))]


def sent_section(summary: Mapping[str, Any]) -> list[str]:
    """Render what was sent, and below it what each record discloses; empty if no row has ``sent``."""
    if not summary["sent"]:
        return []
    heads, counts = ["strategy", "from", "to", "record", "shape"], ["times", "bytes"]
    lines = [[*(each[head] for head in heads), *(f"{each[head]:,}" for head in counts)] for each in summary["sent"]]
    records_by_text: dict[str, dict[str, None]] = {}  # records by what they disclose
    for each in summary["sent"]:
        records_by_text.setdefault(f"from {each['from']}: {each['discloses']}", {})[each["record"]] = None
    return [
        "",
        "what was sent, in all runs and rounds so far: arrays and metrics; the settings of a message are a few hundred "
        "bytes more",
        "",
        markdown_table([*heads, *counts], lines, left=len(heads)),
        "",
        "what it discloses to who receives it:",
        *(f"- {', '.join(records)} {text}" for text, records in records_by_text.items()),
    ]


def protected_targets(recorded: Recorded) -> list[str]:
    """Describe how targets protect their counts, and the total epsilon of their evaluations; a line for each target."""
    spent: dict[tuple[str, int, float], int] = {}
    for _, rows in recorded:
        for row in rows:
            if "evaluation_epsilon" in row and row["accuracy"] is not None and row["split"] != "out":
                key = row["domain"], row["evaluation_rounding"], row["evaluation_epsilon"]
                spent[key] = spent.get(key, 0) + 1
    return [
        f"{domain}: multiples of {rounding}, {epsilon:g} in each of {times} evaluations, {epsilon * times:g} in all"
        if epsilon
        else f"{domain}: multiples of {rounding}, no noise"
        for (domain, rounding, epsilon), times in spent.items()
    ]


def spent_privacy(runs: Sequence[Sequence[Row]]) -> str:
    """Describe the epsilon by domain, the largest over its clients and runs; empty if no run is private."""
    rows = [row for run in runs for row in run if row["role"] == SOURCE and "epsilon" in row]
    spent: dict[str, float] = {}
    for row in rows:
        spent[row["domain"]] = max(spent.get(row["domain"], 0.0), row["epsilon"])
    listed = ", ".join(f"{domain} {epsilon:.4g}" for domain, epsilon in spent.items())
    seeded = any(row["noise"] == protocol.SEED for row in rows)
    return listed + ("; noise from the run's seed, which protects nobody" if seeded else "")


def _records(rows: Iterable[Row]) -> Iterable[tuple[str, str, str, tuple[int, int, str]]]:
    for row in rows:
        role = PROTECTED if "evaluation_rounding" in row else row["role"]
        for way, records in row.get("sent", {}).items():
            for name, record in records.items():
                yield role, way, name, record


def _discloses(config: RunConfig, role: str, way: str, name: str) -> str:
    """Return what a record discloses, looked up by its full name, its own name, or its statistic."""
    record, _, tensor = name.rpartition(" ")[2].partition("/")
    if config.is_private and role == SOURCE and way == "up":
        return PRIVATE.get(name, PRIVATE.get(record, "no more than epsilon, below the table, allows"))
    if role == PROTECTED and way == "up" and record in OF_PROTECTED:
        return OF_PROTECTED[record]
    known = DISCLOSES.get((way, name), DISCLOSES.get((way, record)))
    if known is not None:
        return known
    try:
        statistics = ALIGNMENT if record == protocol.ALIGNMENT else find_method(config.strategy).statistics
    except UsageError:
        return "not known, the strategy cannot be loaded here"
    return disclosed_by(statistics[tensor]) if tensor in statistics else "not stated"
