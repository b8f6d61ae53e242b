"""Settings to select among: how they are written, what may differ, and which runs they make."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedhess.alignment.loading import resolved_args
from fedhess.base.errors import UsageError
from fedhess.domains import BENCHMARKS, Benchmark, open_benchmark
from fedhess.jobs.job import Job
from fedhess.jobs.plan import plan_job
from fedhess.jobs.variants import args_for, check_variants, describe, overridden, parse_variants


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    return open_benchmark("Toy", options={"holdout": 0.25, "free": True})


def plan(
    benchmark: Benchmark,
    variants: Sequence[Mapping[str, Any]] = (),
    *,
    strategies: Sequence[str] = ("hgp",),
    strategy_args: Mapping[str, Any] | None = None,
    **more: Any,
) -> Job:
    settings: dict[str, Any] = {"target": "east", "trials": 1, "out": Path("job")} | more
    return plan_job(
        benchmark,
        strategies=strategies,
        strategy_args=strategy_args or {},
        overrides={"rounds": 2},
        variants=variants,
        **settings,
    )


# -- Settings ----------------------------------------------------------------------------------------------------------


def test_nothing_is_no_variant() -> None:
    assert parse_variants("") == parse_variants("  ") == []


@pytest.mark.parametrize("text", ["lr=0.1", "lr=0.1;", ";lr=0.1", "lr=0.1; ; lr=0.2"])
def test_fewer_than_two_settings_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--variants: expected several settings separated by semicolons"):
        parse_variants(text)


def test_setting_that_is_no_assignment_is_named() -> None:
    with pytest.raises(UsageError, match=r"--variants: expected key=value.*, got 'alpha'"):
        parse_variants("lr=0.1; alpha")


def test_a_variant_has_settings_arguments_of_the_server_and_of_strategies() -> None:
    variant = {"lr": 0.5, "server-optimizer-args.weight_decay": 0.1, "server_optimizer_args.eps": 0.2, "hgp.alpha": 1.0}
    base = {"lr": 0.1, "rounds": 3, "server_optimizer_args": {"eps": 0.9, "amsgrad": True}}
    changed = overridden(base, variant, "hgp")
    assert changed == {
        "lr": 0.5,
        "rounds": 3,
        "server_optimizer_args": {"eps": 0.2, "amsgrad": True, "weight_decay": 0.1},
    }
    assert base["lr"] == 0.1
    assert overridden(base, {"lr": 0.2}, "hgp") == {**base, "lr": 0.2}
    assert overridden(base, variant, "fedadam") == {**base, "lr": 0.5}, "whose server is its own"


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([{"rounds": 2}, {"rounds": 3}], "--variants: 'rounds' must be the same in a whole job; .*, or one of lr, "),
        ([{"seed": 2}, {"lr": 3}], "--variants: 'seed' must be the same"),
        ([{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.1}], "--variants: 'lr=0.1' is given twice"),
    ],
)
def test_what_may_not_differ_is_named(toy: Benchmark, variants: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_variants(variants)
    with pytest.raises(UsageError, match=message):
        plan(toy, variants)


# -- Runs --------------------------------------------------------------------------------------------------------------


def test_every_variant_is_run_in_a_directory_of_its_own(toy: Benchmark) -> None:
    job = plan(toy, [{"lr": 0.25}, {"alpha": 0.5}, {"hgp.alpha": 0.75, "server_lr": 2.0}], trials=2)
    assert [str(run.directory.path) for run in job.runs] == [
        f"job/variant-{number}/east/{seed}" for number in range(3) for seed in range(2)
    ]
    first, second, third = (run.config for run in job.runs[::2])
    assert (first.lr, second.lr, third.lr) == (0.25, 1.0, 1.0)
    assert [config.strategy_args.get("alpha") for config in (first, second, third)] == [0.003, 0.5, 0.75]
    assert (first.server_lr, third.server_lr) == (4.898536566546834e-4, 2.0)
    assert [variant["settings"] for variant in job.record["variants"]] == list(job.variants)
    assert [variant["arguments"]["hgp"]["alpha"] for variant in job.record["variants"]] == [0.003, 0.5, 0.75]
    assert len({run.config.rounds for run in job.runs}) == 1


def test_variant_goes_before_the_arguments_of_the_command_line(toy: Benchmark) -> None:
    job = plan(toy, [{"alpha": 0.5}, {"beta": 0.5}], strategy_args={"hgp.alpha": 9.0, "beta": 9.0})
    found = [(run.config.strategy_args["alpha"], run.config.strategy_args["beta"]) for run in job.runs]
    assert found == [(0.5, 9.0), (9.0, 0.5)]


def test_coefficients_are_those_of_the_scale_of_each_variant(toy: Benchmark) -> None:
    job = plan(toy, [{"scale": "relative"}, {"scale": "absolute"}], strategy_args={"form": "mean_of_hgp"})
    recorded = [variant["arguments"]["hgp"] for variant in job.record["variants"]]
    assert [(args["alpha"], args["beta"]) for args in recorded] == [(0.003, 0.01), (1e-4, 5e-3)]
    common = job.record["strategies"]["hgp"]
    assert common["form"] == "mean_of_hgp"
    assert not {"alpha", "beta", "scale"} & common.keys()
    of_record = {"hgp.scale": "relative", "hgp.alpha": 0.003, "hgp.beta": 0.5}  # the second is the scale's default
    job = plan(toy, [{"scale": "relative"}, {"hgp.scale": "absolute"}], strategy_args=of_record)
    recorded = [variant["arguments"]["hgp"] for variant in job.record["variants"]]
    assert [(args["alpha"], args["beta"]) for args in recorded] == [(0.003, 0.5), (1e-4, 0.5)]


def test_a_scale_that_is_given_drops_the_recipes_coefficients_for_another() -> None:
    recipe = {"scale": "absolute", "alpha": 2.0, "beta": 2.0, "weight": 91257.0}
    relative, absolute = ({"scale": "relative"}, {"alpha": 0.5})
    assert args_for("hgp", ["hgp"], relative, recipe) == resolved_args("hgp", relative)
    assert args_for("hgp", ["hgp"], absolute, recipe) == resolved_args("hgp", recipe | absolute)


def test_variant_that_makes_no_difference_to_a_strategy_is_run_once(toy: Benchmark) -> None:
    job = plan(toy, [{"lr": 0.1}, {"lr": 0.1, "alpha": 0.5}, {"lr": 0.2}], strategies=["erm", "hgp"])
    assert [(run.strategy, run.variant) for run in job.runs] == [
        *(("erm", 0), ("erm", 2), ("hgp", 0), ("hgp", 1), ("hgp", 2)),
    ]
    assert [variant["strategies"] for variant in job.record["variants"]] == [
        *(["erm", "hgp"], ["hgp"], ["erm", "hgp"]),
    ]


def test_argument_that_no_strategy_has_is_named(toy: Benchmark) -> None:
    with pytest.raises(
        UsageError, match="--strategy-args: strategy 'hgp' has no argument 'alfa'; did you mean 'alpha'"
    ):
        plan(toy, [{"alfa": 1}, {"lr": 1}])


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([{"server_optimizer_args.eps": -1.0}, {"lr": 1.0}], "--server-optimizer-args: Adam rejects eps=-1.0"),
        ([{"lr": 1.0}, {"client_optimizer": "Adam", "momentum": 0.5}], "--momentum 0.5: it is SGD's, and --client-opt"),
        ([{"lr": -1.0}, {"lr": 1.0}], "--lr: expected more than 0, got -1.0"),
    ],
)
def test_settings_of_every_variant_are_checked(toy: Benchmark, variants: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(toy, variants)


def test_variants_need_examples_held_out_or_cross_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    nothing_out = open_benchmark("Toy", options={"free": True})
    with pytest.raises(UsageError, match=r"--variants: Toy holds no source examples out, .*add --selection lodo"):
        plan(nothing_out, [{"lr": 0.1}, {"lr": 0.2}])
    assert len(plan(nothing_out, [{"lr": 0.1}, {"lr": 0.2}], selection="lodo").runs) == 2 * (1 + 3)


def test_description_of_a_variant_is_short() -> None:
    assert describe({"lr": 0.123456, "local_steps": 3, "form": "x"}) == "lr=0.1235, local_steps=3, form=x"


# -- Cross-validation --------------------------------------------------------------------------------------------------


def test_cross_validation_adds_every_pair_once_and_last(toy: Benchmark) -> None:
    job = plan(toy, target="all", selection="lodo")
    assert [run.scenario.name for run in job.outer_runs] == ["north", "south", "west", "east"]
    assert [run.scenario.name for run in job.runs[4:]] == [
        *("north+south", "north+west", "north+east", "south+west", "south+east", "west+east"),
    ]
    assert all(run.inner and len(run.config.sources) == 2 for run in job.runs[4:])
    assert job.record["targets"] == ["north", "south", "west", "east"]
    assert job.record == plan(toy, target="all").record, "they may be added later"


def test_cross_validation_of_one_target_leaves_out_each_of_its_sources(toy: Benchmark) -> None:
    assert [run.scenario.name for run in plan(toy, selection="lodo").runs] == [
        *("east", "north+east", "south+east", "west+east"),
    ]


def test_a_pair_that_is_a_target_itself_is_run_once(toy: Benchmark) -> None:
    with pytest.raises(UsageError, match=r"expected at least three sources for target north\+east, .* got south, west"):
        plan(toy, target="east,north+east", selection="lodo")


def test_targets_that_are_fixed_cannot_be_cross_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    with pytest.raises(UsageError, match="--selection lodo: Toy fixes its targets"):
        plan(open_benchmark("Toy"), selection="lodo")


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("oracle", "--selection: the oracle looks at the target and selects nothing here; .*fedhess.report RUN"),
        ("lood", r"--selection: unknown selector 'lood'; did you mean 'lodo'\?"),
    ],
)
def test_selector_that_cannot_select_a_job_is_named(toy: Benchmark, selection: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(toy, selection=selection)


# -- Splits ------------------------------------------------------------------------------------------------------------


def test_target_that_cannot_be_split_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    for split in ("every", "domainbed"):
        with pytest.raises(UsageError, match=f"--split {split}: Toy holds no examples out; leave the option out"):
            plan_job(
                open_benchmark("Toy"), strategies=["erm"], strategy_args={}, target="east", trials=1,
                overrides={"split": split}, out=Path("job"),
            )  # fmt: skip
    few = open_benchmark("Toy", options={"holdout": 0.25, "examples": 3, "classes": 3})
    with pytest.raises(UsageError, match="'north' has 3 examples, too few in each class to hold 25% out"):
        plan_job(
            few, strategies=["erm"], strategy_args={}, target="east", trials=1,
            overrides={"split": "domainbed"}, out=Path("job"),
        )  # fmt: skip
