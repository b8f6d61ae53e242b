"""Strategies by name, entry point and ``module:Class``, and their arguments as text."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedProx
from torch import nn
from toy import toy_config

from fedhess.alignment import loading as alignment_loading
from fedhess.alignment.loading import (
    BUILT_IN,
    client_half,
    find_method,
    known_strategies,
    load_strategy,
    strategy_model,
)
from fedhess.alignment.strategy import DomainStrategy
from fedhess.base import loading
from fedhess.base.errors import StrategyError, UsageError
from fedhess.base.loading import text_parameters
from fedhess.domains import BENCHMARKS
from fedhess.strategies.hgp import HGP

GOOD = """
from fedhess.alignment.strategy import DomainStrategy

class Fine(DomainStrategy):
    def __init__(self, *, size: int = 1, share: float = 0.5, name: str = "x", on: bool = False):
        if size < 0:
            raise ValueError("size must be at least 0")
        if size == 7:
            raise KeyError("seven")
        self.given = (size, share, name, on)

class Wanting(DomainStrategy):
    def __init__(self, *, size: int): ...

class Unreadable(DomainStrategy):
    def __init__(self, *, size: "Missing" = 1): ...

number = 5
"""


class Changing(DomainStrategy):
    """As in a notebook's cell that is run again."""


class Listed(DomainStrategy):
    statistics = [torch.mean]  # type: ignore[assignment]  # noqa: RUF012 - the mistake


class Unannotated(DomainStrategy):
    def __init__(self, c=0.1):  # type: ignore[no-untyped-def]
        self.c = c


class Dictionary(DomainStrategy):
    def auxiliary(self, model: nn.Module) -> nn.Module | None:
        return {"layer": nn.Linear(1, 1)}  # type: ignore[return-value]


class Proximal(FedProx):
    """A user's own."""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module of the user's; return its name."""
    written: list[str] = []

    def write(code: str) -> str:
        written.append(f"users_{tmp_path.name}_{len(written)}")
        (tmp_path / f"{written[-1]}.py").write_text(code, encoding="utf-8")
        return written[-1]

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_module_and_class_of_the_user_load(module: Callable[[str], str]) -> None:
    name = f"{module(GOOD)}:Fine"
    strategy = load_strategy(name, {"size": 3, "share": 1, "name": 5, "on": True})
    assert vars(strategy)["given"] == (3, 1.0, "5", True)
    assert type(vars(strategy)["given"][1]) is float


def test_plain_flower_strategy_loads_and_its_clients_train_erm() -> None:
    name = "flwr.serverapp.strategy:FedAdam"
    strategy = load_strategy(name, {"eta": 1})
    assert isinstance(strategy, FedAdam)
    assert strategy.eta == 1.0
    half = client_half(toy_config(strategy=name, strategy_args={"eta": 1}))
    assert type(half) is DomainStrategy


def test_client_half_has_the_arguments_of_the_run() -> None:
    half = client_half(toy_config(strategy="hgp", strategy_args={"alpha": 0.25}))
    assert isinstance(half, HGP)
    assert half.alpha == 0.25


def test_each_message_has_a_client_half_of_its_own() -> None:
    """Attributes that it sets are gone with it, as they are on a SuperNode, whose messages have a process each."""
    config = toy_config(strategy="hgp")
    assert client_half(config) is not client_half(config)


def test_client_half_is_of_the_class_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(strategy=f"{__name__}:Changing")
    assert vars(client_half(config)) == {}
    monkeypatch.setattr(sys.modules[__name__], "Changing", type("Changing", (DomainStrategy,), {"limited": True}))
    assert client_half(config).limited


