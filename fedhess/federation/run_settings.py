"""The settings of a run on the server or on a node: the values of the run config, then the defaults by model."""

from collections.abc import Mapping

from fedhess.alignment.server_step import require_server
from fedhess.domains import find_benchmark, open_benchmark
from fedhess.settings.assignments import Scalar
from fedhess.settings.defaults import default_settings, default_strategy_args
from fedhess.settings.run_config import RunConfig

# Settings that a node's own configuration decides, whatever the run config sets.
OF_THE_NODE = {"data-dir": "data_dir", "device": "device", "threads": "threads"}


def settings_of_run(run_config: Mapping[str, Scalar], node_config: Mapping[str, Scalar] | None = None) -> RunConfig:
    """Read a run config; an empty text stands for the default.

    The defaults are those of the commands: by benchmark and model, and for ``strategy-args`` also by strategy.
    ``strategy-args`` written as ``key=value,...`` override these defaults; a JSON object, as in a resolved run,
    replaces them. The device ``auto`` is resolved where clients run. A node's own configuration takes precedence. The
    server has none, and refuses settings of its optimizer together with a plain Flower strategy.

    Raises:
        UsageError: A value is missing, out of range, of the wrong type, or without effect.

    >>> run_config = {"domains": "IconPACS", "sources": "photo,cartoon", "targets": "sketch", "rounds": 3}
    >>> settings = settings_of_run(run_config | {"model": "lite0-features", "strategy": "hgp", "strategy-args": ""})
    >>> settings.rounds, settings.lr, settings.strategy_args
    (3, 0.03, {})
    """
    given = RunConfig.given_in(run_config)
    for wire_key, key in OF_THE_NODE.items():
        if node_config and wire_key in node_config:
            given[key] = node_config[wire_key]
    if node_config and "data-dir" in node_config:  # replaces the run's folder, which may be in the benchmark's name
        options = {key: value for key, value in _dictionary(given, "domains_options").items() if key != "data_dir"}
        names_folder = find_benchmark(str(given.get("domains", "")))[0] in ("folder:PATH", "hf:NAME")
        given["domains_options"] = options | ({"data_dir": str(given["data_dir"])} if names_folder else {})
    recipe, model = _recipe(given), str(given.get("model", ""))
    strategy = str(given.get("strategy", RunConfig.model_fields["strategy"].default))
    if not str(run_config.get("strategy-args", "")).lstrip().startswith("{"):
        if node_config is None:
            require_server([strategy], given)
        args = _dictionary(given, "strategy_args")
        given["strategy_args"] = default_strategy_args(strategy, model=model, benchmark=recipe) | args
    config = RunConfig.checked(default_settings(model, benchmark=recipe) | given)
    if node_config is None or config.device != "auto":
        return config
    return config.model_copy(update={"device": config.device_here})


def _recipe(given: Mapping[str, object]) -> str:
    """Return the name of the benchmark, or of its form, that the defaults depend on; no data is read."""
    benchmark = open_benchmark(str(given.get("domains", "")), options=_dictionary(given, "domains_options"), held=())
    return benchmark.recipe or benchmark.name


def _dictionary(given: Mapping[str, object], key: str) -> dict[str, Scalar]:
    value = given.get(key, {})
    assert isinstance(value, dict), f"RunConfig.given_in gives {key} as a dictionary"
    return value
