"""The frame of every command: its help, and how it ends."""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import click
import pytest
import typer

import fedhess
from fedhess.__main__ import main
from fedhess.base.errors import FederationError, StorageError, UsageError
from fedhess.cli.command import Command, run_command

MODULES = [
    *(f"fedhess.{name}" for name in ("simulate", "report", "diagnose", "data", "deploy.__main__")),
    *(f"fedhess.simulations.{name}" for name in ("correlation_shift", "label_shift", "diversity_shift")),
    *(f"fedhess.simulations.{name}" for name in ("transferability", "timing", "load")),
]


def test_every_command_is_a_subcommand_of_fedhess(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fedhess", *arguments])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        return capsys.readouterr().out

    command = [sys.executable, "-m", "fedhess", "--help"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(f"  {name}" in listing for name in ("simulate", "data", "report", "diagnose", "deploy"))
    assert "--strategy" in said("simulate", "--help")
    assert "superlink" in said("deploy", "--help")
    assert said("--version") == f"fedhess {fedhess.__version__}\n"


def test_help_comes_without_torch() -> None:
    code = "import sys\nfrom fedhess.__main__ import main\nfor name in ('simulate', 'sweep', 'export', 'predict'):\n"
    code += " sys.argv = ['fedhess', name, '-h']\n try: main()\n except SystemExit as end: assert not end.code\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 4


@pytest.mark.parametrize("module", MODULES)
def test_help_and_version_of_every_command(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = import_module(module).cli

    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        assert run_command(cli) == 0
        return capsys.readouterr().out

    names = [registered.name or registered.callback.__name__ for registered in cli.registered_commands]
    for arguments in [[]] if len(names) == 1 else [[], *([name] for name in names)]:
        text = said(*arguments, "-h")
        assert text == said(*arguments, "--help")
        assert "Usage:" in text
        assert "\\[" not in text
        assert not re.search(r"\[default: [^]]*\]\s+\[default: ", text), "a default is there twice"
    assert said("--version") == f"fedhess {fedhess.__version__}\n"


def _raise(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (lambda: None, 0, ""),
        (_raise(typer.Exit(1)), 1, ""),
        (_raise(UsageError("--seeds: wrong")), 2, "label_shift: --seeds: wrong\n"),
        (_raise(click.UsageError("no such option")), 2, "Error: no such option\n"),
        (_raise(FederationError("lost")), 1, "label_shift: lost\n"),
        (_raise(StorageError("disk full")), 1, "label_shift: disk full\n"),
        (_raise(KeyboardInterrupt()), 130, ""),
    ],
)
def test_end_of_a_command(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    body: Callable[[], None],
    status: int,
    said: str,
) -> None:
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    cli.command(cls=Command)(body)
    monkeypatch.setattr(sys, "argv", ["label_shift"])
    assert run_command(cli, "label_shift") == status
    written = capfd.readouterr().err
    assert written.endswith(said)
    assert bool(written) == bool(said)


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    cli.command(cls=Command)(_raise(ZeroDivisionError("a defect")))
    monkeypatch.setattr(sys, "argv", ["label_shift"])
    with pytest.raises(ZeroDivisionError, match="a defect"):
        run_command(cli, "label_shift")
