"""Run a plain Flower strategy: it sees only the source clients, and its aggregate becomes the global model."""

import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedhess.base.errors import FederationError, UsageError
from fedhess.base.seeds import derive_seed
from fedhess.federation import protocol
from fedhess.federation.flower_compat import ForwardingGrid, NodeInfo
from fedhess.federation.server.checkpoint import State, below, flower_state, restore_flower_state
from fedhess.federation.server.clients import Federation, Request
from fedhess.federation.server.discovery import Client
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.server.local_training import RoundOutcome
from fedhess.federation.server.norm_bound import norm
from fedhess.federation.tensors import decode_tensors, read_tensors


class SourceGrid(ForwardingGrid):
    """The run's grid restricted to the source clients of a round, in domain order; replies come in the same order.

    Flower's strategies add replies up as they come and sample random node ids; with this view both depend on the seed
    and the domains only. A message to another node raises ``PermissionError``.
    """

    def __init__(self, federation: Federation, *, server_round: int) -> None:
        super().__init__(federation.grid)
        self._timeout = federation.config.deadline
        self._pushed: set[str] = set()
        self.by_node = {client.node_id: client for client in federation.participants(server_round)}

    def get_node_ids(self) -> Iterable[int]:
        """List the source clients' nodes in domain order."""
        return list(self.by_node)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """List the source clients' nodes in domain order."""
        return [NodeInfo(node_id=node_id) for node_id in self.by_node]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages to source clients."""
        ids = list(self._grid.push_messages(self._checked(messages)))
        self._pushed.update(ids)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies to messages that were pushed through this view, and to no others."""
        return self._grid.pull_messages([message_id for message_id in message_ids if message_id in self._pushed])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send to source clients in domain order and return their replies in that order."""
        position = {node_id: index for index, node_id in enumerate(self.by_node)}
        ordered = sorted(self._checked(messages), key=lambda message: position[message.metadata.dst_node_id])
        replies = list(self._grid.send_and_receive(ordered, timeout=timeout or self._timeout))
        turn = {message.metadata.message_id: index for index, message in enumerate(ordered)}
        return sorted(replies, key=lambda reply: turn.get(reply.metadata.reply_to_message_id, len(turn)))

    def _checked(self, messages: Iterable[Message]) -> list[Message]:
        checked = list(messages)
        for message in checked:
            node = message.metadata.dst_node_id
            if node not in self.by_node:
                raise PermissionError(f"node {node} is no source client: a strategy reaches source clients only")
        return checked


class FlowerRounds:
    """The rounds of a plain Flower strategy, with the source clients, which train ERM."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._name = type(strategy).__name__

    def run(self, federation: Federation, model: GlobalModel, server_round: int) -> RoundOutcome:
        """Run one round.

        The strategy's ``configure_train`` and ``aggregate_train`` are called as Flower's own ``start`` calls them;
        evaluation stays with fedhess. ``random`` is seeded, since Flower's node sampling draws from it.
        """
        started = time.monotonic()
        where = f"round {server_round}: {self._name}"
        grid = SourceGrid(federation, server_round=server_round)
        self._require_clients(grid, where)
        payload = model.payload()
        train_config = ConfigRecord(
            {protocol.ROUND: server_round, protocol.MODEL_ID: payload.model_id, protocol.REPLY_WEIGHTS: True}
        )
        random_state = random.getstate()
        random.seed(derive_seed(federation.config.seed, "flower-sampling", server_round))
        try:
            messages = list(self._strategy.configure_train(server_round, payload.arrays, train_config, grid))
        finally:
            random.setstate(random_state)
        _require_erm(messages, where)

        request = Request(
            "train",
            protocol.TRAIN,
            server_round,
            payload,
            federation.config.deadline,
            records=lambda _: (protocol.MODEL, protocol.METRICS),
            read=lambda client, content: _read(content, client, model),
        )
        addressed = [(grid.by_node[message.metadata.dst_node_id], message) for message in messages]
        outcome, replies = RoundOutcome(), []
        read = (
            (client, (reply, *found))
            for client, reply in federation.round_trip(request, addressed, grid)
            if reply is not None and (found := federation.accept(request, client, reply)) is not None
        )
        screened = federation.screen(
            "train", server_round, read, lambda _, sent: {"update": sent[2]}, asked=len(addressed)
        )
        for client, (reply, metrics, _) in screened:
            outcome.metrics[client.label] = metrics
            outcome.participants.append(client)
            replies.append(reply)
        federation.require_quorum("train", server_round, outcome.participants, asked=len(dict(addressed)))

        try:
            arrays, _ = self._strategy.aggregate_train(server_round, replies)
        except (AggregationError, InconsistentMessageReplies) as error:
            raise FederationError(f"{where}: {error}") from error
        if arrays is None:
            raise FederationError(f"{where} aggregated nothing from {len(replies)} replies")
        model.replace(_aggregate(arrays, model, where))
        model.require_finite(where)
        outcome.seconds = time.monotonic() - started
        return outcome

    def state(self) -> State:
        """Return the strategy's state."""
        tensors, plain = flower_state(self._strategy)
        return (
            {f"strategy/{name}": tensor for name, tensor in tensors.items()},
            {f"strategy/{name}": value for name, value in plain.items()},
        )

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        restore_flower_state(self._strategy, below("strategy/", tensors), below("strategy/", plain))

    def _require_clients(self, grid: SourceGrid, where: str) -> None:
        """Check that enough clients take part for the strategy's sampling: Flower would wait forever for more."""
        there = len(grid.by_node)
        for name in ("min_available_nodes", "min_train_nodes"):
            number = getattr(self._strategy, name, 0)
            if number > there:
                raise FederationError(
                    f"{where} waits for {name} = {number} clients, {there} take part; give it --strategy-args "
                    f"{name}={there}, or the run more clients (--clients-per-round)"
                )


def _require_erm(messages: Iterable[Message], where: str) -> None:
    """Check that a strategy sends its clients no setting that they would ignore, since they train ERM."""
    read = {protocol.ROUND, protocol.MODEL_ID, protocol.REPLY_WEIGHTS, "server-round"}  # the last is FedAvg's own
    sent = {key for message in messages for record in message.content.config_records.values() for key in record}
    if sent - read:
        raise UsageError(
            f"{where} sends its clients {', '.join(sorted(sent - read))}, which they do not read: under a plain Flower "
            "strategy they train ERM; write both halves as a fedhess.alignment.strategy.DomainStrategy"
        )


def _read(content: RecordDict, client: Client, model: GlobalModel) -> tuple[dict[str, float], float]:
    """Check a reply as Flower's strategies will read it: weights, metrics, the right count.

    Returns:
        Its metrics, and the norm of its update.
    """
    weights = read_tensors(content, protocol.MODEL, like=model.tensors)
    metrics = protocol.training_metrics_of(content, examples=client.identity.train_examples)
    return metrics, norm({name: before - weights[name] for name, before in model.tensors.items()})


def _aggregate(arrays: ArrayRecord, model: GlobalModel, where: str) -> dict[str, Tensor]:
    """Decode an aggregate into the model's names, shapes and dtypes (averaging widens integers to floats)."""
    tensors = decode_tensors(arrays)
    for name, like in model.tensors.items():
        if name not in tensors or tensors[name].shape != like.shape:
            raise FederationError(f"{where} returned no {name!r} of shape {tuple(like.shape)}")
        tensors[name] = (tensors[name] if like.is_floating_point() else tensors[name].round()).to(like.dtype)
    return tensors
