"""Mixup and MixStyle: their equations, what they need, and that nothing disturbs them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from centralised import batch_of, tensors_of
from domain_statistics import loss_of
from torch import Tensor, nn
from toy import SOURCES, toy_config, toy_domains

from fedhess.base.errors import FederationError, UsageError
from fedhess.base.seeds import seeded_generator
from fedhess.models import MODELS
from fedhess.models.building import build_model
from fedhess.models.headed import HeadedModel
from tests.promises.conftest import toy_benchmark, toy_run
from tests.promises.test_alive import assert_undisturbed, same

__all__ = ["toy_benchmark", "toy_run"]

Run = Callable[..., Any]
ONE = {"partition": "lambda", "clients": 1, "heterogeneity": 1.0}
TWO = {"partition": "lambda", "clients": 2, "heterogeneity": 0.5}


class Maps(nn.Module):
    """Two convolutions on the toy's numbers as three maps of 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer2(self.layer1(inputs.view(-1, 3, 2, 2)).tanh()).tanh().flatten(1)  # type: ignore[no-any-return]


def create_maps(name: str = "", *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    del input_shape, pretrained
    return HeadedModel(Maps(), nn.Linear(16, outputs))


@pytest.fixture(autouse=True)
def maps_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "maps", "tests.strategies.test_mixing:create_maps")


def close(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=1e-10)


def test_mixup_of_one_client_is_domainbeds_over_its_domains(toy_run: Run) -> None:
    settings = {"batch_size": 0, "rounds": 4, "lr": 0.05} | ONE
    finished = toy_run(strategy="mixup", strategy_args={"alpha": 0.4}, **settings)
    found, whole = finished.tensors, {}
    config, domains = toy_config(**settings), list(toy_domains(SOURCES).values())
    model = build_model(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    for step in range(config.rounds):
        generator = seeded_generator(config.seed, SOURCES[0], 0, "step rule", step)
        lam = np.random.RandomState(generator.initial_seed() % 2**32).beta(0.4, 0.4)
        order = torch.randperm(3, generator=generator).tolist()
        losses = []
        for place in range(3):
            (xi, yi), (xj, yj) = domains[order[place]], domains[order[(place + 1) % 3]]
            logits = model(lam * xi + (1 - lam) * xj)
            losses.append(lam * loss_of(logits, yi) + (1 - lam) * loss_of(logits, yj))
        optimizer.zero_grad()
        loss = torch.stack(losses).mean()
        loss.backward()
        whole[step + 1] = loss.item()
        optimizer.step()
    close(tensors_of(model), found)
    assert not same(found, toy_run(**settings).tensors)
    recorded = {row["round"]: row["train_loss"] for row in finished.rows if row["train_loss"] is not None}
    assert recorded == pytest.approx(whole, abs=1e-12), "of both labels"


def test_mixup_is_erm_without_alpha_and_undisturbed_with_it(toy_run: Run, tmp_path: Path) -> None:
    assert same(toy_run(strategy="mixup", strategy_args={"alpha": 0.0}, **TWO).tensors, toy_run(**TWO).tensors)
    assert_undisturbed(toy_run, tmp_path / "run", strategy="mixup", local_steps=2, dtype="float32", **TWO)


@pytest.mark.parametrize(
    "partition",
    [
        {},
        {"partition": "lambda", "clients": 3, "heterogeneity": 0.0},
        {"partition": "dirichlet", "clients_per_domain": 2, "dirichlet_min_size": 2},
    ],
)
def test_mixup_is_refused_where_no_client_has_two_domains(toy_run: Run, partition: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--strategy mixup: .* no client of this run holds two; give --partition"):
        toy_run(strategy="mixup", **partition)


def test_mixstyle_mixes_by_its_equations(toy_run: Run) -> None:
    settings = {"model": "maps", "rounds": 3, "lr": 0.5}
    args = {"p": 0.6, "alpha": 0.5}
    found = toy_run(strategy="mixstyle", strategy_args=args, **settings).tensors
    config, domains = toy_config(**settings), toy_domains(SOURCES)
    model = build_model(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    mixes = 0
    for step in range(config.rounds):
        losses = []
        for name in SOURCES:
            inputs, labels = batch_of(domains, name, config, step)
            random = np.random.RandomState(
                seeded_generator(config.seed, name, 0, "step rule", step).initial_seed() % 2**32
            )
            maps = inputs.view(-1, 3, 2, 2)
            for layer in (model.featurizer.layer1, model.featurizer.layer2):
                maps = layer(maps)
                if random.random_sample() < 0.6:
                    mixes += 1
                    own = random.beta(0.5, 0.5, len(maps))
                    others = random.permutation(len(maps))
                    flat = maps.flatten(2)
                    mean, deviation = flat.mean(2).detach(), (flat.var(2) + 1e-6).sqrt().detach()
                    maps = torch.stack(
                        [
                            (maps[b] - mean[b].view(-1, 1, 1))
                            / deviation[b].view(-1, 1, 1)
                            * (own[b] * deviation[b] + (1 - own[b]) * deviation[others[b]]).view(-1, 1, 1)
                            + (own[b] * mean[b] + (1 - own[b]) * mean[others[b]]).view(-1, 1, 1)
                            for b in range(len(maps))
                        ]
                    )
                maps = maps.tanh()
            losses.append(loss_of(model.head(maps.flatten(1)), labels))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    assert 0 < mixes < 2 * 3 * config.rounds
    close(tensors_of(model), found)
    assert not same(found, toy_run(**settings).tensors)


def test_mixstyle_is_erm_without_p_and_undisturbed_with_it(toy_run: Run, tmp_path: Path) -> None:
    plain = toy_run(model="maps", local_steps=2).tensors
    assert same(toy_run(model="maps", local_steps=2, strategy="mixstyle", strategy_args={"p": 0.0}).tensors, plain)
    args = {"strategy": "mixstyle", "strategy_args": {"p": 1.0}, "model": "maps", "dtype": "float32"}
    assert_undisturbed(toy_run, tmp_path / "run", **args)


def test_mixstyle_names_the_layers_that_it_cannot_mix_behind(toy_run: Run) -> None:
    args = {"strategy": "mixstyle", "strategy_args": {"p": 1.0}}
    with pytest.raises(UsageError, match=r"expected one module of the model whose name ends with 'layer1', got 0"):
        toy_run(**args, model="mlp")
    flat = args | {"strategy_args": {"p": 1.0, "layers": "featurizer"}}
    with pytest.raises(FederationError, match=r"expected modules that return maps .*, got shape \(16, 16\)"):
        toy_run(**flat, model="maps")
