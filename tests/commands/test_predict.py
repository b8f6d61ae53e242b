"""``fedhess predict``: what it prints is what the exported model computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from image_trees import write_tree
from PIL import Image

import fedhess
from fedhess.domains.images import release
from tests.commands.test_export import called, place

__all__ = ["place"]


def test_predict_prints_classes_and_names_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "SIDE", 32)
    monkeypatch.syspath_prepend(tmp_path)
    Path("flat.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, num_classes))\n"
    )
    tree = write_tree(Path("tree"), ["east", "north", "west"], {"cat": 3, "dog": 3})
    options: dict[str, Any] = {"model": "flat:net", "batch_size": 2, "local_steps": 1, "rounds": 1}
    fedhess.run(domains=f"folder:{tree.resolve()}", target="west", strategy="erm", trials=1, **options, out="job")
    assert called("export", "job", "--out", "out").status == 0
    images = sorted((tree / "west").rglob("pic_*"))
    model = fedhess.load("out")
    assert model.transform is not None
    expected = model.probabilities(torch.stack([model.transform(image) for image in images])).detach()
    (tree / "broken.jpg").write_text("no image")
    outcome = called("predict", "out", *images, tree / "broken.jpg", "gone.png", "--top", 2, "--device", "cpu")
    assert outcome.status == 2
    assert "2 of 8 images cannot be read:" in outcome.err
    assert "tree/broken.jpg: expected an image that Pillow can decode; no image that Pillow knows" in outcome.err
    assert "gone.png: expected an image that Pillow can decode; No such file or directory" in outcome.err
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in outcome.out.splitlines()[2:]]
    assert [line[0] for line in lines] == [str(image) for image in images for _ in range(2)]
    assert [line[1] for line in lines[::2]] == [model.classes[index] for index in expected.argmax(1).tolist()]
    assert [line[2] for line in lines[::2]] == [f"{value:.3f}" for value in expected.max(1).values.tolist()]
    found = json.loads(called("predict", "out", *images, "--json", "--device", "cpu").out)
    assert [each["class"] for each in found] == [line[1] for line in lines[::2]]
    for each, values in zip(found, expected, strict=True):
        assert list(each["probabilities"].values()) == pytest.approx(values.tolist(), abs=1e-6)
    with Image.open(images[0]) as opened:
        assert torch.equal(model.transform(opened), model.transform(images[0]))
