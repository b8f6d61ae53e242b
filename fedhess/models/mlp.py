"""The multilayer perceptron of ColoredMNIST's own scripts."""

import math

import torch
from torch import Tensor, nn

from fedhess.models.headed import HeadedModel, to_unit

HIDDEN = 390


class MlpFeaturizer(nn.Module):
    """Two layers with ReLU; pixels as uint8 become floats in [0, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute (B, 390) features of (B, ...) inputs."""
        scaled = to_unit(inputs.flatten(1), self.first.weight.dtype)
        return torch.relu(self.second(torch.relu(self.first(scaled))))


def create_mlp(name: str, *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Create inputs-390-390-outputs with ReLU, Xavier-uniform weights and zero biases.

    The featurizer is the first two layers with their ReLU, the head the last. Source: Arjovsky et al. 2019,
    "Invariant risk minimization", the released ColoredMNIST script, as the Hessian-alignment scripts use it.
    """
    del name, pretrained
    featurizer, head = MlpFeaturizer(math.prod(input_shape)), nn.Linear(HIDDEN, outputs)
    for layer in (featurizer.first, featurizer.second, head):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return HeadedModel(featurizer, head)
