"""Compare the domains of finished runs in every attribute, and the strategies by the attributes they have aligned."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedhess.base.tables import standard_error
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.jobs.description import whole_protocol
from fedhess.jobs.job import Job
from fedhess.results.attributes import ATTRIBUTES, compare_domains, measure_domain
from fedhess.results.domain_views import view_domains
from fedhess.results.models import SELECTED, RunModel, find_models
from fedhess.results.paired import BASELINE

SOURCE_PAIR, MIXED_PAIR, TARGET_PAIR = "source-source", "source-target", "target-target"


def diagnose_job(
    job: Job, *, most_examples: int, notify: Callable[[str], None], which: str = SELECTED
) -> dict[str, Any]:
    """Compare the domains of every finished run.

    Returns:
        JSON: title, protocol, seeds and examples; the attributes; every run with its domains and pairs; and for every
        strategy and attribute, the mean over source-source pairs and over source-target pairs.
    """
    runs: list[dict[str, Any]] = []
    models = find_models(job, which)
    for number, model in enumerate(models, start=1):
        run = model.run
        notify(f"[{number}/{len(models)}] {run.strategy}, target {run.scenario.name}, seed {run.config.seed}")
        runs.append(diagnose_run(model, most_examples=most_examples))
    return {
        "title": job.data["title"],
        "stand_in_for": job.data["stand_in_for"],
        "protocol": whole_protocol(job, sorted({model.chosen_by for model in models})),
        "seeds": job.seeds,
        "examples": f"every domain's evaluation split, at most {most_examples} examples of it",
        "attributes": {name: {"label": a.label, "kind": a.kind} for name, a in ATTRIBUTES.items()},
        "runs": runs,
        "strategies": compare_strategies(runs),
    }


def diagnose_run(model: RunModel, *, most_examples: int) -> dict[str, Any]:
    """Compare every pair of domains under a model of one run.

    Returns:
        JSON: strategy, scenario, number of the setting, seed and round; ``"domains"`` with role, split, accuracy, loss
        and gradient norm; ``"pairs"`` with the value of every attribute, null where it is not defined.
    """
    run, views = model.run, view_domains(model, most_examples=most_examples)
    measured = {view.domain: measure_domain(view.batch) for view in views}
    domains = [
        {
            "domain": view.domain,
            "role": view.role,
            "split": view.split,
            "accuracy": view.accuracy,
            "loss": float(measured[view.domain].loss),
            "gradient_norm": float(measured[view.domain].gradient.norm()),
        }
        for view in views
    ]
    pairs = [
        {
            "domains": [a.domain, b.domain],
            "roles": [a.role, b.role],
            "pair": _pair_kind(a.role, b.role),
            "values": {
                name: value if math.isfinite(value) else None
                for name, value in compare_domains(measured[a.domain], measured[b.domain]).items()
            },
        }
        for a, b in itertools.combinations(views, 2)
    ]
    return {
        "strategy": run.strategy,
        "scenario": run.scenario.name,
        "setting": run.number,
        "seed": run.config.seed,
        "round": model.server_round,
        "domains": domains,
        "pairs": pairs,
    }


def compare_strategies(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average over pairs, then over scenarios, then over seeds: which strategy has aligned which attribute.

    Returns:
        By strategy, attribute and kind of pair: mean, standard error over seeds (null for one seed), and if ``erm``
        ran, the mean relative to that of ``erm``: the ratio for a distance, the difference for a similarity.
    """
    kinds = (SOURCE_PAIR, MIXED_PAIR)
    strategies = list(dict.fromkeys(run["strategy"] for run in runs))
    result: dict[str, Any] = {
        strategy: {name: {kind: _over_seeds(runs, strategy, name, kind) for kind in kinds} for name in ATTRIBUTES}
        for strategy in strategies
    }
    for strategy, name, kind in itertools.product(strategies, ATTRIBUTES, kinds):
        cell = result[strategy][name][kind]
        base = result[BASELINE][name][kind]["mean"] if BASELINE in result else None
        cell["relative_to_erm"] = _relative(cell["mean"], base, similarity=ATTRIBUTES[name].kind == "similarity")
    return result


def mean(values: Sequence[float | None]) -> float | None:
    """Average the values that are not None; None if there are none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _over_seeds(runs: Sequence[Mapping[str, Any]], strategy: str, name: str, kind: str) -> dict[str, float | None]:
    by_seed: dict[int, list[float | None]] = {}
    for run in runs:
        if run["strategy"] == strategy:
            found = mean([pair["values"][name] for pair in run["pairs"] if pair["pair"] == kind])
            by_seed.setdefault(run["seed"], []).append(found)
    values = [value for value in map(mean, by_seed.values()) if value is not None]
    return {"mean": mean(values), "standard_error": standard_error(values)}


def _relative(value: float | None, base: float | None, *, similarity: bool) -> float | None:
    if value is None or base is None:
        return None
    if similarity:
        return value - base
    return value / base if base > 0 else None


def _pair_kind(role_a: str, role_b: str) -> str:
    roles = {role_a, role_b}
    return MIXED_PAIR if roles == {SOURCE, TARGET} else SOURCE_PAIR if roles == {SOURCE} else TARGET_PAIR
