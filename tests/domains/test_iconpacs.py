import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedhess.base.files import digest_of
from fedhess.domains import open_benchmark, split_indices
from fedhess.domains.iconpacs import CLASSES, DOMAINS, read_drawings
from fedhess.domains.iconpacs.rendering import IMAGES_PER_CLASS, render

# Of the decoded pixels of all drawings: the same on every machine.
DRAWINGS_DIGEST = "9b45f4d0daffbff7847a3a214958d302bd03d82ebf1799796f4f5a3d9a067a30"
# Of all rendered images; Pillow's interpolation may round differently on another processor.
IMAGES_DIGEST = "49ad56cf13f32fc22ad3b4a7393334dea1481394d356ef349da055fd1f1f8690"


def test_drawings_and_images_are_the_same_everywhere():
    pixels = [
        Image.open(io.BytesIO(png)).convert("RGBA").tobytes()
        for domain in DOMAINS
        for drawings in read_drawings(domain).values()
        for _, png in drawings
    ]
    assert digest_of(pixels) == DRAWINGS_DIGEST
    assert open_benchmark("IconPACS").identity()["digest"] == IMAGES_DIGEST


def test_images_of_one_class_do_not_depend_on_other_classes():
    dogs = [png for _, png in read_drawings("cartoon")["dog"]]
    horses = [png for _, png in read_drawings("cartoon")["horse"]]
    alone, beside = render("cartoon", drawings=[dogs]), render("cartoon", drawings=[dogs, horses])
    assert torch.equal(alone, beside[:IMAGES_PER_CLASS])


def test_rendered_images_are_read_from_the_cache_and_mended_when_cut_short(tmp_path: Path):
    messages: list[str] = []
    first = open_benchmark("IconPACS", cache_dir=tmp_path, notify=messages.append).load("sketch")
    (kept,) = (tmp_path / "iconpacs").glob("sketch-*.npy")
    open_benchmark("IconPACS", cache_dir=tmp_path, notify=messages.append).load("sketch")
    assert messages == ["IconPACS: rendering sketch"]
    kept.write_bytes(kept.read_bytes()[:5000])
    assert open_benchmark("IconPACS", cache_dir=tmp_path).load("sketch").digest == first.digest


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_drawing_is_on_both_sides_where_a_class_has_three(domain: str):
    data = open_benchmark("IconPACS").load(domain)
    train, held = split_indices(data, holdout=0.2, seed=0)
    for label, drawings in enumerate(read_drawings(domain).values()):
        groups = [set(data.groups[part[data.labels[part] == label]].tolist()) for part in (train, held)]
        assert bool(groups[0] & groups[1]) == (len(drawings) < 3)
        assert groups[1]
    assert 0.1 < len(held) / len(data) < 0.35


def test_identity_is_json_and_names_the_stand_in():
    identity = open_benchmark("iconpacs", options={"stand_in_for": "PACS"}).identity()
    assert identity["title"] == "IconPACS (stand-in for PACS)"
    assert identity["counts"]["photo"] == dict.fromkeys(CLASSES, 60)
    assert json.loads(json.dumps(identity)) == identity
