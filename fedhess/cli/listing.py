"""What ``--list`` prints: benchmarks, strategies with their arguments, models with their settings."""

from collections.abc import Mapping

from fedhess.alignment.loading import find_method, known_strategies
from fedhess.base.loading import installed
from fedhess.domains import BENCHMARKS, ENTRY_POINT_GROUP
from fedhess.models import known_models
from fedhess.settings.defaults import BENCHMARK_SETTINGS, BENCHMARK_STRATEGY_ARGS, STRATEGY_ARGS, default_settings


def list_everything() -> str:
    """Return the names that the command takes, and the defaults that go with them."""
    by_model = {
        **STRATEGY_ARGS,
        **{
            f"{benchmark} {model}": strategies
            for benchmark, models in BENCHMARK_STRATEGY_ARGS.items()
            for model, strategies in models.items()
        },
    }
    sections = {
        "benchmarks (--domains)": dict.fromkeys(BENCHMARKS, "") | installed(ENTRY_POINT_GROUP),
        "strategies (--strategy), their arguments (--strategy-args)": {
            name: _parameters(name) for name in known_strategies()
        },
        "models (--model), their settings": {
            name: _assigned(default_settings(name)) for name in [*known_models(), "timm:NAME", "package.module:Class"]
        },
        "settings of a model that a benchmark replaces": {
            f"{benchmark} {model}": _assigned(settings)
            for benchmark, models in BENCHMARK_SETTINGS.items()
            for model, settings in models.items()
        },
        "arguments of strategies that a model, or a benchmark with it, sets": {
            f"{of} {name}": _assigned(args) for of, strategies in by_model.items() for name, args in strategies.items()
        },
    }
    lines: list[str] = []
    for title, entries in sections.items():
        width = max(map(len, entries))
        lines += ["", title, *(f"  {name.ljust(width)}  {text}".rstrip() for name, text in entries.items())]
    return "\n".join(lines[1:])


def _parameters(name: str) -> str:
    return ", ".join(
        key if parameter.default is parameter.empty else f"{key}={parameter.default}"
        for key, parameter in find_method(name).parameters.items()
    )


def _assigned(values: Mapping[str, object]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )
