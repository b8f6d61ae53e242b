"""Plan a job: its targets, runs, directories and devices."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhess.alignment import loading
from fedhess.base.environment import check_device, describe_environment, resolve_device
from fedhess.base.errors import UsageError
from fedhess.domains import BENCHMARKS, Benchmark, open_benchmark
from fedhess.domains.scenarios import choose_scenarios
from fedhess.jobs.directory import job_directory
from fedhess.jobs.job import Job, slug
from fedhess.jobs.plan import plan_job


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    return open_benchmark("Toy")


def plan(
    benchmark: Benchmark,
    *,
    strategies: Sequence[str] = ("erm",),
    strategy_args: Mapping[str, Any] | None = None,
    trials: int = 1,
    **overrides: Any,
) -> Job:
    return plan_job(
        benchmark,
        strategies=strategies,
        strategy_args=strategy_args or {},
        target="all",
        trials=trials,
        overrides={"rounds": 2} | overrides,
        out=Path("job"),
    )


# -- Targets -----------------------------------------------------------------------------------------------------------


def test_all_leaves_each_domain_out_in_turn() -> None:
    scenarios = choose_scenarios(open_benchmark("IconPACS"), "all")
    assert [scenario.targets for scenario in scenarios] == [("art_painting",), ("cartoon",), ("photo",), ("sketch",)]
    assert all(scenario.targets[0] not in scenario.sources and len(scenario.sources) == 3 for scenario in scenarios)


def test_chosen_targets_come_in_the_order_given_and_pairs_in_domain_order() -> None:
    scenarios = choose_scenarios(open_benchmark("IconPACS"), "sketch, photo+cartoon")
    assert [(scenario.name, scenario.sources) for scenario in scenarios] == [
        ("sketch", ("art_painting", "cartoon", "photo")),
        ("cartoon+photo", ("art_painting", "sketch")),
    ]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("scetch", r"IconPACS has no target 'scetch'; did you mean 'sketch'\?.*, or all"),
        ("sketch,scetch", "has no target 'scetch'"),
        ("sketch+scetch", "has no target 'scetch'"),
        ("sketch,all", "IconPACS has no target 'all'; all stands alone"),
        ("", "expected a target, several separated by commas, or all; got nothing"),
        ("sketch,photo,sketch", "'sketch' is given twice"),
        ("photo+sketch,sketch+photo", r"'photo\+sketch' is given twice"),
        ("sketch+sketch", r"'sketch\+sketch' names a domain twice"),
        ("photo+sketch+cartoon", "expected at least two source domains to align, left of IconPACS: art_painting"),
        ("photo+sketch+cartoon+art_painting", "left of IconPACS: none; hold out fewer at once"),
    ],
)
def test_impossible_target_is_named(target: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--target.*: .*{message}"):
        choose_scenarios(open_benchmark("IconPACS"), target)


def test_fixed_scenario_cannot_be_rearranged(toy: Benchmark) -> None:
    assert choose_scenarios(toy, "east") == toy.scenarios
    with pytest.raises(UsageError, match=r"--target: Toy has no target 'north'; .*known: east"):
        choose_scenarios(toy, "north")


# -- Runs --------------------------------------------------------------------------------------------------------------


def test_runs_are_every_strategy_and_seed(toy: Benchmark) -> None:
    job = plan(toy, strategies=["erm", "hgp"], trials=2, seed=5)
    assert [(run.strategy, run.config.seed, str(run.directory.path)) for run in job.runs] == [
        ("erm", 5, "job/erm/east/5"),
        ("erm", 6, "job/erm/east/6"),
        ("hgp", 5, "job/hgp/east/5"),
        ("hgp", 6, "job/hgp/east/6"),
    ]
    assert (job.strategies, job.seeds) == (["erm", "hgp"], [5, 6])


def test_single_strategy_has_no_directory_of_its_own(toy: Benchmark) -> None:
    assert [str(run.directory.path) for run in plan(toy).runs] == ["job/east/0"]


def test_argument_goes_to_each_strategy_that_has_it(toy: Benchmark) -> None:
    job = plan(toy, strategies=["erm", "hgp", "hutchinson"], strategy_args={"alpha": 0.5, "hutchinson.probes": 3})
    erm, hgp, hutchinson = (run.config.strategy_args for run in job.runs)
    assert "alpha" not in erm
    assert hgp["alpha"] == hutchinson["alpha"] == 0.5
    assert (hgp.get("probes"), hutchinson["probes"]) == (None, 3)


def test_description_has_the_coefficients_that_run_defaults_included(toy: Benchmark) -> None:
    job = plan(toy, strategies=["erm", "hgp", "hutchinson"], strategy_args={"hutchinson.scale": "absolute"})
    described = job.record["strategies"]
    assert described["erm"] == {}
    assert [(args["scale"], args["alpha"], args["beta"]) for args in list(described.values())[1:]] == [
        ("relative", 0.003, 0.01),
        ("absolute", 1e-3, 5e-3),
    ]


def test_recipe_gives_way_to_the_command_line(toy: Benchmark) -> None:
    config = plan(toy, lr=0.25).runs[0].config
    assert config.lr == 0.25
    assert config.server_optimizer == "Adam", "as the recipe of the toy's model, mlp, has it"


def test_benchmark_made_at_random_is_made_anew_for_each_trial(toy: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    # The toy itself is not made at random.
    monkeypatch.setattr("fedhess.jobs.plan.build_model", lambda config, **_: None)
    seeded = replace(toy, options={"seed": 4})
    job = plan(seeded, trials=2)
    assert [run.config.domains_options for run in job.runs] == [{"seed": 4}, {"seed": 5}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "--trials: expected 1 to 1000, got 0"),
        ({"trials": 10**9}, "--trials: expected 1 to 1000, got 1000000000"),
        ({"seed": 2**31 - 1, "trials": 2}, "--seed: expected less than 2147483648, got 2147483648"),
        ({"strategies": []}, "--strategy: expected a strategy, or several separated by commas; got nothing"),
        ({"strategies": ["erm", "erm"]}, "--strategy: 'erm' is given twice"),
        ({"model": "mpl"}, r"--model: unknown model 'mpl'; did you mean 'mlp'\?"),
        ({"model": "lite0-features"}, "--model lite0-features: "),
        ({"quorum": 4}, r"--quorum: expected at most 3, the number of source clients \(north, south, west\), got 4"),
        ({"device": "mps", "dtype": "float64"}, "--dtype float64: Apple's GPU has no float64"),
        ({"server_optimizer_args": {"eps": -1.0}}, "--server-optimizer-args: Adam rejects eps=-1.0"),
        (
            {"strategy_args": {"hgp.alpha": 1.0}},
            "--strategy-args: 'hgp.alpha' is for strategy 'hgp', which does not run",
        ),
    ],
)
def test_impossible_plan_is_named(toy: Benchmark, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(toy, **changes)


def test_strategies_that_would_share_a_directory_are_refused(toy: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loading.BUILT_IN, "fedhess.strategies.erm-ERM", "fedhess.strategies.erm:ERM")
    with pytest.raises(
        UsageError, match=r"strategies.erm:ERM' and 'fedhess.strategies.erm-ERM' would share the directory"
    ):
        plan(toy, strategies=["fedhess.strategies.erm:ERM", "fedhess.strategies.erm-ERM"])


def test_slug_keeps_names_apart_and_says_stand_in() -> None:
    assert slug("IconPACS (stand-in for PACS)") == "IconPACS-stand-in-for-PACS"
    assert slug("flip-0.9+grey") == "flip-0.9+grey"
    assert "/" not in slug("../a:b/c")


# -- Devices -----------------------------------------------------------------------------------------------------------


def test_auto_takes_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"


def test_auto_leaves_batches_of_small_models_to_the_cpu(toy: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert check_device("auto") == "auto"
    assert plan(toy, device="auto", batch_size=16).runs[0].config.device_here == "cpu"
    wanted = "cuda" if torch.cuda.is_available() else "mps"
    assert [resolve_device("auto", model="mlp", batch_size=size) for size in (16, 0)] == ["cpu", wanted]


def test_devices_that_are_there_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(UsageError, match=r"--device cuda:2: torch sees 2 CUDA device\(s\); use --device auto or cpu"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CPU", ""])
def test_unknown_device_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device: expected auto, cpu, cuda, cuda:N or mps, got '{name}'"):
        resolve_device(name)


def test_absent_apple_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device mps: torch sees no Apple GPU"):
        resolve_device("mps")


def test_environment_names_gpus_driver_and_cudnn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert describe_environment()["gpu"] is None
    with job_directory(tmp_path / "job", {}, resume=False):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 570.86.10\n")
    program.chmod(0o755)
    gpu = {"names": ["GPU 0", "GPU 1"], "driver": "570.86.10", "cuda": torch.version.cuda, "cudnn": 91002}
    assert describe_environment()["gpu"] == gpu
    with job_directory(tmp_path / "job", {}, resume=True) as changes:
        assert "gpu.driver: None there, '570.86.10' now" in changes
    program.write_text("#!/bin/sh\nexit 9\n")
    assert describe_environment()["gpu"] == gpu | {"driver": None}


def test_a_directory_that_is_refused_is_not_kept_locked(tmp_path: Path) -> None:
    with job_directory(tmp_path / "job", {"rounds": 1}, resume=False):
        pass
    with pytest.raises(UsageError) as refused, job_directory(tmp_path / "job", {"rounds": 2}, resume=True):
        pass
    with job_directory(tmp_path / "job", {"rounds": 1}, resume=True):
        assert refused.traceback, "the error, and all that it refers to, is still there, as in a notebook"
