"""The run config of a deployed run, as Flower's command line takes it, and the nodes that it needs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhess.alignment.loading import client_half, is_installed, load_strategy
from fedhess.alignment.privacy import check_privacy
from fedhess.alignment.rehearsal import check_training
from fedhess.alignment.server_step import require_server
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.deploy.packing import RESUME_FROM, RUN_DIR, app_config
from fedhess.deploy.programs import toml
from fedhess.domains import find_benchmark, open_benchmark
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.domains.scenarios import choose_scenarios
from fedhess.federation.client.answers import PROTECTION, Protection
from fedhess.federation.client.call import Place
from fedhess.federation.client.examples import simulated_client
from fedhess.federation.client.limits import LIMITS, check_node
from fedhess.federation.flower_compat import read_run_config
from fedhess.federation.run_settings import OF_THE_NODE, settings_of_run
from fedhess.models import prepared_shape
from fedhess.models.building import check_execution
from fedhess.settings.assignments import Scalar
from fedhess.settings.combinations import check_combinations
from fedhess.settings.run_config import RunConfig

DESCRIBED = ("folder:PATH", "hf:NAME", "module:Class")  # benchmarks whose options name domains and classes
NODE_SETTINGS = ("domain", "role", "client", *OF_THE_NODE, *LIMITS, *PROTECTION)


def plan_run(
    domains: str,
    *,
    target: str,
    strategy: str | None,
    rounds: int | None,
    run_dir: Path | None,
    resume_from: int | None = None,
    given: Sequence[str],
) -> list[str]:
    """Return the arguments of ``flwr run --run-config``, where later arguments override earlier ones.

    No domain's data is needed: it is on the nodes. A benchmark in ``DESCRIBED`` has its domains and classes sent along.

    Args:
        domains: Name of a benchmark.
        target: Domain that is never trained on, or several joined by ``+``; if empty, that of the first scenario.
        strategy: Name of the strategy, if not the app's default.
        rounds: Number of rounds, if not the app's default.
        run_dir: Job directory on the SuperLink's machine, if not the default.
        resume_from: Earlier round from which the job in ``run_dir`` continues.
        given: Further arguments of ``--run-config``.

    Raises:
        UsageError: The benchmark or the target is unknown, or several scenarios are chosen.
    """
    options = RunConfig.given_in(_read(given)).get("domains_options", {})
    assert isinstance(options, dict)
    try:
        benchmark = open_benchmark(domains, options=options, held=())
    except UsageError as error:
        raise UsageError(f"--domains {domains}: {error}") from error
    chosen = choose_scenarios(benchmark, target) if target else benchmark.scenarios[:1]
    if len(chosen) != 1:
        raise UsageError(f"--target: a deployed run has one, got {', '.join(scenario.name for scenario in chosen)}")
    settings: Mapping[str, str | int | None] = {
        "domains": benchmark.name,
        "sources": ",".join(chosen[0].sources),
        "targets": ",".join(chosen[0].targets),
        "model": benchmark.default_model,
        "strategy": strategy,
        "rounds": rounds,
        RUN_DIR: None if run_dir is None else str(run_dir),
        RESUME_FROM: resume_from,
    }
    text = " ".join(f"{key}={toml(value)}" for key, value in settings.items() if value is not None)
    if find_benchmark(domains)[0] not in DESCRIBED:
        return [text, *given]
    described = json.dumps(dict(benchmark.options)).replace("'", "\\u0027")  # Flower takes no text with both quotes
    return [text, *given, f"domains-options={toml(described)}"]


def read_settings(run_config: Sequence[str], *, data_dir: Path | None = None) -> RunConfig:
    """Read a run's settings as server and nodes will, and check what needs no data, weights or nodes."""
    defaults, given = app_config(), _read(run_config)
    for key in sorted(given.keys() - defaults.keys()):
        raise UsageError(f"--run-config: the app has no setting {key!r}; {did_you_mean(key, defaults)}")
    round_of(given)
    config = settings_of_run(defaults | given, {} if data_dir is None else {"data-dir": str(data_dir.resolve())})
    benchmark = open_benchmark(config.domains, options=config.domains_options, held=())
    for option, named in (("sources", config.sources), ("targets", config.targets)):
        for domain in named:
            if domain not in benchmark.domains:
                raise UsageError(f"--{option}: unknown domain {domain!r}; {did_you_mean(domain, benchmark.domains)}")
    check_combinations([config])
    on_any_machine = config.model_copy(update={"device": "cpu", "compile": False})  # the nodes' own devices decide
    check_execution(on_any_machine, prepared_shape(config.model, benchmark.input_shape))
    if is_installed(config.strategy):
        load_strategy(config.strategy, config.strategy_args)
        check_privacy([config])
        check_training([config])
        client_half(config).check(config)
        require_server([config.strategy], RunConfig.given_in(given))
    return config


def round_of(run_config: Mapping[str, Scalar]) -> int | None:
    """Return the round from which a run config continues the job in its ``run-dir``, or None.

    Raises:
        UsageError: The value is no round, no job is named, or the run is private.
    """
    given = run_config.get(RESUME_FROM, "")
    if given == "":
        return None
    if not isinstance(given, int) or given < 0:
        raise UsageError(f"--{RESUME_FROM}: expected the number of a round, got {given!r}")
    if not run_config.get(RUN_DIR):
        raise UsageError(f"--{RESUME_FROM} {given}: it continues a job; give --{RUN_DIR} its directory")
    if run_config.get("dp-epsilon"):
        raise UsageError(
            f"--{RESUME_FROM} {given}: a private run cannot go back: its nodes would answer the rounds since then once "
            "more, with new noise, and send more than --dp-epsilon allows; begin another run"
        )
    return given


def check_node_config(given: str, own: Mapping[str, Scalar]) -> None:
    """Check the further settings of a node, ``--node-config``: Flower ignores what it does not understand."""
    settings = _read([given] if given else [], option="--node-config")
    for key in settings:
        if key in own:
            raise UsageError(f"--node-config: {key} is given twice; the command has it as {own[key]!r}")
        if key not in NODE_SETTINGS:
            raise UsageError(f"--node-config: a node has no setting {key!r}; {did_you_mean(key, NODE_SETTINGS)}")
    check_node(settings)
    Protection.of(settings, str(own["role"]))


def plan_nodes(config: RunConfig) -> list[Place]:
    """List the nodes of a run on one machine: its source clients, then its targets.

    The data is read only if the partition mixes domains.
    """
    clients = [simulated_client(config, position) for position in range(config.source_clients)]
    sources = [Place(domain, SOURCE, number) for domain, number in clients]
    return [*sources, *(Place(domain, TARGET, 0) for domain in config.targets)]


def _read(arguments: Sequence[str], *, option: str = "--run-config") -> dict[str, Scalar]:
    try:
        return read_run_config(arguments)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
