"""The server's side of evaluation: every client evaluates what it holds; one row a client and domain."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import RecordDict
from torch import Tensor

from fedhess.alignment.means import DomainMeans, WeightedMean
from fedhess.base.errors import FederationError
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation import protocol
from fedhess.federation.protocol import Held
from fedhess.federation.server.clients import Failure, Federation, ModelPayload, Traffic
from fedhess.federation.server.discovery import Client
from fedhess.federation.server.local_training import RoundOutcome
from fedhess.federation.server.run_directory import Row
from fedhess.federation.validation import read_tensors

logger = logging.getLogger(__name__)


@dataclass
class Evaluated:
    """What the clients measured.

    Attributes:
        metrics: Loss, accuracy and number of examples, by client and domain.
        distances: Of each source domain's head statistics to their mean over the domains.
    """

    metrics: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    distances: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate_clients(
    federation: Federation,
    model: ModelPayload,
    *,
    splits_targets: bool,
    alignment: Mapping[str, Tensor],
    server_round: int,
    deadline: float,
) -> Evaluated:
    """Have every client that holds examples out, or is a target, evaluate the model.

    Args:
        federation: The clients.
        model: The model.
        splits_targets: Whether a target evaluates two splits.
        alignment: Tensors of the shapes that a source client's alignment statistics must have.
        server_round: Number of the round.
        deadline: Seconds a client may take.

    Fewer source clients than the quorum leave a gap: a warning names it, the rows have what did come, and no selector
    takes the round (see :func:`fedhess.results.selection.comparable_rounds`).

    Raises:
        FederationError: The same before training, when nothing is lost by it.
    """

    def read(client: Client, content: RecordDict) -> dict[str, tuple[dict[str, float], dict[str, Tensor]]]:
        splits = ("", protocol.OUT) if splits_targets and client.identity.role == TARGET else ("",)
        return {held.domain: _read(client, held, content, alignment, splits) for held in _evaluates(client)}

    asked = [client for client in federation.clients if _evaluates(client)]
    replies = federation.exchange(
        "evaluate",
        asked,
        message_type=protocol.EVALUATE,
        server_round=server_round,
        model=model,
        parts=lambda _: {},
        read=read,
        deadline=deadline,
    )
    sources = [client for client in asked if client.identity.role == SOURCE]
    counts = [{held.domain: held.evaluate_examples for held in _evaluates(client)} for client in sources]
    means = DomainMeans(federation.sources, counts)
    evaluated, answered = Evaluated(), []
    for client, answer in replies:
        for held in _evaluates(client):
            metrics, statistics = answer[held.domain]
            evaluated.metrics[client.label, held.domain] = metrics
            if statistics:
                means.add(held.domain, statistics, held.evaluate_examples)
        if client.identity.role == SOURCE:
            answered.append(client)
    try:
        federation.require_quorum("evaluate", server_round, answered, asked=len(sources))
    except FederationError as error:
        if server_round == 0:
            raise
        logger.warning("%s\nThe run goes on; no table reports this round.", error)
    evaluated.distances = alignment_distances(means.result())
    return evaluated


def alignment_distances(statistics: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Measure how far each source domain's head statistics are from their mean over the domains.

    Args:
        statistics: By domain, its head gradient ``"gradient"`` and HGP ``"hgp"``, (C, K) each; of a domain with several
            clients the mean of theirs by examples.

    Returns:
        By domain, ``"gradient_distance"`` = ||g_e - gbar||^2 and ``"hgp_distance"`` = ||H_e[g_e] - mean||^2: the terms
        that the penalties of Hemati et al. (arXiv 2308.11778) add up, here measured for every strategy.
    """
    distances: dict[str, dict[str, float]] = {domain: {} for domain in statistics}
    if not statistics:
        return distances
    for name in ("gradient", "hgp"):
        mean = WeightedMean()
        for values in statistics.values():
            mean.add({name: values[name]})
        centre = mean.result()[name]
        for domain, values in statistics.items():
            distances[domain][f"{name}_distance"] = float((values[name] - centre).square().sum())
    return distances


