"""What was sent by whom to whom: every array of every message is in the rows, and each record has its text."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from federations import Finished
from flwr.app import Context, Message, RecordDict
from methods import METHODS, RELAYS

from fedhess.alignment.loading import BUILT_IN, find_method
from fedhess.alignment.statistics import disclosed_by
from fedhess.base.errors import FederationError
from fedhess.federation import protocol
from fedhess.federation.client import memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.server.run_directory import Row, RunDirectory
from fedhess.federation.tensors import array_bytes
from fedhess.results.sent import sent_section, summarise_sent

Run = Callable[..., Finished]

RUNS: dict[str, dict[str, Any]] = {
    "erm": {"strategy": "erm", "strategy_args": {}},
    "hgp": {"strategy": "hgp", "strategy_args": {}},
    "previous": {"strategy": "hgp", "strategy_args": {}, "references": "previous"},
    "coral": {"strategy": "coral", "strategy_args": METHODS["coral"].args},
    "fish": {"strategy": "fish", "strategy_args": RELAYS["fish-momentum"].args, "momentum": 0.9},
    "ga": {"strategy": "ga", "strategy_args": METHODS["ga"].args},
    "fedadam": {"strategy": "fedadam", "strategy_args": {}},
    "split": {"strategy": "erm", "strategy_args": {}, "split": "every", "domains_options": {"holdout": 0.25}},
}


class Watched:
    """The client app, which counts what reaches it and what it replies with."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.bytes: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self._fails_at = fails_at

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == protocol.TRAIN and message.metadata.group_id == self._fails_at:
            raise OSError("camera off")
        self._count("down", message.metadata.message_type, message.content)
        reply = client_app(message, context)
        self._count("up", message.metadata.message_type, reply.content)
        return reply

    def _count(self, way: str, message_type: str, content: RecordDict) -> None:
        self.bytes[way] += array_bytes(content)
        self.messages[f"{way} {message_type}"] += bool(content.metric_records or content.array_records)


def summed(rows: Sequence[Row], strategy: str = "hgp") -> list[dict[str, Any]]:
    run: Any = SimpleNamespace(strategy=strategy, config=SimpleNamespace(strategy=strategy, is_private=False))
    return summarise_sent([(run, rows)])


@pytest.mark.parametrize("name", RUNS)
def test_rows_have_every_array_that_crossed_the_wire(toy_run: Run, name: str) -> None:
    watched = Watched()
    rows = toy_run(app=watched, **RUNS[name]).rows
    sent = summed(rows, RUNS[name]["strategy"])
    arrays = [each for each in sent if not each["record"].endswith(("metrics", "identity", "held-out"))]
    for way, sender in (("down", {"server"}), ("up", {"source clients", "target clients"})):
        counted = sum(each["bytes"] for each in arrays if each["from"] in sender)
        assert counted == watched.bytes[way] == sum(row[f"bytes_{way}"] for row in rows) > 0
    metrics = sum(each["times"] for each in sent if each["record"] == "evaluate metrics")
    assert metrics == watched.messages["up evaluate"] == 16
    assert not [each for each in sent if each["discloses"] == "not stated"]


def test_the_ledger_says_who_sent_which_statistic_how_often_in_which_shape(toy_run: Run) -> None:
    sent = {(each["from"], each["to"], each["record"]): each for each in summed(toy_run(**RUNS["hgp"]).rows)}
    gradient = sent["source clients", "server", "query.statistics statistics/gradient"]
    assert (gradient["shape"], gradient["times"]) == ("4 x 391", 9), "three clients, three rounds"
    assert "label and all features" in gradient["discloses"]
    to_targets = [record for _, to, record in sent if to == "target clients"]
    from_targets = [record for sender, _, record in sent if sender == "target clients"]
    assert to_targets == ["evaluate arrays"]
    assert from_targets == [
        "evaluate.identify identity", "evaluate metrics", "evaluate counts/confusion", "evaluate counts/calibration"
    ]  # fmt: skip


def test_what_was_sent_before_an_interruption_is_in_the_rows_after_it(toy_run: Run, tmp_path: Path) -> None:
    settings: dict[str, Any] = RUNS["hgp"] | {"rounds": 4, "evaluate_every": 4, "exchange_deadline": 60}
    whole = summed(toy_run(**settings).rows)
    memory.MEMORY.clear()
    with pytest.raises(FederationError, match="camera off"):
        toy_run(app=Watched("3"), directory=tmp_path / "run", **settings)
    toy_run(directory=tmp_path / "run", **settings)
    resumed = summed(RunDirectory(tmp_path / "run").rows())
    times, expected = (
        {(each["from"], each["record"]): each["times"] for each in sent if not each["record"].endswith("arrays")}
        for sent in (resumed, whole)  # without the model, which a new process is sent again
    )
    asked = {key: 2 * count for key, count in expected.items() if key[1].endswith("identity")}
    assert times == expected | asked, "the clients were asked twice who they are"


def test_every_statistic_of_a_built_in_strategy_says_what_it_discloses() -> None:
    statistics = {function for name in BUILT_IN for function in find_method(name).statistics.values()}
    assert len(statistics) > 8
    assert not [function.__name__ for function in statistics if disclosed_by(function) == "not stated"]


def test_a_strategy_that_states_nothing_or_is_not_here_is_called_that() -> None:
    row = {"role": "source", "sent": {"up": {"query.statistics statistics/mine": [1, 8, "1"]}}}
    assert summed([row], "hgp")[0]["discloses"] == "not stated"
    (missing,) = summed([row], "nowhere:Strategy")
    assert missing["discloses"] == "not known, the strategy cannot be loaded here"
    (foreign,) = summed([{"role": "source", "sent": {"up": {"train alignment/foo": [1, 8, "1"]}}}])
    assert foreign["discloses"] == "not stated", "rows from before such records were refused"
    text = "\n".join(sent_section({"sent": [missing]}))
    assert (
        "| nowhere:Strategy | source clients | server | query.statistics statistics/mine | 1     |     1 |     8 |"
        in text
    )
    assert "- query.statistics statistics/mine from source clients: not known, the strategy" in text


def test_rows_from_before_they_had_it_make_no_section() -> None:
    assert summed([{"role": "source"}]) == []
    assert sent_section({"sent": []}) == []
