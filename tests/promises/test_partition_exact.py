"""A domain that is split over several clients is still that domain: updates, references and rows are as if it were one.

Full batches, one local step, float64: what is a mean over examples is then the same whoever holds them.
"""

from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any, ClassVar

import pytest
import torch
from centralised import Objective, Round, fishr_objective, hgp_pulls, pulled
from torch import Tensor
from toy import FIVE, SOURCES, toy_config, toy_domains

from fedhess.alignment.step import Step
from fedhess.alignment.strategy import Ask, DomainStrategy
from fedhess.curvature import head_gradient, head_hvp
from fedhess.federation.client.examples import source_shares
from fedhess.jobs.rows import domain_rows
from fedhess.models.building import build_model

Run = Callable[..., Any]
FULL = {"batch_size": 0, "rounds": 3, "domains_options": {"uneven": True, "holdout": 0.25, "six": True}}
PARTITIONS: dict[str, dict[str, Any]] = {
    "lambda-0": {"partition": "lambda", "clients": 8, "heterogeneity": 0.0},
    "lambda-0.5": {"partition": "lambda", "clients": 8, "heterogeneity": 0.5},
    "lambda-1": {"partition": "lambda", "clients": 5, "heterogeneity": 1.0},
    "two clients": {"partition": "lambda", "clients": 2, "heterogeneity": 0.0},
    "dirichlet": {"partition": "dirichlet", "clients_per_domain": 3, "dirichlet_alpha": 0.5, "dirichlet_min_size": 2},
}
# Methods whose update is made of means over examples alone.
SPLITTABLE: dict[str, dict[str, Any]] = {
    "erm by examples": {"strategy": "erm", "weighting": "examples"},
    "fedprox": {"strategy_args": {"mu": 3.0}},
    "groupdro": {"strategy_args": {"eta": 0.3}},
    "afl": {"strategy": "groupdro", "strategy_args": {"eta": 0.3, "form": "projection"}},
    "fish": {"strategy_args": {"eps": 0.5}},
    "fish with momentum": {"strategy": "fish", "strategy_args": {"shuffle": True}, "momentum": 0.9},
}
QUICK = ("erm by examples", "groupdro", "fish with momentum")


def close(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("method", "partition", "domains"),
    [
        *(("erm", name, domains) for name, domains in zip(PARTITIONS, cycle((3, 4, 5)), strict=False)),
        *(
            pytest.param(name, "lambda-0.5", domains, marks=[] if name in QUICK else [pytest.mark.slow])
            for name, domains in zip(SPLITTABLE, cycle((4, 5, 3)), strict=False)
        ),
    ],
)
def test_split_domains_train_the_same_model(toy_run: Run, method: str, partition: str, domains: int) -> None:
    settings = {"strategy": method, "sources": FIVE[:domains]} | SPLITTABLE.get(method, {}) | FULL
    whole = toy_run(**settings)
    split = toy_run(**settings, **PARTITIONS[partition])
    close(whole.tensors, split.tensors)
    clients = {(row.get("main_domain", row["domain"]), row["client"]) for row in split.rows if row["role"] == "source"}
    assert len(clients) == split.server.config.source_clients


class Watched(DomainStrategy):
    """Asks for the references of HGP and keeps them."""

    statistics: ClassVar = {"gradient": head_gradient, "hvp": head_hvp}
    seen: ClassVar[list[dict[str, Tensor]]] = []

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        answers = ask("gradient")
        products = ask("hvp", vector=answers.mean())
        by_domain = {f"{name} of {domain}": v[domain] for name, v in (("g", answers), ("Hg", products)) for domain in v}
        self.seen.append({"gradient": answers.mean(), "hgp": products.mean()} | by_domain)
        return {}

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> None:
        del step, reference


@pytest.mark.parametrize(
    ("partition", "domains", "weighting"),
    list(zip(PARTITIONS, cycle((3, 4, 5)), cycle(("domain", "examples")), strict=False)),
)
def test_references_of_split_domains_are_those_of_whole_ones(
    toy_run: Run, partition: str, domains: int, weighting: str
) -> None:
    Watched.seen.clear()
    settings = {"strategy": f"{__name__}:Watched", "weighting": weighting} | FULL | {"rounds": 2}
    settings["sources"] = FIVE[:domains]
    toy_run(**settings)
    toy_run(**settings, **PARTITIONS[partition])
    whole, split = Watched.seen[:2], Watched.seen[2:]
    assert len(split) == 2
    for before, after in zip(whole, split, strict=True):
        assert len(before) == 2 + 2 * domains
        close(before, after)


