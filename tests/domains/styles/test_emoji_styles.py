"""EmojiStyles: what a package's names mean, and that no source holds what targets are asked for."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import toy_config

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import SOURCE, TARGET, Benchmark, leave_one_out
from fedhess.domains.digits import known_file
from fedhess.domains.domain import TensorDomain
from fedhess.domains.opening import Opening
from fedhess.domains.partition import read_examples
from fedhess.domains.split import is_for_role
from fedhess.domains.styles import emoji_styles
from fedhess.domains.styles.drawings import render
from fedhess.domains.styles.emoji_styles import DOMAINS, group_of, prepare_emoji_styles, read_drawings
from fedhess.models.prepared import local_domain
from tests.conftest import Outcome

CATEGORIES = {category: [] for category in emoji_styles.CATEGORIES}


def package(file: Path, icons: dict[str, Any], chars: dict[str, str], categories: dict[str, list[str]]) -> Path:
    with tarfile.open(file, "w:gz") as tar:
        for name, content in (("icons", icons), ("chars", chars), ("metadata", {"categories": categories})):
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def icon(colour: str) -> dict[str, str]:
    return {"body": f'<path fill="{colour}" d="M0 0h8v8H0z"/>'}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Noto with code points, emojione-monotone with words alone."""
    noto = {"width": 8, "height": 8, "icons": {"dog": icon("red"), "bread": icon("#00f"), "disc": icon("red")}}
    noto["aliases"] = {"loaf": {"parent": "bread"}}
    categories = CATEGORIES | {"Animals & Nature": ["dog"], "Food & Drink": ["bread"], "Symbols": ["disc"]}
    chars = {"1f415": "dog", "1f35e": "bread", "1f534": "disc"}
    words = {"width": 8, "height": 8, "icons": {"loaf": icon("black"), "dogg": icon("red"), "dog": icon("lime")}}
    return {
        "noto": package(tmp_path / "noto.tgz", noto, chars, categories),
        "emojione-monotone": package(tmp_path / "emojione-monotone.tgz", words, {}, {}),
    }


def test_names_become_code_points_and_discs_are_left_out(files: dict[str, Path]) -> None:
    drawings, codes, labels = read_drawings("noto", files)
    assert (codes, labels) == (["1f35e", "1f415"], [2, 1])
    assert "#00f" in drawings[0]
    drawings, codes, labels = read_drawings("emojione-monotone", files)
    assert (codes, labels) == (["1f35e", "1f415"], [2, 1]), "by an alias, by Unicode's name; dogg is nobody's"
    assert "lime" in drawings[1]


def test_drawings_are_rendered_on_white(files: dict[str, Path]) -> None:
    pytest.importorskip("resvg_py")
    drawings, _, _ = read_drawings("noto", files)
    images = render([*drawings, drawings[0].replace("h8v8H0z", "h4v8H0z")], side=64)
    assert images.shape == (3, 3, 64, 64)
    assert images[0, :, 30, 30].tolist() == [0, 0, 255]
    assert images[2, :, 30, 60].tolist() == [255, 255, 255]


def test_other_pixels_than_the_known_ones_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    with pytest.raises(Exception, match=r"other pixels than EmojiStyles: expected digest \w+, got \w+; delete it"):
        emoji_styles._load("noto", files=files, side=64, opening=Opening("EmojiStyles", cache_dir=tmp_path))


def test_a_role_has_its_own_code_points() -> None:
    groups = torch.tensor([3, -4, 5, -6])
    data = TensorDomain("noto", torch.zeros(4, 1), labels=torch.zeros(4, dtype=torch.int64), groups=groups)
    assert is_for_role(data, SOURCE).tolist() == [True, False, True, False]
    assert is_for_role(data, TARGET).tolist() == [False, True, False, True]
    kept = sum(group_of(f"1f{number:03x}") < 0 for number in range(1000))
    assert 250 < kept < 350


def keeping(holdout: float) -> Benchmark:
    groups, labels = torch.arange(20) - 6, torch.arange(20) % 2
    return Benchmark(
        name="kept", domains=("a", "b", "c"), classes=("x", "y"), input_shape=(1,), outputs=2, default_model="mlp",
        scenarios=leave_one_out(("a", "b", "c")), holdout=holdout,
        loader=lambda name: TensorDomain(name, torch.zeros(20, 1), labels=labels, groups=groups),
    )  # fmt: skip


