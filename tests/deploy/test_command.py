"""``python -m fedhess.deploy``: what it prints, and its answer to mistakes; the processes have a test of their own."""

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from fedhess.deploy import __main__ as deploy
from fedhess.deploy.processes import free_port
from fedhess.deploy.programs import Program
from tests.conftest import Outcome
from tests.deploy.test_gateway import NGINX

Command = Callable[..., Outcome]


@pytest.fixture
def command(command: Command) -> Command:
    """Run the command in this process, in an empty directory."""
    return partial(command, of=deploy)


def test_keys_and_run_print_the_plain_command(command: Command) -> None:
    made = command("keys", "--host", "fl.example.org", "--node", "photo")
    assert (made.status, made.err) == (0, "")
    assert made.out.splitlines()[0] == "made keys/ca.crt"
    assert command("keys", "--node", "photo").out == "nothing to make: all of it is in keys\n"
    asked = command("run", "--superlink", "127.0.0.1:9", "--rounds", "2")
    assert asked.status == 1
    assert asked.out.startswith("$ FLWR_HOME=keys/flower flwr run keys/flower/fedhess deployment --run-config ")
    assert 'address = "127.0.0.1:9"' in Path("keys/flower/config.toml").read_text(encoding="utf-8")


def test_mistakes_in_settings_are_found_before_anything_starts(command: Command, tmp_path: Path) -> None:
    command("keys")
    ask = ("run", "--superlink", "fl.example.org:8000")
    wrong = command(*ask, "--rounds", "-3")
    assert (wrong.status, wrong.err) == (2, "fedhess: --rounds: expected at least 1, got -3\n")
    nowhere = command(*ask, "--resume-from", "3")
    assert (nowhere.status, "--resume-from 3: it continues a job; give --run-dir its" in nowhere.err) == (2, True)
    private = command(*ask, "--resume-from", "3", "--run-dir", "job", "--run-config", "dp-epsilon=8.0")
    assert (private.status, "--resume-from 3: a private run cannot go back" in private.err) == (2, True)
    port, control = free_port(), free_port()
    twice = command(
        "superlink", "--host=127.0.0.1", "--port", port, "--control-port", control, "--metrics-port", control
    )
    assert (twice.status, twice.err.startswith(f"fedhess: --metrics-port {control}: --port or --")) == (2, True)
    elsewhere = command("local", "--out", "job", "--run-config", 'run-dir="mine"')
    assert (elsewhere.status, "takes no run-dir; use --out FOLDER" in elsewhere.err) == (2, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "client = 1",
            "--node-config: expected key=value, with texts in quotes and no blanks around =, got 'client = 1'",
        ),
        ('role="source"', "--node-config: role is given twice; the command has it as 'target'"),
        ("thread=1", "--node-config: a node has no setting 'thread'; did you mean 'threads'?"),
        ("threads=one", "--node-config: "),
    ],
)
def test_node_settings_that_flower_would_leave_out_are_named(command: Command, given: str, message: str) -> None:
    node = ("supernode", "--superlink", "h:1", "--domain", "sketch", "--role", "target", "--port", "45873")
    refused = command(*node, "--node-config", given)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert refused.err.startswith(f"fedhess: {message}")


def test_mistakes_end_with_one_message_and_status_2(command: Command) -> None:
    without = command("superlink", "--port", "45871", "--control-port", "45870", "--host", "127.0.0.1")
    assert (without.status, without.out) == (2, "")
    assert "/keys/ca.crt; copy it from where the federation's keys were made" in without.err
    command("keys")
    keyless = command("supernode", "--superlink", "h:1", "--domain", "photo", "--port", "45873").err
    assert "photo; make it with `python -m fedhess.deploy keys --keys keys --node photo`" in keyless
    named = command("superlink", "--host", "fl.example.org")
    assert (named.status, named.err.startswith("fedhess: --host: expected an IP address of this machine")) == (2, True)
    nobody = command("register", "--superlink", "h:1")
    assert (nobody.status, nobody.err.count("\n")) == (2, 1)
    assert "there is no node's key in keys/nodes; make them with `keys --node NAME`" in nobody.err
    used = command("local", "--out", "keys")
    assert (used.status, used.err.endswith("keys is already used; choose another directory\n")) == (2, True)
    unknown = command("supernode", "--superlink", "h:1", "--domain", "photo", "--role", "boss")
    assert unknown.status == 2
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        link = ("superlink", "--host", "127.0.0.1", "--port", free_port())
        for *arguments, option in (
            ("superlink", "--host", "127.0.0.1", "--port"),
            (*link, "--control-port"),
            (*link, "--control-port", free_port(), "--metrics-port"),
            ("supernode", "--superlink", "h:1", "--domain", "photo", "--port"),
        ):
            taken = command(*arguments, option, port)
            assert (taken.status, f"{option}: cannot listen on 127.0.0.1:{port}" in taken.err) == (2, True)


@pytest.mark.skipif(NGINX is None, reason="there is no nginx; make programs installs it")
def test_options_after_two_dashes_reach_flowers_programs(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Program] = {}
    monkeypatch.setattr(deploy, "hand_over", lambda programs, **_: started.update(programs))
    monkeypatch.setattr(os, "umask", lambda _: 0)
    command("keys", "--host", "localhost", "--node", "photo")
    further = ("--isolation", "process", "--health-server-address", "127.0.0.1:8003")
    node = ("supernode", "--superlink", "h:1", "--domain", "photo", "--port", "45874")
    assert command(*node, "--", *further, "--trusted-entities", "entities.yaml").status == 0
    read = _parse_args_run_supernode().parse_args(list(started["photo"].arguments))
    assert (read.isolation, read.health_server_address) == ("process", "127.0.0.1:8003")
    assert str(read.trusted_entities) == "entities.yaml"
    link = ("superlink", "--host", "127.0.0.1", "--port", "45871", "--control-port", "45870")
    assert command(*link, "--", *further, "--log-file", "superlink.log").status == 0
    read = _parse_args_run_superlink().parse_args(list(started["superlink"].arguments))
    assert (read.isolation, read.health_server_address) == ("process", "127.0.0.1:8003")
    assert (read.log_file, read.host, read.port) == ("superlink.log", "127.0.0.1", 45870)


def test_what_flower_says_when_it_fails_is_shown(command: Command) -> None:
    command("keys", "--host", "localhost", "--node", "photo")
    Path("superlink").mkdir()
    failed = command("register", "--superlink", "127.0.0.1:9")
    assert failed.status == 1
    assert "$ FLWR_HOME=keys/flower flwr supernode register keys/nodes/photo.pub deployment" in failed.out
    assert failed.err.startswith("fedhess: not registered")
    assert "photo: flwr supernode: " in failed.err
    assert not Path("superlink/nodes.json").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--client", "photo"), "--client: expected KEY=CLIENT with a key of north, photo, got 'photo'"),
        (
            ("--client", "nort=photo[1]"),
            "--client: expected KEY=CLIENT with a key of north, photo, got 'nort=photo[1]'",
        ),
        (("--client", "north=photo"), "--client: expected another client for each key, got {'north': 'photo', "),
        ((), "--state: there is no folder superlink; register on the machine of `superlink`, with its --state"),
    ],
)
def test_mistakes_about_who_is_registered_are_named(command: Command, given: tuple[str, ...], message: str) -> None:
    command("keys", "--node", "north", "--node", "photo")
    wrong = command("register", "--superlink", "127.0.0.1:9", *given)
    assert (wrong.status, wrong.err.count("\n")) == (2, 1)
    assert wrong.err.startswith(f"fedhess: {message}")