def make_rows(
    federation: Federation, evaluated: Evaluated, outcome: RoundOutcome, *, splits_targets: bool, server_round: int
) -> list[Row]:
    """Make the lines of rounds.jsonl: one a client and domain that it holds, those that failed included.

    A target that evaluates two splits has a line for each.

    What a client has once and not by domain (failures, bytes, losses of training) is in the first of its rows alone.
    """
    traffic, failures = federation.take_traffic(), federation.take_failures()
    missed: dict[str, list[Failure]] = {}
    for failure in failures:
        missed.setdefault(failure.client, []).append(failure)
    rows: list[Row] = []
    for client in federation.clients:
        label = client.label
        for position, held in enumerate(client.identity.holdings):
            measured = evaluated.metrics.get((label, held.domain), {})
            if measured and client.identity.role == SOURCE:
                measured = measured | evaluated.distances.get(held.domain, {})
            once = (outcome.metrics.get(label, {}), missed.get(label, []), traffic.get(label, Traffic()))
            rows.append(_row(server_round, client, held, measured, *(once if position == 0 else ({}, [], Traffic()))))
            if splits_targets and client.identity.role == TARGET:
                rows[-1]["split"] = "in"
                out = {key.removeprefix(protocol.OUT): v for key, v in measured.items() if key.startswith(protocol.OUT)}
                rows.append(_row(server_round, client, held, out, {}, [], Traffic()) | {"split": "out"})
    return rows


def _evaluates(client: Client) -> list[Held]:
    return [held for held in client.identity.holdings if held.evaluate_examples]


def _read(
    client: Client, held: Held, content: RecordDict, alignment: Mapping[str, Tensor], splits: Iterable[str]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Read what a client says of one domain.

    Raises:
        ValueError: Something is missing or out of range.
    """
    identity = client.identity
    statistics: dict[str, Tensor] = {}
    if identity.role == SOURCE:
        statistics = read_tensors(content, identity.key(protocol.ALIGNMENT, held.domain), like=alignment)
    metrics = protocol.metrics_of(content, identity.key(protocol.METRICS, held.domain))
    for split in splits:
        _check_metrics(metrics, split)
    return metrics, statistics


def _check_metrics(metrics: Mapping[str, float], of: str) -> None:
    """Insist on loss, accuracy and number of examples of one split.

    Raises:
        ValueError: One is missing or impossible.
    """
    loss, accuracy, examples = (f"{of}{name}" for name in ("loss", "accuracy", protocol.NUM_EXAMPLES))
    if not {loss, accuracy, examples} <= metrics.keys():
        raise ValueError(f"expected {loss}, {accuracy} and {examples}, got {sorted(metrics)}")
    if not (0 <= metrics[accuracy] <= 1 and 1 <= metrics[examples] < math.inf):
        raise ValueError(f"expected an {accuracy} in [0, 1] of at least one example, got {dict(metrics)}")


def _row(
    server_round: int,
    client: Client,
    held: Held,
    measured: Mapping[str, float],
    trained: Mapping[str, float],
    missed: list[Failure],
    moved: Traffic,
) -> Row:
    """Make one line of rounds.jsonl; what a client did not deliver is null."""
    identity = client.identity
    split = "all" if identity.role == TARGET else "validation" if identity.holds_out else "train"
    row = {
        "round": server_round,
        "domain": held.domain,
        "client": identity.client,
        "role": identity.role,
        "split": split if held.evaluate_examples else "none",
        "examples": int(measured.get(protocol.NUM_EXAMPLES, 0)),
        "loss": measured.get("loss"),
        "accuracy": measured.get("accuracy"),
        "gradient_distance": measured.get("gradient_distance"),
        "hgp_distance": measured.get("hgp_distance"),
        "train_loss": trained.get("loss"),
        "train_objective": trained.get("objective"),
        "failures": [{"round": f.round, "phase": f.phase, "reason": f.reason} for f in missed],
        "bytes_down": moved.down,
        "bytes_up": moved.up,
    }
    if held.domain != identity.domain:
        row["main_domain"] = identity.domain  # which the client's number counts in
    return row