def test_domains_weigh_the_same_whatever_the_number_of_their_clients(toy_run: Run) -> None:
    Watched.seen.clear()
    settings = FULL | {"rounds": 1, "partition": "lambda", "clients": 8, "heterogeneity": 0.0}
    finished = toy_run(strategy="tests.promises.test_partition_exact:Watched", **settings)
    clients = [share.domain for share in source_shares(finished.server.config).values()]
    assert len({clients.count(domain) for domain in SOURCES}) > 1, "or there is nothing to see"
    (seen,) = Watched.seen
    mean = torch.stack([seen[f"g of {domain}"] for domain in SOURCES]).mean(0)
    torch.testing.assert_close(seen["gradient"], mean, rtol=0, atol=1e-14)


SEVERAL: dict[str, tuple[dict[str, Any], Callable[[], Objective]]] = {
    "hgp": ({"alpha": 0.02, "beta": 0.05, "scale": "absolute"}, lambda: pulled(hgp_pulls(0.02, 0.05))),
    "hgp relative": ({"alpha": 0.02, "beta": 0.05}, lambda: pulled(hgp_pulls(0.02, 0.05, relative=True))),
    "fishr": ({"weight": 20.0, "ema": 0.7, "anneal_steps": 0}, lambda: fishr_objective(20.0, 0.7)),
}


@pytest.mark.parametrize(
    ("partition", "domains", "weighting", "method"),
    [
        ("lambda-0", 3, "domain", "hgp"),
        ("lambda-0.5", 4, "examples", "fishr"),
        ("dirichlet", 5, "domain", "hgp relative"),
    ],
)
def test_clients_of_several_domains_minimise_the_stated_objective(
    toy_run: Run, method: str, partition: str, domains: int, weighting: str
) -> None:
    """The mean over domains, by examples over holdings: each measures its own statistics against the references."""
    args, make = SEVERAL[method]
    options = {"uneven": True, "six": True}  # nothing held out: a holding's indices are those of the domain
    settings = {"sources": FIVE[:domains], "weighting": weighting, "domains_options": options, "batch_size": 0}
    settings |= {"rounds": 4, "lr": 0.05} | PARTITIONS[partition]
    federated = toy_run(strategy=method.partition(" ")[0], strategy_args=args, **settings)
    config = toy_config(**settings)
    whole, pieces, sizes = toy_domains(config.sources, **options), {}, {}
    for client, share in enumerate(source_shares(config).values()):
        for domain, holding in share.holdings.items():
            inputs, labels = (tensor[holding.train] for tensor in whole[domain])
            pieces[f"{domain}/{client}"] = (inputs, labels)
            sizes[f"{domain}/{client}"] = (
                len(labels) if weighting == "examples" else len(labels) / len(whole[domain][1])
            )
    weights = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    held = {name: len(labels) for name, (_, labels) in pieces.items()}
    model, objective = build_model(config), make()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    for number in range(1, config.rounds + 1):
        optimizer.zero_grad()
        objective(model, Round(number, config.seed, pieces, weights, held)).backward()
        optimizer.step()
    close(model.state_dict(), federated.tensors)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_rows_of_a_domain_count_each_held_out_example_once(toy_run: Run, partition: str) -> None:
    whole = toy_run(**FULL | {"rounds": 2})
    split = toy_run(**FULL | {"rounds": 2}, **PARTITIONS[partition])
    gathered = domain_rows(split.rows)
    assert len(gathered) == len(whole.rows) <= len(split.rows)
    key = ("round", "role", "domain")
    by_place = {tuple(row[name] for name in key): row for row in gathered}
    for row in whole.rows:
        other = by_place[tuple(row[name] for name in key)]
        assert (other["examples"], other["split"]) == (row["examples"], row["split"])
        assert other["accuracy"] == pytest.approx(row["accuracy"], abs=1e-12)
        assert other["loss"] == pytest.approx(row["loss"], abs=1e-10)
        if row["role"] == "source":
            assert other["gradient_distance"] == pytest.approx(row["gradient_distance"], rel=1e-8)
