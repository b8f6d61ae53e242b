"""What a client process keeps between messages: models and forward passes. Losing any of it loses only time."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedhess.alignment.step import Forward
from fedhess.base.transfers import copy_together
from fedhess.federation.client.examples import forget_clients
from fedhess.federation.tensors import decode_tensors
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import build_model, forget_data
from fedhess.settings.run_config import RunConfig


class ModelMissingError(LookupError):
    """The message names a model without carrying it, and this process does not hold it (any more)."""


@dataclass(frozen=True)
class ReceivedModel:
    """The model of a message; whoever works with it holds it, whatever the store drops meanwhile.

    Attributes:
        model_id: Its id.
        tensors: Every tensor by name, shared and immutable.
    """

    model_id: str
    tensors: Mapping[str, Tensor]


@dataclass
class _Working:
    """A model of the run's architecture whose parameters are pointed at received tensors, or at copies of them."""

    model: HeadedModel
    copies: dict[str, Tensor] = field(default_factory=dict)
    holds: tuple[str, bool] | None = None
    restored: tuple[str, list[int]] | None = None

    def load(self, state: Mapping[str, Tensor], *, writable: bool) -> None:
        """Give the parameters the values of ``state``: shared where only read, copied where they will be written.

        Raises:
            ValueError: Names or shapes are not those of the model.
        """
        mine = self.model.state_dict()
        if mine.keys() != state.keys() or any(mine[name].shape != state[name].shape for name in mine):
            raise ValueError(f"the message's model does not fit the run's: expected tensors {sorted(mine)}")
        for name, parameter in self.model.named_parameters():
            parameter.grad = None
            shared = state[name].to(device=parameter.device, dtype=parameter.dtype)
            if writable:
                shared = self.copies.setdefault(name, torch.empty_like(parameter.data)).copy_(shared)
            parameter.data = shared

    def restore_buffers(self, state: Mapping[str, Tensor], model_id: str) -> None:
        """Copy the buffers, unless they are this model's and no pass in training mode has written to them since.

        They are left untouched then: the graph of a pass that is kept for the round's step may hold them. All are
        copied if one was written to: batch norms count the batches openly, but fill in their means unseen.
        """
        if self.restored == (model_id, self._buffer_versions()):
            return
        for name, buffer in self.model.named_buffers():
            if name in state:
                buffer.copy_(state[name])
        self.restored = (model_id, self._buffer_versions())

    def _buffer_versions(self) -> list[int]:
        return [buffer._version for buffer in self.model.buffers()]


class ModelStore:
    """The decoded models of the last messages and a working model of the last architecture.

    Decoded tensors are shared and immutable, and the working model is per thread: a client that was given up on and
    still runs cannot disturb the next one.
    """

    KEPT = 2

    def __init__(self) -> None:
        self._received: OrderedDict[str, ReceivedModel] = OrderedDict()
        self._lock = threading.Lock()
        self._local = threading.local()

    def receive(
        self, model_id: str, arrays: ArrayRecord | None, *, device: torch.device | str = "cpu"
    ) -> ReceivedModel:
        """Return the model of a message, from the message or from memory: sent to the device once for all clients.

        Raises:
            ModelMissingError: Neither has it.
        """
        with self._lock:
            if model_id not in self._received:
                if arrays is None:
                    raise ModelMissingError(model_id)
                tensors = copy_together(decode_tensors(arrays), torch.device(device))
                self._received[model_id] = ReceivedModel(model_id, tensors)
            self._received.move_to_end(model_id)
            while len(self._received) > self.KEPT:
                self._received.popitem(last=False)
            return self._received[model_id]

    def model(self, config: RunConfig, received: ReceivedModel, *, writable: bool) -> HeadedModel:
        """Return the working model with the weights of a received model.

        Args:
            config: The run's settings.
            received: The model.
            writable: Whether the parameters will be written to (several local steps); otherwise they are the received
                tensors themselves and nothing is copied.
        """
        working = self._working(config)
        if working.holds != (received.model_id, False) or writable:
            working.holds = None
            working.load(received.tensors, writable=writable)
            working.holds = (received.model_id, writable)
        working.restore_buffers(received.tensors, received.model_id)
        return working.model

    def forget(self) -> None:
        """Drop everything, as a restart of the process would."""
        self._received.clear()
        self._local = threading.local()

    def _working(self, config: RunConfig) -> _Working:
        models: dict[tuple[object, ...], _Working] = self._local.__dict__.setdefault("models", {})
        options = tuple(sorted(config.domains_options.items()))
        key = (config.domains, options, config.model, config.pretrained, config.dtype, config.device,
               config.precision, config.batchnorm, config.compile, config.deterministic)  # fmt: skip
        if key not in models:
            models.clear()  # one architecture at a time: a process rarely needs two
            models[key] = _Working(build_model(config))
        return models[key]


