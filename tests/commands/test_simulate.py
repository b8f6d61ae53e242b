"""The command: what it writes and prints, and its answer to every mistake."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedhess.settings.run_config import GROUPS, SEARCH
from tests.conftest import TOY, Outcome, Start

Command = Callable[..., Outcome]
BRIEF = ["--target", "sketch", "--rounds", "1", "--local-steps", "1", "--strategy", "erm", "--trials", "1"]


# -- What it writes ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rendered_figures")
def test_run_directory_of_one_strategy(command: Command) -> None:
    outcome = command(*TOY, "--strategy", "erm", "--out", "job")
    assert outcome.status == 0, outcome.err
    assert sorted(str(path.relative_to("job")) for path in Path("job").rglob("*") if path.is_file()) == [
        ".lock",
        "config.json",
        "east/0/checkpoint/checkpoint.json",
        "east/0/checkpoint/round-000002.safetensors",
        "east/0/checkpoint/round-000003.safetensors",
        "east/0/clients.json",
        "east/0/partition.json",
        "east/0/rounds.jsonl",
        "east/0/selected/round-000002.safetensors",
        "east/0/selected/round-000003.safetensors",
        "figures/rounds.png",
        "figures/rounds.svg",
        "summary.json",
        "summary.md",
    ]
    assert Path("job/figures/rounds.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_one_a_round_and_domain(command: Command) -> None:
    command(*TOY, "--strategy", "erm", "--out", "job")
    rows = [json.loads(line) for line in Path("job/east/0/rounds.jsonl").read_text().splitlines()]
    assert [(row["round"], row["domain"]) for row in rows] == [
        (number, domain) for number in range(4) for domain in ("north", "south", "west", "east")
    ]
    assert {(row["domain"], row["role"], row["split"], row["examples"]) for row in rows} == {
        ("north", "source", "validation", 12),
        ("south", "source", "validation", 12),
        ("west", "source", "validation", 12),
        ("east", "target", "all", 48),
    }
    assert all(row["gradient_distance"] is None for row in rows if row["role"] == "target")


def test_config_records_settings_data_and_versions(command: Command) -> None:
    command(*TOY, "--strategy", "hgp", "--strategy-args", "alpha=0.5", "--out", "job")
    config = json.loads(Path("job/config.json").read_text())
    assert config["settings"]["rounds"] == 3
    assert (config["strategies"]["hgp"]["alpha"], config["strategies"]["hgp"]["beta"]) == (0.5, 0.01)
    assert config["dataset"]["counts"]["east"] == {f"class {index}": 12 for index in range(4)}
    assert len(config["dataset"]["digest"]) == 64
    assert config["environment"]["versions"]["torch"] == torch.__version__
    assert config["environment"]["torch_threads"] == torch.get_num_threads()


def test_default_directory_is_named_by_data_strategies_and_time(command: Command) -> None:
    command(*TOY, "--strategy", "erm,hgp", "--rounds", "1")
    assert [path.name.rpartition("_")[0] for path in Path("runs").iterdir()] == ["Toy_erm-hgp"]


def test_seed_decides_the_bytes(command: Command) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        command(*TOY, "--strategy", "hgp", "--seed", seed, "--out", name)
    weights = {name: max(Path(name).rglob("checkpoint/*.safetensors")).read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"]
    assert weights["a"] != weights["c"]


# -- What it prints ----------------------------------------------------------------------------------------------------


def test_output_is_header_progress_with_time_left_and_table(command: Command) -> None:
    outcome = command(*TOY, "--strategy", "erm", "--out", "job")
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["data", "Toy"]
    assert {line.split()[0] for line in lines[:10]} >= {"model", "strategies", "device", "engine", "seeds"}
    assert any("round 3/3" in line and line.endswith("0 s left") for line in lines)
    assert any(line.startswith("| strategy") for line in lines)
    assert lines[-1].startswith("written: job/summary.json")
    assert "\x1b" not in outcome.out, "no colour where there is no terminal"


def test_quiet_prints_the_table_alone(command: Command) -> None:
    outcome = command(*TOY, "--strategy", "erm", "--out", "job", "--quiet")
    table, _, sent = Path("job/summary.md").read_text().partition("\nwhat was sent")
    assert outcome.out == table
    assert "| source clients | server         | train arrays " in sent
    assert outcome.err == ""


def test_json_prints_the_summary_alone(command: Command) -> None:
    outcome = command(*TOY, "--strategy", "erm", "--out", "job", "--json")
    assert json.loads(outcome.out) == json.loads(Path("job/summary.json").read_text())
    assert outcome.err == ""


def test_list_names_everything(command: Command) -> None:
    outcome = command("--list")
    assert outcome.status == 0
    for name in (
        "IconPACS",
        "DomainNet",
        "folder:PATH",
        "ColoredMNIST",
        "hgp",
        "hutchinson",
        "probes=0",
        "lite0-features",
        "resnet50",
    ):
        assert name in outcome.out


def test_help_says_every_default(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    outcome = command("--help")
    assert outcome.status == 0
    text = " ".join(outcome.out.split())
    options = re.split(r" (?=--[a-z0-9-]+(?: /| TEXT| INTEGER| FLOAT| PATH) )", text)[1:]
    without = {option.split()[0] for option in options if "[default: " not in option}
    assert without == {
        "--strategy-args",
        "--dp-clip",
        "--average-args",
        "--server-optimizer-args",
        "--domains-args",
        "--image-cache-gb",
    }
    first = outcome.out[outcome.out.index("Main options:") : outcome.out.index("Data:")]
    assert len(re.findall(r"^  --", first, re.MULTILINE)) <= 15
    headings = [f"{group}:" for group in GROUPS if group != SEARCH]
    assert [word for word in re.findall(r"^[A-Z][a-z ]+:$", outcome.out, re.MULTILINE) if word in headings] == headings
    assert "[default: 40; 501 with mlp; 5000 with mnist-cnn]" in text


def test_stand_in_is_named_wherever_results_are(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("FEDHESS_DATA", raising=False)
    outcome = command("--domains", "PACS", *BRIEF)
    assert outcome.status == 0, outcome.err
    title = "IconPACS (stand-in for PACS)"
    lines = outcome.out.splitlines()
    boxed = [line for line in lines if line.startswith("| IconPACS stands in for PACS")]
    assert len(boxed) == 1
    assert lines[lines.index(boxed[0]) - 1].startswith("+---")
    assert f"data        {title}" in lines
    assert any(line.startswith(f"{title}: accuracy") for line in lines)
    (job,) = Path("runs").iterdir()
    assert job.name.startswith("IconPACS-stand-in-for-PACS_erm_")
    config = json.loads((job / "config.json").read_text())
    assert (config["dataset"]["title"], config["dataset"]["stand_in_for"]) == (title, "PACS")
    names = {path.name for path in [*job.glob("summary*"), *job.glob("figures/*")]}
    assert names == {"summary.md", "summary.json", "rounds.png", "rounds.svg"}
    assert title in (job / "summary.md").read_text()


def test_stand_in_is_named_on_stderr_when_quiet(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("FEDHESS_DATA", raising=False)
    outcome = command("--domains", "PACS", *BRIEF, "--json")
    assert json.loads(outcome.out)["stand_in_for"] == "PACS"
    assert "IconPACS stands in for PACS" in outcome.err


# -- In processes of their own -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_module_runs_and_the_user_can_interrupt_it(start: Start, tmp_path: Path) -> None:
    wrong = start(["--strategy", "hpg", "--domains", "IconPACS"], code=None)
    long = start([*TOY, "--strategy", "erm", "--rounds", "100000", "--out", "job"])
    out, err = wrong.communicate(timeout=60)
    assert (wrong.returncode, out) == (2, "")
    assert err.startswith("fedhess: --strategy: unknown strategy 'hpg'")
    assert len(err.splitlines()) == 1
    while not (tmp_path / "job/east/0/rounds.jsonl").exists():
        assert long.poll() is None, long.communicate()
    os.kill(long.pid, signal.SIGINT)
    _, err = long.communicate(timeout=60)
    assert long.returncode == 130
    assert "completed rounds are kept: continue with --resume --out job" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_job_that_ends_before_a_slow_target_ends_with_status_0(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "slow.py"
    program.write_text(
        "import sys, time, torch\n"
        "import fedhess.simulate as command\n"
        "from fedhess.jobs.workers import worker\n"
        "from fedhess.domains import BENCHMARKS\n"
        "BENCHMARKS['Toy'] = 'toy:open_toy'\n"
        "real = worker.client_app\n"
        "def app(message, context):\n"
        "    if context.node_config['partition-id'] == 3 and message.metadata.message_type == 'evaluate':\n"
        "        x, end = torch.randn(300, 300, requires_grad=True), time.monotonic() + 20\n"
        "        while time.monotonic() < end:\n"
        "            (x @ x).sum().backward()\n"
        "    return real(message, context)\n"
        "worker.client_app = app\n"
        "sys.argv = ['fedhess', '--domains', 'Toy', '--strategy', 'erm', '--target', 'east', '--rounds', '1',\n"
        "            '--batch-size', '8', '--trials', '1', '--deadline', '1', '--quiet', '--out', sys.argv[1]]\n"
        "command.main()\n",
        encoding="utf-8",
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "support"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "job")],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "n/a" in done.stdout
    assert "terminate called" not in done.stderr
