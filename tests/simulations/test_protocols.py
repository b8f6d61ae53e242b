"""The published protocols as presets: their facts, their draws, and each from start to end on small real trees."""

import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from fedhess.alignment.loading import load_strategy
from fedhess.base.errors import UsageError
from fedhess.domains.images import release
from fedhess.domains.images.releases import RELEASES, TEN
from fedhess.federation.client import memory
from fedhess.jobs.selectors import ORACLE
from fedhess.settings.ranges import draw_settings
from fedhess.settings.run_config import RunConfig
from fedhess.simulations import diversity_shift
from fedhess.simulations.scenarios.comparison import render
from fedhess.simulations.scenarios.presets import PROTOCOLS, WITH_TERRA, comparison_of, configurations

REPOSITORY = Path(__file__).resolve().parents[2]
# Where each benchmark lies in a data folder, as its releases have it.
ROOTS = {"PACS": "PACS", "VLCS": "VLCS", "OfficeHome": "office_home", "DomainNet": "domain_net"}
ROOTS |= {"TerraIncognita": "terra_incognita"}
SIDE = 32  # pixels, in place of 224


# -- Facts -------------------------------------------------------------------------------------------------------------


def test_every_preset_has_settings_for_the_four_benchmarks() -> None:
    for protocol in PROTOCOLS.values():
        assert set(protocol.benchmarks) >= {"PACS", "VLCS", "OfficeHome", "DomainNet"}
        for benchmark in protocol.benchmarks:
            settings = protocol.settings_of(benchmark)
            RunConfig.checked({"domains": benchmark, "sources": ("a", "b", "c"), "targets": ("d",)} | settings)
            assert {"model", "rounds", "batch_size", "lr", "evaluate_every", "augment"} <= set(settings)


def test_domainbed_is_the_centralised_sweep() -> None:
    jobs = configurations(PROTOCOLS["domainbed"], domains=["PACS"], strategies=["hgp"], seeds=[0, 1, 2])
    assert [len(job.variants) for job in jobs] == [20, 20, 20]
    assert all(job.oracle and job.require_real for job in jobs)


def test_bai_runs_everything_with_each_heterogeneity() -> None:
    bai = PROTOCOLS["bai"]
    jobs = configurations(bai, domains=["PACS"], strategies=bai.strategies, seeds=bai.seeds)
    assert {job.seed for job in jobs} == {1002, 1003, 1004}
    assert [job.overrides["heterogeneity"] for job in jobs[:3]] == [1.0, 0.1, 0.0]
    assert len(jobs) == 3 * 3 * len(bai.strategies)
    assert {job.strategy: job.overrides["lr"] for job in jobs if job.overrides["lr"] != 3e-5} == {"fedprox": 1e-5}
    assert {job.strategy for job in jobs if job.strategy_args} == {"irm", "coral", "groupdro", "fedprox"}


def test_every_protocols_strategies_take_their_arguments() -> None:
    for protocol in PROTOCOLS.values():
        jobs = configurations(
            protocol, domains=protocol.benchmarks, strategies=protocol.strategies, seeds=protocol.seeds[:1]
        )
        for job in jobs:
            load_strategy(job.strategy, job.strategy_args)
    ga = configurations(PROTOCOLS["ga"], domains=WITH_TERRA, strategies=["erm"], seeds=[0])
    assert {job.benchmark: job.options for job in ga if job.options} == {"DomainNet": {"classes": "ten"}}


def test_every_difference_from_the_publication_stands_with_the_results() -> None:
    for protocol in PROTOCOLS.values():
        notes = comparison_of(protocol).notes
        assert protocol.source in notes[0]
        assert len(protocol.differences) >= 5
        assert set(protocol.differences) < set(notes)
        assert any("VLCS" in note for note in notes) == ("VLCS" in protocol.ours or protocol.name == "vlcs")


