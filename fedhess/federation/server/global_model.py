"""The server's model, and one step of any torch optimizer along the mean of the clients' updates."""

import uuid
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedhess.base.errors import DivergedError
from fedhess.federation.server.clients import ModelPayload
from fedhess.federation.tensors import encode_tensors, is_finite
from fedhess.settings.assignments import Scalar


class GlobalModel:
    """The model of the federation and its server optimizer.

    The mean update of a round, ``mean_e (theta - theta_e)``, is the pseudo-gradient of Reddi et al., "Adaptive
    Federated Optimization", ICLR 2021, algorithm 2; any optimizer of ``torch.optim`` steps along it. SGD with learning
    rate 1 sets the model to the mean of the clients' models: FedAvg. ``model`` has the initial values; it is not kept.
    """

    def __init__(
        self, model: nn.Module, *, optimizer: str = "SGD", lr: float = 1.0, optimizer_args: Mapping[str, Scalar] | None
    ) -> None:
        self.tensors = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in model.state_dict().items()
        }
        trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._parameters = {name: nn.Parameter(self.tensors[name]) for name in self.tensors if trains.get(name)}
        for name, parameter in self._parameters.items():
            self.tensors[name] = parameter.data
        self._buffers = [name for name in self.tensors if name not in trains]
        self._nonce = uuid.uuid4().hex  # an id for caches, never a source of randomness
        self._version = 0
        self._arrays: ArrayRecord | None = None
        factory = getattr(torch.optim, optimizer)
        parameters = list(self._parameters.values())
        self.optimizer: torch.optim.Optimizer = factory(parameters, lr=lr, **dict(optimizer_args or {}))

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

    def step(self, mean_update: Mapping[str, Tensor], *, lr: float) -> None:
        """Step the server optimizer along the mean of ``before - after``; buffers become the clients' mean."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
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
        """Replace every tensor, by the aggregate of a plain Flower strategy or by a checkpoint."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
        self._changed()

    def require_finite(self, cause: str) -> None:
        """Check that the model is finite, before a checkpoint is made of it; ``cause`` computed it."""
        for name, tensor in self.tensors.items():
            if not is_finite(tensor):
                raise DivergedError(
                    f"{cause} left {name} with values that are not finite, although every client's reply was"
                )

    def _changed(self) -> None:
        self._version += 1
        self._arrays = None
