"""The ClientApp: thin handlers around the local work, behind the target firewall.

A client computes from the message, the run config and its own data alone; what :mod:`fedhess.workplace` remembers only
saves time.
"""

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedhess import protocol
from fedhess.autodiff import ModuleBatch
from fedhess.config import RunConfig, Scalar
from fedhess.environment import torch_threads
from fedhess.errors import UsageError, did_you_mean
from fedhess.evaluation import evaluate_model
from fedhess.loading import client_half
from fedhess.local_data import LocalDomain, local_domain
from fedhess.protocol import SOURCE, TARGET, Identity
from fedhess.run_settings import settings_of_run
from fedhess.statistics import Forward, compute_statistic, run_forward
from fedhess.training import round_batch, round_steps, train_locally, writes_parameters
from fedhess.workplace import FORWARDS, MODELS, ModelMissingError

Handler = Callable[[Message, Context], Message]


class BadRequestError(ValueError):
    """A message asks for what this client does not offer."""


def run_settings(context: Context) -> RunConfig:
    """Return the settings of the run that a message belongs to, as they are on this node.

    Raises:
        UsageError: A value of the run config is out of range or of the wrong type.
    """
    return _parsed(tuple(context.run_config.items()), tuple(context.node_config.items()))


@lru_cache(maxsize=64)
def _parsed(run_config: tuple[tuple[str, Scalar], ...], node_config: tuple[tuple[str, Scalar], ...]) -> RunConfig:
    return settings_of_run(dict(run_config), dict(node_config))


def own_threads(message: Message, context: Context, call_next: Handler) -> Message:
    """Let torch use the threads that run or node say (a Flower mod)."""
    with torch_threads(run_settings(context).threads):
        return call_next(message, context)


def firewall(message: Message, context: Context, call_next: Handler) -> Message:
    """Let nothing but ``evaluate`` through to a target client (a Flower mod)."""
    message_type = message.metadata.message_type
    config = run_settings(context)
    domain, role = place(config, context)
    if role == TARGET and message_type.partition(".")[0] != protocol.EVALUATE:
        reason = f"{domain} is a target domain: its client answers evaluate messages only, refused {message_type!r}"
        return Message(Error(protocol.REFUSED_BY_TARGET, reason), reply_to=message)
    return call_next(message, context)


def errors_as_replies(message: Message, context: Context, call_next: Handler) -> Message:
    """Answer expected errors with their reason, and a missing model with the word that it is missing (a Flower mod)."""
    try:
        return call_next(message, context)
    except ModelMissingError:
        content = RecordDict({protocol.CONFIG: ConfigRecord({protocol.MODEL_MISSING: True})})
        return Message(content, reply_to=message)
    except (BadRequestError, UsageError) as error:
        return Message(Error(protocol.BAD_REQUEST, str(error)), reply_to=message)


app = ClientApp(mods=[errors_as_replies, own_threads, firewall])


def place(config: RunConfig, context: Context) -> tuple[str, str]:
    """Say which domain this node holds and which role it plays.

    A deployed node is started with ``domain`` in its node config, a simulated one has a ``partition-id``, which counts
    the run's sources, then its targets. A node started with ``role="target"`` stays one whatever a run says.

    Returns:
        Domain and role.

    Raises:
        UsageError: The node config names neither, or a domain that is not part of the run.
    """
    domains = (*config.sources, *config.targets)
    domain = context.node_config.get("domain")
    if domain is None:
        position = context.node_config.get("partition-id")
        if not isinstance(position, int) or not 0 <= position < len(domains):
            raise UsageError(
                f"the node config has no domain, and its partition-id is {position!r}; expected domain=NAME, or a "
                f"partition-id from 0 to {len(domains) - 1}"
            )
        count = context.node_config.get("num-partitions", len(domains))
        if isinstance(count, int) and count < len(domains):
            raise UsageError(
                f"the simulation has {count} nodes, the run {len(domains)} domains ({', '.join(domains)}); run it with "
                f"--federation-config 'num-supernodes={len(domains)}'"
            )
        domain = domains[position]
    if domain not in domains:
        raise UsageError(f"this node holds domain {domain!r}; the run has {', '.join(domains)}")
    is_source = domain in config.sources and context.node_config.get("role", SOURCE) == SOURCE
    return str(domain), SOURCE if is_source else TARGET