def test_entry_point_is_known_but_does_not_hide_a_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, name: str, value: str) -> None:
            self.name, self.value = name, value

    entries = [Entry("mine", "fedhess.strategies.erm:ERM"), Entry("hgp", "fedhess.strategies.erm:ERM")]
    monkeypatch.setattr(loading, "entry_points", lambda group: entries if group == "fedhess.strategies" else [])
    monkeypatch.setattr(alignment_loading, "installed", loading.installed.__wrapped__)
    assert known_strategies()["hgp"] == BUILT_IN["hgp"]
    assert find_method("mine").cls is find_method("erm").cls


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hpg", r"unknown strategy 'hpg'; did you mean 'hgp'\? known: .*, or package.module:Class"),
        ("no_such_module:X", "cannot import 'no_such_module' .* is it installed, or on PYTHONPATH?"),
        ("fedhess.strategies.hgp:HPG", "fedhess.strategies.hgp has no 'HPG'; did you mean 'HGP'?"),
        ("fedhess.base.errors:UsageError", ".*UsageError is no strategy: expected a class derived from"),
        (
            "flwr.serverapp.strategy:FedProx",
            "flwr.serverapp.strategy:FedProx is the server half of FedProx: its clients would have to add its proximal "
            "term to their loss; use --strategy fedprox",
        ),
        (
            "tests.alignment.test_loading:Proximal",
            "tests.alignment.test_loading:Proximal is the server half of FedProx",
        ),
        (f"{__name__}:Listed", r".*:Listed: expected statistics as functions by name, got \["),
        ("fedhess.strategies.hgp:", "expected a name or package.module:Class, got 'fedhess.strategies.hgp:'"),
        ("fedhess.strategies.hgp:HGP.reference", "expected a name or package.module:Class"),
    ],
)
def test_what_is_no_strategy_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--strategy: {message}"):
        load_strategy(name, {})


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:", "SyntaxError: invalid syntax .*line 1"),
        ("raise RuntimeError('boom')", r"RuntimeError: boom \(.*users_.*\.py, line 1, in <module>\); correct it there"),
        ("import no_such_package", "No module named 'no_such_package'; is it installed"),
    ],
)
def test_module_that_cannot_be_imported_is_named_with_its_error(
    code: str, message: str, module: Callable[[str], str]
) -> None:
    name = module(code)
    with pytest.raises(UsageError, match=f"import.* '?{name}.*{message}"):
        load_strategy(f"{name}:X", {})


@pytest.mark.parametrize(
    ("attribute", "args", "message"),
    [
        ("number", {}, "is no strategy: expected a class derived from .*, got 5"),
        ("Wanting", {}, "rejects its arguments: .* missing 1 required keyword-only argument: 'size'"),
        ("Unreadable", {}, "'Unreadable', annotations of its constructor: NameError: name 'Missing' is not defined"),
        ("Fine", {"size": -1}, "rejects its arguments: size must be at least 0"),
        ("Fine", {"size": 7}, r"constructor: KeyError: 'seven' \(.*\.py, line 9, in __init__\); correct it there"),
        ("Fine", {"sise": 1}, r"has no argument 'sise'; did you mean 'size'\?"),
        ("Fine", {"size": 1.5}, "size of strategy .*: expected a whole number, got 1.5"),
        ("Fine", {"size": True}, "size of strategy .*: expected a whole number, got True"),
        ("Fine", {"share": "half"}, "share of strategy .*: expected a finite number, got 'half'"),
        ("Fine", {"on": 1}, "on of strategy .*: expected true or false, got 1"),
    ],
)
def test_wrong_argument_is_named(
    attribute: str, args: dict[str, object], message: str, module: Callable[[str], str]
) -> None:
    with pytest.raises(UsageError, match=message):
        load_strategy(f"{module(GOOD)}:{attribute}", args)  # type: ignore[arg-type]


def test_choice_is_one_of_its_literals() -> None:
    with pytest.raises(UsageError, match="form of strategy 'hgp': expected hgp_of_mean or mean_of_hgp, got 'both'"):
        load_strategy("hgp", {"form": "both"})
    with pytest.raises(UsageError, match="strategy 'erm' has no argument 'alpha'; it takes none"):
        load_strategy("erm", {"alpha": 1.0})


def test_only_scalars_can_be_given_as_text() -> None:
    class Mixed:
        def __init__(
            self,
            *,
            a: int | None,
            b: float | None,
            c: list[int],
            d: Literal["x", "y"],
            e: object,
            f=3,
        ) -> None: ...

    assert list(text_parameters(Mixed, what="it")) == ["a", "b", "d"]


class Drawing(DomainStrategy):
    """Trains a layer beside the network."""

    def auxiliary(self, model: nn.Module) -> nn.Module:
        del model
        return nn.Linear(2, 2)


def test_what_is_trained_beside_the_network_draws_from_the_runs_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process builds its model with the first message: what a dropout draws after it would be another than later."""
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    config = toy_config(strategy=f"{__name__}:Drawing")
    before = torch.get_rng_state()
    first, again = strategy_model(config), strategy_model(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.state_dict()["auxiliary.weight"], again.state_dict()["auxiliary.weight"])


def test_an_argument_that_text_cannot_give_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"has an argument 'c' that text cannot give; annotate it as a str, int, float"
    ):
        load_strategy(f"{__name__}:Unannotated", {"c": 0.5})


def test_what_is_trained_beside_the_network_is_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    with pytest.raises(
        StrategyError, match="Dictionary', auxiliary: TypeError: expected a torch module or None, got dict"
    ):
        strategy_model(toy_config(strategy=f"{__name__}:Dictionary"))
