"""A machine that holds one domain opens the benchmark with it alone; one that holds none opens it without a look."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from image_trees import write_image, write_tree
from PIL import Image

from fedhess.base.errors import FederationError, UsageError
from fedhess.deploy.app import app as server_app
from fedhess.deploy.programs import toml
from fedhess.deploy.settings import plan_run, read_settings
from fedhess.domains import BENCHMARKS, open_benchmark
from fedhess.domains.images.releases import PACS_CLASSES as CLASSES
from fedhess.federation.client import memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.flower_compat import read_run_config
from fedhess.federation.server import discovery
from fedhess.models.building import build_model
from fedhess.models.prepared import forget_data, local_domain
from fedhess.settings.run_config import RunConfig

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def only_sketch(tmp_path: Path) -> Path:
    """A folder with the sketches of PACS and nothing else, a few images a class."""
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "PACS" / "kfold" / "sketch" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (227, 227), (20 * label, 40 * number, 0)).save(folder / f"{number}.png")
    return tmp_path


def pacs(data_dir: Path | None, **changes: object) -> RunConfig:
    settings: dict[str, object] = {
        "domains": "PACS",
        "sources": ("art_painting", "cartoon", "photo"),
        "targets": ("sketch",),
        "model": "lite0",
        "pretrained": False,
        "data_dir": None if data_dir is None else str(data_dir),
    }
    return RunConfig.checked(settings | changes)


def test_a_node_needs_no_domain_but_its_own(only_sketch: Path) -> None:
    with pytest.raises(UsageError, match="no domain 'art_painting', 'cartoon', 'photo', found sketch"):
        open_benchmark("PACS", data_dir=only_sketch)
    forget_data()
    data = local_domain(pacs(only_sketch), domain="sketch", role="target")
    inputs, labels = data.batch(torch.arange(21))
    assert (tuple(inputs.shape), labels.bincount().tolist()) == ((21, 3, 224, 224), [3] * 7)


def test_a_server_needs_no_data_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDHESS_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path / "cache"))
    forget_data()
    assert build_model(pacs(None)).head.out_features == 7
    for name in BENCHMARKS.keys() - {"folder:PATH", "hf:NAME", "module:Class"}:
        benchmark = open_benchmark(name, held=())
        assert (benchmark.name, benchmark.stand_in_for) == (name, None)


def test_a_node_never_trains_on_a_stand_in_in_silence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDHESS_DATA", raising=False)
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path))
    (tmp_path / "PACS").mkdir()
    forget_data()
    with pytest.raises(UsageError, match=r"PACS in .*: no domain 'photo', found nothing; expected .*PACS"):
        local_domain(pacs(None), domain="photo", role="source")


def test_a_domain_that_is_not_held_cannot_be_loaded(only_sketch: Path) -> None:
    with pytest.raises(UsageError, match=r"PACS in .*: no domain 'photo', found sketch; expected"):
        open_benchmark("PACS", data_dir=only_sketch, held=("photo",))


# -- A folder of one's own: the run config names its domains and classes -----------------------------------------------


def deploy(root: Path, folder: Path, nodes: list[dict[str, Any]], *given: str) -> bytes:
    """Run as `fedhess.deploy run` asks for it; return the final checkpoint."""
    settings = ['model="mlp" rounds=2 local-steps=1 batch-size=4 device="cpu" threads=1 strategy="erm"', *given]
    plan = plan_run(f"folder:{root}", target="x's", strategy=None, rounds=None, run_dir=folder, given=settings)
    read_settings(plan)
    run_config = read_run_config(plan)
    memory.MEMORY.clear()
    run_in_process(server_app, client_app, run_config=run_config, node_configs=nodes)
    return max(folder.rglob("checkpoint/*.safetensors")).read_bytes()


def test_a_folder_is_deployed_with_each_node_holding_its_own_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "AGAIN_SECONDS", 0.1)
    domains = ["café", "x's", "山", "山 2"]
    root = write_tree(tmp_path / "my photos", domains, {"chef's, hat": 4, "dog": 4})
    side = "domains-options='side=8'"
    whole = deploy(root, tmp_path / "whole", [{"partition-id": number} for number in range(4)], side)

    nodes: list[dict[str, Any]] = []
    for number, domain in enumerate(domains):
        own = tmp_path / f"node {number}"
        own.mkdir()
        (root / domain).rename(own / domain)
        nodes.append({"domain": domain, "role": "target" if domain == "x's" else "source", "data-dir": str(own)})
    root.rmdir()
    with pytest.raises(UsageError, match=r"there is no folder .*my photos here; name what it holds elsewhere"):
        deploy(root, tmp_path / "unnamed", nodes, side)
    named = json.dumps({"side": 8, "domains": "/".join(domains), "classes": "chef's, hat/dog"})
    named = f"domains-options={toml(named.replace(chr(39), chr(92) + 'u0027'))}"
    assert deploy(root, tmp_path / "parts", nodes, named) == whole

    shutil.rmtree(tmp_path / "node 2" / "山" / "dog")
    write_image(tmp_path / "node 2" / "山" / "cat" / "a.png", 900)
    reason = r"folder .*node 2: every domain must have the same classes(.|\n)*'山' lacks 'dog' '山' alone has 'cat'"
    with pytest.raises(FederationError, match=reason):
        deploy(root, tmp_path / "other classes", nodes, named)
    nodes[2]["data-dir"] = nodes[0]["data-dir"]
    with pytest.raises(FederationError, match=r"folder .*node 0: no domain '山', found café; expected ROOT/DOMAIN"):
        deploy(root, tmp_path / "elsewhere", nodes, named)
