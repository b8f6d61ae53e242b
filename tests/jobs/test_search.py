"""What a sweep searches, the settings it draws, and how it is asked for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedhess.alignment import loading
from fedhess.alignment.loading import known_strategies
from fedhess.base.errors import UsageError
from fedhess.domains import BENCHMARKS, Benchmark, open_benchmark
from fedhess.jobs.job import Job
from fedhess.jobs.plan import plan_job
from fedhess.jobs.search import Search, recorded_spaces
from fedhess.results.choices import edge_warnings
from fedhess.settings.ranges import OF_METHOD, OURS, STEPS, Range, draw_settings

ASKED = {"search": None, "draws": None, "grid": "", "ranges": ""}
COMMON = {"weight_decay": "1e-06:0.01:log"}
SGD = {"local_steps": 5, "lr": 0.1, "server_optimizer": "SGD", "server_lr": 1.0, "batch_size": 16}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    return open_benchmark("Toy", options={"holdout": 0.25, "free": True})


def plan(
    benchmark: Benchmark,
    strategies: Sequence[str] = ("erm", "hgp"),
    *,
    args: Mapping[str, Any] | None = None,
    trials: int = 1,
    selection: str = "source",
    rounds: int = 4,
    **given: Any,
) -> Job:
    """Plan a sweep on the toy; options of the search and settings are named as the command has them."""
    search = Search.read(**{key: given.pop(key, default) for key, default in ASKED.items()})
    return plan_job(
        benchmark, strategies=strategies, strategy_args=args or {}, target="east", trials=trials,
        overrides={"rounds": rounds} | given, out=Path("job"), selection=selection, search=search,
    )  # fmt: skip


def drawn(job: Job) -> dict[tuple[str, int, int], Mapping[str, Any]]:
    """Return what was drawn, by strategy, number and seed."""
    return {(run.strategy, run.number, run.config.seed): job.variants[run.variant] for run in job.runs}


def searched(job: Job, strategy: str) -> dict[str, str]:
    return {key: each.describe() for key, each in recorded_spaces(job.record)[strategy].items()}


# -- Ranges ------------------------------------------------------------------------------------------------------------


def test_every_strategy_has_ranges_and_each_of_them_a_source() -> None:
    assert set(OF_METHOD) == set(known_strategies())
    assert all(each.source and each.ends[0] < each.ends[1] for space in OF_METHOD.values() for each in space.values())
    ours = {name for name, space in OF_METHOD.items() if any(each.source == OURS for each in space.values())}
    assert ours == {"server_alignment", "fedadam", "cma", "mixstyle", "fedomg", "ga", "fedsam", "fedsr", "sagm"}


def test_in_domainbeds_form_of_training_a_sweep_draws_domainbeds_values(toy: Benchmark) -> None:
    job = plan(toy, ("irm", "fishr", "hgp"), args={"hgp.scale": "absolute"}, draws=4, trials=2, rounds=STEPS)
    assert set(drawn(job)) == {(name, k, seed) for name in ("irm", "fishr", "hgp") for k in range(4) for seed in (0, 1)}
    for (strategy, number, seed), values in drawn(job).items():
        expected = draw_settings(strategy, "PACS", number=number, trial=seed) if number else {}
        assert values == {key: value for key, value in expected.items() if key != "batch_size"}, "it takes all examples"


def test_published_ranges_stand_for_their_own_defaults_and_steps_for_a_part_of_the_run(toy: Benchmark) -> None:
    job = plan(toy, ("hgp", "irm", "fishr"), args={"irm.weight": 7.0}, rounds=1000, **SGD)
    assert searched(job, "hgp") == {"alpha": "0.0003:0.03:log", "beta": "0.001:0.1:log"} | COMMON
    assert recorded_spaces(job.record)["hgp"]["alpha"].source.startswith("ours; 1e-05:0.001:log (released code of Hema")
    assert searched(job, "irm") == {"anneal_steps": "0.9998:9998:log"} | COMMON, "what is given is not drawn"
    assert searched(job, "fishr") == {"weight": "10:1e+04:log", "anneal_steps": "0:4999", "ema": "0.9:0.99"} | COMMON


def test_common_ranges_go_with_how_the_clients_step(toy: Benchmark) -> None:
    federated = plan(toy, ("erm", "fedadam"), local_steps=5, lr=0.1)
    assert searched(federated, "erm") == COMMON | {"server_lr": "0.0001549:0.001549:log"}
    assert searched(federated, "fedadam") == COMMON | {"eta": "0.01:1:log"}, "its server is its own"
    free = {key: value for key, value in SGD.items() if key not in ("lr", "batch_size")}
    assert searched(plan(toy, ("erm",), **free), "erm") == {"lr": "0.3162:3.162:log", **COMMON}


# -- Draws -------------------------------------------------------------------------------------------------------------


def test_draws_are_the_same_whatever_else_is_drawn(toy: Benchmark) -> None:
    few = drawn(plan(toy, ("hgp",), draws=3, **SGD))
    many = drawn(plan(toy, ("vrex", "hgp", "erm"), draws=5, trials=3, **SGD))
    assert few == {place: many[place] for place in few}
    assert len({str(values) for place, values in many.items() if place[0] == "hgp"}) == 1 + 4 * 3, "each trial its own"
    assert {values == {} for place, values in many.items() if place[1] == 0} == {True}, "the first has the defaults"


def test_directories_are_named_by_the_number_of_the_draw(toy: Benchmark) -> None:
    job = plan(toy, draws=3, trials=2, **SGD)
    expected = {f"job/{name}/variant-{k}/east/{seed}" for name in ("erm", "hgp") for k in range(3) for seed in (0, 1)}
    assert {run.directory.path.as_posix() for run in job.runs} == expected
    assert job.settings_each == "3"


def test_cross_validation_runs_every_draw(toy: Benchmark) -> None:
    job = plan(toy, ("erm",), draws=2, trials=2, selection="lodo", **SGD)
    assert len(job.runs) == 2 * 2 * (1 + 3)


def test_given_ranges_go_before_the_known_ones_and_those_of_one_strategy_before_all(toy: Benchmark) -> None:
    ranges = "hgp.alpha=1:2,alpha=0.5:4:log,hutchinson.probes=8:64,lr=0.01:0.02"
    job = plan(toy, ("hgp", "hutchinson"), ranges=ranges, draws=6, **SGD)
    assert searched(job, "hgp")["alpha"] == "1:2"
    assert searched(job, "hutchinson")["alpha"] == "0.5:4:log"
    values = [each for (name, k, _), each in drawn(job).items() if k and name == "hutchinson"]
    assert all(0.5 <= each["alpha"] <= 4 and 0.01 <= each["lr"] <= 0.02 for each in values), "given, but ranged"
    assert all(type(each["probes"]) is int and 8 <= each["probes"] < 64 for each in values)
    assert all(run.config.lr == job.variants[run.variant]["lr"] for run in job.runs if run.number)


def test_strategy_without_ranges_is_told_how_to_give_them(toy: Benchmark) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "known_strategies", lambda: {"mine": "fedhess.strategies.coral:CORAL"})
        patch.delitem(OF_METHOD, "coral")
        expected = (
            "no ranges are known for 'mine', whose arguments are gamma=1; give them, as in --range mine.gamma=0.1:10"
        )
        with pytest.raises(UsageError, match=re.escape(expected)):
            plan(toy, ("mine",), **SGD)
        assert searched(plan(toy, ("mine",), ranges="mine.gamma=1:2", **SGD), "mine") == {"gamma": "1:2"} | COMMON
        assert searched(plan(toy, ("mine",), args={"gamma": 3.0}, **SGD), "mine") == COMMON


# -- Grids -------------------------------------------------------------------------------------------------------------


def test_a_grid_runs_every_combination_of_what_means_something_to_a_strategy(toy: Benchmark) -> None:
    job = plan(toy, ("erm", "hgp", "hutchinson"), grid="alpha=1e-5,1e-4,hgp.beta=1,2,lr=0.1,0.2", trials=2)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for (name, _, seed), values in drawn(job).items():
        if seed == 0:
            found.setdefault(name, []).append(values)
    assert found["erm"] == [{"lr": 0.1}, {"lr": 0.2}]
    assert found["hutchinson"] == [{"alpha": a, "lr": lr} for a in (1e-5, 1e-4) for lr in (0.1, 0.2)]
    assert sorted(map(str, found["hgp"])) == sorted(
        str({"alpha": a, "lr": lr, "beta": beta}) for a in (1e-5, 1e-4) for beta in (1, 2) for lr in (0.1, 0.2)
    )
    assert {run.config.strategy_args["beta"] for run in job.runs if run.strategy == "hgp"} == {1.0, 2.0}


def test_coefficients_of_a_grid_over_scales_are_those_of_each_scale(toy: Benchmark) -> None:
    job = plan(toy, ("hgp",), grid="scale=relative,absolute")
    assert [run.config.strategy_args["alpha"] for run in job.runs] == [0.003, 1e-4]


# -- Mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"search": "bayes"}, r"--search: unknown search 'bayes'; known: optuna, random, grid"),
        ({"search": "grid"}, "--search grid needs --grid"),
        ({"search": "optuna", "grid": "lr=1,2"}, "--grid does not go with --search optuna"),
        ({"grid": "lr=1,2", "draws": 3}, "--grid does not go with --draws"),
        ({"grid": "lr=1,2", "ranges": "lr=1:2"}, "--grid does not go with --range"),
        ({"draws": 0}, "--draws: expected 1 to 10000, got 0"),
        ({"grid": "1,2"}, "--grid: expected key=value,value,..., got '1' in '1,2'"),
        ({"grid": "lr=1,"}, "--grid: expected key=value,value"),
        ({"grid": "=1"}, "--grid: expected key=value,value"),
        ({"grid": "lr=1,1"}, "--grid: 1 is twice among the values of 'lr'"),
        ({"grid": "lr=1,lr=2"}, "--grid: 'lr' is given twice"),
        ({"grid": "rounds=1,2"}, "--grid: 'rounds' must be the same in a whole job"),
        (
            {"grid": "alfa=1,2"},
            "--grid: 'alfa' means nothing to erm, hgp; expected an argument of a strategy",
        ),
        ({"grid": "lr=-1,2"}, "--lr: expected more than 0, got -1"),
        ({"grid": "lr=1,2", "lr": 0.1}, "--grid: 'lr' of erm is given a value of its own as well; leave one out"),
        ({"grid": "alpha=1,2", "args": {"hgp.alpha": 3.0}}, "--grid: 'alpha' of hgp is given a value of its own"),
        ({"ranges": "batch_size=0.5:32"}, "--range: expected a low end of at least 1 for batch_size, got batch_size=0"),
        ({"ranges": "hgp.local_steps=0.5:8:log"}, "expected a low end of at least 1 for local_steps"),
        ({"ranges": "lr"}, "--range: expected key=low:high or key=low:high:log, got 'lr'"),
        ({"ranges": "lr=1"}, "--range: expected key=low:high"),
        ({"ranges": "lr=1:x"}, "--range: expected key=low:high"),
        ({"ranges": "lr=1:2:lin"}, "--range: expected key=low:high"),
        ({"ranges": "lr=2:1"}, "--range: expected low < high, got"),
        ({"ranges": "lr=0:1:log"}, "--range: expected low < high, above 0 for a logarithm"),
        ({"ranges": "lr=1:2,lr=1:3"}, "--range: 'lr' is given twice"),
        ({"ranges": "iga.coefficient=1:2"}, "--range: 'iga.coefficient' means nothing to erm, hgp"),
        ({"ranges": "hgp.seed=1:2"}, "--range: 'hgp.seed' must be the same"),
        (
            {"search": "optuna", "ranges": "alpha=-0.3:1"},
            "--range: hgp's alpha=-0.3:1 has -0.3: --strategy-args: strategy 'hgp' rejects",
        ),
        ({"search": "optuna", "ranges": "erm.momentum=0:1"}, r"--range: erm's momentum=0:1 has 1.0: .*less than 1"),
        ({"search": "optuna", "selection": "lodo"}, "--selection lodo: Optuna's objective is source validation"),
    ],
)
def test_mistakes_are_named(toy: Benchmark, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(toy, **given)


def test_a_search_needs_something_to_select_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    with pytest.raises(UsageError, match="--search: Toy holds no source examples out"):
        plan(open_benchmark("Toy"))


def test_choices_at_an_edge_are_counted_among_all_choices() -> None:
    space = {"lr": asdict(Range(-3, -1, "ours", base=10.0))}
    job = cast(Any, SimpleNamespace(record={"search": {"spaces": {"erm": space}}}))
    defaults = [{"number": 0, "settings": {}, "edges": {}}] * 3
    drawn = {"number": 1, "settings": {"lr": 1e-3}, "edges": {"lr": "low"}}
    assert edge_warnings(job, "erm", [*defaults, drawn]) == {}
    assert edge_warnings(job, "erm", [defaults[0], drawn])["lr"].startswith("1 of 2 choices lie at the low end")