class ForwardMemory:
    """The forward pass of each client's statistics batch, kept between the exchanges of a round and its first step.

    A pass with its autograd graph may be used up by one backward. It holds the activations of a batch (32 images of 224
    pixels: 0.7 GB with ResNet-18, 2.8 GB with ResNet-50), so that graphs are kept up to :attr:`GRAPH_BYTES` in all. Of
    the other passes the features are kept, up to :attr:`BYTES`: with more clients the memory stays the same and the
    rest compute theirs again.
    """

    GRAPH_BYTES = 2**32
    BYTES = 2**25

    def __init__(self) -> None:
        self._model_id: str | None = None
        # By model and client: a client that was given up on may still come with the pass of an earlier model.
        self._passes: dict[tuple[object, ...], Forward] = {}
        self._bytes = 0
        self._graphs: dict[tuple[object, ...], int] = {}  # bytes of the passes that have one

    def forget(self) -> None:
        """Drop everything."""
        self._begin(None)

    def recall(self, model_id: str, key: tuple[object, ...]) -> Forward | None:
        """Return the pass of a client under a model, if this is still the model."""
        return self._passes.get((model_id, *key))

    def take(self, model_id: str, key: tuple[object, ...], model: HeadedModel) -> Forward | None:
        """Return the pass of a client with its graph, and forget it; None if it has none or the model has changed."""
        found = self.recall(model_id, key)
        if found is None or not found.features.requires_grad or found.wrote_buffers or not found.is_made_by(model):
            return None
        self._graphs.pop((model_id, *key), None)
        return self._passes.pop((model_id, *key), None)

    def keep(self, model_id: str, key: tuple[object, ...], forward: Forward) -> None:
        """Keep a pass if there is room; those of another model are dropped."""
        if model_id != self._model_id:
            self._begin(model_id)
        if forward.features.requires_grad:
            self._graphs[model_id, *key] = forward.graph_bytes()
        else:
            size = forward.features.numel() * forward.features.element_size()
            if self._bytes + size > self.BYTES:
                return
            self._bytes += size
            for part in (forward, *forward.parts):
                part.inputs = part.inputs.new_empty(0)  # statistics of the head need none, and images are large
        self._passes[model_id, *key] = forward

    def has_room_for_a_graph(self, model_id: str) -> bool:
        """Whether another pass, as heavy as the heaviest of those kept, may keep its graph; the only one always may."""
        kept = self._graphs.values()
        return model_id != self._model_id or sum(kept) + max(kept, default=0) <= self.GRAPH_BYTES

    def _begin(self, model_id: str | None) -> None:
        self._model_id = model_id
        self._passes.clear()
        self._graphs.clear()
        self._bytes = 0


MODELS = ModelStore()
FORWARDS = ForwardMemory()


def forget_everything() -> None:
    """Drop every cache of the process, as a restart would."""
    MODELS.forget()
    FORWARDS.forget()
    forget_clients()
    forget_data()
