import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark

OPEN = """
import sys, time
from fedhess.domains import open_benchmark
start = time.monotonic()
benchmark = open_benchmark("PACS", notify=lambda message: print(message, file=sys.stderr))
print(benchmark.title, time.monotonic() - start, sep="|")
"""


def test_a_local_copy_is_pacs_itself(complete_pacs: Path):
    benchmark = open_benchmark("pacs", data_dir=complete_pacs, require_real=True)
    assert (benchmark.title, benchmark.stand_in_for) == ("PACS", None)
    assert benchmark.default_model == "resnet18"
    assert (benchmark.input_shape, benchmark.outputs, benchmark.holdout) == ((3, 224, 224), 7, 0.2)
    assert [scenario.name for scenario in benchmark.scenarios] == ["art_painting", "cartoon", "photo", "sketch"]
    assert benchmark.scenarios[2].sources == ("art_painting", "cartoon", "sketch")


def test_opened_again_by_name_and_options_it_is_the_same(complete_pacs: Path):
    benchmark = open_benchmark("PACS", data_dir=complete_pacs)
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again == benchmark
    assert again.load("photo").digest == benchmark.load("photo").digest


def test_the_environment_names_the_folder(complete_pacs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEDHESS_DATA", str(complete_pacs))
    assert open_benchmark("PACS").title == "PACS"


def test_an_environment_folder_with_other_data_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    monkeypatch.setenv("FEDHESS_DATA", str(tmp_path))
    assert open_benchmark("PACS").stand_in_for == "PACS"


@pytest.mark.parametrize("half", ["photo", ""])
def test_a_broken_environment_folder_is_never_replaced_silently(pacs: Path, half: str, monkeypatch: pytest.MonkeyPatch):
    shutil.rmtree(pacs / half)
    monkeypatch.setenv("FEDHESS_DATA", str(pacs))
    with pytest.raises(UsageError, match="'photo' is missing" if half else "cannot be read"):
        open_benchmark("PACS")


def test_a_given_folder_is_never_replaced_by_a_stand_in(tmp_path: Path):
    with pytest.raises(UsageError, match="no PACS in"):
        open_benchmark("PACS", data_dir=tmp_path)


def test_without_data_iconpacs_stands_in_and_says_so():
    messages: list[str] = []
    benchmark = open_benchmark("PACS", notify=messages.append)
    assert benchmark.title == "IconPACS (stand-in for PACS)"
    assert benchmark.default_model == "lite0-features"
    assert messages == [
        "PACS cannot be had (HF_HUB_OFFLINE is set): IconPACS stands in for it. Its results say nothing about PACS"
    ]
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again == benchmark
    assert again.title == benchmark.title


def test_require_real_lists_the_three_ways():
    with pytest.raises(UsageError) as caught:
        open_benchmark("PACS", require_real=True)
    lines = str(caught.value).splitlines()
    assert "HF_HUB_OFFLINE is set" in lines[0]
    assert [line[:5] for line in lines[1:]] == ["  1. ", "  2. ", "  3. "]
    assert "--data-dir ROOT, or FEDHESS_DATA=ROOT" in lines[1]
    assert "flwrlabs/pacs" in lines[2]
    assert os.environ["FEDHESS_CACHE"] in lines[3]


def test_what_an_earlier_run_downloaded_is_used_without_a_network(complete_pacs: Path, tmp_path: Path):
    shutil.copytree(complete_pacs, tmp_path / "PACS")
    benchmark = open_benchmark("PACS", cache_dir=tmp_path)
    assert benchmark.title == "PACS"
    assert benchmark.options["data_dir"] == str(tmp_path / "PACS")


def test_with_a_network_that_does_not_answer_the_decision_takes_under_ten_seconds(silent_server: str):
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment["HF_ENDPOINT"] = silent_server
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", OPEN], env=environment, capture_output=True, text=True, check=True)
    title, seconds = done.stdout.strip().split("|")
    assert title == "IconPACS (stand-in for PACS)"
    assert float(seconds) < 10
    assert time.monotonic() - start < 30, "a thread that still waits must not hold the process back"
    assert "cannot be reached" in done.stderr or "no answer" in done.stderr
