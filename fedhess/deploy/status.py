"""What an operator sees of a federation: nodes, runs, and how far each run has come; as tables, or for Prometheus."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhess.base.errors import StorageError, UsageError
from fedhess.base.tables import markdown_table
from fedhess.deploy import programs
from fedhess.deploy.nodes import NODES_FILE, read_nodes
from fedhess.deploy.programs import answer
from fedhess.federation.protocol import client_label, printable
from fedhess.federation.server.run_directory import Row, RunDirectory

METRICS = {
    "fedhess_node_online": "Whether the SuperLink hears of a node.",
    "fedhess_runs": "Runs by status.",
    "fedhess_run_round": "Last evaluated round.",
    "fedhess_run_accuracy": "Accuracy in it, 0 to 1.",
    "fedhess_run_failures": "Failures since the evaluation before it.",
}


@dataclass(frozen=True)
class Status:
    """The state of a federation, according to the SuperLink and its state folder.

    Attributes:
        nodes: Flower's description of each node.
        runs: Flower's description of each run.
        clients: Node id -> client, as registered.
        rows: Job directory, target and seed -> the rows of the last evaluated round.
        damaged: The same key -> why its rows cannot be read.
    """

    nodes: Sequence[Mapping[str, Any]]
    runs: Sequence[Mapping[str, Any]]
    clients: Mapping[str, str]
    rows: Mapping[str, Sequence[Row]]
    damaged: Mapping[str, str]

    def tables(self) -> str:
        """Return the tables of nodes, runs and rounds."""
        seen = {"online": "now", "registered": "never"}
        nodes = [
            [self.clients.get(node["node-id"], "-"), node["node-id"], state, seen.get(state, str(node["offline-at"]))]
            for node in self.nodes
            for state in [node["status"]]
        ]
        runs = [[run["run-id"], run["status"], run["running-at"], run["finished-at"]] for run in self.runs]
        rounds = [
            [name, str(rows[0]["round"]), " ".join(f"{row['domain']} {_percent(row)}" for row in rows)]
            for name, rows in self.rows.items()
        ] + [[name, "-", why] for name, why in self.damaged.items()]
        return "\n\n".join(
            markdown_table(heads, lines, left=len(heads))
            for heads, lines in (
                (["client", "node", "status", "last seen"], nodes),
                (["run", "status", "began", "ended"], runs),
                (["job directory", "round", "accuracy (%)"], rounds),
            )
        )

    def metrics(self) -> str:
        """Return the metrics in Prometheus's text format."""
        families: dict[str, list[tuple[Mapping[str, object], float]]] = {name: [] for name in METRICS}
        for node in self.nodes:
            who = {"client": self.clients.get(node["node-id"], ""), "node": node["node-id"]}
            families["fedhess_node_online"].append((who, node["status"] == "online"))
        for status, number in Counter(run["status"] for run in self.runs).items():
            families["fedhess_runs"].append(({"status": status}, number))
        for name, rows in self.rows.items():
            families["fedhess_run_round"].append(({"run": name}, rows[0]["round"]))
            for row in rows:
                client = client_label(str(row.get("main_domain", row["domain"])), row["client"])
                where = {"run": name, "client": client, **{key: row[key] for key in ("domain", "role", "split")}}
                if row["accuracy"] is not None:
                    families["fedhess_run_accuracy"].append((where, row["accuracy"]))
                families["fedhess_run_failures"].append((where, len(row["failures"])))
        return "".join(_family(name, METRICS[name], samples) for name, samples in families.items())


def read_status(flower_home: Path, state: Path) -> Status:
    """Query the SuperLink, and read its state folder."""
    nodes = answer(programs.flwr("supernode", "list", programs.CONNECTION, *programs.JSON, home=flower_home))["nodes"]
    every = ("--limit", "1000000")  # the default is the newest twenty
    runs = answer(programs.flwr("list", programs.CONNECTION, *every, *programs.JSON, home=flower_home))["runs"]
    clients = {str(node): client for client, node in read_nodes(state / NODES_FILE).items()}
    rows, damaged = {}, {}
    for file in sorted((state / "runs").rglob("rounds.jsonl")):
        name = str(file.parent.relative_to(state))
        try:
            found = RunDirectory(file.parent).rows()
        except (UsageError, StorageError) as error:  # in one job: the others are still shown
            damaged[name] = printable(str(error))
            continue
        if found:
            rows[name] = [row for row in found if row["round"] == found[-1]["round"]]
    return Status(nodes, runs, clients, rows, damaged)


def _percent(row: Row) -> str:
    return "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"


def _family(name: str, text: str, samples: Sequence[tuple[Mapping[str, object], float]]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        written = ",".join(f"{key}={json.dumps(str(label), ensure_ascii=False)}" for key, label in labels.items())
        lines.append(f"{name}{{{written}}} {float(value):g}")
    return "\n".join(lines) + "\n"
