"""The multilayer perceptron of ColoredMNIST's own scripts."""

import math

import torch
from torch import Tensor, nn

from fedhess.models.headed import HeadedModel

HIDDEN = 390


class _Flatten(nn.Module):
    """Flatten examples; integer pixels become floats in [0, 1]."""

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        return flat if flat.is_floating_point() else flat.to(torch.get_default_dtype()) / 255


def create_mlp(*, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Create inputs-390-390-outputs with ReLU, Xavier-uniform weights and zero biases.

    The featurizer is the first two layers with their ReLU, the head the last. Source: Arjovsky et al. 2019,
    "Invariant risk minimization", the released ColoredMNIST script, as the Hessian-alignment scripts use it.

    Args:
        input_shape: Of one example, (2, 14, 14) for ColoredMNIST.
        outputs: Logits.
        pretrained: Makes no difference: there are no weights to load.

    Returns:
        The model.
    """
    del pretrained
    layers = [nn.Linear(math.prod(input_shape), HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, outputs)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    featurizer = nn.Sequential(_Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU())
    return HeadedModel(featurizer, layers[2])
