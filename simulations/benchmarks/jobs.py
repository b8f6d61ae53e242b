"""Time whole jobs by the real commands, each in its own process: main job, parallel runs, previous references."""

import json
import os
import resource
import statistics
import tempfile
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhess.base.files import digest_of
from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation.client.evaluation import evaluate_model
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import local_domain
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.benchmarks.measuring import Row, in_turn, row, run_command, run_job, seconds_of

TRIALS = 3
WALL_SECONDS, PEAK_GB, POINTS = 60.0, 2.0, 3.0
HGP_OVER_ERM = 2.5  # by counting operations: docs/design.md
SIDE_BY_SIDE = 0.6
DEPLOYED_ROUNDS, DEPLOYED_TARGET = 4, "sketch"


def main_job_rows(*, repeats: int) -> list[Row]:
    """Measure the main job on IconPACS: wall time, peak memory, HGP's cost beside ERM's, accuracy beside a probe.

    The cache is empty at the start of each job, so rendering and embedding are part of it. The pair HGP and ERM is run
    at most three times.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contestants = {strategy: partial(_cold_job_seconds, folder, strategy) for strategy in ("hgp", "erm")}
        found = in_turn(contestants, min(repeats, 3))
        first = next(folder.glob("hgp-*/job"))
        accuracy = json.loads((first / "summary.json").read_text(encoding="utf-8"))["strategies"]["hgp"]["accuracy"]
        settings = json.loads((first / "config.json").read_text(encoding="utf-8"))["settings"]
    wall, erm = statistics.median(found["hgp"]), statistics.median(found["erm"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # Linux counts kilobytes
    ratio = statistics.median(h / e for h, e in zip(found["hgp"], found["erm"], strict=True))
    what, count = f"main job on IconPACS, 4 targets x {TRIALS} trials, cold cache (s)", len(found["hgp"])
    rows = [
        row(what, wall, at_most=WALL_SECONDS, count=count),
        row("its peak memory (GB)", peak, at_most=PEAK_GB),
        row("HGP against ERM, whole main job (s)", wall, erm, ratio=ratio, at_most=HGP_OVER_ERM, count=count),
    ]
    for target, cell in accuracy.items():
        probe = 100 * statistics.mean(probe_accuracy(target, seed=seed, settings=settings) for seed in range(TRIALS))
        what = f"accuracy on {target}, {TRIALS} trials, less that of a linear probe (points)"
        rows.append(row(what, cell["mean"] - probe, at_least=-POINTS))
    return rows


def _cold_job_seconds(folder: Path, strategy: str) -> float:
    out = Path(tempfile.mkdtemp(prefix=f"{strategy}-", dir=folder)) / "job"
    cold = os.environ | {"FEDHESS_CACHE": tempfile.mkdtemp(prefix="cache-", dir=folder)}
    given = ("--domains", "IconPACS", "--strategy", strategy, "--trials", TRIALS)
    return seconds_of(lambda: run_job(out, *given, environment=cold))


def parallel_rows(*, repeats: int) -> list[Row]:
    """Measure the main job of two strategies in turn, and side by side on two workers; all weights must be the same.

    The cache holds the data's features. Each form is run once, whatever ``repeats``: its 24 runs repeat one another.
    """
    del repeats
    given = ("--domains", "IconPACS", "--strategy", "erm,hgp", "--trials", TRIALS, "--threads", 1)
    forms: dict[str, tuple[object, ...]] = {"in turn": (), "two processes": ("--parallel", 2)}
    forms["Ray with two workers"] = ("--parallel", 2, "--ray-address", "local")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_job(folder / "warm-up", "--domains", "IconPACS", "--target", "sketch", "--trials", 1, "--rounds", 1)

        def seconds(form: str) -> float:
            return seconds_of(lambda: run_job(folder / form, *given, *forms[form]))

        found = {form: seconds(form) for form in forms}
        weights = {form: _weights(folder / form) for form in forms}
    rows: list[Row] = []
    for form in list(forms)[1:]:
        what = f"main job of ERM and HGP, 4 targets x {TRIALS} trials, {form} against in turn (s)"
        rows.append(row(what, found[form], found["in turn"], at_most=SIDE_BY_SIDE, count=1))
        same = sum(weights[form].get(file) == digest for file, digest in weights["in turn"].items())
        what = f"share of runs with the same weights to the bit, {form}"
        rows.append(row(what, same / len(weights["in turn"]), at_least=1.0))
    return rows


def _weights(job: Path) -> dict[str, str]:
    """Return the digest of every run's last checkpoint, by its path."""
    files = job.rglob("checkpoint/round-*.safetensors")
    return {str(file.relative_to(job)): digest_of([file.read_bytes()]) for file in files}