@app.evaluate("identify")
def identify(message: Message, context: Context) -> Message:
    """Answer who this client is."""
    config = run_settings(context)
    domain, role = place(config, context)
    data = local_domain(config, domain=domain, role=role)
    identity = Identity(domain, role, 0, data.train_size, len(data.evaluate_indices), data.holds_out)
    return Message(RecordDict({protocol.CONFIG: identity.to_record()}), reply_to=message)


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Answer the statistics that the message names, on the batch of the round's first local step."""
    config, data, model_id, server_round = _open(message, context)
    values = _answer(message.content, config, data, model_id, server_round)
    return Message(RecordDict({protocol.STATISTIC_VALUES: protocol.encode_tensors(values)}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take the round's local steps; answer with the update, or with the weights where a plain Flower strategy asks."""
    started = time.perf_counter()
    config, data, model_id, server_round = _open(message, context)
    asked = protocol.numbered_parts(message.content)  # before the steps: they may write to the working model
    answers = [_answer(request, config, data, model_id, server_round) for request in asked]
    model = MODELS.model(config, model_id, writable=writes_parameters(config))
    reference = message.content.array_records.get(protocol.REFERENCE)
    device = torch.device(config.device)
    carried = message.content.array_records.get(protocol.MOMENTUM)
    local = train_locally(
        model,
        data,
        before=MODELS.receive(model_id, None),
        config=config,
        strategy=client_half(config),
        reference={} if reference is None else _on(device, protocol.decode_tensors(reference)),
        server_round=server_round,
        momentum=None if carried is None else protocol.decode_tensors(carried),
        first=None if writes_parameters(config) else FORWARDS.take(model_id, data.key, model),
    )
    wants_weights = message.content.config_records[protocol.CONFIG].get(protocol.REPLY_WEIGHTS, False)
    if wants_weights:
        before = MODELS.receive(model_id, None)
        tensors = {n: b - local.update[n].cpu() if n in local.update else b for n, b in before.items()}
    else:
        tensors = local.update
    metrics = MetricRecord(
        {
            protocol.NUM_EXAMPLES: data.train_size,
            "loss": local.loss,
            "objective": local.objective,
            "seconds": time.perf_counter() - started,
        }
    )
    content = RecordDict({protocol.MODEL: protocol.encode_tensors(tensors), protocol.METRICS: metrics})
    if carried is not None and local.momentum:
        content[protocol.MOMENTUM] = protocol.encode_tensors(local.momentum)
    for call, values in enumerate(answers):
        content.update(protocol.numbered({protocol.STATISTIC_VALUES: protocol.encode_tensors(values)}, call))
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model: a source client on its held-out split, a target client on its domain, or both splits of it.

    Only a source client adds the alignment statistics of its head.
    """
    config, data, model_id, _ = _open(message, context)
    _, role = place(config, context)
    model = MODELS.model(config, model_id, writable=False)
    result = evaluate_model(model, data, with_alignment=role == SOURCE)
    metrics = protocol.evaluation_metrics(result.examples, result.loss, result.accuracy)
    if role == TARGET and config.splits_targets:
        out = evaluate_model(model, data, indices=data.out_indices)
        metrics |= protocol.evaluation_metrics(out.examples, out.loss, out.accuracy, of=protocol.OUT)
    content = RecordDict({protocol.METRICS: MetricRecord(dict(metrics))})
    if result.alignment:
        content[protocol.ALIGNMENT] = protocol.encode_tensors(result.alignment)
    return Message(content, reply_to=message)


def _open(message: Message, context: Context) -> tuple[RunConfig, LocalDomain, str, int]:
    """Read what every request carries, and take in its model."""
    config = run_settings(context)
    record = message.content.config_records.get(protocol.CONFIG, ConfigRecord())
    model_id, server_round = record.get(protocol.MODEL_ID), record.get(protocol.ROUND)
    if not isinstance(model_id, str) or not isinstance(server_round, int):
        raise BadRequestError(f"expected {protocol.MODEL_ID} and {protocol.ROUND} in the message, got {sorted(record)}")
    MODELS.receive(model_id, message.content.array_records.get(protocol.MODEL))
    domain, role = place(config, context)
    return config, local_domain(config, domain=domain, role=role), model_id, server_round


def _statistics_pass(
    config: RunConfig, data: LocalDomain, model_id: str, server_round: int, *, with_graph: bool = False
) -> Forward:
    """Return the forward pass behind the round's statistics, made once a round.

    Where the round's only step takes the same batch and leaves the parameters alone, the pass keeps its graph for it.
    """
    found = FORWARDS.recall(model_id, data.key)
    if found is not None and (found.features.requires_grad or not with_graph):
        return found
    is_first_step = config.statistics_batches == 1 and not writes_parameters(config)
    first = round_steps(config, train_size=data.train_size, server_round=server_round).start
    inputs, labels = round_batch(data, config, step=first, batches=config.statistics_batches)
    keeps_graph = is_first_step and FORWARDS.has_room_for_a_graph(model_id)
    with torch.set_grad_enabled(keeps_graph or with_graph):
        forward = run_forward(MODELS.model(config, model_id, writable=False), inputs, labels)
    if keeps_graph or not with_graph:
        FORWARDS.keep(model_id, data.key, forward)
    return forward


def _answer(
    request: RecordDict, config: RunConfig, data: LocalDomain, model_id: str, server_round: int
) -> dict[str, Tensor]:
    """Compute the statistics that a request names, on the batch of the round's first local step.

    Raises:
        BadRequestError: The strategy lists no such statistic.
    """
    strategy = client_half(config)
    names, given = protocol.decode_request(request)
    device = torch.device(config.device)
    given = {name: _on(device, {"": v})[""] if isinstance(v, Tensor) else v for name, v in given.items()}
    values: dict[str, Tensor] = {}
    for name in names:
        if name in strategy.network_statistics:
            forward = _statistics_pass(config, data, model_id, server_round, with_graph=True)
            values[name] = strategy.network_statistics[name](forward).detach()
        elif name in strategy.statistics:
            batch = _statistics_pass(config, data, model_id, server_round).batch
            with torch.set_grad_enabled(isinstance(batch, ModuleBatch)):  # closed forms need no graph
                values[name] = compute_statistic(strategy.statistics[name], batch, **given).detach()
        else:
            known = [*strategy.statistics, *strategy.network_statistics]
            raise BadRequestError(
                f"strategy {config.strategy!r} has no statistic {name!r}; {did_you_mean(name, known)}"
            )
    return values


def _on(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy to the device; on the CPU too, into torch's aligned memory (see ``ModelStore.receive``)."""
    return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
