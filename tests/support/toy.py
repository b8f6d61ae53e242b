"""A benchmark for tests: Gaussian classes, shifted and turned by domain, a few dozen examples each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedhess.domains import Benchmark, open_benchmark
from fedhess.domains.benchmark import Scenario, leave_one_out
from fedhess.domains.domain import TensorDomain
from fedhess.domains.opening import Opening
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import RunConfig

DOMAINS = ("north", "south", "west", "east")
SOURCES, TARGET = DOMAINS[:3], DOMAINS[3]
FIVE = (*SOURCES, "up", "down")
FEATURES = 12


def open_toy(opening: Opening) -> Benchmark:
    """Four domains; options: examples a domain, classes (1 = logistic), identical domains, held-out fraction.

    With ``free`` each domain is left out in turn; without, the target is east. With ``six`` up and down are there too.
    With ``drawings`` each class has so many; ``replaced`` is an example with other features, in every domain.
    """
    switches = {"identical": False, "uneven": False, "free": False, "six": False}
    options = opening.read_options(examples=48, classes=4, holdout=0.0, **switches, drawings=0, replaced=-1)
    classes = int(options["classes"])
    domains = (*DOMAINS, "up", "down") if options["six"] else DOMAINS

    def load(domain: str) -> TensorDomain:
        number = 0 if options["identical"] else domains.index(domain)
        generator = torch.Generator().manual_seed(100 + number)
        count = int(options["examples"]) + (8 * number if options["uneven"] else 0)
        labels = torch.arange(count) % max(classes, 2)
        centres = torch.randn(max(classes, 2), FEATURES, generator=torch.Generator().manual_seed(7))
        noise = torch.randn(count, FEATURES, generator=generator)
        turn = torch.eye(FEATURES) + 0.3 * torch.randn(FEATURES, FEATURES, generator=generator)
        inputs = (centres[labels] + noise) @ turn + 0.5 * number
        if options["replaced"] >= 0:
            inputs[options["replaced"]] = 0.0
        drawings = int(options["drawings"])
        groups = drawings * labels + torch.arange(count) % drawings if drawings else None
        return TensorDomain(domain, inputs, labels=labels, groups=groups)

    return Benchmark(
        name="Toy",
        domains=domains,
        classes=tuple(f"class {index}" for index in range(max(classes, 2))),
        input_shape=(FEATURES,),
        outputs=classes,
        default_model="mlp",
        scenarios=leave_one_out(DOMAINS) if options["free"] else (Scenario(SOURCES, (TARGET,), TARGET),),
        loader=load,
        holdout=float(options["holdout"]),
        options=options,
    )


def toy_config(**changes: Any) -> RunConfig:
    """Settings of a small exact run: float64, one local step, three rounds."""
    settings: dict[str, Any] = {
        "domains": "Toy",
        "sources": SOURCES,
        "targets": (TARGET,),
        "model": "mlp",
        "dtype": "float64",
        "strategy": "erm",
        "rounds": 3,
        "local_steps": 1,
        "batch_size": 16,
        "lr": 0.1,
    }
    return RunConfig.checked(settings | changes)


def create_small(name: str = "", *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """A featurizer of two layers and 6 features, smooth so that rounding stays rounding: dense Hessians are quick."""
    del pretrained
    featurizer = nn.Sequential(nn.Linear(*input_shape, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
    return HeadedModel(featurizer, nn.Linear(6, outputs))


def create_dropping(name: str = "", *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """The small model with a dropout before its head, which draws from torch's global generator."""
    small = create_small(name, input_shape=input_shape, outputs=outputs, pretrained=pretrained)
    return HeadedModel(nn.Sequential(small.featurizer, nn.Dropout()), small.head)


def toy_domains(sources: Sequence[str] = SOURCES, **options: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Every example and label of the source domains, in float64: what a centralised run would have."""
    benchmark = open_benchmark("Toy", options=options)
    domains = {}
    for name in sources:
        data = benchmark.load(name)
        domains[name] = (data.inputs(torch.arange(len(data))).double(), data.labels)
    return domains
