"""What a server learns from what clients send: the shortest attacks on single examples and on class counts."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from fedhess.alignment.statistics import head_loss
from fedhess.alignment.step import run_forward
from fedhess.curvature import (
    HeadBatch,
    gradient_variance,
    head_gradient,
    head_hvp,
    hessian_diagonal,
    hessian_gradient_product,
)
from fedhess.domains.benchmark import SOURCE
from fedhess.federation import protocol
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.batches import joint_batch
from fedhess.federation.client.examples import local_client
from fedhess.federation.engines.inprocess import InProcessGrid
from fedhess.federation.flower_compat import run_identity
from fedhess.federation.run_settings import settings_of_run
from fedhess.federation.tensors import decode_tensors, encode_tensors
from fedhess.models.building import build_model
from fedhess.strategies.coral import feature_covariance, feature_mean

CLASSES = 7
ICONS: dict[str, Any] = {
    "domains": "IconPACS", "sources": "art_painting,cartoon,photo", "targets": "sketch", "model": "lite0-features",
    "device": "cpu",
}  # fmt: skip


class Attack:
    """A server that has clients of IconPACS, photo a source and sketch the target, and sends what it likes."""

    def __init__(self, batch_size: int, strategy: str) -> None:
        given = {"strategy": strategy, "batch-size": batch_size, "local-steps": 1, "lr": 0.5, "rounds": 20}
        self.config = settings_of_run(ICONS | given)
        nodes: Mapping[int, Any] = {place: {"partition-id": place, "num-partitions": 4} for place in (2, 3)}
        self.grid = InProcessGrid(client_app, node_configs=nodes, run_config=self.config.to_run_config())
        self.model = {name: value.clone() for name, value in build_model(self.config).state_dict().items()}

    def send(self, message_type: str, node: int, *, server_round: int = 1, names: tuple[str, ...] = ()) -> RecordDict:
        """Send the model, under an id that no client has seen, and return the reply."""
        record = encode_tensors(self.model)
        settings: dict[str, Any] = {protocol.MODEL_ID: f"crafted-{id(record)}-{server_round}"}
        settings |= {protocol.ROUND: server_round, protocol.NAMES: list(names)}
        content = RecordDict({protocol.MODEL: record, protocol.CONFIG: ConfigRecord(settings)})
        (reply,) = self.grid.send_and_receive(
            [Message(content, dst_node_id=node, message_type=message_type)], timeout=120
        )
        assert reply.has_content(), reply.error
        return reply.content

    def gradient(self) -> Tensor:
        """Return the head gradient of photo."""
        reply = self.send(protocol.STATISTICS, 2, names=("gradient",))
        return decode_tensors(reply.array_records[protocol.STATISTIC_VALUES])["gradient"]

    def examples(self) -> tuple[Tensor, Tensor]:
        """Return the features and labels of photo's batch, which the server never sees."""
        model = build_model(self.config)
        model.load_state_dict(self.model)
        parts = list(local_client(self.config, domain="photo", role=SOURCE, client=0).training_parts.values())
        inputs, labels, sizes = joint_batch(parts, self.config, step=0, batches=1)
        return run_forward(model, inputs, labels, sizes=sizes).features.detach(), labels

    def send_head(self, weight: float, bias: Tensor) -> None:
        """Make the head ignore the features, or shrink what it sees of them."""
        self.model["head.weight"] *= weight
        self.model["head.bias"] = bias


@pytest.fixture
def attack() -> Iterator[Callable[..., Attack]]:
    made: list[Attack] = []

    def make(batch_size: int, strategy: str = "fediir") -> Attack:
        made.append(Attack(batch_size, strategy))
        return made[-1]

    with run_identity(1):
        yield make
    for each in made:
        each.grid.close()


def rebuild(gradient: Tensor) -> tuple[Tensor, int]:
    """Rebuild one example's features and label from its head gradient: its rows are multiples of [z, 1]."""
    row = gradient[gradient[:, -1].abs().argmax()].double()
    return row[:-1] / row[-1], int(gradient[:, -1].argmin())


def test_a_head_gradient_of_one_example_is_its_label_and_all_features(attack: Callable[..., Attack]) -> None:
    server = attack(1)
    features, labels = server.examples()
    found, label = rebuild(server.gradient())
    assert (len(found), label) == (1280, int(labels))
    error = (found - features[0].double()).norm() / features[0].double().norm()
    assert float(error) < 1e-7


def test_so_is_the_update_of_one_step_without_any_statistic(attack: Callable[..., Attack]) -> None:
    server = attack(1, "erm")
    features, labels = server.examples()
    update = decode_tensors(server.send(protocol.TRAIN, 2).array_records[protocol.MODEL])
    found, label = rebuild(torch.cat([update["head.weight"], update["head.bias"][:, None]], dim=1))
    assert label == int(labels)
    assert float((found - features[0].double()).norm() / features[0].double().norm()) < 1e-2


