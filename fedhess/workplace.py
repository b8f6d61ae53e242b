"""What a client process keeps between messages: data, decoded models, features. Losing any of it loses only time."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedhess.autodiff import ModuleBatch
from fedhess.config import RunConfig
from fedhess.curvature import HeadBatch
from fedhess.domains import open_benchmark
from fedhess.domains.data import DomainData
from fedhess.domains.split import split_indices
from fedhess.models import create_model, prepare_inputs, prepared_shape
from fedhess.models.headed import HeadedModel
from fedhess.protocol import SOURCE, decode_tensors


class LocalDomain:
    """One client's examples, on their way to the device in batches.

    Args:
        data: The domain's examples, as the model sees them.
        train_indices: Which of them are trained on.
        evaluate_indices: Which of them are evaluated.
        key: What names the client's stream of batches.
        device: Where batches go.
        dtype: Floating-point type of batches; images stay uint8 and are scaled by the model.
    """

    def __init__(
        self,
        data: DomainData,
        *,
        train_indices: Tensor,
        evaluate_indices: Tensor,
        key: tuple[str | int, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.data = data
        self.train_indices = train_indices
        self.evaluate_indices = evaluate_indices
        self.key = key
        self._device = device
        self._dtype = dtype
        self._everything: tuple[Tensor, Tensor] | None = None

    @property
    def holds_out(self) -> bool:
        """Whether the evaluation examples are kept out of training."""
        return not bool(torch.isin(self.evaluate_indices, self.train_indices).any())

    @property
    def train_size(self) -> int:
        """Number of training examples."""
        return len(self.train_indices)

    def train_batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Fetch training examples by position; the full batch is fetched once and kept."""
        if len(positions) < self.train_size:
            return self.batch(self.train_indices[positions])
        if self._everything is None:
            self._everything = self.batch(self.train_indices)
        return self._everything

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Fetch examples by their index in the domain: inputs (B, ...) and labels (B,) on the device."""
        inputs = self.data.inputs(indices)
        if inputs.is_floating_point():
            inputs = inputs.to(self._dtype)
        return inputs.to(self._device), self.data.labels[indices].to(self._device)


@lru_cache(maxsize=64)
def _prepared(domains: str, options: tuple[tuple[str, str | int | float | bool], ...], data_dir: str | None,
              domain: str, model: str, device: str, seed: int) -> DomainData:  # fmt: skip
    benchmark = open_benchmark(domains, data_dir=data_dir, seed=seed, options=dict(options))
    return prepare_inputs(model, benchmark.load(domain), device=torch.device(device))


@lru_cache(maxsize=64)
def _geometry(domains: str, options: tuple[tuple[str, str | int | float | bool], ...], data_dir: str | None,
              model: str, seed: int) -> tuple[tuple[int, ...], int, float]:  # fmt: skip
    benchmark = open_benchmark(domains, data_dir=data_dir, seed=seed, options=dict(options))
    return prepared_shape(model, benchmark.input_shape), benchmark.outputs, benchmark.holdout


@lru_cache(maxsize=64)
def _local_domain(data_key: tuple[object, ...], *, holdout: float, seed: int, domain: str, role: str,
                  device: str, dtype: torch.dtype) -> LocalDomain:  # fmt: skip
    data = _prepared(*data_key)
    if role == SOURCE and holdout > 0:
        train, evaluate = split_indices(data, holdout=holdout, seed=seed)
    else:
        everything = torch.arange(len(data))
        train, evaluate = (everything if role == SOURCE else everything[:0]), everything
    return LocalDomain(
        data,
        train_indices=train,
        evaluate_indices=evaluate,
        key=(seed, domain, 0),
        device=torch.device(device),
        dtype=dtype,
    )


def local_domain(config: RunConfig, *, domain: str, role: str) -> LocalDomain:
    """Open this client's examples; kept for the next message.

    A source client holds out the benchmark's fraction for evaluation (a benchmark without one evaluates the training
    examples); a target client has no training examples at all.
    """
    options = tuple(sorted(config.domains_options.items()))
    data_key = (config.domains, options, config.data_dir, domain, config.model, config.device, config.seed)
    holdout = _geometry(config.domains, options, config.data_dir, config.model, config.seed)[2]
    return _local_domain(
        data_key,
        holdout=holdout,
        seed=config.seed,
        domain=domain,
        role=role,
        device=config.device,
        dtype=config.torch_dtype,
    )


def build_model(config: RunConfig) -> HeadedModel:
    """Build the run's model with its initial weights, on the run's device and in its dtype."""
    options = tuple(sorted(config.domains_options.items()))
    shape, outputs, _ = _geometry(config.domains, options, config.data_dir, config.model, config.seed)
    model = create_model(
        config.model, input_shape=shape, outputs=outputs, seed=config.seed, pretrained=config.pretrained
    )
    return model.to(device=torch.device(config.device), dtype=config.torch_dtype)


class ModelMissingError(LookupError):
    """The message names a model without carrying it, and this process does not hold it (any more)."""


@dataclass
class _Working:
    """A model of the run's architecture whose parameters are pointed at received tensors, or at copies of them."""

    model: HeadedModel
    copies: dict[str, Tensor] = field(default_factory=dict)
    holds: tuple[str, bool] | None = None

    def load(self, state: Mapping[str, Tensor], *, writable: bool) -> None:
        """Give the model the values of ``state``: shared where they are only read, copied where they are written.

        Buffers are always copied: a forward pass in training mode may write to them.

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
        for name, buffer in self.model.named_buffers():
            if name in state:
                buffer.copy_(state[name])


class ModelStore:
    """The decoded models of the last messages and a working model of the last architecture.

    Decoded tensors are shared and immutable. The working model is per thread: a client that was given up on and still
    runs cannot disturb the next one.
    """

    KEPT = 2

    def __init__(self) -> None:
        self._states: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._local = threading.local()

    def receive(self, model_id: str, arrays: ArrayRecord | None) -> Mapping[str, Tensor]:
        """Return the model of a message, from the message or from memory.

        Raises:
            ModelMissingError: Neither has it.
        """
        if model_id not in self._states:
            if arrays is None:
                raise ModelMissingError(model_id)
            self._states[model_id] = decode_tensors(arrays)
        self._states.move_to_end(model_id)
        while len(self._states) > self.KEPT:
            self._states.popitem(last=False)
        return self._states[model_id]

    def model(self, config: RunConfig, model_id: str, *, writable: bool) -> HeadedModel:
        """Return the working model with the weights of a received model.

        Args:
            config: The run's settings.
            model_id: Id of a model that was received.
            writable: Whether the parameters will be written to (several local steps); otherwise they are the received
                tensors themselves and nothing is copied.
        """
        working = self._working(config)
        if working.holds != (model_id, False) or writable:
            working.holds = None
            working.load(self._states[model_id], writable=writable)
            working.holds = (model_id, writable)
        return working.model

    def forget(self) -> None:
        """Drop everything, as a restart of the process would."""
        self._states.clear()
        self._local = threading.local()

    def _working(self, config: RunConfig) -> _Working:
        models: dict[tuple[object, ...], _Working] = self._local.__dict__.setdefault("models", {})
        key = (config.domains, config.model, config.pretrained, config.dtype, config.device)
        if key not in models:
            models.clear()  # one architecture at a time: a process rarely needs two
            models[key] = _Working(build_model(config))
        return models[key]


class StatisticsMemory:
    """The features of each client's statistics batch, kept between the exchanges of one round."""

    def __init__(self) -> None:
        self._model_id: str | None = None
        self._batches: dict[tuple[object, ...], HeadBatch | ModuleBatch] = {}

    def recall(self, model_id: str, key: tuple[object, ...]) -> HeadBatch | ModuleBatch | None:
        """Return the batch of a client under a model, if this is still the model."""
        return self._batches.get(key) if model_id == self._model_id else None

    def keep(self, model_id: str, key: tuple[object, ...], batch: HeadBatch | ModuleBatch) -> None:
        """Keep a batch; those of another model are dropped."""
        if model_id != self._model_id:
            self._batches.clear()
            self._model_id = model_id
        self._batches[key] = batch


MODELS = ModelStore()
STATISTICS = StatisticsMemory()


def forget_everything() -> None:
    """Drop every cache of the process, as a restart would; tests and memory-bound servers use it."""
    MODELS.forget()
    STATISTICS.__init__()  # type: ignore[misc]
    _prepared.cache_clear()
    _geometry.cache_clear()
    _local_domain.cache_clear()
