"""The settings of a run: checked once, the same after the journey through Flower's flat run config."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_config

from fedhess.base.errors import UsageError
from fedhess.models import MODELS
from fedhess.settings.assignments import parse_assignments, parse_scalar
from fedhess.settings.defaults import (
    BENCHMARK_STRATEGY_ARGS,
    SETTINGS,
    default_settings,
    default_strategy_args,
    describe_default,
)
from fedhess.settings.optimizers import UNUSABLE, check_optimizer, optimizer_name
from fedhess.settings.run_config import RunConfig


def test_run_config_survives_the_wire() -> None:
    config = toy_config(
        strategy_args={"alpha": 0.5, "form": "mean_of_hgp"}, domains_options={"holdout": 0.25}, stand_in_for="PACS"
    )
    wire = config.to_run_config()
    assert all(isinstance(value, str | int | float | bool) for value in wire.values())
    assert all("_" not in key for key in wire)
    assert RunConfig.checked(RunConfig.given_in(wire | {"someone-elses": 3})) == config


def test_run_config_names_what_is_no_json() -> None:
    wire = toy_config().to_run_config()
    with pytest.raises(UsageError, match=r"run config, strategy-args: expected JSON, got '{alpha'"):
        RunConfig.checked(RunConfig.given_in(wire | {"strategy-args": "{alpha"}))
    with pytest.raises(UsageError, match="run config, strategy-args: expected key=value"):
        RunConfig.checked(RunConfig.given_in(wire | {"strategy-args": "alpha"}))


def test_run_config_may_be_written_by_hand_and_empty_text_is_the_default() -> None:
    wire = toy_config(rounds=7).to_run_config()
    by_hand = {"sources": "north, south,west", "targets": "east", "strategy-args": "alpha=1,form=x", "rounds": ""}
    read = RunConfig.checked(RunConfig.given_in(wire | by_hand))
    assert (read.sources, read.targets) == (("north", "south", "west"), ("east",))
    assert (read.strategy_args, read.rounds) == ({"alpha": 1, "form": "x"}, RunConfig.model_fields["rounds"].default)


def test_every_complaint_is_made_at_once_each_on_a_line() -> None:
    with pytest.raises(UsageError) as caught:
        toy_config(rounds=0, lr=-1.0, dtype="half", batch_size=2.5, quorum="all", weight_decay="much")
    assert sorted(str(caught.value).splitlines()) == [
        "--batch-size: expected a whole number, got 2.5",
        "--dtype: expected 'float32' or 'float64', got 'half'",
        "--lr: expected more than 0, got -1.0",
        "--quorum: expected a whole number, got 'all'",
        "--rounds: expected at least 1, got 0",
        "--weight-decay: expected a number, got 'much'",
    ]


def test_unknown_and_missing_settings_are_named() -> None:
    with pytest.raises(UsageError, match=r"--round: there is no such setting; did you mean 'rounds'\?"):
        toy_config(round=1)
    with pytest.raises(UsageError, match="--sources: it must be given"):
        RunConfig.checked({"domains": "Toy", "targets": ("east",), "model": "mlp"})


def test_evaluation_happens_first_last_and_every_few_rounds() -> None:
    config = toy_config(rounds=7, evaluate_every=3)
    assert [number for number in range(8) if config.is_evaluated(number)] == [0, 3, 6, 7]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1e-3", 0.001),
        ("TRUE", True),
        ("false", False),
        ("mean", "mean"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("9" * 400, "9" * 400),
        (str(2**63), float(2**63)),
    ],
)
def test_scalar_is_read_as_the_narrowest_type(text: str, value: object) -> None:
    read = parse_scalar(text)
    assert (read, type(read)) == (value, type(value))


@given(st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), st.integers(-(2**40), 2**40), max_size=5))
def test_assignments_read_back_what_was_written(values: dict[str, int]) -> None:
    text = ", ".join(f"{key} = {value}" for key, value in values.items())
    assert parse_assignments(text, option="--x") == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha", r"--x: expected key=value\[,key=value...\], got 'alpha'"),
        ("=1", "got '=1'"),
        ("alpha=", "got 'alpha='"),
        ("a-b=1,a_b=2", "--x: 'a_b' is given twice; give it once"),
    ],
)
def test_what_is_no_assignment_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_assignments(text, option="--x")


# -- Server optimizers -------------------------------------------------------------------------------------------------


def test_optimizer_is_found_whatever_its_case() -> None:
    assert [optimizer_name(name) for name in ("adam", "SGD", "rmsPROP")] == ["Adam", "SGD", "RMSprop"]


@pytest.mark.parametrize("name", [*UNUSABLE, "Optimizer", "lr_scheduler", "nothing"])
def test_what_cannot_be_a_server_optimizer_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected a class of torch.optim, got '{name}'"):
        optimizer_name(name)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"epsilon": 1.0}, r"Adam has no argument 'epsilon' that text can give; did you mean 'eps'\?"),
        ({"betas": 0.9}, "Adam has no argument 'betas' that text can give"),
        ({"lr": 1.0}, "the learning rate has an option of its own, --server-lr"),
        ({"eps": "tiny"}, "eps of Adam: expected a finite number, got 'tiny'"),
        ({"eps": True}, "eps of Adam: expected a finite number, got True"),
        ({"amsgrad": 1}, "amsgrad of Adam: expected true or false, got 1"),
        ({"eps": -1.0}, "Adam rejects eps=-1.0: Invalid epsilon value"),
    ],
)
def test_optimizer_argument_is_checked_before_training(args: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=f"--server-optimizer-args: {message}"):
        check_optimizer("Adam", lr=0.1, args=args)


def test_good_optimizer_arguments_pass() -> None:
    check_optimizer("Adam", lr=0.1, args={"eps": 1e-3, "amsgrad": True, "weight_decay": 1})
    check_optimizer("SGD", lr=1.0, args={"momentum": 0.9, "nesterov": True})


# -- Recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", SETTINGS)
def test_recipe_is_a_valid_configuration(model: str) -> None:
    recipe = default_settings(model)
    config = RunConfig.checked({"domains": "Toy", "sources": ("a", "b"), "targets": ("c",), "model": model} | recipe)
    assert {key: getattr(config, key) for key in recipe} == recipe


def test_images_that_a_network_is_tuned_on_are_augmented_and_others_are_not() -> None:
    augmented = {model for model in MODELS if default_settings(model).get("augment", "none") == "domainbed"}
    assert augmented == {"resnet18", "resnet50", "lite0", "lite1", "lite2"}
    assert default_settings("mlp", benchmark="RotatedMNIST").get("augment", "none") == "none"


def test_recipe_is_a_copy() -> None:
    default_settings("mlp")["rounds"] = 0
    default_strategy_args("hgp", model="mlp", benchmark="ColoredMNIST")["alpha"] = 0
    assert SETTINGS["mlp"]["rounds"] == 501
    assert BENCHMARK_STRATEGY_ARGS["ColoredMNIST"]["mlp"]["hgp"]["alpha"] == 2.0


def test_default_is_described_by_model() -> None:
    assert describe_default("rounds", otherwise=50) == "40; 501 with mlp; 5000 with mnist-cnn"
    assert describe_default("deadline", otherwise=3600.0) == "3600"


def test_float64_is_torch_float64() -> None:
    assert toy_config(dtype="float64").torch_dtype is torch.float64
    assert toy_config(dtype="float32").torch_dtype is torch.float32
