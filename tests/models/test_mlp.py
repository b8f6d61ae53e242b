import math

import torch

from fedhess.models import create_model


def test_the_mlp_is_392_390_390_1_with_xavier_weights_and_zero_biases():
    model = create_model("mlp", input_shape=(2, 14, 14), outputs=1, seed=0)
    assert [tuple(p.shape) for p in model.parameters()] == [(390, 392), (390,), (390, 390), (390,), (1, 390), (1,)]
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.95 * bound < parameter.abs().max() <= bound


def test_features_are_two_layers_with_relu():
    model = create_model("mlp", input_shape=(2, 14, 14), outputs=1, seed=0)
    batch = torch.rand(3, 2, 14, 14, generator=torch.Generator().manual_seed(0))
    first, second = model.featurizer.first, model.featurizer.second
    expected = torch.relu(second(torch.relu(first(batch.reshape(3, 392)))))
    torch.testing.assert_close(model.features(batch), expected)
    assert (model.features(batch) >= 0).all()