def probe_accuracy(target: str, *, seed: int, settings: dict[str, Any]) -> float:
    """Fit a linear probe on the frozen features of the sources and return its accuracy on the target, in [0, 1].

    The probe is multinomial logistic regression, fitted to convergence (L-BFGS) on the clients' training examples. The
    usual penalty ||W||^2 / 2 is added to the summed loss (C = 1). Its inputs are the features after the adapter's layer
    norm.
    """
    benchmark = open_benchmark("IconPACS")
    sources = tuple(domain for domain in benchmark.domains if domain != target)
    given = {"sources": sources, "targets": (target,), "seed": seed, "dtype": "float64"}
    config = RunConfig.checked(settings | given)
    parts = [local_domain(config, domain=domain, role=SOURCE) for domain in sources]
    inputs, labels = (torch.cat(column) for column in zip(*(p.batch(p.train_indices) for p in parts), strict=True))
    probe = fit_probe(inputs, labels, classes=len(benchmark.classes))
    return evaluate_model(probe, local_domain(config, domain=target, role=TARGET)).accuracy


def fit_probe(embeddings: Tensor, labels: Tensor, *, classes: int) -> HeadedModel:
    """Fit a linear layer to embeddings (N, D) in float64 and labels (N,), as `probe_accuracy` describes."""
    width = embeddings.shape[1]
    probe = HeadedModel(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, classes)).double()
    features, head = probe.features(embeddings), probe.head
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(head(features), labels, reduction="sum") + head.weight.square().sum() / 2
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return probe


def references_rows(*, repeats: int) -> list[Row]:
    """Compare ``references="previous"`` with the exact form: seconds a round deployed, and accuracy on IconPACS.

    A deployment is a SuperLink and four SuperNodes on this machine. An exchange costs the start of a process and
    Flower's polling, some seconds, whatever the link. A deployment takes minutes, so the pair is run at most twice.
    Accuracy is that of the main job, in process: every target, three trials.
    """
    forms = ("current", "previous")
    with tempfile.TemporaryDirectory() as folder:
        deployed = in_turn({form: partial(_deployed_seconds, Path(folder), form) for form in forms}, min(repeats, 2))
        given = ("--domains", "IconPACS", "--strategy", "hgp", "--trials", TRIALS)
        exact, stale = (run_job(Path(folder) / form, *given, "--references", form)["hgp"]["accuracy"] for form in forms)
    rounds = {form: list(chain.from_iterable(several)) for form, several in deployed.items()}
    seconds = {form: statistics.median(several) for form, several in rounds.items()}
    what = f"HGP with previous references, a deployed round after the first, evaluation included, {DEPLOYED_TARGET} (s)"
    rows = [row(what, seconds["previous"], seconds["current"], at_most=1.0, count=len(rounds["previous"]))]
    for target, cell in exact.items():
        spread = f"current references (%; standard error {cell['standard_error']:.2g})"
        what = f"its accuracy on {target}, {TRIALS} trials, beside that with {spread}"
        rows.append(row(what, stale[target]["mean"], cell["mean"]))
    return rows


def _deployed_seconds(folder: Path, form: str) -> list[float]:
    """Deploy a short run and return the seconds of each round after the first, evaluation included."""
    out = Path(tempfile.mkdtemp(prefix=f"deployed-{form}-", dir=folder)) / "job"
    given = ("--domains", "IconPACS", "--target", DEPLOYED_TARGET, "--rounds", DEPLOYED_ROUNDS)
    run_config = f'references="{form}" evaluate-every=1'
    run_command("fedhess.deploy", "local", *given, "--run-config", run_config, "--out", out)
    lines = (out / "results" / DEPLOYED_TARGET / "0" / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    by_round = {each["round"]: float(each["seconds"]) for each in map(json.loads, lines)}
    return [by_round[number] for number in range(2, DEPLOYED_ROUNDS + 1)]
