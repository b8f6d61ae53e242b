"""The ClientApp: thin handlers around the local work, behind the target firewall.

A client computes from the message, the run config and its own data alone; `memory.MEMORY` only saves time.
"""

import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedhess.alignment.loading import client_half
from fedhess.base.environment import torch_threads
from fedhess.base.errors import StrategyError, UsageError
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation import protocol
from fedhess.federation.client.answers import Protection, answer_once
from fedhess.federation.client.call import (
    holdings,
    open_call,
    own_data,
    place,
    run_settings,
    seeded_for_round,
    sent_identity,
)
from fedhess.federation.client.evaluation import evaluate_model
from fedhess.federation.client.examples import NotInRunError
from fedhess.federation.client.memory import MEMORY, ModelMissingError
from fedhess.federation.client.statistics import answer, held_out
from fedhess.federation.client.training import train_locally, writes_parameters
from fedhess.federation.protocol import numbered, numbered_parts
from fedhess.federation.tensors import encode_tensors
from fedhess.models.prepared import class_names, describe_inputs

Handler = Callable[[Message, Context], Message]


def return_nonce(message: Message, context: Context, call_next: Handler) -> Message:
    """Return the message's nonce with the reply (a Flower mod)."""
    nonce = message.content.config_records.get(protocol.CONFIG, ConfigRecord()).get(protocol.NONCE)
    reply = call_next(message, context)
    if nonce is not None and reply.has_content():
        reply.content.setdefault(protocol.CONFIG, ConfigRecord())
        reply.content.config_records[protocol.CONFIG][protocol.NONCE] = nonce
    return reply


def errors_as_replies(message: Message, context: Context, call_next: Handler) -> Message:
    """Reply to expected errors with their reason, or with a request for a missing model (a Flower mod).

    The reason of an error in a strategy's own code ends with the traceback: the run's directory may be elsewhere.
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
        if message.metadata.message_type == protocol.IDENTIFY and not isinstance(error, NotInRunError):
            own = {key: context.node_config[key] for key in protocol.PLACE if key in context.node_config}
            refusal = ConfigRecord({**own, protocol.REFUSED: str(error)})
            return Message(RecordDict({protocol.CONFIG: refusal}), reply_to=message)
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
        with seeded_for_round(config, domain, client, server_round):
            return call_next(message, context)


VERSION = f"fedhess {version('fedhess')}, torch {torch.__version__}"
app = ClientApp(mods=[return_nonce, errors_as_replies, own_torch_state, firewall])


@app.evaluate("identify")
def identify(message: Message, context: Context) -> Message:
    """Reply with the client's identity."""
    config = run_settings(context)
    data, role = own_data(config, context)
    identity = replace(
        sent_identity(config, context, data, role),
        classes=class_names(config),
        inputs=describe_inputs(config),
        version=VERSION,
    )
    return Message(RecordDict({protocol.CONFIG: identity.to_record()}), reply_to=message)


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Reply with the statistics that the message names, on the batch of the round's first local step.

    If the message asks for it, reply with the model's loss and accuracy on held-out examples instead.
    """
    call = open_call(message, context)
    records = held_out(call) if call.wants(protocol.HELD_OUT) else answer(message.content, call)
    return Message(RecordDict(dict(records)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take the round's local steps; reply with the update, or with the weights for a plain Flower strategy."""
    started = time.perf_counter()
    call = open_call(message, context)
    config, data, received = call.config, call.data, call.received
    # Before the steps, which may write to the working model.
    answers = [answer(request, call) for request in numbered_parts(message.content)]
    momentum = call.tensors(protocol.MOMENTUM)
    writes = writes_parameters(config, carries_momentum=momentum is not None)
    if call.mechanism is not None and momentum is not None and config.momentum:
        raise UsageError(
            f"--momentum {config.momentum:g}: strategy {config.strategy} carries it from client to client, which "
            "--dp-epsilon does not cover; give --momentum 0"
        )
    model = MEMORY.model(config, received, writable=writes)
    held = holdings(call)
    # The pass behind the statistics covers all domains of the client; it is reused only if the step does too.
    reusable = not writes and len(held) == len(data.training_parts)
    local = train_locally(
        model,
        held,
        before=received.tensors,
        config=config,
        strategy=client_half(config),
        server_round=call.server_round,
        momentum=momentum,
        first=MEMORY.take(received.model_id, data.key, model) if reusable else None,
        seeded=call.seeded if reusable else nullcontext,
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
        content.update(held_out(call, local.update))
    for number, records in enumerate(answers):
        content.update(numbered(records, number))
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model: a source client on its held-out split, a target client on its domain, or both splits of it.

    Only a source client adds the alignment statistics of its head.
    """
    config, data, role, received, server_round, _, mechanism = open_call(message, context)
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
