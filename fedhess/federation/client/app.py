"""The ClientApp: thin handlers around the local work, behind the target firewall.

A client computes from the message, the run config and its own data alone; `memory.MEMORY` only saves time.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from typing import NamedTuple

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedhess.alignment.loading import client_half
from fedhess.alignment.statistics import strategy_statistic
from fedhess.alignment.step import Forward, round_steps, run_forward
from fedhess.base.environment import resolve_device, torch_threads
from fedhess.base.errors import StrategyError, UsageError, did_you_mean
from fedhess.base.seeds import seeded_globally
from fedhess.base.transfers import copy_together
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation import protocol
from fedhess.federation.client.answers import Protection, answer_once
from fedhess.federation.client.batches import joint_batch
from fedhess.federation.client.evaluation import evaluate_model
from fedhess.federation.client.examples import LocalClient, local_client
from fedhess.federation.client.limits import check_batches, check_run
from fedhess.federation.client.memory import MEMORY, ModelMissingError, ReceivedModel
from fedhess.federation.client.node import NotInRunError, is_simulated, place
from fedhess.federation.client.privacy import Mechanism, private_identity
from fedhess.federation.client.training import Holding, train_locally, writes_parameters
from fedhess.federation.protocol import decode_request, numbered, numbered_parts
from fedhess.federation.run_settings import settings_of_run
from fedhess.federation.tensors import decode_tensors, encode_tensors
from fedhess.models.prepared import class_names, describe_inputs
from fedhess.settings.assignments import Scalar
from fedhess.settings.run_config import RunConfig

Handler = Callable[[Message, Context], Message]


def run_settings(context: Context) -> RunConfig:
    """Return the settings of the run that a message belongs to, as they are on this node."""
    return _parsed(tuple(context.run_config.items()), tuple(context.node_config.items()))


@lru_cache(maxsize=64)
def _parsed(run_config: tuple[tuple[str, Scalar], ...], node_config: tuple[tuple[str, Scalar], ...]) -> RunConfig:
    own = dict(node_config)
    if "domain" in own:  # a deployed node; the others are this process's
        check_run(RunConfig.given_in(dict(run_config)), own)
    config = settings_of_run(dict(run_config), own)
    resolve_device(config.device)  # the server may not have it, so nobody has checked yet
    return config


def return_nonce(message: Message, context: Context, call_next: Handler) -> Message:
    """Return the message's nonce with the reply (a Flower mod)."""
    nonce = message.content.config_records.get(protocol.CONFIG, ConfigRecord()).get(protocol.NONCE)
    reply = call_next(message, context)
    if nonce is not None and reply.has_content():
        reply.content.setdefault(protocol.CONFIG, ConfigRecord())
        reply.content.config_records[protocol.CONFIG][protocol.NONCE] = nonce
    return reply


def errors_as_replies(message: Message, context: Context, call_next: Handler) -> Message:
    """Reply to expected errors with their reason, and that the model is missing where it is (a Flower mod).

    The reason of an error in a strategy's own code ends with the traceback: the run may have its directory elsewhere.
    """
    try:
        return call_next(message, context)
    except ModelMissingError:
        content = RecordDict({protocol.CONFIG: ConfigRecord({protocol.MODEL_MISSING: True})})
        return Message(content, reply_to=message)
    except StrategyError as error:
        trace = "".join(traceback.format_exception(error.__cause__))
        return Message(Error(protocol.STRATEGY_RAISED, f"{error}\n{trace}"), reply_to=message)
    except UsageError as error:
        code = protocol.NOT_IN_RUN if isinstance(error, NotInRunError) else protocol.BAD_REQUEST
        return Message(Error(code, str(error)), reply_to=message)


def firewall(message: Message, context: Context, call_next: Handler) -> Message:
    """Let nothing but ``evaluate`` through to a target client (a Flower mod)."""
    message_type = message.metadata.message_type
    domain, role, _ = place(run_settings(context), context)
    if role == TARGET and message_type.partition(".")[0] != protocol.EVALUATE:
        reason = f"{domain} is a target domain: its client answers evaluate messages only, refused {message_type!r}"
        return Message(Error(protocol.REFUSED_BY_TARGET, reason), reply_to=message)
    return call_next(message, context)


