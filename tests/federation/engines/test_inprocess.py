"""The in-process grid keeps Flower's contract: isolation, error replies, timeouts, contexts, lazy replies."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedhess.federation.engines import inprocess
from fedhess.federation.engines.inprocess import InProcessGrid, run_in_process
from fedhess.federation.flower_compat import SUPERLINK_NODE_ID, ErrorCode, run_identity

app = ClientApp()
calls: list[int] = []


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    calls.append(context.node_id)
    return Message(message.content, reply_to=message)


@app.query("count")
def count(message: Message, context: Context) -> Message:
    seen = int(context.state["seen"]["n"]) + 1 if "seen" in context.state else 1  # type: ignore[index]
    context.state["seen"] = MetricRecord({"n": seen})
    answer = ConfigRecord({"node": context.node_config["name"], "run": context.run_config["key"], "seen": seen})
    return Message(RecordDict({"answer": answer}), reply_to=message)


@app.query("spoil")
def spoil(message: Message, context: Context) -> Message:
    message.content["config"]["list"].append(99)  # type: ignore[index, union-attr]
    message.content["config"]["new"] = 1  # type: ignore[index]
    return Message(message.content, reply_to=message)


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    if context.node_config["name"] == "b":
        raise RuntimeError("out of luck")
    return Message(RecordDict(), reply_to=message)


released = threading.Event()


@app.query("hang")
def hang(message: Message, context: Context) -> Message:
    if context.node_config["name"] == "a":
        released.wait(60)
    return Message(RecordDict(), reply_to=message)


@pytest.fixture
def grid() -> Iterator[InProcessGrid]:
    calls.clear()
    made = InProcessGrid(app, node_configs={7: {"name": "a"}, 5: {"name": "b"}}, run_config={"key": "value"})
    with run_identity(1):
        yield made
    made.close()


def ask(action: str, node: int, content: RecordDict | None = None) -> Message:
    return Message(content or RecordDict(), dst_node_id=node, message_type=f"query.{action}")


def test_replies_name_their_message_and_node(grid: InProcessGrid) -> None:
    messages = [ask("echo", 7), ask("echo", 5)]
    replies = list(grid.send_and_receive(messages, timeout=5))
    assert [r.metadata.src_node_id for r in replies] == [7, 5]
    assert [r.metadata.reply_to_message_id for r in replies] == [m.metadata.message_id for m in messages]
    assert all(r.metadata.dst_node_id == SUPERLINK_NODE_ID for r in replies)
    assert list(grid.get_node_ids()) == [7, 5]
    assert [node.node_id for node in grid.get_nodes()] == [7, 5]


def test_clients_run_only_as_their_replies_are_taken(grid: InProcessGrid) -> None:
    replies = iter(grid.send_and_receive([ask("echo", 7), ask("echo", 5)], timeout=5))
    assert calls == []
    next(replies)
    assert calls == [7]
    next(replies)
    assert calls == [7, 5]


def test_push_and_pull_are_send_and_receive_in_two_steps(grid: InProcessGrid) -> None:
    ids = list(grid.push_messages([ask("echo", 7), ask("echo", 5)]))
    (reply,) = grid.pull_messages(ids[1:])
    assert reply.metadata.src_node_id == 5
    assert [r.metadata.src_node_id for r in grid.pull_messages(ids)] == [7]
    assert list(grid.pull_messages(ids)) == []


def test_neither_side_reaches_into_the_others_records(grid: InProcessGrid) -> None:
    mine = RecordDict({"config": ConfigRecord({"list": [1, 2]}), "arrays": ArrayRecord()})
    (reply,) = grid.send_and_receive([ask("spoil", 7, mine)], timeout=5)
    assert mine["config"] == ConfigRecord({"list": [1, 2]})
    assert reply.content["config"] == ConfigRecord({"list": [1, 2, 99], "new": 1})


def test_each_node_has_its_own_context_that_lasts(grid: InProcessGrid) -> None:
    messages = [ask("count", 7), ask("count", 5), ask("count", 7)]
    answers = [dict(r.content["answer"]) for r in grid.send_and_receive(messages, timeout=5)]
    assert answers == [
        {"node": "a", "run": "value", "seen": 1},
        {"node": "b", "run": "value", "seen": 1},
        {"node": "a", "run": "value", "seen": 2},
    ]


def test_a_client_that_raises_is_an_error_reply_with_flowers_code(grid: InProcessGrid) -> None:
    good, bad = grid.send_and_receive([ask("fail", 7), ask("fail", 5)], timeout=5)
    assert good.has_content()
    assert bad.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert bad.error.reason == "RuntimeError: out of luck"


def test_an_unknown_node_and_an_unknown_action_are_error_replies(grid: InProcessGrid) -> None:
    nobody, nothing = grid.send_and_receive([ask("echo", 123), ask("unheard_of", 7)], timeout=5)
    assert nobody.error.code == ErrorCode.NODE_UNAVAILABLE
    assert nothing.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "unheard_of" in str(nothing.error.reason)


def test_a_slow_client_is_left_out_and_the_others_go_on(grid: InProcessGrid) -> None:
    released.clear()
    replies = list(grid.send_and_receive([ask("hang", 7), ask("hang", 5)], timeout=2))
    assert [r.metadata.src_node_id for r in replies] == [5]
    (busy,) = grid.send_and_receive([ask("echo", 7)], timeout=2)
    assert busy.error.code == ErrorCode.NODE_UNAVAILABLE
    released.set()
    for _ in range(100):
        (later,) = grid.send_and_receive([ask("echo", 7)], timeout=5)
        if later.has_content():
            break
        time.sleep(0.1)
    assert later.has_content()


def test_a_hung_client_does_not_keep_the_process_alive() -> None:
    program = """