def test_first_setting_of_a_trial_is_the_protocols_own() -> None:
    (job,) = configurations(PROTOCOLS["domainbed"], domains=["VLCS"], strategies=["hgp"], seeds=[1])
    assert job.variants[0] == {"server_lr": 5e-5, "batch_size": 32}
    assert job.variants[3] == draw_settings("hgp", "VLCS", number=3, trial=1)
    assert 1e-5 < job.variants[3]["alpha"] < 1e-3


def test_hutchinson_draws_from_the_released_ranges_or_by_name_from_those_beside_them() -> None:
    for name, low, high in (("domainbed", 1, 4), ("domainbed-default-ranges", -3, -1)):
        (job,) = configurations(PROTOCOLS[name], domains=["VLCS"], strategies=["hutchinson"], seeds=[1])
        assert all(10**low < variant["alpha"] < 10**high for variant in job.variants[1:])


# -- From start to end -------------------------------------------------------------------------------------------------


def picture(domain: int, label: int, number: int) -> bytes:
    """Draw a small JPEG: a shape by class on a paper by domain."""
    image = Image.new("RGB", (40, 40), (60 + 40 * domain, 120, 200 - 30 * domain))
    pen = ImageDraw.Draw(image)
    corner = 4 + number
    pen.ellipse((corner, corner, 14 + label % 20, 34 - label % 10), fill=(255 - label % 200, 40 * (label % 6), 30))
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a benchmark's tree in its real layout, once: five real JPEGs of the first classes, one of the others."""
    root = tmp_path_factory.mktemp("trees")

    def make(benchmark: str) -> Path:
        layout = RELEASES[benchmark].layout
        for domain, name in enumerate(layout.domains):
            for label, kind in enumerate(layout.classes):
                folder = root / ROOTS[benchmark] / name / kind
                if not folder.exists():
                    folder.mkdir(parents=True)
                    for number in range(5 if label < 4 or kind in TEN else 1):
                        (folder / f"{number}.jpg").write_bytes(picture(domain, label, number))
        return root

    return make


