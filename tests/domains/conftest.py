import io
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_trees import write_tree
from PIL import Image

from fedhess.domains.iconpacs import DOMAINS, read_drawings
from fedhess.domains.images.releases import RELEASES

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES_PER_CLASS = 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the user's data or cache, and none reaches for the hub unless it says so."""
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("FEDHESS_DATA", raising=False)


@pytest.fixture(scope="session")
def complete_pacs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real JPEG and PNG files, 227 px, in ROOT/DOMAIN/CLASS/; read only."""
    root = tmp_path_factory.mktemp("complete_pacs")
    for domain in DOMAINS:
        for name, drawings in read_drawings(domain).items():
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(IMAGES_PER_CLASS):
                drawing = Image.open(io.BytesIO(drawings[number % len(drawings)][1])).convert("RGBA")
                paper = Image.new("RGB", (227, 227), (255, 250 - number, 250))
                small = drawing.resize((200, 200))
                paper.paste(small, (10, 10), small)
                paper.save(folder / f"pic_{number:03d}.{'png' if number == 2 else 'jpg'}")
    return root


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Image benchmarks with every class in every domain, under the names of their layouts; read only."""
    root = tmp_path_factory.mktemp("releases")
    for name in ("VLCS", "OfficeHome", "DomainNet", "TerraIncognita"):
        layout = RELEASES[name].layout
        counts = dict.fromkeys(layout.classes, 1 if layout.benchmark == "DomainNet" else 2)
        write_tree(root / layout.benchmark, list(layout.domains), counts)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def pacs(complete_pacs: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    root = tmp_path / "data"
    shutil.copytree(complete_pacs, root)
    return root


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    for root in (os.environ.get("FEDHESS_DATA"), REPOSITORY / ".data"):
        if root and (Path(root) / "MNIST" / "raw").exists():
            return Path(root)
    pytest.skip("the MNIST files are not in place: python tools/fetch_mnist.py .data")


@pytest.fixture(scope="session")
def digits_root(mnist_root: Path) -> Path:
    if not all((mnist_root / path).exists() for path in ("USPS/usps_resampled.mat", "optdigits/digits.csv.gz")):
        pytest.skip("the USPS and optdigits files are not in place: python tools/fetch_digits.py .data")
    return mnist_root


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers, as a broken network does."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