def own_torch_state(message: Message, context: Context, call_next: Handler) -> Message:
    """Set torch's threads, and seed its global generators by (seed, domain, client, round) (a Flower mod)."""
    config = run_settings(context)
    server_round = message.content.config_records.get(protocol.CONFIG, ConfigRecord()).get(protocol.ROUND, 0)
    with torch_threads(config.threads):
        domain, _, client = place(config, context)
        with seeded_globally(config.seed, "client", domain, client, str(server_round), device=config.device):
            return call_next(message, context)


app = ClientApp(mods=[return_nonce, errors_as_replies, own_torch_state, firewall])


@app.evaluate("identify")
def identify(message: Message, context: Context) -> Message:
    """Reply with the client's identity."""
    config = run_settings(context)
    data, role = _own_data(config, context)
    protection = Protection.of(context.node_config, role)
    identity = data.identity(role)
    if config.is_private and role == SOURCE:
        identity = private_identity(identity, simulated=is_simulated(context))
    identity = replace(
        identity,
        classes=class_names(config),
        inputs=describe_inputs(config),
        version=f"fedhess {version('fedhess')}, torch {torch.__version__}",
        protection=None if protection.is_off else (protection.rounding, protection.epsilon),
    )
    return Message(RecordDict({protocol.CONFIG: identity.to_record()}), reply_to=message)


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Reply with the statistics that the message names, on the batch of the round's first local step.

    Or with loss and accuracy of the model on held-out examples.
    """
    call = _open(message, context)
    answer = _held_out(call) if call.wants(protocol.HELD_OUT) else _answer(message.content, call)
    return Message(RecordDict(dict(answer)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take the round's local steps; reply with the update, or with the weights for a plain Flower strategy."""
    started = time.perf_counter()
    call = _open(message, context)
    config, data, received = call.config, call.data, call.received
    # Before the steps: they may write to the working model.
    answers = [_answer(request, call) for request in numbered_parts(message.content)]
    momentum = call.tensors(protocol.MOMENTUM)
    writes = writes_parameters(config, carries_momentum=momentum is not None)
    if call.mechanism is not None and momentum is not None and config.momentum:
        raise UsageError(
            f"--momentum {config.momentum:g}: strategy {config.strategy} carries it from client to client, which "
            "--dp-epsilon does not cover; give --momentum 0"
        )
    model = MEMORY.model(config, received, writable=writes)
    holdings = _holdings(call)
    # The statistics were of all that the client holds: so is the pass behind them.
    reusable = not writes and len(holdings) == len(data.training_parts)
    local = train_locally(
        model,
        holdings,
        before=received.tensors,
        config=config,
        strategy=client_half(config),
        server_round=call.server_round,
        momentum=momentum,
        first=MEMORY.take(received.model_id, data.key, model) if reusable else None,
    )
    tensors = local.update
    metrics = MetricRecord({protocol.NUM_EXAMPLES: data.train_size, "loss": local.loss, "objective": local.objective})
    if call.mechanism is not None:
        tensors = call.mechanism.release_update(local, model)
        metrics = MetricRecord({protocol.NUM_EXAMPLES: data.train_size})
    if call.wants(protocol.REPLY_WEIGHTS):
        tensors = {n: b - tensors[n] if n in tensors else b for n, b in received.tensors.items()}
    metrics["seconds"] = time.perf_counter() - started
    content = RecordDict({protocol.MODEL: encode_tensors(tensors), protocol.METRICS: metrics})
    if momentum is not None and local.momentum:
        content[protocol.MOMENTUM] = encode_tensors(local.momentum)
    if call.wants(protocol.HELD_OUT):
        content.update(_held_out(call, local.update))
    for number, records in enumerate(answers):
        content.update(numbered(records, number))
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model: a source client on its held-out split, a target client on its domain, or both splits of it.

    Only a source client adds the alignment statistics of its head.
    """
    config, data, role, received, server_round, _, mechanism = _open(message, context)
    if mechanism is not None:
        raise UsageError(f"{data.domain} is a source of a private run: it evaluates nothing")
    protection = Protection.of(context.node_config, role)
    if role == TARGET:
        answer_once(context, server_round, rounds=config.rounds)
    key = data.identity(role).key
    content = RecordDict()
    for domain, part in data.parts.items():
        if len(part.evaluate_indices) == 0 and len(data.parts) > 1:
            continue
        model = MEMORY.model(config, received, writable=False)
        result = protection.apply(evaluate_model(model, part, with_alignment=role == SOURCE))
        metrics = protocol.evaluation_metrics(result.examples, result.loss, result.accuracy)
        counts = result.counts
        if role == TARGET and config.splits_targets:
            out = protection.apply(evaluate_model(model, part, indices=part.out_indices))
            metrics |= protocol.evaluation_metrics(out.examples, out.loss, out.accuracy, of=protocol.OUT)
            counts = counts | {f"{protocol.OUT}{name}": count for name, count in out.counts.items()}
        content[key(protocol.METRICS, domain)] = MetricRecord(dict(metrics))
        content[key(protocol.COUNTS, domain)] = encode_tensors(counts)
        if result.alignment:
            content[key(protocol.ALIGNMENT, domain)] = encode_tensors(result.alignment)
    return Message(content, reply_to=message)


class _Call(NamedTuple):
    """What every request but ``identify`` carries, and what this client holds for it."""

    config: RunConfig
    data: LocalClient
    role: str
    received: ReceivedModel
    server_round: int
    content: RecordDict
    mechanism: Mechanism | None  # of a source client of a private run

    def tensors(self, record: str) -> dict[str, Tensor] | None:
        """Read tensors of the message onto the device; None where it has no such record."""
        arrays = self.content.array_records.get(record)
        return None if arrays is None else _on(self.config.device, decode_tensors(arrays))

    def wants(self, what: str) -> bool:
        """Whether the message asks for something that replies do not have otherwise."""
        return bool(self.content.config_records[protocol.CONFIG].get(what, False))


def _own_data(config: RunConfig, context: Context) -> tuple[LocalClient, str]:
    """Open what this node holds, and return it with the node's role."""
    domain, role, client = place(config, context)
    data = local_client(config, domain=domain, role=role, client=client)
    if role == SOURCE:
        counts = [part.train_size for part in data.training_parts.values()]
        held_out = [len(part.evaluate_indices) for part in data.parts.values()]
        check_batches(config, counts, held_out, context.node_config)
    return data, role


