"""What a client process keeps between messages: models, forward passes, data. Losing any of it loses only time."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedhess.alignment.loading import strategy_model
from fedhess.alignment.step import Forward
from fedhess.base.transfers import copy_together
from fedhess.federation import protocol
from fedhess.federation.client.examples import forget_clients
from fedhess.federation.tensors import decode_tensors
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import forget_data
from fedhess.settings.run_config import RunConfig


class ModelMissingError(LookupError):
    """The message names a model without containing it, and this process does not hold it (any more)."""


@dataclass(frozen=True)
class ReceivedModel:
    """The model of a message, on the device; its tensors are shared and immutable."""

    model_id: str
    tensors: Mapping[str, Tensor]


class WorkingModel:
    """A model whose parameters are pointed at received tensors, or at copies of them."""

    def __init__(self, model: HeadedModel) -> None:
        self.model = model
        self._copies: dict[str, Tensor] = {}
        self._holds: tuple[str, bool] | None = None
        self._restored: tuple[str, list[int]] | None = None

    def load(self, received: ReceivedModel, *, writable: bool) -> None:
        """Set the parameters to the received tensors, or to copies of them where they will be written to."""
        if writable or self._holds != (received.model_id, False):
            self._holds = None
            mine, theirs = self.model.state_dict(), received.tensors
            if mine.keys() != theirs.keys() or any(mine[name].shape != theirs[name].shape for name in mine):
                raise ValueError(f"the message's model does not fit the run's: expected tensors {sorted(mine)}")
            for name, parameter in self.model.named_parameters():
                parameter.grad = None
                value = theirs[name].to(device=parameter.device, dtype=parameter.dtype)
                if writable:
                    value = self._copies.setdefault(name, torch.empty_like(parameter.data)).copy_(value)
                parameter.data = value
            self._holds = (received.model_id, writable)
        self._restore_buffers(received)

    def _restore_buffers(self, received: ReceivedModel) -> None:
        """Copy the received buffers, unless the model has them and no pass in training mode has written to them since.

        They are left untouched then, because the graph of a pass kept for the round's step may hold them. All are
        copied if one was written to: batch norms change the version of their batch count, but not of their statistics.
        """
        if self._restored == (received.model_id, self._buffer_versions()):
            return
        for name, buffer in self.model.named_buffers():
            if name in received.tensors:
                buffer.copy_(received.tensors[name])
        self._restored = (received.model_id, self._buffer_versions())

    def _buffer_versions(self) -> list[int]:
        return [buffer._version for buffer in self.model.buffers()]


class Memory:
    """What a client process keeps: received models, one working model per thread, forward passes, and its data.

    The working model is per thread, so that a client that was given up on and still runs cannot disturb the next one.

    The forward pass of each client's statistics batch is kept between the exchanges of a round and its first step. A
    pass with its autograd graph serves one backward only. It holds the activations of a batch (32 images of 224 pixels:
    0.7 GB with ResNet-18, 2.8 GB with ResNet-50), so graphs are kept up to :attr:`GRAPH_BYTES` in all. Of the other
    passes the features are kept, up to :attr:`FEATURE_BYTES`; clients beyond that compute theirs again.
    """

    GRAPH_BYTES = 2**32
    FEATURE_BYTES = 2**25

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Drop everything, as a restart of the process would."""
        self._received: OrderedDict[str, ReceivedModel] = OrderedDict()
        self._of_thread = threading.local()
        self._begin_passes(None)
        forget_clients()
        forget_data()

    def receive(
        self, model_id: str, arrays: ArrayRecord | None, *, device: torch.device | str = "cpu"
    ) -> ReceivedModel:
        """Return the model of a message, from the message or from memory; sent to the device once for all clients."""
        with self._lock:
            if model_id not in self._received:
                if arrays is None:
                    raise ModelMissingError(model_id)
                tensors = copy_together(decode_tensors(arrays), torch.device(device))
                self._received[model_id] = ReceivedModel(model_id, tensors)
            self._received.move_to_end(model_id)
            while len(self._received) > protocol.MODELS_HELD:
                self._received.popitem(last=False)
            return self._received[model_id]

    def model(self, config: RunConfig, received: ReceivedModel, *, writable: bool) -> HeadedModel:
        """Return this thread's working model with the weights of a received model; ``writable`` weights are copies."""
        if getattr(self._of_thread, "config", None) != config:
            self._of_thread.working = WorkingModel(strategy_model(config, initial=False))
            self._of_thread.config = config
        working: WorkingModel = self._of_thread.working
        working.load(received, writable=writable)
        return working.model

    def recall(self, model_id: str, client: tuple[object, ...]) -> Forward | None:
        """Return the pass of a client under a model."""
        return self._passes.get((model_id, *client), (None, 0))[0]

    def take(self, model_id: str, client: tuple[object, ...], model: HeadedModel) -> Forward | None:
        """Return the pass of a client with its graph, and forget it; None if it has none or the model has changed."""
        found = self.recall(model_id, client)
        if found is None or not found.features.requires_grad or found.wrote_buffers or not found.is_made_by(model):
            return None
        return self._passes.pop((model_id, *client), (None, 0))[0]

    def keep(self, model_id: str, client: tuple[object, ...], forward: Forward) -> None:
        """Keep a pass if there is room; passes of another model are dropped."""
        if model_id != self._model_id:
            self._begin_passes(model_id)
        if forward.features.requires_grad:
            size = forward.graph_bytes()
        else:
            size = forward.features.nbytes
            if sum(self._sizes(with_graph=False)) + size > self.FEATURE_BYTES:
                return
            for part in (forward, *forward.parts):
                part.inputs = part.inputs.new_empty(0)  # statistics of the head need no inputs, and images are large
        self._passes[model_id, *client] = forward, size

    def has_room_for_a_graph(self, model_id: str) -> bool:
        """Whether another pass, as large as the largest one kept, may keep its graph; the first one always may."""
        kept = self._sizes(with_graph=True)
        return model_id != self._model_id or sum(kept) + max(kept, default=0) <= self.GRAPH_BYTES

    def _sizes(self, *, with_graph: bool) -> list[int]:
        return [size for kept, size in list(self._passes.values()) if kept.features.requires_grad == with_graph]

    def _begin_passes(self, model_id: str | None) -> None:
        self._model_id = model_id
        # By model and client: a client that was given up on may still add the pass of an earlier model.
        self._passes: dict[tuple[object, ...], tuple[Forward, int]] = {}


MEMORY = Memory()