@pytest.fixture
def run(trees: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run the command with a preset in an empty directory, images of 32 px."""
    monkeypatch.setattr(release, "SIDE", SIDE)
    monkeypatch.delenv("FEDHESS_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    memory.MEMORY.clear()

    def command(benchmark: str, *arguments: str) -> tuple[Mapping[str, Any], str]:
        given = ["--quick", "--domains", benchmark, "--data-dir", str(trees(benchmark)), *arguments]
        result = CliRunner().invoke(diversity_shift.cli, given)
        if isinstance(result.exception, UsageError):
            raise result.exception
        assert result.exit_code == 0, (result.output, result.exception)
        (file,) = Path("runs/quick").glob("*.json")
        (row,) = json.loads(file.read_text(encoding="utf-8"))["rows"]
        assert str(trees(benchmark)) not in file.read_text(encoding="utf-8"), "no path of this machine"
        return row, result.output

    return command


def target_of(benchmark: str) -> str:
    return list(RELEASES[benchmark].layout.domains)[-1]


SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]
CASES = [(preset, benchmark) for preset in PROTOCOLS for benchmark in PROTOCOLS[preset].benchmarks]
# The others take their minute where slow tests run.
FAST = [("ga", "PACS")]


@pytest.mark.parametrize(
    ("preset", "benchmark"),
    [pytest.param(*case, marks=[] if case in FAST else SLOW, id="-".join(case)) for case in CASES],
)
def test_preset_starts_and_ends_on_a_small_tree(run: Any, preset: str, benchmark: str) -> None:
    target = target_of(benchmark)
    row, out = run(benchmark, "--preset", preset, "--strategy", "hgp", "--target", target)
    protocol = PROTOCOLS[preset]
    assert (row["benchmark"], row["seed"]) == (benchmark, protocol.seeds[0]), "the data itself, no stand-in"
    assert ("(a tenth after 80 % of the rounds)" in row["protocol"]) == (preset == "ga")
    oracle = {ORACLE} if protocol.oracle else set()
    assert set(row["accuracy"]) == {"sources", target} | oracle
    assert all(0 <= value <= 100 for value in row["accuracy"].values())
    assert not any("failure" in text for text in row.get("warnings", ()))
    settings = row["settings"]
    assert (settings["model"], settings["pretrained"], settings["rounds"]) == ("resnet18", False, 2)
    shortened = {"model", "rounds", "local_epochs", "clients", "batch_size", "evaluate_every", "checkpoint_every"}
    expected = {**protocol.settings_of(benchmark), **protocol.each[0]}
    assert {key: settings[key] for key in expected if key not in shortened} == {
        key: value for key, value in expected.items() if key not in shortened
    }
    assert f"# Leave one domain out, protocol {preset}" in out
    assert f"`python -m fedhess.simulations.diversity_shift --preset {preset} --quick`" in out
    assert "QUICK" in out
    for note in protocol.notes():
        assert f"- {note}" in out
    if preset == "domainbed":
        assert settings["variants"] == 2
        announced = rf"{benchmark}-hgp-0-[0-9a-f]{{8}}: 2, 2 settings among them: 2 runs, 4 rounds of training\n"
        assert re.match(announced, out), out
        assert "selection among 2 settings by source validation" in row["protocol"]
        assert "every domain split as DomainBed does" in row["protocol"]
    assert [path.suffix for path in sorted(Path("runs/quick").iterdir())] == [".json", ".md", ".png", ".svg"]
    assert Path(f"runs/quick/diversity_shift-{preset}.json").exists()


def test_published_numbers_stand_beside_ours_and_the_oracle_in_its_own_column() -> None:
    accuracy = {"sources": 90.0, "art_painting": 80.0, "cartoon": 81.0, "photo": 82.0, "sketch": 83.0, ORACLE: 84.5}
    environment = {"platform": "here", "cpu_count": 2, "git_revision": "abc", "versions": {"torch": "2", "flwr": "1"}}
    row = {
        "benchmark": "PACS", "strategy": "erm", "seed": 0, "per_domain": 0, "settings": {}, "options": {}, "digest": "",
        "accuracy": accuracy, "average": 81.5, "device": "cpu", "environment": environment,
    }  # fmt: skip
    out = render(comparison_of(PROTOCOLS["domainbed"]), {"quick": False, "rows": [row]})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert lines[0][-5:] == ["average", "published", ORACLE, "published", "source"], "the oracle comes last"
    assert lines[2][-5:] == ["81.5", "85.5", "84.5", "86.7", "[1]"]
    assert lines[2][3:11] == ["80.0", "84.7", "81.0", "80.8", "82.0", "97.2", "83.0", "79.3"]
    assert lines[0][:3] == ["strategy", "seeds", "sources (held out)"]
    assert "Made by `python -m fedhess.simulations.diversity_shift --preset domainbed`;" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "gaa"], "--preset: unknown protocol 'gaa'; did you mean 'ga'"),
        (["--preset", "bai", "--domains", "TerraIncognita"], "--domains: 'TerraIncognita' is none of this command's"),
        (["--preset", "ga", "--strategy", "fedag"], "--strategy: unknown strategy 'fedag'; did you mean"),
        (["--preset", "domainbed", "--strategy", "erm,fedadam"], "draws the server's learning rate, got 'fedadam', a"),
        (["--preset", "ga"], "PACS is not there and cannot be had"),
        (["--preset", "ga", "--selection", "oracle"], "--selection: the oracle looks at the target"),
    ],
)
def test_mistake_is_named(
    trees: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("FEDHESS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    data = ["--data-dir", str(trees("PACS"))] if "oracle" in arguments else []
    result = CliRunner().invoke(diversity_shift.cli, ["--quick", *arguments, *data])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_documentation_names_every_preset_and_every_difference() -> None:
    text = " ".join((REPOSITORY / "docs" / "protocols.md").read_text(encoding="utf-8").split())
    for protocol in PROTOCOLS.values():
        assert f"--preset {protocol.name} --domains" in text
        for said in (*protocol.differences, protocol.title, protocol.source):
            assert " ".join(said.split()) in text, said
