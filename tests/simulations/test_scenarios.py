"""The scenarios as commands, on few images, and their settings against the public scripts."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from fedhess.alignment.loading import BUILT_IN, load_strategy
from fedhess.alignment.means import PerDomain
from fedhess.alignment.statistics import compute_statistic
from fedhess.alignment.step import Step, run_forward
from fedhess.base.errors import UsageError
from fedhess.curvature import HeadBatch
from fedhess.domains import open_benchmark
from fedhess.federation.client import memory
from fedhess.jobs.plan import plan_job
from fedhess.models import create_model
from fedhess.settings.defaults import default_strategy_args
from fedhess.simulations import correlation_shift, diversity_shift, label_shift
from fedhess.simulations.scenarios.measurement import Configuration
from fedhess.simulations.scenarios.running import shorten

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHT, L2 = 91257.18613115903, 1.10794568e-3
Run = Callable[..., str]


@pytest.fixture(scope="module")
def mnist_root() -> Path:
    if not (REPOSITORY / ".data" / "MNIST" / "raw").exists():
        pytest.skip("the MNIST files are not in place: python tools/fetch_mnist.py .data")
    return REPOSITORY / ".data"


def test_quick_runs_shorten_the_annealing_that_a_strategy_has_by_default() -> None:
    given = Configuration("ColoredMNIST", "fishr", 0, options={"form": "domainbed"}, overrides={})
    assert load_strategy("fishr", {}).schedule.anneal_steps == 1500  # type: ignore[union-attr]
    assert shorten(given, rounds=4, annealed=2).strategy_args == {"anneal_steps": 2}
    assert shorten(replace(given, strategy="vrex"), rounds=4, annealed=2).strategy_args == {"anneal_steps": 2}
    assert shorten(replace(given, strategy="coral"), rounds=4, annealed=2).strategy_args == {}
    assert shorten(replace(given, strategy="fishr+sagm"), rounds=4, annealed=2).strategy_args == {
        "fishr_anneal_steps": 2
    }


@pytest.fixture
def run(mnist_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a scenario's command in an empty directory and return what it printed."""
    monkeypatch.setenv("FEDHESS_DATA", str(mnist_root))
    monkeypatch.setattr(correlation_shift, "QUICK_ROUNDS", 4)
    monkeypatch.chdir(tmp_path)
    memory.MEMORY.clear()

    def command(scenario: Any, *arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(scenario.cli, arguments)
        if isinstance(result.exception, UsageError):
            raise result.exception
        assert result.exit_code == status, (result.output, result.exception)
        return result.output

    return command


# -- Settings ----------------------------------------------------------------------------------------------------------


def test_correlation_shift_has_the_settings_of_the_scripts(mnist_root: Path) -> None:
    jobs = correlation_shift.configurations()
    assert len(jobs) == 24
    assert [job.seed for job in jobs] == [0] * 12 + [1] * 12
    benchmark = open_benchmark("ColoredMNIST", data_dir=mnist_root, options={"per_domain": 10})
    job = plan_job(
        benchmark, strategies=correlation_shift.STRATEGIES[:6], strategy_args={}, target="all", trials=1, overrides={},
        out=Path("unused"),
    )  # fmt: skip
    assert all(not each.strategy_args and not each.overrides for each in jobs[:6])
    for planned in job.runs:
        config = planned.config
        assert (config.rounds, config.local_steps, config.batch_size, config.lr) == (501, 1, 0, 1.0)
        assert (config.server_optimizer, config.server_lr, config.l2) == ("Adam", 4.898536566546834e-4, L2)
        if config.strategy != "erm":
            args = config.strategy_args
            assert (args["weight"], args["anneal_steps"], args["annealing"]) == (WEIGHT, 190, "rescale")


def script_penalty(name: str, losses: list[Tensor], logits: list[Tensor], labels: list[Tensor], features: list[Tensor]):
    """The penalties of the public ColoredMNIST scripts, from their definitions."""
    if name == "vrex":
        return (losses[0] - losses[1]) ** 2
    if name == "irm":
        found = []
        for a, y in zip(logits, labels, strict=True):
            scale = torch.ones((), dtype=a.dtype, requires_grad=True)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(a * scale, y)
            found.append(torch.autograd.grad(loss, scale, create_graph=True)[0] ** 2)
        return torch.stack(found).mean()
    variances = []
    for z, a, y in zip(features, logits, labels, strict=True):
        residual = a.sigmoid() - y
        each = torch.cat([residual * z, residual], dim=1)  # gradients of the head, example by example
        variances.append((each - each.mean(0)).square().mean(0))
    mean = (variances[0] + variances[1]) / 2
    return sum((v - mean).square().sum() for v in variances)


@pytest.mark.parametrize("index", [0, 190])
@pytest.mark.parametrize("name", ["irm", "vrex", "fishr"])
def test_recipe_makes_the_objective_of_the_script(name: str, index: int) -> None:
    model = create_model("mlp", input_shape=(2, 14, 14), outputs=1, seed=3).double()
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(count, 2, 14, 14, generator=generator, dtype=torch.float64) * 3 for count in (20, 30)]
    labels = [torch.randint(2, (len(each),), generator=generator) for each in inputs]
    targets = [each.double().unsqueeze(1) for each in labels]
    # The script: mean loss, L2, weighted penalty, all divided by the weight.
    features = [model.features(each) for each in inputs]
    logits = [model.head(each) for each in features]
    losses = [torch.nn.functional.binary_cross_entropy_with_logits(a, y) for a, y in zip(logits, targets, strict=True)]
    weight = WEIGHT if index == 190 else 1.0
    squares = sum(parameter.square().sum() for parameter in model.parameters())
    penalty = script_penalty(name, losses, logits, targets, features)
    whole = ((losses[0] + losses[1]) / 2 + L2 * squares + weight * penalty) / weight
    expected = torch.autograd.grad(whole, list(model.parameters()))

    # The federation: the mean of the clients' gradients.
    strategy = load_strategy(name, default_strategy_args(name, model="mlp", benchmark="ColoredMNIST"))
    forwards = [run_forward(model, x, y) for x, y in zip(inputs, labels, strict=True)]

    def ask(asked: str) -> PerDomain:
        assert all(isinstance(each.batch, HeadBatch) for each in forwards)
        values = [compute_statistic(strategy.statistics[asked], each.batch).detach() for each in forwards]
        return PerDomain(dict(zip("ab", values, strict=True)), {"a": 1, "b": 1}, {"a": 1, "b": 1})

    reference = strategy.reference(ask)
    gradients = []
    for domain, forward in zip("ab", forwards, strict=True):
        own = {key: value if isinstance(value, Tensor) else value[domain] for key, value in reference.items()}
        step = Step(model, forward, {}, index, index + 1, L2)
        gradients.append(torch.autograd.grad(strategy.objective(step, own), list(model.parameters())))
    for one, other, wanted in zip(*gradients, expected, strict=True):
        torch.testing.assert_close((one + other) / 2, wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("strategy", ["vrex", "fishr"])
def test_factor_of_a_penalty_is_positive(strategy: str) -> None:
    with pytest.raises(UsageError, match=r"expected coefficient > 0, got 0\.0; weight=0 switches the penalty off"):
        load_strategy(strategy, {"coefficient": 0})


def test_label_shift_changes_the_data_alone() -> None:
    jobs, balanced = label_shift.configurations(per_domain=7), correlation_shift.configurations(per_domain=7)
    for job, other in zip(jobs, balanced, strict=True):
        assert job.options == {"per_domain": 7, "label_shift": True}
        assert (job.strategy, job.seed, job.overrides) == (other.strategy, other.seed, other.overrides)


def test_diversity_shift_takes_two_benchmarks_all_methods_three_trials() -> None:
    jobs = diversity_shift.configurations(per_domain=9)
    assert {job.strategy for job in jobs} == BUILT_IN.keys() - {"mixstyle", "mixup"}
    assert len(jobs) == 2 * len(diversity_shift.STRATEGIES) * 3
    assert {job.benchmark: dict(job.options) for job in jobs} == {"IconPACS": {}, "RotatedMNIST": {"per_domain": 9}}


def test_many_clients_have_each_lambda() -> None:
    jobs = diversity_shift.configurations(domains=["EmojiStyles"], strategies=["erm", "hgp"], seeds=[0], clients=30)
    shares = [{"partition": "lambda", "clients": 30, "heterogeneity": each} for each in (1.0, 0.1, 0.0)]
    assert [(job.strategy, job.overrides) for job in jobs] == [
        (name, each) for name in ("erm", "hgp") for each in shares
    ]


# -- Commands ----------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found


def test_quick_results_merge_are_marked_and_lie_elsewhere(run: Run, mnist_root: Path) -> None:
    few = ("--quick", "--per-domain", "60")
    run(correlation_shift, *few, "--strategy", "erm,irm", "--seeds", "0")
    out = run(correlation_shift, *few, "--strategy", "erm", "--seeds", "0,1")
    record = read("runs/quick/correlation_shift.json")
    assert record["quick"] is True
    assert [(row["strategy"], row["seed"]) for row in record["rows"]] == [("erm", 0), ("irm", 0), ("erm", 1)]
    for row in record["rows"]:
        assert row["per_domain"] == 60
        assert row["environment"]["git_revision"]
        assert set(row["accuracy"]) == {"sources", "flip-0.9", "grey"}
        assert row["settings"]["rounds"] == 4
        annealed = {"strategy_args": {"anneal_steps": 15}} if row["strategy"] == "irm" else {}
        assert row["given"] == {"options": {"per_domain": 60}, "overrides": {"rounds": 4}, **annealed}
    assert read("runs/quick/correlation_shift.json")["rows"][1]["settings"]["strategy_args"]["anneal_steps"] == 15
    text = Path("runs/quick/correlation_shift.md").read_text(encoding="utf-8")
    assert text.strip() in out
    assert "QUICK" in text
    assert "| 65.6 (sd 1.8) |" in text
    assert "[1] Fishr's README" in text
    assert "cannot be held against them" in text
    assert str(mnist_root) not in Path("runs/quick/correlation_shift.json").read_text(encoding="utf-8")
    assert Path("runs/quick/correlation_shift.png").exists()


def test_interrupted_jobs_are_continued_from_their_folder(run: Run) -> None:
    few = ("--quick", "--per-domain", "60", "--strategy", "erm", "--seeds", "0", "--runs", "kept")
    run(correlation_shift, *few)
    first = read("runs/quick/correlation_shift.json")["rows"][0]
    (rounds,) = Path("kept").rglob("rounds.jsonl")
    seconds = {each["round"]: each["seconds"] for each in map(json.loads, rounds.read_text("utf-8").splitlines())}
    assert first["seconds"] == pytest.approx(sum(seconds.values()), abs=0.05)
    before = rounds.stat().st_mtime_ns
    run(correlation_shift, *few)
    assert rounds.stat().st_mtime_ns == before
    again = read("runs/quick/correlation_shift.json")["rows"][0]
    assert (again["accuracy"], again["seconds"]) == (first["accuracy"], first["seconds"])


def test_label_shift_prints_the_classes_of_every_client(run: Run) -> None:
    out = run(label_shift, "--quick", "--per-domain", "60", "--strategy", "erm", "--seeds", "0")
    counts = read("runs/quick/label_shift.json")["rows"][0]["counts"]
    assert set(counts) == {"flip-0.2", "flip-0.1", "flip-0.9", "grey"}
    for domain, classes in counts.items():
        high, low = classes["5 to 9"], classes["0 to 4"]
        assert high + low == 60
        line = f"{domain}: 5 to 9 {high} ({100 * high / 60:.1f} %), 0 to 4 {low} ({100 * low / 60:.1f} %)"
        assert out.count(line) == 2, "before training and in the results"
    assert counts["flip-0.2"]["0 to 4"] > 30 > counts["flip-0.1"]["0 to 4"]
    assert "not verified" in out


def test_diversity_shift_leaves_every_angle_out(run: Run) -> None:
    few = ("--quick", "--per-domain", "60", "--strategy", "erm", "--domains", "rotatedmnist")
    out = run(diversity_shift, *few)
    (row,) = read("runs/quick/diversity_shift.json")["rows"]
    assert list(row["accuracy"]) == ["sources", "0", "15", "30", "45", "60", "75"]
    assert row["average"] == pytest.approx(sum(list(row["accuracy"].values())[1:]) / 6)
    assert "| 98.0 |" in out
    assert "QUICK" in out


@pytest.mark.slow
def test_tables_are_split_by_partition(run: Run) -> None:
    few = ("--quick", "--domains", "RotatedMNIST", "--per-domain", "60", "--strategy", "erm", "--clients", "7")
    out = run(diversity_shift, *few)
    shares = [row["given"]["overrides"]["heterogeneity"] for row in read("runs/quick/diversity_shift-7.json")["rows"]]
    assert shares == [1.0, 0.1, 0.0]
    for share in ("1", "0.1", "0"):
        assert (
            f"## RotatedMNIST, the first 60 examples of each domain, 7 clients, heterogeneity lambda {share}\n" in out
        )
    assert "`python -m fedhess.simulations.diversity_shift --clients 7 --quick`" in out


def test_job_that_stops_is_recorded_and_the_command_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation_shift, "FISH", correlation_shift.FISH | {"lr": 1e30})
    few = ("--quick", "--per-domain", "60", "--strategy", "fish,erm", "--seeds", "0")
    out = run(correlation_shift, *few, status=1)
    stopped, erm = read("runs/quick/correlation_shift.json")["rows"]
    assert "sent values that are not finite" in stopped["stopped"]
    assert erm["accuracy"]["sources"] > 0
    assert "- fish, seed 0: stopped: " in out
    assert "| fish | none | n/a |" in out


@pytest.mark.parametrize(
    ("scenario", "arguments", "message"),
    [
        (correlation_shift, ["--strategy", "imr"], "--strategy: unknown strategy 'imr'; did you mean 'irm'"),
        (correlation_shift, ["--strategy", ","], "--strategy: expected all or some of erm, .+, got nothing"),
        (label_shift, ["--seeds", "0,x"], "--seeds: expected whole numbers separated by commas, as in 0,1, got '0,x'"),
        (diversity_shift, ["--domains", "ColoredMNIST"], "--domains: 'ColoredMNIST' is none of this command's"),
        (diversity_shift, ["--target", "photo"], "--target goes with --preset; without one every domain is left out"),
        (diversity_shift, ["--preset", "ga", "--clients", "9"], "--clients does not go with --preset"),
        (diversity_shift, ["--preset", "ga", "--per-domain", "9"], "--per-domain does not go with --preset"),
        (diversity_shift, ["--heterogeneity", "0"], "--heterogeneity goes with --clients"),
        (diversity_shift, ["--clients", "9", "--heterogeneity", "x"], "--heterogeneity: expected numbers"),
    ],
)
def test_mistake_is_named(run: Run, scenario: Any, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(scenario, *arguments)