@pytest.mark.parametrize("holdout", [0.25, 0.0])
def test_no_source_is_shared_what_is_kept_for_targets(holdout: float) -> None:
    config = toy_config(
        domains=f"{__name__}:keeping", domains_options={"holdout": holdout}, sources=("a", "b"), targets=("c",)
    )
    shared = read_examples(keeping(holdout), ["a"], rule="sources", seed=0)["a"]
    data = local_domain(config, domain="a", role=SOURCE)
    for train, evaluate in ((shared.train, shared.evaluate), (data.train_indices, data.evaluate_indices)):
        assert sorted({*train.tolist(), *evaluate.tolist()}) == list(range(6, 20))
    assert local_domain(config, domain="c", role=TARGET).evaluate_indices.tolist() == list(range(6))


def test_without_a_network_the_reason_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resvg_py")
    opening = Opening("EmojiStyles", data_dir=tmp_path)
    monkeypatch.setenv("PATH", "")
    known_file._npm_setting.cache_clear()
    assert prepare_emoji_styles(opening) == "npm, which knows the packages' registry, is not installed"
    monkeypatch.undo()
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    if shutil.which("npm"):
        first = "http://127.0.0.1:9/@iconify-json/emojione-monotone/-/emojione-monotone-1.2.1.tgz"
        reason = prepare_emoji_styles(opening)
        known_file._npm_setting.cache_clear()
        assert f"{first} cannot be reached: " in reason
    with pytest.raises(Exception, match=r"EmojiStyles: .* is not there: looked for EmojiStyles/.*data prepare Emoji"):
        open_benchmark("EmojiStyles", data_dir=tmp_path)


def test_a_node_needs_its_own_package_and_those_that_name_its_drawings(tmp_path: Path) -> None:
    assert open_benchmark("EmojiStyles", data_dir=tmp_path, held=()).domains == DOMAINS
    for held, first in (("twemoji", "noto"), ("noto", "noto"), (DOMAINS[1], DOMAINS[1]), (DOMAINS[0], DOMAINS[0])):
        with pytest.raises(UsageError, match=f"EmojiStyles: {first} is not there"):
            open_benchmark("EmojiStyles", data_dir=tmp_path, held=(held,))


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    file = tmp_path / emoji_styles.PACKAGES["emojione-monotone"].path
    file.parent.mkdir()
    file.write_bytes(b"half of it")
    with pytest.raises(
        UsageError, match=r"emojione-monotone-1.2.1.tgz is damaged: .* delete it; `python -m fedhess.data"
    ):
        open_benchmark("EmojiStyles", data_dir=tmp_path)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    ("partition", "clients"),
    [
        (["--partition", "dirichlet", "--clients-per-domain", "2"], 10),
        (["--partition", "lambda", "--clients", "7", "--heterogeneity", "0.5"], 7),
    ],
)
def test_clients_of_a_partition_share_what_sources_may_show(
    partition: list[str], clients: int, command: Callable[..., Outcome]
) -> None:
    assert prepare_emoji_styles(Opening("EmojiStyles")) == ""
    run = ["--domains", "EmojiStyles", "--target", "noto", "--strategy", "erm", "--model", "cnn", "--rounds", "1"]
    outcome = command(*run, "--local-steps", "1", "--trials", "1", "--out", "job", *partition)
    assert outcome.status == 0, outcome.err
    recorded = json.loads(Path("job/noto/0/clients.json").read_text(encoding="utf-8"))
    sources = [each for each in recorded if each["role"] == SOURCE]
    assert len(sources) == clients
    benchmark = open_benchmark("EmojiStyles")
    shown = {name: int(is_for_role(benchmark.load(name), SOURCE).sum()) for name in DOMAINS if name != "noto"}
    assert sum(each["train-examples"] + each["evaluate-examples"] for each in sources) == sum(shown.values())
    (target,) = [each for each in recorded if each["role"] == TARGET]
    assert target["evaluate-examples"] == 385


@pytest.mark.network
@pytest.mark.slow
def test_no_source_holds_what_a_target_is_asked_for(tmp_path: Path) -> None:
    opening = Opening("EmojiStyles", cache_dir=tmp_path)
    assert prepare_emoji_styles(opening) == ""
    benchmark = open_benchmark("EmojiStyles", cache_dir=tmp_path)
    data = {domain: benchmark.load(domain) for domain in DOMAINS}
    shown = {int(g) for each in data.values() for g in each.groups[is_for_role(each, SOURCE)]}
    asked = {int(g) for each in data.values() for g in each.groups[is_for_role(each, TARGET)]}
    assert asked
    assert not {abs(g) for g in shown} & {abs(g) for g in asked}
    assert benchmark.identity().get("differences") is None
    for domain in DOMAINS:
        alone = open_benchmark("EmojiStyles", cache_dir=tmp_path, held=(domain,))
        assert alone.load(domain).digest == data[domain].digest
