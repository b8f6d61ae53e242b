"""The Gaussian mechanism: norms never above the bound, noise of the deviation that the accountant was told."""

import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest
from torch import nn
from toy import toy_config

from fedhess.alignment.privacy import run_noise
from fedhess.curvature import head_gradient
from fedhess.federation.client.privacy import Mechanism, clip, gaussian
from fedhess.federation.client.training import LocalUpdate
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import RunConfig

SIMULATED = ("north", 0, 1)
SURE = 1e-7  # how rarely a test of the system's noise may fail by chance


@pytest.fixture
def config() -> RunConfig:
    return toy_config(
        strategy="hgp", rounds=2, dp_epsilon=4.0, dp_delta=1e-5, dp_clip={"update": 0.5, "statistics": 2.0}
    )


def assert_deviation(noise: torch.Tensor, expected: float) -> None:
    """Check the variance of independent normal numbers around zero, and their distribution."""
    scaled = (noise.flatten().double() / expected).numpy()
    assert SURE / 2 < chi2.sf((scaled**2).sum(), len(scaled)) < 1 - SURE / 2
    assert kstest(scaled, "norm").pvalue > SURE


@pytest.mark.parametrize("generator", [torch.Generator().manual_seed(0), None], ids=["seed", "system"])
def test_noise_is_standard_normal(generator: torch.Generator | None) -> None:
    assert_deviation(gaussian(100_000, generator), 1.0)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=6),
    st.floats(1e-6, 1e6),
    st.sampled_from([1, 2, 3]),
)
def test_together_tensors_are_no_longer_than_the_bound(values: list[float], bound: float, parts: int) -> None:
    tensors = {str(number): torch.tensor(values[number::parts]) for number in range(parts)}
    found = torch.cat([*clip(tensors, bound).values()])
    whole = torch.cat([*tensors.values()]).double()
    assert found.norm() <= bound * (1 + 1e-12)
    if whole.norm() <= bound:
        assert torch.equal(found, whole), "what is short enough stays as it is"
    else:
        torch.testing.assert_close(found / found.norm(), whole / whole.norm())


def test_what_is_not_finite_is_clipped_to_zero() -> None:
    found = clip({"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor([2.0])}, 1.0)
    assert {name: value.tolist() for name, value in found.items()} == {"a": [0.0, 0.0], "b": [0.0]}


@pytest.mark.parametrize("key", [SIMULATED, None], ids=["simulated", "deployed"])
@pytest.mark.parametrize(("unit", "sensitivity"), [("client", 2 * 2.0), ("example", 2 * 2.0 / 16)])
def test_noise_of_a_statistic_is_the_sensitivity_times_the_multiplier(
    config: RunConfig, unit: str, sensitivity: float, key: tuple[str | int, ...] | None
) -> None:
    config = config.model_copy(update={"dp_unit": unit})
    values = {"north": {"gradient": torch.zeros(100, 200)}}
    released = Mechanism(config, key).release_statistics(values, sizes={"north": 16}, request=RecordDict())
    assert_deviation(released["north"]["gradient"], sensitivity * run_noise(config))


def test_a_statistic_of_two_domains_is_clipped_as_one_vector(config: RunConfig, monkeypatch) -> None:
    monkeypatch.setattr("fedhess.federation.client.privacy.gaussian", lambda size, _: torch.zeros(size))
    values = {domain: {"gradient": torch.full((1,), 9.0)} for domain in ("north", "south")}
    sizes = dict.fromkeys(values, 16)
    released = Mechanism(config, SIMULATED).release_statistics(values, sizes=sizes, request=RecordDict())
    assert [float(own["gradient"]) for own in released.values()] == pytest.approx([2**0.5, 2**0.5])


def test_noise_of_an_update_is_of_all_that_is_trained_and_buffers_stay(config: RunConfig) -> None:
    model = HeadedModel(nn.Sequential(nn.Linear(50, 300), nn.BatchNorm1d(300)), nn.Linear(300, 4)).double()
    update = {name: torch.full_like(value, 7.0) for name, value in model.state_dict().items()}
    released = Mechanism(config, None).release_update(LocalUpdate(update, 0.0, 0.0, {}), model)
    assert list(released) == list(update)
    trained = torch.cat([released[name].flatten() for name, _ in model.named_parameters()])
    length = sum(parameter.numel() for parameter in model.parameters()) ** 0.5
    assert_deviation(trained - 0.5 / length, 2 * 0.5 * run_noise(config))
    assert not any(released[name].any() for name, _ in model.named_buffers())


def test_simulated_noise_is_the_seeds_and_deployed_noise_is_new_each_time(config: RunConfig) -> None:
    values = {"north": {"gradient": torch.zeros(50), "hvp": torch.zeros(50)}}

    def release(key: tuple[str | int, ...] | None) -> dict[str, torch.Tensor]:
        return Mechanism(config, key).release_statistics(values, sizes={"north": 1}, request=RecordDict())["north"]

    first, again, later = release(SIMULATED), release(SIMULATED), release(("north", 0, 2))
    assert torch.equal(first["gradient"], again["gradient"])
    assert not torch.equal(first["gradient"], later["gradient"])
    assert not torch.equal(first["gradient"], first["hvp"]), "two statistics have two noises"
    assert not torch.equal(release(None)["gradient"], release(None)["gradient"])


def test_at_example_level_the_statistic_itself_is_clipped(config: RunConfig) -> None:
    assert Mechanism(config, None).statistic("gradient", head_gradient) is head_gradient
    by_example = Mechanism(config.model_copy(update={"dp_unit": "example"}), None)
    assert by_example.statistic("gradient", head_gradient) is not head_gradient
