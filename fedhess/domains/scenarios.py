"""Turn ``--target`` into scenarios: which domains are learned from and which are only evaluated."""

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.domains import Benchmark, Scenario


def choose_scenarios(benchmark: Benchmark, target: str) -> tuple[Scenario, ...]:
    """Turn ``"all"``, or targets separated by commas, each a domain or several joined by ``+``, into scenarios."""
    if target.strip() == "all":
        return benchmark.scenarios
    chosen = [_scenario(benchmark, part.strip()) for part in target.split(",") if part.strip()]
    if not chosen:
        raise UsageError("--target: expected a target, several separated by commas, or all; got nothing")
    for scenario in chosen:
        if chosen.count(scenario) > 1:
            raise UsageError(f"--target: {scenario.name!r} is given twice; name each target once")
        if len(scenario.sources) < 2:
            left = ", ".join(scenario.sources) or "none"
            raise UsageError(
                f"--target {scenario.name}: expected at least two source domains to align, left of {benchmark.title}: "
                f"{left}; hold out fewer at once"
            )
    return tuple(chosen)


def _scenario(benchmark: Benchmark, name: str) -> Scenario:
    """Make the scenario that holds out ``name``, a domain or several joined by ``+``."""
    fixed = {scenario.name: scenario for scenario in benchmark.scenarios}
    if name in fixed:
        return fixed[name]
    parts = [part.strip() for part in name.split("+")]
    free = set(benchmark.domains) == set(fixed)  # else the benchmark fixes which domains may be targets
    unknown = next((part for part in parts if part not in benchmark.domains), None if free else name)
    if unknown is not None:
        advice = f"{did_you_mean(unknown, fixed)}, or all" if "all" not in parts else "all stands alone"
        raise UsageError(f"--target: {benchmark.title} has no target {unknown!r}; {advice}")
    if len(set(parts)) < len(parts):
        raise UsageError(f"--target: {name!r} names a domain twice; name each once")
    targets = tuple(domain for domain in benchmark.domains if domain in parts)
    sources = tuple(domain for domain in benchmark.domains if domain not in parts)
    return Scenario(sources=sources, targets=targets, name="+".join(targets))
