"""What a scenario's table says below its protocol: arguments, settings and servers of single strategies."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedhess.domains import BENCHMARKS, open_benchmark
from fedhess.jobs.description import whole_protocol
from fedhess.jobs.plan import plan_job
from fedhess.results.published import Published
from fedhess.simulations import correlation_shift, diversity_shift, label_shift
from fedhess.simulations.scenarios.comparison import Comparison, own_particulars, render, shared_protocol
from fedhess.simulations.scenarios.records import Row, lines_of

COMPARISON = Comparison(name="toy", title="Toy", published={})


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")


def row(
    strategy: str,
    args: Mapping[str, Any] | None = None,
    *,
    rule: str = "last round",
    variants: tuple[Mapping[str, Any], ...] = (),
    **overrides: Any,
) -> Row:
    """Make a row as `measurement.measure` does, of a job that was planned and not run."""
    job = plan_job(
        open_benchmark("Toy", options={"holdout": 0.25, "free": True}), strategies=[strategy], strategy_args=args or {},
        target="east", trials=1, overrides={"model": "mlp", **overrides}, out=Path("job"), variants=variants,
    )  # fmt: skip
    config = job.runs[0].config
    several = {"variants": len(variants)} if variants else {}
    return {
        "benchmark": "Toy", "strategy": strategy, "seed": 0, "per_domain": 0, "options": {}, "device": "cpu",
        "digest": "",
        "settings": {**job.record["settings"], "strategy_args": dict(config.strategy_args), **several},
        "accuracy": {"sources": 70.0, "east": 60.0}, "average": None, "protocol": whole_protocol(job, [rule]),
        "environment": {"platform": "Linux", "cpu_count": 2, "git_revision": "0", "versions": {"torch": 2, "flwr": 1}},
    }  # fmt: skip


def test_what_strategies_share_is_said_once_and_the_rest_is_attributed() -> None:
    rows = [
        row("erm"), row("coral"), row("irm", {"weight": 0.1, "anneal_steps": 0}), row("fediir", lr=0.1, momentum=0.9),
        row("fedadam", {"eta": 0.05}),
    ]  # fmt: skip
    text = render(COMPARISON, {"quick": False, "rows": rows})
    above, below = text.split("|\n\n", maxsplit=1)
    shared = [line for line in above.splitlines() if "source domains" in line]
    assert shared == [rows[0]["protocol"].replace(", seeds 0", "")]
    assert shared[0].endswith("client lr 1, server Adam lr 0.0004899, selection by last round")
    coral, irm, fediir, fedadam, others = below.splitlines()[:5]
    assert coral == "- coral: gamma=1.0"
    assert irm.startswith("- irm: weight=0.1, anneal_steps=0, ")
    assert fediir == "- fediir: gamma=0.001, ema=0.95; lr=0.1 instead of 1; momentum=0.9 instead of 0"
    assert ", eta=0.05, " in fedadam
    assert fedadam.endswith("; server FedAdam of Flower, by examples")
    assert others == "- others: their own defaults"


def test_what_stands_behind_a_mean_is_its_standard_error_and_a_published_deviation_is_called_one() -> None:
    rows = [
        row("irm") | {"seed": seed, "accuracy": {"sources": 70.0, "east": each}} for seed, each in enumerate((60, 70))
    ]
    published = {"Toy": {"irm": {"east": Published(65.6, 1.8, "a paper")}}}
    text = render(replace(COMPARISON, published=published), {"quick": False, "rows": rows})
    assert "mean +- standard error over seeds; sd: a published standard deviation over restarts" in text
    assert "| 65.0 +- 5.0 | 65.6 (sd 1.8) | [1] |" in text, "deviation 7.07, by the root of two seeds"
    assert "+- 0.0" in text


def test_differences_to_erm_are_paired_by_seed() -> None:
    reached = {"erm": (60.0, 70.0, 80.0), "hgp": (61.0, 73.0, 85.0)}
    rows = [
        row(name) | {"seed": seed, "accuracy": {"sources": 70.0, "east": each}}
        for name, values in reached.items()
        for seed, each in enumerate(values)
    ]
    text = render(COMPARISON, {"quick": False, "rows": rows})
    assert "| strategy | seeds | sources | east | to erm |" in text
    assert "| 73.0 +- 6.9 | +3.0 [-2.0, +8.0] |" in text
    assert "| 70.0 +- 5.8 |  |" in text, "erm has none to itself"
    assert "95 % confidence interval (Student's t over 3 seeds" in text
    averaged = [
        each | {"average": each["accuracy"]["east"] - 1, "accuracy": {**each["accuracy"], "west": 0.0}} for each in rows
    ]
    assert "| average | to erm |" in render(COMPARISON, {"quick": False, "rows": averaged})


def test_a_rule_of_ones_own_and_varied_settings_are_said() -> None:
    varied = row("hgp", {"beta": 0.5}, variants=({"lr": 0.5, "alpha": 0.1}, {"lr": 0.25, "alpha": 0.2}))
    lines = lines_of([row("erm"), row("coral"), row("vrex", rule="oracle"), varied])
    assert shared_protocol(lines).endswith(", selection by last round")
    told = dict(text.split(": ", maxsplit=1) for text in own_particulars(lines))
    assert told["vrex"].endswith("; selection by oracle")
    head = varied["protocol"].partition(", seeds")[0]
    assert "client lr varied" in head
    assert told["hgp"].startswith("beta=0.5, scale=relative, ")
    assert told["hgp"].endswith(f"; {head}; selection among 2 settings by last round")


def test_strategies_that_stopped_show_their_arguments() -> None:
    stopped = row("irm", {"weight": 0.1}) | {"stopped": "diverged"}
    text = render(COMPARISON, {"quick": False, "rows": [stopped]})
    assert "- irm: weight=0.1, " in text
    assert "\n- irm, seed 0: stopped: diverged" in text
    assert own_particulars(lines_of([row("erm")])) == ["every strategy: its own defaults"]


def test_older_rows_without_a_setting_have_its_default() -> None:
    older = row("erm")
    older["settings"] = {key: value for key, value in older["settings"].items() if key != "augment"}
    assert not any("augment" in text for text in own_particulars(lines_of([older, row("hgp", augment="none")])))


@pytest.mark.parametrize("scenario", [correlation_shift, diversity_shift, label_shift])
def test_committed_tables_are_those_of_the_committed_rows(scenario: Any) -> None:
    path = Path(scenario.__file__).parent / "results" / f"{scenario.COMPARISON.file}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == render(scenario.COMPARISON, record) + "\n"
    assert not any("server SGD" in each["protocol"] for each in record["rows"] if each["strategy"] == "fedadam")
