"""What a source client of a private run sends: clipped values with its own Gaussian noise, or nothing at all."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from fedhess.alignment.privacy import bound_of, run_noise
from fedhess.alignment.statistics import Statistic
from fedhess.base.files import digest_of
from fedhess.base.seeds import seeded_generator
from fedhess.curvature.per_example import clipped
from fedhess.federation.client.training import LocalUpdate
from fedhess.federation.protocol import GIVEN, SEED, SYSTEM, Identity
from fedhess.models.headed import HeadedModel
from fedhess.settings.privacy import UPDATE
from fedhess.settings.run_config import RunConfig


@dataclass(frozen=True)
class Mechanism:
    """The Gaussian mechanism of one client in one round.

    A vector's sensitivity is how far it moves if all of the client's examples are replaced, or with
    ``dp_unit="example"`` one of them by another of its class and drawing. It is ``2 * bound`` for a vector clipped as a
    whole, and ``2 * bound / B`` for a mean of B terms that are clipped one by one.
    """

    config: RunConfig
    # Domain, client and round of a simulated client; with the run's seed they determine its noise. None draws from the
    # operating system, as a deployed client does, because the server knows the seed.
    key: tuple[str | int, ...] | None

    def statistic(self, name: str, function: Statistic) -> Statistic:
        """Return the function of a statistic of the head, clipped per example if that is the unit."""
        return clipped(function, bound_of(self.config, name)) if self.config.dp_unit == "example" else function

    def release_statistics(
        self, values: Mapping[str, Mapping[str, Tensor]], *, sizes: Mapping[str, int], request: RecordDict
    ) -> dict[str, dict[str, Tensor]]:
        """Make statistics, by domain and name, private; each name is one vector over the domains that the client holds.

        A statistic requested with two different tensors in ``request`` gets two different noises.
        """
        asked = digest_of(array.data for array in request.array_records.get(GIVEN, ArrayRecord()).values())
        released: dict[str, dict[str, Tensor]] = {domain: {} for domain in values}
        for name in next(iter(values.values())):
            bound, of_name = bound_of(self.config, name), {domain: own[name] for domain, own in values.items()}
            sensitivities = {domain: 2 * bound / size for domain, size in sizes.items()}
            if self.config.dp_unit == "client":
                of_name, sensitivities = clip(of_name, bound), dict.fromkeys(values, 2 * bound)
            for domain, value in self._with_noise(of_name, sensitivities, name, asked).items():
                released[domain][name] = value
        return released

    def release_update(self, local: LocalUpdate, model: HeadedModel) -> dict[str, Tensor]:
        """Make an update private: one vector of all trained parameters; the update of buffers is zero."""
        bound = bound_of(self.config, UPDATE)
        trained = {name: local.update[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
        noisy = self._with_noise(clip(trained, bound), dict.fromkeys(trained, 2 * bound), UPDATE)
        return {name: torch.zeros_like(old) for name, old in local.update.items()} | noisy

    def _with_noise(
        self, values: Mapping[str, Tensor], sensitivities: Mapping[str, float], *what: str
    ) -> dict[str, Tensor]:
        """Add noise to float64 values, in their order, and round to the run's dtype."""
        generator = None if self.key is None else seeded_generator(self.config.seed, "noise", *self.key, *what)
        multiplier = run_noise(self.config)
        noisy = {}
        for name, value in values.items():
            noise = gaussian(value.numel(), generator).view(value.shape)
            noisy[name] = (value.cpu() + multiplier * sensitivities[name] * noise).to(self.config.torch_dtype)
        return noisy


def clip(tensors: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    """Scale tensors jointly to a norm of at most a bound, in float64 on the CPU; all are zero if one is not finite.

    >>> clip({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 1.0)
    {'a': tensor([0.6000], dtype=torch.float64), 'b': tensor([0.8000], dtype=torch.float64)}
    """
    exact = {name: tensor.cpu().double() for name, tensor in tensors.items()}
    length = float(torch.stack([tensor.norm() for tensor in exact.values()]).norm())
    if not np.isfinite(length):
        return {name: torch.zeros_like(tensor) for name, tensor in exact.items()}
    return {name: tensor * (bound / max(length, bound)) for name, tensor in exact.items()}


def gaussian(size: int, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal numbers, (size,), float64: from a generator, or the operating system's secure source."""
    if generator is not None:
        return torch.randn(size, generator=generator, dtype=torch.float64)
    from scipy.special import ndtri  # noqa: PLC0415 - slow to import, and needed only here

    bits = np.frombuffer(secrets.token_bytes(8 * size), dtype=np.uint64) >> np.uint64(12)
    return torch.from_numpy(ndtri((bits + 0.5) / 2.0**52))


def private_identity(identity: Identity, *, simulated: bool) -> Identity:
    """Remove from a source client's identity what depends on its examples or says that it evaluates any."""
    several = tuple(replace(held, evaluate_examples=0) for held in identity.several)
    noise = SEED if simulated else SYSTEM
    return replace(identity, evaluate_examples=0, holds_out=False, several=several, data_digest="", noise=noise)
