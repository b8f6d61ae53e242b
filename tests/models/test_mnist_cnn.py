import pytest
import torch
from torch.nn.functional import conv2d, group_norm

from fedhess.base.errors import UsageError
from fedhess.models import create_model


def test_it_has_the_layers_of_the_paper():
    model = create_model("mnist-cnn", input_shape=(2, 28, 28), outputs=2, seed=0)
    shapes = [tuple(parameter.shape) for parameter in model.parameters() if parameter.ndim > 1]
    assert shapes == [(64, 2, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (128, 128, 3, 3), (2, 128)]
    assert sum(parameter.numel() for parameter in model.featurizer.parameters()) == 371_136


@pytest.mark.parametrize(
    ("name", "strides", "side", "left", "zero"),
    [("mnist-cnn", (1, 2, 1, 1), 28, 14, 0.0), ("cnn", (2, 2, 2, 2), 64, 4, 0.5)],
)
def test_features_are_four_convolutions_with_relu_and_norm_and_a_mean(
    name: str, strides: tuple[int, ...], side: int, left: int, zero: float
):
    model = create_model(name, input_shape=(1, side, side), outputs=10, seed=0).double()
    images = torch.rand(3, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = list(model.featurizer.parameters())
    with torch.no_grad():
        for index in range(0, len(weights), 4):
            weights[index + 2].uniform_(0.5, 2, generator=torch.Generator().manual_seed(index))
        expected = (images - zero) / (1 - zero)
        for number, stride in enumerate(strides):
            kernel, bias, scale, shift = weights[4 * number : 4 * number + 4]
            convolved = conv2d(expected, kernel, bias, stride=stride, padding=1)
            expected = group_norm(torch.relu(convolved), 8, scale, shift)
        assert expected.shape == (3, model.head.in_features, left, left)
        torch.testing.assert_close(model.features(images), expected.mean((2, 3)))


def test_examples_that_are_no_images_are_refused():
    with pytest.raises(UsageError, match=r"mnist-cnn takes images \(C, H, W\), got examples of shape \(12,\)"):
        create_model("mnist-cnn", input_shape=(12,), outputs=2, seed=0)
