import torch

from fedhess.models import create_model
from fedhess.models.lite0 import weights_digest, weights_file


def test_the_pretrained_features_are_those_of_the_published_weights():
    model = create_model("lite0", input_shape=(3, 96, 96), outputs=7, seed=0).eval()
    state = torch.load(weights_file(), weights_only=True)
    assert torch.equal(model.featurizer.network._conv_head.weight, state["_conv_head.weight"])
    assert len(weights_digest()) == 64


def test_pixels_are_scaled_to_minus_127_over_128():
    scale = create_model("lite0", input_shape=(3, 32, 32), outputs=2, seed=0, pretrained=False).featurizer.scale
    pixels = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    torch.testing.assert_close(scale(pixels)[0, 0, 0], torch.tensor([-127 / 128, 0.0, 1.0]), rtol=1e-5, atol=1e-6)
