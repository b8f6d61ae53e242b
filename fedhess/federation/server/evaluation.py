"""The server's side of evaluation: every client evaluates what it holds; one row per client and domain."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from fedhess.alignment.means import DomainMeans, WeightedMean
from fedhess.alignment.privacy import run_noise
from fedhess.base.errors import FederationError
from fedhess.curvature import head_gradient, hessian_gradient_product
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation import protocol
from fedhess.federation.protocol import Held
from fedhess.federation.server.clients import Federation, ModelPayload, Request
from fedhess.federation.server.discovery import Client
from fedhess.federation.server.ledger import Failure, Traffic
from fedhess.federation.server.local_training import RoundOutcome
from fedhess.federation.server.run_directory import Row
from fedhess.federation.tensors import read_tensors
from fedhess.settings.privacy import spent_epsilon

logger = logging.getLogger(__name__)

ALIGNMENT = {"gradient": head_gradient, "hgp": hessian_gradient_product}

Measured = dict[tuple[str, str], dict[str, Any]]  # by client and domain


def alignment_shapes(head: nn.Linear) -> dict[str, Tensor]:
    """Return tensors of the shapes that a source client's alignment statistics must have, (C, K)."""
    like = head.weight.new_zeros(head.out_features, head.in_features + (head.bias is not None))
    return dict.fromkeys(ALIGNMENT, like)


def evaluate_clients(
    federation: Federation,
    model: ModelPayload,
    *,
    alignment: Mapping[str, Tensor],
    server_round: int,
    roles: Sequence[str] = (SOURCE, TARGET),
) -> Measured:
    """Have every client of ``roles`` that has evaluation examples evaluate the model.

    If fewer source clients than the quorum answer, a warning is logged, the rows have the answers that came, and no
    selector takes the round (see :func:`fedhess.federation.server.round_selection.comparable_rounds`).

    Returns:
        Loss, accuracy, number of examples, counts and, for a source domain, the distances of its head statistics from
        the mean over domains.

    Raises:
        FederationError: Fewer source clients than the quorum answered before training.
    """
    config = federation.config

    def read(client: Client, content: RecordDict) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
        splits = ("", protocol.OUT) if config.splits_targets and client.identity.role == TARGET else ("",)
        return {held.domain: _read(client, held, content, alignment, splits) for held in _evaluates(client)}

    asked = [client for client in federation.clients if _evaluates(client) and client.identity.role in roles]
    sources = [client for client in asked if client.identity.role == SOURCE]
    counts = [{held.domain: held.evaluate_examples for held in _evaluates(client)} for client in sources]
    means = DomainMeans(config.sources, counts)
    measured: Measured = {}
    answered: list[Client] = []

    def records(client: Client) -> list[str]:
        names = (protocol.METRICS, protocol.COUNTS, *([protocol.ALIGNMENT] if client.identity.role == SOURCE else []))
        return [client.identity.key(name, held.domain) for held in _evaluates(client) for name in names]

    request = Request("evaluate", protocol.EVALUATE, server_round, model, config.deadline, records, read)
    for client, answer in federation.exchange(request, asked):
        for held in _evaluates(client):
            metrics, statistics = answer[held.domain]
            measured[client.label, held.domain] = metrics
            if statistics:
                means.add(held.domain, statistics, held.evaluate_examples)
        if client.identity.role == SOURCE:
            answered.append(client)
    if not sources:
        federation.ledger.log_new()
        return measured
    try:
        federation.require_quorum("evaluate", server_round, answered, asked=len(sources))
    except FederationError as error:
        if server_round == 0:
            raise
        logger.warning("%s\nThe run goes on; no table reports this round.", error)
    distances = alignment_distances(means.result())
    for client in answered:
        for held in _evaluates(client):
            measured[client.label, held.domain] |= distances[held.domain]
    return measured


