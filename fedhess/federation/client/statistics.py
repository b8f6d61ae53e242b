"""What a source client computes for the server before and beside training: statistics, and held-out metrics."""

from collections.abc import Mapping

import torch
from flwr.app import MetricRecord, RecordDict
from torch import Tensor

from fedhess.alignment.loading import client_half
from fedhess.alignment.statistics import strategy_statistic
from fedhess.alignment.step import Forward, round_steps, run_forward
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.domains.benchmark import SOURCE
from fedhess.federation import protocol
from fedhess.federation.client.batches import joint_batch
from fedhess.federation.client.call import Call, on_device
from fedhess.federation.client.evaluation import evaluate_model
from fedhess.federation.client.memory import MEMORY
from fedhess.federation.client.training import writes_parameters
from fedhess.federation.protocol import decode_request
from fedhess.federation.tensors import encode_tensors


def _forward(call: Call, *, with_graph: bool = False) -> Forward:
    """Return the forward pass behind the round's statistics, computed once a round.

    If the round's only step takes the same batch and does not write to the parameters, the pass keeps its graph for the
    step. Dropout draws the same in the pass, in a repeated pass and in the step: each begins with the round's seed, and
    so does whatever the step draws after its pass.
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
    with torch.set_grad_enabled(keeps_graph or with_graph), call.seeded():
        forward = run_forward(model, inputs, labels, sizes=sizes)
    if keeps_graph or not with_graph:
        MEMORY.keep(model_id, data.key, forward)
    return forward


def answer(request: RecordDict, call: Call) -> dict[str, protocol.Part]:
    """Compute the statistics that a request names on the batch of the round's first step, one record per domain."""
    config, strategy = call.config, client_half(call.config)
    names, given = decode_request(request)
    given |= on_device(config.device, {name: v for name, v in given.items() if isinstance(v, Tensor)})
    values: dict[str, dict[str, Tensor]] = {domain: {} for domain in call.data.training_parts}
    for name in names:
        on_network = strategy.network_statistics.get(name)
        if on_network is None and name not in strategy.statistics:
            known = [*strategy.statistics, *strategy.network_statistics]
            raise UsageError(f"strategy {config.strategy!r} has no statistic {name!r}; {did_you_mean(name, known)}")
        forward, hook = _forward(call, with_graph=on_network is not None), f"statistic {name!r}"
        for own, part in zip(values.values(), forward.parts, strict=True):
            if on_network is not None:
                own[name] = strategy_statistic(config.strategy, hook, on_network, part)
                continue
            function = strategy.statistics[name]
            if call.mechanism is not None:
                function = call.mechanism.statistic(name, function)
            with torch.no_grad():  # closed forms need no graph
                own[name] = strategy_statistic(config.strategy, hook, function, part.batch, **given)
    if call.mechanism is not None and names:
        sizes = {domain: part.batch.size for domain, part in zip(values, forward.parts, strict=True)}
        values = call.mechanism.release_statistics(values, sizes=sizes, request=request)
    key = call.data.identity(SOURCE).key
    return {key(protocol.STATISTIC_VALUES, domain): encode_tensors(own) for domain, own in values.items()}


@torch.no_grad()
def held_out(call: Call, update: Mapping[str, Tensor] | None = None) -> dict[str, MetricRecord]:
    """Evaluate the received model, minus ``update`` if given, on each domain that the client trains on.

    A domain without evaluation examples is evaluated on its training examples.
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