import threading
import time
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from fedhess.federation.flower_compat import run_identity
from fedhess.federation.engines.inprocess import InProcessGrid
app = ClientApp()
@app.query("hang")
def hang(message, context):
    time.sleep(3600)
with run_identity(1):
    grid = InProcessGrid(app, node_configs={2: {}}, run_config={})
    message = Message(RecordDict(), dst_node_id=2, message_type="query.hang")
    print(len(list(grid.send_and_receive([message], timeout=0.2))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "0"


def test_a_client_that_ends_after_several_pulls_leaves_its_thread_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inprocess, "POLL_SECONDS", 0.05)
    slow_app, threads = ClientApp(), []

    @slow_app.query("slow")
    def slow(message: Message, context: Context) -> Message:
        time.sleep(0.3)  # what a thread keeps, its model above all, would be made again by another
        threads.append(threading.get_ident())
        return Message(RecordDict(), reply_to=message)

    slow_grid = InProcessGrid(slow_app, node_configs={7: {}, 5: {}}, run_config={})
    with run_identity(1):
        ids, replies = list(slow_grid.push_messages([ask("slow", 7), ask("slow", 5)])), []
        while len(replies) < 2:
            replies += slow_grid.pull_messages(ids)
    slow_grid.close()
    assert len(set(threads)) == 1


class Slow:
    """Takes its time to go away, as a large model does."""

    def __del__(self) -> None:
        time.sleep(0.3)


def test_the_clients_thread_has_ended_when_the_run_returns() -> None:
    slow_app = ClientApp()
    server_app = ServerApp()

    @slow_app.query("slow")
    def slow(message: Message, context: Context) -> Message:
        reply = Message(RecordDict(), reply_to=message)
        reply.kept = Slow()  # type: ignore[attr-defined]
        return reply

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        assert all(reply.has_content() for reply in grid.send_and_receive([ask("slow", 1001)]))

    run_in_process(server_app, slow_app, run_config={}, node_configs=[{}])
    assert "fedhess-client" not in [thread.name for thread in threading.enumerate()]


def test_what_the_server_raises_comes_out_and_the_identity_is_put_back() -> None:
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        assert context.run_config["key"] == "value"
        raise LookupError("server trouble")

    with pytest.raises(LookupError, match="server trouble"):
        run_in_process(server_app, app, run_config={"key": "value"}, node_configs=[{"name": "a"}])
    with pytest.raises(RuntimeError, match="not set"):
        ask("echo", 7)


MEMORY = """
import resource
from fedhess.federation.engines import inprocess
import torch
kept = inprocess.keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
resident = lambda: int(open("/proc/self/statm").read().split()[1])
for _ in range(16):  # until its blocks have settled
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)
cleared = faults() - before
blocks = [torch.ones(2**21) for _ in range(40)]
del blocks[:-1]  # the last one lies above the others
inprocess.TRIMMED_FROM = 0
before = resident()
inprocess.return_freed_memory(0)
print(kept, *(pages * resource.getpagesize() / 2**20 for pages in (cleared, before - resident())))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_large_blocks_are_used_again_unless_the_user_has_set_the_allocator_up(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True)
    kept, *mebibytes = done.stdout.split()
    cleared, returned = map(float, mebibytes)
    assert kept == "True"
    assert cleared < 64, "by the kernel while ten tensors of 64 MiB came and went"
    assert returned > 256, "of 39 tensors of 8 MiB that are gone"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not inprocess.keep_freed_memory()
