"""``fedhess.simulate --domains X`` for every benchmark, on small trees in the real layouts and on real digits."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from image_trees import write_tree

from fedhess.domains import BENCHMARKS
from fedhess.domains.images import any_tree, release
from fedhess.domains.images.releases import RELEASES
from tests.conftest import Outcome

Command = Callable[..., Outcome]
ONE_ROUND = ["--rounds", "1", "--local-steps", "1", "--batch-size", "4", "--trials", "1", "--strategy", "hgp"]
REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = [name for name in RELEASES if name != "PACS"]


def result(outcome: Outcome) -> dict[str, object]:
    assert outcome.status == 0, outcome.err
    summary: dict[str, object] = json.loads(outcome.out)
    return summary


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 32 pixels, so that a round of a ResNet takes a moment."""
    monkeypatch.setattr(release, "SIDE", 32)
    monkeypatch.setattr(any_tree, "SIDE", 32)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "name", [name if name == "VLCS" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_image_benchmarks_run_and_are_called_incomplete(command: Command, tmp_path: Path, name: str) -> None:
    layout = RELEASES[name].layout
    counts = dict.fromkeys(layout.classes, 1) | dict.fromkeys(layout.classes[:2], 3)  # a class of one holds none out
    root = write_tree(tmp_path / "data", list(layout.domains), counts)
    target = next(iter(layout.domains))
    arguments = ["--domains", name, "--data-dir", root, "--no-pretrained", "--target", target]
    outcome = command(*arguments, *ONE_ROUND, "--json", "--out", "job")
    summary = result(outcome)
    assert summary["title"] == name
    config = json.loads((tmp_path / "job" / "config.json").read_text())
    if name == "TerraIncognita":
        assert "differences" not in config["dataset"]
        assert outcome.err == ""
        return
    assert len(config["dataset"]["differences"]) == len(layout.domains)
    assert f"This is not the complete {name}: domain '{target}'" in " ".join(outcome.err.replace("|", " ").split())
    assert str(summary["protocol"]).startswith(f"not the complete {name}; ")


@pytest.mark.usefixtures("small")
def test_a_tree_of_ones_own_runs(command: Command, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "mes photos", ["été", "hiver", "冬"], {"chien": 3, "chat": 3})
    refused = command("--domains", f"folder:{root}", "--model", "mlp", "--max-pixels", 100, "--out", "job")
    assert (refused.status, "exceeds limit of 100 pixels" in " ".join(refused.err.split())) == (2, True)
    summary = result(command("--domains", f"folder:{root}", "--model", "mlp", *ONE_ROUND, "--json", "--out", "job"))
    assert summary["title"] == "folder:mes photos"
    assert str(summary["protocol"]).startswith("data side=32; "), "names of domains and classes stand elsewhere"
    assert summary["targets"] == ["hiver", "été", "冬"]
    assert {path.name for path in (tmp_path / "job").iterdir()} >= {"hiver", "été", "冬"}


@pytest.mark.usefixtures("small")
def test_images_that_are_left_out_are_named_once(command: Command, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "photos", ["a", "b", "c"], {"x": 4, "y": 3})
    (root / "a" / "x" / "pic_000.jpg").write_bytes(b"")
    brief = ["--model", "mlp", "--target", "c", *ONE_ROUND]
    outcome = command("--domains", f"folder:{root}", *brief, "--skip-bad-images", "--out", "job")
    assert (outcome.status, outcome.out.count("cannot be decoded and are left out")) == (0, 1)


@pytest.mark.parametrize("domains", ["Digits", "ColoredMNIST"])
def test_digits_run(command: Command, domains: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(os.environ.get("FEDHESS_DATA") or REPOSITORY / ".data")
    if not all((root / name).exists() for name in ("MNIST/raw", "USPS", "optdigits")):
        pytest.skip("MNIST, USPS and optdigits are not in place: tools/fetch_mnist.py, tools/fetch_digits.py")
    form = "form=domainbed," if domains == "ColoredMNIST" else ""
    arguments = ["--domains", domains, "--domains-args", f"{form}per_domain=60", "--data-dir", root]
    summary = result(command(*arguments, *ONE_ROUND, "--json", "--out", "job"))
    assert len(summary["targets"]) == 3  # type: ignore[arg-type]
    assert ("form=domainbed" in str(summary["protocol"])) == bool(form)
    assert ("model mnist-cnn" in str(summary["protocol"])) == bool(form)
    assert "91257" not in str(summary["protocol"]), "the scripts' penalties belong to form irm"


def test_help_names_every_benchmark(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = " ".join(command("--help").out.split())
    assert f"Benchmark: {', '.join(name for name in BENCHMARKS if name != 'Toy')} (any tree" in text
