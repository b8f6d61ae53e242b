"""What a client process keeps between messages is what it would have computed again."""

import torch

from fedhess.alignment.step import run_forward
from fedhess.federation.client.memory import ReceivedModel, WorkingModel
from fedhess.models import create_model


def test_kept_graph_of_a_network_with_batch_norms_survives_the_next_message() -> None:
    model = create_model("resnet18", input_shape=(3, 32, 32), outputs=3, seed=0, pretrained=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, labels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    working = WorkingModel(model)
    working.load(ReceivedModel("first", state), writable=False)
    kept = run_forward(model, inputs, labels)
    working.load(ReceivedModel("first", state), writable=False)
    kept.features.sum().backward()
    assert kept.is_made_by(model)


def test_buffers_that_were_written_to_or_belong_to_another_model_are_restored() -> None:
    model = create_model("resnet18", input_shape=(3, 32, 32), outputs=3, seed=0, pretrained=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other = {name: value + 1 if "running_mean" in name else value for name, value in state.items()}
    working = WorkingModel(model)
    for name, expected in (("first", state), ("second", other), ("first", state)):
        working.load(ReceivedModel(name, expected), writable=False)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name in expected:
                assert torch.equal(buffer, expected[buffer_name])
    for module in model.modules():
        module.training = True  # the norms too, which are frozen otherwise
    model.features(torch.rand(4, 3, 32, 32))
    assert not torch.equal(
        model.state_dict()["featurizer.network.bn1.running_mean"], state["featurizer.network.bn1.running_mean"]
    )
    working.load(ReceivedModel("first", state), writable=False)
    assert all(torch.equal(buffer, state[name]) for name, buffer in model.named_buffers() if name in state)
