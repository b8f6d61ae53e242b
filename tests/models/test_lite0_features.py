import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedhess.domains import DomainData, TensorDomain
from fedhess.domains.iconpacs import CLASSES, read_drawings
from fedhess.domains.images.image_files import ImageDomain, ImageFile
from fedhess.models import create_model, lite0_features, prepare_inputs, prepared_shape
from fedhess.models.lite0 import LiteFeaturizer


@pytest.fixture(scope="module")
def few() -> TensorDomain:
    """Three images a class of real drawings."""
    images, labels = [], []
    for label, name in enumerate(CLASSES):
        for _, png in (read_drawings("cartoon")[name] * 3)[:3]:
            drawing = Image.open(io.BytesIO(png)).convert("RGBA").resize((96, 96))
            paper = Image.new("RGB", (96, 96), "white")
            paper.paste(drawing, (0, 0), drawing)
            images.append(torch.tensor(list(paper.tobytes()), dtype=torch.uint8).view(96, 96, 3).permute(2, 0, 1))
            labels.append(label)
    return TensorDomain("few", torch.stack(images), labels=torch.tensor(labels), groups=torch.arange(len(labels)))


def test_embeddings_are_the_frozen_features_and_are_computed_once(few: TensorDomain, tmp_path):
    messages: list[str] = []
    embedded = prepare_inputs("lite0-features", few, cache_dir=tmp_path, notify=messages.append)
    again = prepare_inputs("lite0-features", few, cache_dir=tmp_path, notify=messages.append)
    assert messages == ["embedding few: 0 of 21 images"]
    everything = torch.arange(len(few))
    with torch.no_grad():
        expected = LiteFeaturizer(pretrained=True).eval()(few.inputs(everything))
    torch.testing.assert_close(embedded.inputs(everything), expected)
    assert torch.equal(embedded.inputs(everything), again.inputs(everything))
    assert embedded.digest == again.digest != few.digest
    assert torch.equal(embedded.labels, few.labels)
    assert torch.equal(embedded.groups, few.groups)


def test_other_images_or_weights_get_other_embeddings(few: TensorDomain, tmp_path, monkeypatch: pytest.MonkeyPatch):
    flipped = TensorDomain("few", few.inputs(torch.arange(len(few))).flip(3), labels=few.labels, groups=few.groups)
    first, second = (prepare_inputs("lite0-features", d, cache_dir=tmp_path) for d in (few, flipped))
    assert not torch.equal(first.inputs(torch.tensor([0])), second.inputs(torch.tensor([0])))
    monkeypatch.setattr(lite0_features, "weights_digest", lambda name: "another release")
    messages: list[str] = []
    third = prepare_inputs("lite0-features", few, cache_dir=tmp_path, notify=messages.append)
    assert messages, "computed again, not taken from the cache"
    assert len({first.digest, second.digest, third.digest}) == 3


def test_images_of_another_size_or_decoder_get_other_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.radial_gradient("L").crop((20, 0, 256, 200)).save(tmp_path / "a.png")
    files = [ImageFile(tmp_path / "a.png", "a.png", 0)]
    messages: list[str] = []

    def embedded(side: int) -> DomainData:
        domain = ImageDomain("few", files, digest="same", side=side)
        return prepare_inputs("lite0-features", domain, cache_dir=tmp_path, notify=messages.append)

    found = [embedded(side) for side in (64, 224, 64)]
    small, usual, again = (data.inputs(torch.tensor([0])) for data in found)
    assert not torch.equal(small, usual)
    assert torch.equal(small, again)
    assert found[0].digest != found[1].digest
    assert len(messages) == 2
    monkeypatch.setattr("PIL.__version__", "another")
    assert embedded(64).digest == found[0].digest, "a node's data has not changed"
    assert len(messages) == 3, "computed again"


def test_other_models_take_the_images_as_they_are(few: TensorDomain):
    assert prepare_inputs("lite0", few) is few
    assert prepared_shape("lite0", (3, 96, 96)) == (3, 96, 96)
    assert prepared_shape("lite0-features", (3, 96, 96)) == (1280,)


def test_the_adapter_starts_as_the_normalised_embedding_and_then_shapes_features():
    model = create_model("lite0-features", input_shape=(1280,), outputs=7, seed=0)
    embeddings = torch.rand(8, 1280, generator=torch.Generator().manual_seed(0))
    start = model.features(embeddings)
    torch.testing.assert_close(start, 0.25 * torch.nn.functional.layer_norm(embeddings, (1280,)))
    torch.nn.functional.cross_entropy(model(embeddings), torch.arange(8) % 7).backward()
    assert all(p.grad.abs().sum() > 0 for p in (model.featurizer.up.weight, model.featurizer.log_scale))
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.allclose(model.features(embeddings), start)


def test_another_device_computes_its_own_embeddings_of_the_same_data(few: TensorDomain, tmp_path, monkeypatch):
    monkeypatch.setattr(lite0_features, "_compute", lambda backbone, data, device, notify: torch.zeros(len(data), 1280))
    places = [lite0_features.embed("lite0-features", few, device=d, cache_dir=tmp_path) for d in ("cpu", "cuda")]
    assert places[0].digest == places[1].digest
    assert len(list(tmp_path.rglob("few-*.npy"))) == 2
