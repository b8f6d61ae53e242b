"""Frozen embeddings of an EfficientNet-Lite, computed once and kept, then a trainable adapter and a linear head."""

import math
from pathlib import Path

import PIL
import torch
from torch import Tensor, nn

from fedhess.base.environment import forbid_tf32
from fedhess.base.files import cache_directory, cached_tensor, digest_of
from fedhess.base.prefetching import AHEAD, read_ahead
from fedhess.domains.domain import DomainData, Notify, TensorDomain, keep_silent
from fedhess.domains.images.pixels import DECODING
from fedhess.domains.images.release import SIDE
from fedhess.models.headed import HeadedModel, require_images
from fedhess.models.lite0 import WIDTH, LiteFeaturizer, weights_digest

EMBEDDING = "1"  # change it whenever embeddings do: cached ones are keyed by it
BOTTLENECK = 64
BATCH = 64
SCALE = 0.25  # initial scale of the features: their norm is a quarter of sqrt(1280), about 9


class Adapter(nn.Module):
    """Normalise embeddings h = layer_norm(x), then a residual bottleneck: e^a (h + U relu(V h + v) + u).

    U and u start at zero, so that the adapter starts as a scaled identity. The normalisation has no parameters and
    looks at one example at a time: no statistic of any domain enters it. It brings the embeddings (non-negative, mostly
    below 1) to unit variance, so that plain SGD trains the head in a few hundred steps. The features' scale is
    learned, as the normalisation layers of a fine-tuned network learn it. The parameter is its logarithm, so that a
    step cannot change its sign. Shorter features can reduce a penalty on head statistics: on IconPACS, HGP and
    Hutchinson reduce their distances in this way (docs/method.md). Source: Houlsby et al. 2019, "Parameter-efficient
    transfer learning for NLP", section 2.1.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Compute (B, D) features of (B, D) embeddings."""
        normed: Tensor = self.norm(embeddings.to(self.down.weight.dtype))
        features: Tensor = normed + self.up(torch.relu(self.down(normed)))
        return features * self.log_scale.exp()


# Model -> the network whose embeddings it learns from.
BACKBONES = {"lite0-features": "lite0", "lite1-features": "lite1", "lite2-features": "lite2"}


def create_features(name: str, *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Create the adapter and head that learn from embeddings; only the embeddings are pretrained."""
    del name, pretrained
    assert input_shape == (WIDTH,), input_shape
    return HeadedModel(Adapter(WIDTH, BOTTLENECK), nn.Linear(WIDTH, outputs))


def embedded_shape(model: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an embedding, (1280,), or raise UsageError for examples that are not RGB images."""
    require_images(model, input_shape)
    return (WIDTH,)


def describe_backbone(model: str) -> str:
    """Name the frozen network that a model takes embeddings from, with a digest of its weights."""
    backbone = BACKBONES[model]
    return f"{backbone}, weights {weights_digest(backbone)[:16]}, version {EMBEDDING}"


class Backbone(LiteFeaturizer):
    """The computation of `embed` as a module; it ignores autocast, whatever precision the rest computes in."""

    def forward(self, images: Tensor) -> Tensor:
        """Compute (B, 1280) embeddings of (B, 3, H, W) images."""
        if not torch.is_autocast_enabled(images.device.type):
            return super().forward(images)
        with torch.autocast(images.device.type, enabled=False):
            return super().forward(images)


def with_backbone(name: str, model: HeadedModel, *, pretrained: bool) -> HeadedModel:
    """Put the frozen backbone before a model of embeddings, so that it takes images; returned in evaluation mode."""
    backbone = Backbone(BACKBONES[name], pretrained=pretrained).requires_grad_(False)
    return HeadedModel(nn.Sequential(backbone, model.featurizer), model.head).eval()


def embed(
    model: str,
    data: DomainData,
    *,
    device: torch.device | str,
    cache_dir: Path | str | None,
    notify: Notify = keep_silent,
) -> TensorDomain:
    """Replace the images of a domain by their frozen embeddings, (N, 1280) float32.

    Embeddings are computed once and kept on disk. The file's name has a digest of the images, their size if it is not
    the default, the weights, this code's version, the device type and, for image files, the decoder. The domain's
    digest is the CPU's on any device and ignores the decoder: embeddings of the same images differ by rounding alone.
    """
    backbone = BACKBONES[model]
    side = getattr(data, "side", SIDE)  # a digest of image files covers the bytes on disk, not the size in pixels
    resized = [] if side == SIDE else [f"{side} pixels"]
    decoder = [DECODING, PIL.__version__] if getattr(data, "reads_files", False) else []
    digest, key = (
        digest_of([EMBEDDING, data.digest, weights_digest(backbone), *computed, *resized])
        for computed in (["cpu"], [torch.device(device).type, *decoder])
    )
    path = cache_directory(cache_dir) / backbone / f"{data.name}-{key[:20]}.npy"
    embeddings = cached_tensor(path, lambda: _compute(backbone, data, torch.device(device), notify))
    return TensorDomain(data.name, embeddings, labels=data.labels, groups=data.groups, digest=digest)


def _compute(backbone: str, data: DomainData, device: torch.device, notify: Notify) -> Tensor:
    forbid_tf32()
    network = LiteFeaturizer(backbone, pretrained=True).eval().to(device)
    parts = []
    with torch.inference_mode():
        batches = torch.split(torch.arange(len(data)), BATCH)
        ahead = AHEAD if getattr(data, "reads_files", False) else 0
        for indices, images in zip(batches, read_ahead(data.inputs, batches, ahead=ahead), strict=True):
            notify(f"embedding {data.name}: {int(indices[0])} of {len(data)} images")
            parts.append(network(images.to(device)).cpu())
    return torch.cat(parts)