def validation_loss(federation: Federation, measured: Measured) -> float | None:
    """Average the sources' loss on held-out examples: domains have equal weight, clients of a domain count by examples.

    Returns:
        The mean, infinite where a loss is not finite; None where fewer source clients than the quorum have one.
    """
    asked = [client for client in federation.source_clients if _evaluates(client)]
    answered = [c for c in asked if all((c.label, held.domain) in measured for held in _evaluates(c))]
    if len(answered) < (min(federation.config.quorum, len(asked)) or len(asked)):
        return None
    losses: dict[str, WeightedMean] = {}
    for client in answered:
        for held in _evaluates(client):
            loss = torch.tensor(measured[client.label, held.domain]["loss"], dtype=torch.float64)
            losses.setdefault(held.domain, WeightedMean()).add({"": loss}, held.evaluate_examples)
    mean = WeightedMean()
    for domain in federation.config.sources:
        if domain in losses:
            mean.add(losses[domain].result())
    of_all = float(mean.result()[""])
    return of_all if math.isfinite(of_all) else math.inf


def alignment_distances(statistics: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Measure how far each source domain's head statistics are from their mean over the domains.

    Args:
        statistics: By domain, its head gradient ``"gradient"`` and HGP ``"hgp"``, (C, K) each; for a domain of several
            clients the mean over clients, weighted by examples.

    Returns:
        By domain, ``"gradient_distance"`` = ||g_e - gbar||^2 and ``"hgp_distance"`` = ||H_e[g_e] - mean||^2: the terms
        that the penalties of Hemati et al. (arXiv 2308.11778) add up, here measured for every strategy.
    """
    if not statistics:
        return {}
    mean = WeightedMean()
    for values in statistics.values():
        mean.add(values)
    centre = mean.result()
    return {
        domain: {f"{name}_distance": float((values[name] - centre[name]).square().sum()) for name in ALIGNMENT}
        for domain, values in statistics.items()
    }


def make_rows(federation: Federation, measured: Measured, outcome: RoundOutcome, *, server_round: int) -> list[Row]:
    """Make the lines of rounds.jsonl: one per client and domain that it holds, failed clients included.

    A target that evaluates two splits has a line for each. Values that a client has once, not per domain (failures,
    bytes, training losses), are in the first of its rows only.
    """
    failures, traffic = federation.ledger.take()
    config = federation.config
    rows: list[Row] = []
    for client in federation.clients:
        missed = [failure for failure in failures if failure.client == client.label]
        moved, trained = traffic.get(client.label, Traffic()), outcome.metrics.get(client.label, {})
        for held in client.identity.holdings:
            metrics = measured.get((client.label, held.domain), {})
            rows.append(_row(server_round, client, held, metrics, trained, missed, moved))
            if config.is_private and client.identity.role == SOURCE:
                rows[-1] |= _spent(federation, client)
            missed, moved, trained = [], Traffic(), {}
            if config.splits_targets and client.identity.role == TARGET:
                rows[-1]["split"] = "in"
                out = protocol.OUT
                metrics = {key.removeprefix(out): value for key, value in metrics.items() if key.startswith(out)}
                rows.append(_row(server_round, client, held, metrics, trained, missed, moved) | {"split": "out"})
    return rows


def _spent(federation: Federation, client: Client) -> Row:
    """Return a row's fields about a private source client: the epsilon of all that it has sent, and its noise."""
    config, released = federation.config, federation.ledger.released.get(client.label, 0)
    epsilon = spent_epsilon(run_noise(config), config.dp_delta, releases=released)
    return {"epsilon": round(epsilon, 6), protocol.NOISE: client.identity.noise}


def _evaluates(client: Client) -> list[Held]:
    return [held for held in client.identity.holdings if held.evaluate_examples]


def _read(
    client: Client, held: Held, content: RecordDict, alignment: Mapping[str, Tensor], splits: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a client's metrics, counts and statistics of one domain; ``ValueError`` where one is missing or wrong."""
    identity = client.identity
    statistics: dict[str, Tensor] = {}
    if identity.role == SOURCE:
        statistics = read_tensors(content, identity.key(protocol.ALIGNMENT, held.domain), like=alignment)
    named = [(f"{split}loss", f"{split}accuracy", f"{split}{protocol.NUM_EXAMPLES}") for split in splits]
    key = identity.key(protocol.METRICS, held.domain)
    metrics: dict[str, Any] = dict(protocol.metrics_of(content, list(chain(*named)), key))
    for loss, accuracy, examples in named:
        if not (0 <= metrics[accuracy] <= 1 and 1 <= metrics[examples] < math.inf):
            raise ValueError(f"expected an {accuracy} in [0, 1] of at least one example, got {metrics}")
        if metrics[loss] < 0:
            raise ValueError(f"expected a {loss} of at least 0, got {metrics[loss]:g}")
    if metrics[protocol.NUM_EXAMPLES] != held.evaluate_examples:
        raise ValueError(f"expected {protocol.NUM_EXAMPLES} = {held.evaluate_examples} as at the start, got {metrics}")
    classes, key = max(2, len(alignment["gradient"])), identity.key(protocol.COUNTS, held.domain)
    like = {protocol.CONFUSION: torch.empty(classes, classes, dtype=torch.int32)}
    if identity.protection is None:
        like[protocol.CALIBRATION] = torch.empty(protocol.BINS, 3, dtype=torch.float64)
    tensors = read_tensors(content, key, like={f"{s}{name}": each for s in splits for name, each in like.items()})
    for split in splits:
        counts = {name: tensors[f"{split}{name}"].numpy() for name in like}
        accuracy, examples = metrics[f"{split}accuracy"], metrics[f"{split}{protocol.NUM_EXAMPLES}"]
        read = _read_counts if identity.protection is None else _read_protected
        found = read(counts, accuracy, examples, f"{key}: expected counts that fit {split}accuracy {accuracy:g}")
        metrics |= {f"{split}{name}": value for name, value in found.items()}
    return metrics, statistics


def _read_counts(counts: Mapping[str, np.ndarray], accuracy: float, examples: float, wrong: str) -> dict[str, Any]:
    """Return counts in the form of rounds.jsonl; ``ValueError`` if they do not add up to the client's metrics."""
    confusion, bins = counts[protocol.CONFUSION], counts[protocol.CALIBRATION]
    count, correct, confidence = bins.T
    hits = int(confusion.trace())
    fits = [
        bool((confusion >= 0).all()) and int(confusion.sum()) == examples and hits / examples == accuracy,
        bool((bins[:, :2] % 1 == 0).all()) and float(count.sum()) == examples and float(correct.sum()) == hits,
        bool(((correct >= 0) & (correct <= count) & (confidence >= 0) & (confidence <= count)).all()),
    ]
    if not all(fits):
        raise ValueError(
            f"{wrong} of {examples:g} examples, got {int(confusion.sum())} predictions, {hits} of them right, and "
            f"{float(count.sum()):g} confidences, {float(correct.sum()):g} of right ones"
        )
    calibration = [[int(n), int(right), sure] for n, right, sure in bins.tolist()]
    return {protocol.CONFUSION: _listed(confusion), protocol.CALIBRATION: calibration}


def _read_protected(counts: Mapping[str, np.ndarray], accuracy: float, examples: float, wrong: str) -> dict[str, Any]:
    """Return rounded or noisy counts, which need to match the accuracy only; there is no loss."""
    confusion = counts[protocol.CONFUSION]
    hits = int(confusion.trace())
    if (confusion < 0).any() or min(1.0, hits / examples) != accuracy:
        raise ValueError(f"{wrong}, got {hits} predicted right")
    return {"loss": None, protocol.CONFUSION: _listed(confusion)}


def _listed(confusion: np.ndarray) -> list[list[int]]:
    """List label, prediction and number of examples of every count that is not zero."""
    places = confusion.nonzero()
    listed: list[list[int]] = np.stack([*places, confusion[places]], axis=1).tolist()
    return listed


def _row(
    server_round: int,
    client: Client,
    held: Held,
    measured: Mapping[str, Any],
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
        **{key: measured.get(key) for key in ("loss", "accuracy", "gradient_distance", "hgp_distance")},
        **{key: measured.get(key) for key in (protocol.CONFUSION, protocol.CALIBRATION)},
        "train_loss": trained.get("loss"),
        "train_objective": trained.get("objective"),
        "failures": [{"round": f.round, "phase": f.phase, "reason": f.reason} for f in missed],
        "bytes_down": moved.down,
        "bytes_up": moved.up,
        "sent": moved.sent,
    }
    if identity.protection is not None:
        row["evaluation_rounding"], row["evaluation_epsilon"] = identity.protection
    if held.domain != identity.domain:
        row["main_domain"] = identity.domain  # the domain in which clients are numbered
    return row
