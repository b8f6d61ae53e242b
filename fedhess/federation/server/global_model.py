"""The server's model: a streamed mean of the clients' updates, and one step of any torch optimizer along it."""

import uuid
from collections.abc import Mapping, Sequence

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedhess.base.errors import DivergedError, UsageError
from fedhess.federation.protocol import encode_tensors
from fedhess.federation.server.clients import ModelPayload
from fedhess.federation.validation import is_finite
from fedhess.settings.run_config import Scalar


class WeightedMean:
    """A weighted mean of named tensors, added up one contribution at a time.

    The sum is taken in the order of the calls: call in domain order and the result does not depend on the order of
    arrival. Memory: one set of tensors, whatever the number of contributions.
    """

    def __init__(self) -> None:
        self._sum: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, tensors: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add ``weight`` times the tensors; they are read, never kept.

        Raises:
            ValueError: The names differ from those of the first contribution, or the weight is negative.
        """
        if not weight >= 0:
            raise ValueError(f"expected a weight of at least 0, got {weight}")
        if not self._sum:
            self._sum = {name: tensor * weight for name, tensor in tensors.items()}
        elif self._sum.keys() != tensors.keys():
            raise ValueError(f"expected tensors {sorted(self._sum)}, got {sorted(tensors)}")
        else:
            for name, tensor in tensors.items():
                self._sum[name].add_(tensor, alpha=weight)
        self._weight += weight

    def result(self) -> dict[str, Tensor]:
        """Return the mean, and end the use of this object; zero where nothing that was added weighs anything.

        Raises:
            ValueError: Nothing was added.
        """
        if not self._sum:
            raise ValueError("the mean of nothing was asked for")
        if self._weight not in (0.0, 1.0):
            for tensor in self._sum.values():
                tensor.div_(self._weight)
        return self._sum


class DomainMeans:
    """One mean a domain over its clients, each weighted by its examples of the domain, added up as they come.

    Memory: one set of tensors a domain, whatever the number of clients. A single client's values are kept bit for bit.

    Args:
        domains: The order of the result.
        expected: For each client that may contribute, its examples by domain.

    Attributes:
        examples: Examples behind each mean so far, by domain.
    """

    def __init__(self, domains: Sequence[str], expected: Sequence[Mapping[str, int]]) -> None:
        self._domains = domains
        self._means: dict[str, WeightedMean] = {}
        self._totals = {domain: sum(client.get(domain, 0) for client in expected) for domain in domains}
        self.examples: dict[str, int] = {}

    def add(self, domain: str, tensors: Mapping[str, Tensor], examples: int) -> None:
        """Add what one client says of a domain."""
        self._means.setdefault(domain, WeightedMean()).add(tensors, examples / self._totals[domain])
        self.examples[domain] = self.examples.get(domain, 0) + examples

    def result(self) -> dict[str, dict[str, Tensor]]:
        """Return the mean of every domain that has a client, in domain order, and end the use of this object."""
        return {domain: self._means[domain].result() for domain in self._domains if domain in self._means}


class GlobalModel:
    """The model of the federation and its server optimizer.

    The mean update of a round, ``mean_e (theta - theta_e)``, is the pseudo-gradient of Reddi et al., "Adaptive
    Federated Optimization", ICLR 2021, algorithm 2; any optimizer of ``torch.optim`` steps along it. SGD with learning
    rate 1 sets the model to the mean of the clients' models: FedAvg.

    Args:
        model: Gives the initial values; it is not kept.
        optimizer: Name of a class of ``torch.optim``.
        lr: Learning rate of the server.
        optimizer_args: Further arguments of the optimizer.

    Raises:
        UsageError: The optimizer does not take an argument.
    """

    def __init__(
        self, model: nn.Module, *, optimizer: str = "SGD", lr: float = 1.0, optimizer_args: Mapping[str, Scalar] | None
    ) -> None:
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.tensors = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in model.state_dict().items()
        }
        self._parameters = {name: nn.Parameter(self.tensors[name]) for name in self.tensors if name in trained}
        for name, parameter in self._parameters.items():
            self.tensors[name] = parameter.data
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        self._buffers = [name for name in self.tensors if name not in trained and name not in frozen]
        self._nonce = uuid.uuid4().hex  # an id for caches, never a source of randomness
        self._version = 0
        self._arrays: ArrayRecord | None = None
        factory = getattr(torch.optim, optimizer)
        try:
            self.optimizer: torch.optim.Optimizer = factory(
                list(self._parameters.values()), lr=lr, **dict(optimizer_args or {})
            )
        except (TypeError, ValueError) as error:
            raise UsageError(f"--server-optimizer {optimizer}: {error}") from None

    @property
    def trained_names(self) -> list[str]:
        """Names of the trained parameters."""
        return list(self._parameters)

    @property
    def update_names(self) -> list[str]:
        """Names of the tensors that a client's update must hold: trained parameters and buffers."""
        return [*self._parameters, *self._buffers]

    def payload(self) -> ModelPayload:
        """Return the encoded model; it is encoded once for each version."""
        if self._arrays is None:
            self._arrays = encode_tensors(self.tensors)
        return ModelPayload(f"{self._nonce}-{self._version}", self._arrays)

    def step(self, mean_update: Mapping[str, Tensor]) -> None:
        """Take one step of the server optimizer along the mean update; buffers take their mean without it.

        Args:
            mean_update: Mean of ``before - after`` over the clients, by name, each of the model's shape.
        """
        for name, parameter in self._parameters.items():
            parameter.grad = mean_update[name].to(parameter.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for name in self._buffers:
            update = mean_update[name]
            rounded = update if self.tensors[name].is_floating_point() else update.round()
            self.tensors[name].sub_(rounded.to(self.tensors[name].dtype))
        self._changed()

    def reset_optimizer(self) -> None:
        """Let the server optimizer forget its moments."""
        self.optimizer.state.clear()

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a model that a plain Flower strategy aggregated.

        Args:
            tensors: Every tensor of the model, each of its shape.
        """
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
        self._changed()

    def require_finite(self, cause: str) -> None:
        """Insist that the model is finite, before a checkpoint is made of it.

        Args:
            cause: What computed the model, for the message.

        Raises:
            DivergedError: A tensor has a value that is not finite.
        """
        for name, tensor in self.tensors.items():
            if not is_finite(tensor):
                raise DivergedError(
                    f"{cause} left {name} with values that are not finite, although every client's reply was"
                )

    def _changed(self) -> None:
        self._version += 1
        self._arrays = None