def _open(message: Message, context: Context) -> _Call:
    config = run_settings(context)
    record = message.content.config_records.get(protocol.CONFIG, ConfigRecord())
    model_id, server_round = record.get(protocol.MODEL_ID), record.get(protocol.ROUND)
    if not isinstance(model_id, str) or not isinstance(server_round, int):
        raise UsageError(f"expected {protocol.MODEL_ID} and {protocol.ROUND} in the message, got {sorted(record)}")
    received = MEMORY.receive(model_id, message.content.array_records.get(protocol.MODEL), device=config.device)
    data, role = _own_data(config, context)
    began_with = str(record.get(protocol.DATA_DIGEST, ""))
    if began_with and began_with != data.data_digest:
        raise UsageError(
            f"the data of {data.domain} has changed since the run began: digest {data.data_digest}, was {began_with}; "
            "put it back, or begin another run"
        )
    mechanism = None
    if config.is_private and role == SOURCE:
        mechanism = Mechanism(config, (data.domain, data.client, server_round) if is_simulated(context) else None)
    return _Call(config, data, role, received, server_round, message.content, mechanism)


def _holdings(call: _Call) -> list[Holding]:
    """Return what is trained on: everything, or what the server names; of several domains each by its weight."""
    identity = call.data.identity(SOURCE)
    record = call.content.config_records[protocol.CONFIG]
    weights = {domain: float(part.train_size) for domain, part in call.data.training_parts.items()}
    domains, by_server = record.get(protocol.TRAIN_DOMAINS), record.get(protocol.TRAIN_WEIGHTS)
    if isinstance(domains, list) and isinstance(by_server, list):
        named = dict(zip(map(str, domains), map(float, by_server), strict=True))
        weights = {domain: named.get(domain, 0.0) for domain in weights}
    total = sum(weights.values())
    shared = call.tensors(protocol.REFERENCE) or {}
    own = {}
    if identity.several:
        own = {domain: call.tensors(identity.key(protocol.REFERENCE, domain)) or {} for domain in weights}
    return [
        Holding(call.data.parts[domain], weight / total, shared | own.get(domain, {}))
        for domain, weight in weights.items()
        if weight > 0
    ]


