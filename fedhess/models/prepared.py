"""The examples of domains as a model sees them, opened once and cached."""

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fedhess.base.prefetching import AHEAD, read_ahead
from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import SOURCE, Benchmark
from fedhess.domains.domain import DomainData
from fedhess.domains.images.image_files import limit_pixels
from fedhess.domains.partition import Examples
from fedhess.domains.split import SplitRule, is_for_role, split_domain
from fedhess.models import describe_preparation, prepare_inputs, prepared_shape
from fedhess.settings.run_config import RunConfig

DOMAINS_KEPT = 12  # four domains of three trials: a job needs them again for its next strategy
# Benchmarks of this process's jobs, by name and options. The process's clients share their loaded domains.
_OF_JOBS: WeakValueDictionary[tuple[str, tuple[tuple[str, str | int | float | bool], ...]], Benchmark]
_OF_JOBS = WeakValueDictionary()


class DataKey(NamedTuple):
    """The settings of ``RunConfig`` that a domain's examples depend on, for caches; options sorted."""

    domains: str
    options: tuple[tuple[str, str | int | float | bool], ...]
    data_dir: str | None
    domain: str
    model: str
    device: str
    seed: int
    augment: str
    images: str
    image_cache_gb: float | None
    max_pixels: int


class LocalDomain:
    """One client's examples of one domain, fetched to the device in batches.

    ``key`` names the client's stream of batches; ``out_indices`` are a target's out split, for the oracle alone. Images
    stay uint8 and are scaled by the model.
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
        out_indices: Tensor | None = None,
    ) -> None:
        self.data, self.key = data, key
        self.train_indices, self.evaluate_indices = train_indices, evaluate_indices
        self.out_indices = train_indices[:0] if out_indices is None else out_indices
        self._device, self._dtype = device, dtype
        self._everything: tuple[Tensor, Tensor] | None = None

    @cached_property
    def holds_out(self) -> bool:
        """Whether the evaluation examples are kept out of training."""
        return not bool(torch.isin(self.evaluate_indices, self.train_indices).any())

    @property
    def train_size(self) -> int:
        """Number of training examples."""
        return len(self.train_indices)

    def train_batches(self, positions: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Fetch batches of training examples by position; the full batch is fetched once and kept."""
        everything = torch.arange(self.train_size)
        if not positions or not torch.equal(positions[0], everything):
            yield from self.batches([self.train_indices[part] for part in positions])
            return
        if self._everything is None:
            self._everything = self.batch(self.train_indices)
        for _ in positions:  # every full batch is the same
            yield self._everything

    def train_aspects(self, positions: Tensor) -> Tensor | None:
        """Return width / height of training images on disk, by position; None if unknown."""
        aspects: Tensor | None = getattr(self.data, "aspects", None)
        return None if aspects is None else aspects[self.train_indices[positions]]

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Fetch batches by the indices of their examples, as `batch` does; files are read ahead."""
        ahead = min(AHEAD, len(parts) - 1) if getattr(self.data, "reads_files", False) else 0
        for inputs, labels in read_ahead(self._read, parts, ahead=max(ahead, 0)):
            yield inputs.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Fetch examples by their index in the domain: inputs (B, ...) and labels (B,) on the device."""
        return next(self.batches([indices]))

    def _read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Read examples; for a CUDA device into pinned memory, so that it can copy them while it computes."""
        inputs, labels = self.data.inputs(indices), self.data.labels[indices]
        if inputs.is_floating_point():
            inputs = inputs.to(self._dtype)
        return (inputs.pin_memory(), labels.pin_memory()) if self._device.type == "cuda" else (inputs, labels)


def share_loaded(benchmark: Benchmark) -> None:
    """Let the clients of this process use the domains that a job has loaded, as long as the job keeps its benchmark."""
    _OF_JOBS[benchmark.name, tuple(sorted(benchmark.options.items()))] = benchmark


@lru_cache(maxsize=DOMAINS_KEPT)
def prepared(key: DataKey) -> DomainData:
    """Load a domain as the model sees it; cached."""
    limit_pixels(key.max_pixels)
    benchmark = _OF_JOBS.get((key.domains, key.options)) or open_benchmark(
        key.domains,
        data_dir=key.data_dir,
        seed=key.seed,
        options=dict(key.options),
        require_real=True,
        held=(key.domain,),
    )
    return prepare_inputs(
        key.model,
        benchmark.load(key.domain),
        device=torch.device(key.device),
        augment=key.augment,
        images=key.images,
        image_cache_gb=key.image_cache_gb,
    )


def _benchmark_of(key: DataKey) -> Benchmark:
    of_no_model = key._replace(model="", device="", augment="", images="", image_cache_gb=None, max_pixels=0)
    return _opened(of_no_model._replace(domain=""))


@lru_cache(maxsize=64)
def _opened(key: DataKey) -> Benchmark:
    return open_benchmark(key.domains, data_dir=key.data_dir, seed=key.seed, options=dict(key.options), held=())


@lru_cache(maxsize=DOMAINS_KEPT)
def domain_split(key: DataKey, *, rule: SplitRule, role: str = SOURCE) -> Examples:
    """Split a domain into the examples that it keeps and those held out, independently of the partition; cached.

    A benchmark that holds nothing out evaluates on its training examples. If a benchmark keeps groups of examples for
    targets, a source gets none of these groups, and a target gets nothing else.
    """
    data, benchmark = prepared(key), _benchmark_of(key)
    if benchmark.holdout > 0:
        position = benchmark.domains.index(key.domain)
        parts = split_domain(data, rule=rule, holdout=benchmark.holdout, seed=key.seed, position=position)
        return Examples(data.labels, *(part[is_for_role(data, role)[part]] for part in parts))
    everything = torch.nonzero(is_for_role(data, role)).flatten()
    return Examples(data.labels, everything, everything)


def local_domain(config: RunConfig, *, domain: str, role: str) -> LocalDomain:
    """Open a whole domain, independently of its clients; cached.

    A source holds out the benchmark's fraction for evaluation (without a fraction, the training examples are
    evaluated). A target has no training examples, and two splits to evaluate if the run splits targets.
    """
    return _local_domain(data_key(config, domain), rule=config.split, role=role, dtype=config.torch_dtype)


@lru_cache(maxsize=DOMAINS_KEPT)
def _local_domain(key: DataKey, *, rule: SplitRule, role: str, dtype: torch.dtype) -> LocalDomain:
    data = prepared(key)
    if role == SOURCE:
        examples = domain_split(key, rule=rule)
        train, evaluate, out = examples.train, examples.evaluate, None
    elif rule != "sources" and _benchmark_of(key).holdout > 0:
        examples = domain_split(key, rule=rule, role=role)
        train, evaluate, out = examples.train[:0], examples.train, examples.evaluate
    else:
        evaluate = torch.nonzero(is_for_role(data, role)).flatten()
        train, out = evaluate[:0], None
    return LocalDomain(
        data,
        train_indices=train,
        evaluate_indices=evaluate,
        out_indices=out,
        key=(key.seed, key.domain, 0),
        device=torch.device(key.device),
        dtype=dtype,
    )


def data_key(config: RunConfig, domain: str) -> DataKey:
    """Return the cache key of a domain's examples as a run sees them."""
    return DataKey(
        domains=config.domains,
        options=tuple(sorted(config.domains_options.items())),
        data_dir=config.data_dir,
        domain=domain,
        model=config.model,
        device=config.device_here,
        seed=config.seed,
        augment=config.augment,
        images=config.images,
        image_cache_gb=config.image_cache_gb,
        max_pixels=config.max_pixels,
    )


def known_benchmark(config: RunConfig) -> Benchmark:
    """Return what is known of a run's benchmark without reading its data."""
    return _benchmark_of(data_key(config, ""))


def class_names(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the classes, by label."""
    return known_benchmark(config).classes


def describe_inputs(config: RunConfig) -> str:
    """Describe how an example becomes the input of the model: clients whose texts differ train on different inputs."""
    shape = prepared_shape(config.model, known_benchmark(config).input_shape)
    return f"{'x'.join(map(str, shape))}, {describe_preparation(config.model)}"


def forget_data() -> None:
    """Drop the examples and benchmarks that this process holds."""
    for kept in (prepared, _opened, domain_split, _local_domain):
        kept.cache_clear()
    _OF_JOBS.clear()
