import io
import json
import os
import subprocess
import sys
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
COUNTS = {"dog": 5, "elephant": 2, "giraffe": 1, "guitar": 1, "horse": 4, "house": 5, "person": 12}
SKETCH_COUNTS = {"dog": 7, "elephant": 3, "giraffe": 2, "guitar": 2, "horse": 8, "house": 9, "person": 23}


def test_counts_of_drawings_are_those_of_the_notice():
    for domain in DOMAINS:
        counts = {name: len(drawings) for name, drawings in read_drawings(domain).items()}
        assert counts == (SKETCH_COUNTS if domain == "sketch" else COUNTS)


def test_every_drawing_is_128_pixels_and_shows_something():
    for domain in DOMAINS:
        for drawings in read_drawings(domain).values():
            for name, png in drawings:
                alpha = Image.open(io.BytesIO(png)).convert("RGBA").getchannel("A")
                assert alpha.size == (128, 128), (domain, name)
                histogram = alpha.histogram()
                assert sum(histogram[128:]) > 0.05 * 128 * 128, f"{domain} {name} is blank"


def test_no_two_drawings_of_a_domain_are_the_same():
    for domain in DOMAINS:
        pngs = [png for drawings in read_drawings(domain).values() for _, png in drawings]
        assert len(set(pngs)) == len(pngs)


def test_drawings_and_images_are_the_ones_agreed_upon():
    pixels = [
        Image.open(io.BytesIO(png)).convert("RGBA").tobytes()
        for domain in DOMAINS
        for drawings in read_drawings(domain).values()
        for _, png in drawings
    ]
    assert digest_of(pixels) == DRAWINGS_DIGEST
    assert open_benchmark("IconPACS").identity()["digest"] == IMAGES_DIGEST


def test_rendering_twice_gives_the_same_bytes():
    drawings = [[png for _, png in read_drawings("photo")[name]] for name in CLASSES]
    first = render("photo", drawings=drawings)
    assert first.dtype == torch.uint8
    assert first.shape == (len(CLASSES) * IMAGES_PER_CLASS, 3, 96, 96)
    assert torch.equal(first, render("photo", drawings=drawings))
    assert torch.equal(first, open_benchmark("IconPACS").load("photo").inputs(torch.arange(len(first))))


def test_images_of_one_class_do_not_depend_on_other_classes():
    dogs = [png for _, png in read_drawings("cartoon")["dog"]]
    horses = [png for _, png in read_drawings("cartoon")["horse"]]
    alone, beside = render("cartoon", drawings=[dogs]), render("cartoon", drawings=[dogs, horses])
    assert torch.equal(alone, beside[:IMAGES_PER_CLASS])


def test_images_of_one_domain_all_differ():
    data = open_benchmark("IconPACS").load("sketch")
    assert len(torch.unique(data.inputs(torch.arange(len(data))).flatten(1), dim=0)) == len(data)


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


def test_another_process_renders_the_same_bytes(tmp_path: Path):
    code = "from fedhess.domains import open_benchmark; print(open_benchmark('IconPACS').load('art_painting').digest)"
    environment = {**os.environ, "FEDHESS_CACHE": str(tmp_path), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == open_benchmark("IconPACS").load("art_painting").digest