def test_a_zeroed_head_gives_the_class_counts_of_a_batch_exactly(attack: Callable[..., Attack]) -> None:
    server = attack(32)
    server.send_head(0.0, torch.zeros(CLASSES))
    _, labels = server.examples()
    counts = 32 * (1 / CLASSES - server.gradient()[:, -1])
    assert counts.round().tolist() == torch.bincount(labels, minlength=CLASSES).tolist()
    assert float((counts - counts.round()).abs().max()) < 1e-4, "they are whole numbers by themselves"


@pytest.fixture
def target_counts() -> list[int]:
    config = settings_of_run(ICONS | {"strategy": "erm"})
    labels = local_client(config, domain="sketch", role="target", client=0).parts["sketch"].data.labels
    return [int(count) for count in torch.bincount(labels, minlength=CLASSES)]


def test_a_targets_counts_are_its_class_counts_under_any_model(
    attack: Callable[..., Attack], target_counts: list[int]
) -> None:
    reply = attack(32).send(protocol.EVALUATE, 3)
    confusion = decode_tensors(reply.array_records[protocol.COUNTS])[protocol.CONFUSION]
    assert confusion.sum(1).tolist() == target_counts


def test_a_targets_accuracy_alone_is_its_class_counts_over_as_many_rounds(
    attack: Callable[..., Attack], target_counts: list[int]
) -> None:
    server, found = attack(32), []
    for label in range(CLASSES):  # one model a round is what a target answers: it does not stop this
        server.send_head(0.0, torch.eye(CLASSES)[label])
        metrics = server.send(protocol.EVALUATE, 3, server_round=label).metric_records[protocol.METRICS]
        found.append(round(metrics["accuracy"] * metrics[protocol.NUM_EXAMPLES]))  # type: ignore[operator]
    assert found == target_counts


# -- What single statistics tell, in float64 ---------------------------------------------------------------------------


def batch(size: int, *, label: int | None = None, zeroed: bool = False) -> HeadBatch:
    generator = torch.Generator().manual_seed(size)
    features = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 5, generator=generator, dtype=torch.float64) * (not zeroed)
    labels = torch.randint(0, 4, (size,), generator=generator)
    return HeadBatch(features, labels if label is None else torch.tensor([label]), weight, weight[:, 0] * 0)


def product(one: HeadBatch) -> Tensor:
    return head_hvp(one, torch.eye(4, 6, dtype=torch.float64))


def ratio(statistic: Tensor) -> Tensor:
    return statistic[0, :-1] / statistic[0, -1]


@pytest.mark.parametrize(
    ("rebuilt", "of"),
    [
        (lambda one: ratio(head_gradient(one)), lambda z: z),
        (lambda one: ratio(product(one)), lambda z: z),
        (lambda one: ratio(hessian_gradient_product(one)), lambda z: z),
        (lambda one: ratio(hessian_diagonal(one)), torch.square),
        (feature_mean, lambda z: z),
    ],
    ids=["gradient", "product", "hgp", "diagonal", "mean"],
)
def test_of_one_example_a_statistic_gives_all_features(
    rebuilt: Callable[[HeadBatch], Tensor], of: Callable[[Tensor], Tensor]
) -> None:
    one = batch(1)
    assert torch.allclose(rebuilt(one), of(one.features[0]), rtol=1e-10)


@pytest.mark.parametrize("statistic", [product, hessian_diagonal, feature_mean])
def test_products_diagonals_and_means_have_no_label(statistic: Callable[[HeadBatch], Tensor]) -> None:
    assert torch.equal(statistic(batch(1, label=0)), statistic(batch(1, label=1)))


@pytest.mark.parametrize("statistic", [gradient_variance, feature_covariance])
def test_variances_of_one_example_are_zero(statistic: Callable[[HeadBatch], Tensor]) -> None:
    assert float(statistic(batch(1)).abs().max()) < 1e-15
    assert float(statistic(batch(8)).abs().max()) > 1e-3


@pytest.mark.parametrize("label", range(4))
def test_an_hgp_of_one_example_gives_its_label(label: int) -> None:
    sent = hessian_gradient_product(batch(1, label=label))
    # The features are known by then: each label is tried.
    tried = [float((hessian_gradient_product(batch(1, label=guess)) - sent).norm()) for guess in range(4)]
    assert tried.index(min(tried)) == label
    assert sorted(tried)[1] > 1e-3


def test_the_variance_of_a_zeroed_head_gives_class_counts_up_to_the_rest_of_the_batch() -> None:
    many = batch(32, zeroed=True)
    share = torch.bincount(many.labels, minlength=4) / 32.0
    assert torch.allclose(gradient_variance(many)[:, -1], (share * (1 - share)).double())


def test_a_loss_under_a_crafted_constant_head_gives_the_class_counts() -> None:
    many = batch(32, zeroed=True)
    steps = 33.0 ** torch.arange(4, dtype=torch.float64) / 1000  # counts are the digits of the loss in base 33
    crafted = HeadBatch(many.features, many.labels, many.weight, steps)
    number = round(float((steps.logsumexp(0) - head_loss(crafted)) * 32 * 1000))
    digits = [number // 33**place % 33 for place in range(4)]
    assert digits == torch.bincount(many.labels, minlength=4).tolist()