def _statistics_pass(call: _Call, *, with_graph: bool = False) -> Forward:
    """Return the forward pass behind the round's statistics, made once a round.

    Where the round's only step takes the same batch and leaves the parameters alone, the pass keeps its graph for it.
    """
    config, data, model_id = call.config, call.data, call.received.model_id
    model = MEMORY.model(config, call.received, writable=False)  # another client's steps may have been its last use
    found = MEMORY.recall(model_id, data.key)
    if found is not None and found.is_made_by(model) and (found.features.requires_grad or not with_graph):
        return found
    is_first_step = config.statistics_batches == 1 and not writes_parameters(config)
    first = round_steps(config, train_size=data.train_size, server_round=call.server_round).start
    parts = list(data.training_parts.values())
    inputs, labels, sizes = joint_batch(parts, config, step=first, batches=config.statistics_batches)
    keeps_graph = is_first_step and MEMORY.has_room_for_a_graph(model_id)
    with torch.set_grad_enabled(keeps_graph or with_graph):
        forward = run_forward(model, inputs, labels, sizes=sizes)
    if keeps_graph or not with_graph:
        MEMORY.keep(model_id, data.key, forward)
    return forward


def _answer(request: RecordDict, call: _Call) -> dict[str, protocol.Part]:
    """Compute the statistics that a request names on the batch of the round's first local step, one record a domain."""
    config, strategy = call.config, client_half(call.config)
    names, given = decode_request(request)
    given |= _on(config.device, {name: v for name, v in given.items() if isinstance(v, Tensor)})
    values: dict[str, dict[str, Tensor]] = {domain: {} for domain in call.data.training_parts}
    for name in names:
        on_network = strategy.network_statistics.get(name)
        if on_network is None and name not in strategy.statistics:
            known = [*strategy.statistics, *strategy.network_statistics]
            raise UsageError(f"strategy {config.strategy!r} has no statistic {name!r}; {did_you_mean(name, known)}")
        forward = _statistics_pass(call, with_graph=on_network is not None)
        for own, part in zip(values.values(), forward.parts, strict=True):
            if on_network is not None:
                own[name] = strategy_statistic(config.strategy, name, on_network, part)
                continue
            function = strategy.statistics[name]
            if call.mechanism is not None:
                function = call.mechanism.statistic(name, function)
            with torch.no_grad():  # closed forms need no graph
                own[name] = strategy_statistic(config.strategy, name, function, part.batch, **given)
    if call.mechanism is not None and names:
        sizes = {domain: part.batch.size for domain, part in zip(values, forward.parts, strict=True)}
        values = call.mechanism.release_statistics(values, sizes=sizes, request=request)
    key = call.data.identity(SOURCE).key
    return {key(protocol.STATISTIC_VALUES, domain): encode_tensors(own) for domain, own in values.items()}


@torch.no_grad()
def _held_out(call: _Call, update: Mapping[str, Tensor] | None = None) -> dict[str, MetricRecord]:
    """Evaluate the received model, or the one that is an update away, on each domain that the client trains on.

    Of a domain of which it holds nothing out, on its training examples.
    """
    if call.mechanism is not None:
        raise UsageError(f"{call.data.domain} is a source of a private run: it evaluates nothing")
    model = MEMORY.model(call.config, call.received, writable=update is not None)
    for name, tensor in model.state_dict().items():
        if update is not None and name in update:
            tensor.sub_(update[name])
    records = {}
    for domain, part in call.data.training_parts.items():
        chosen = part.evaluate_indices if len(part.evaluate_indices) else part.train_indices
        result = evaluate_model(model, part, indices=chosen)
        metrics = protocol.evaluation_metrics(result.examples, result.loss, result.accuracy)
        records[call.data.identity(SOURCE).key(protocol.HELD_OUT, domain)] = MetricRecord(dict(metrics))
    return records


def _on(device: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy what a message holds to the device, but single whole numbers (a count, a seed) into the host's memory.

    There a strategy reads them without waiting for the device, and computes with them on any.
    """
    numbers = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 0 and not tensor.is_floating_point()}
    others = {name: tensor for name, tensor in tensors.items() if name not in numbers}
    return copy_together(others, torch.device(device)) | copy_together(numbers, torch.device("cpu"))
