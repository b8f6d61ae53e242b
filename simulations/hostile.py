"""Measure the effect of finite but hostile numbers: ``python -m fedhess.simulations.hostile``.

``attacks`` runs strategies under every mean with clients that change what they send. It records accuracy on the target
and which clients were named. One of three clients is hostile (a domain each), or three of nine (one of each domain).
Hostile clients run the real ClientApp, but their replies or labels are changed.

``norms`` runs honest federations without a bound and records the ratio of a client's norm to the median that a bound
would compare it with. The default of ``--norm-bound`` must leave room above the largest ratio.

Runs are kept in ``simulations/results/hostile.json``; a repeated run replaces its earlier record.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from unittest.mock import patch

import numpy as np
import typer
from flwr.app import Array, ArrayRecord, Context, Error, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from fedhess.base.environment import describe_environment
from fedhess.base.errors import DivergedError, FederationError, UsageError
from fedhess.base.tables import markdown_table, mean
from fedhess.cli.command import Command, run_command
from fedhess.domains import open_benchmark
from fedhess.federation import protocol
from fedhess.federation.client import app as client_module
from fedhess.federation.server.app import Server
from fedhess.federation.server.norm_bound import NormBound, Norms
from fedhess.federation.server.run_directory import Row
from fedhess.models.prepared import LocalDomain
from fedhess.settings.defaults import default_settings, default_strategy_args
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.benchmarks.measuring import run_federation
from fedhess.simulations.scenarios.outputs import (
    RESULTS,
    AllowDirtyOption,
    RenderOption,
    chosen_names,
    describe_environment_of,
    read_results,
    require_ready,
    write_results,
)
from fedhess.simulations.scenarios.running import SeedsOption, read_seeds

SOURCES, TARGET = ("art_painting", "cartoon", "photo"), "sketch"
NEAR = 3.0  # points below the honest run of the plain mean
STRATEGIES = (
    *("erm", "hgp", "hutchinson", "fediir", "fishr", "irm", "vrex", "coral", "iga", "groupdro", "fedprox"),
    *("server_alignment", "fish", "fedadam"),
)
ATTACKED = STRATEGIES[:4]

Sender = TypeVar("Sender")
Sent = TypeVar("Sent")
Results = dict[str, Any]

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Attack:
    """What hostile clients do; ``update`` and ``statistics`` are factors of what they send."""

    update: float = 1.0
    statistics: float = 1.0
    flips_labels: bool = False
    eclipses: bool = False  # as many honest clients are cut off
    colludes: bool = False  # all hostile clients send one and the same update


ATTACKS: Mapping[str, Attack] = {
    "honest": Attack(),
    "update x-1": Attack(update=-1),
    "update x-10": Attack(update=-10),
    "update x100": Attack(update=100),
    "statistics x10": Attack(statistics=10),
    "statistics x1e6": Attack(statistics=1e6),
    "label flip": Attack(flips_labels=True),
    "eclipse x-10": Attack(update=-10, eclipses=True),
    "sybils x-1": Attack(update=-1, colludes=True),
}


@dataclass(frozen=True)
class Federation:
    """Who takes part; clients are given by number, and a third of them are hostile."""

    settings: Mapping[str, Any]
    hostile: tuple[int, ...]
    lost: tuple[int, ...]  # honest clients that are cut off if the attack eclipses
    means: tuple[str, ...]  # of updates; with krum and multikrum the references have the median
    strategies: tuple[str, ...] = ATTACKED


FEDERATIONS: Mapping[str, Federation] = {
    "one of three": Federation({"quorum": 2}, (1,), (0,), ("mean", "median", "geometric", "multikrum")),
    "three of nine": Federation(
        {
            **{"partition": "dirichlet", "clients_per_domain": 3, "dirichlet_alpha": 1.0},
            **{"hostile_clients": 3, "quorum": 5},
        },
        (0, 3, 6),
        (1, 4, 7),
        ("mean", "median", "trimmed", "geometric", "krum", "multikrum"),
        ("erm",),
    ),
}


_NINE = {"partition": "dirichlet", "clients_per_domain": 3, "dirichlet_alpha": 0.3}
# Benchmark, with a note on its partition -> model, and settings in addition to those of its recipe.
HONEST: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "IconPACS": ("lite0-features", {"evaluate_every": 40}),
    "IconPACS, nine clients": ("lite0-features", {"evaluate_every": 40, **_NINE}),
    "RotatedMNIST": ("mlp", {"domains_options": {"per_domain": 500}, "evaluate_every": 40}),
    "Digits": ("mlp", {"domains_options": {"per_domain": 500}, "evaluate_every": 40}),
    "ColoredMNIST": ("mlp", {"domains_options": {"per_domain": 300}, "evaluate_every": 501}),
}


class Hostile(ClientApp):
    """The real ClientApp, except that some of its clients are hostile."""

    def __init__(self, attack: Attack, federation: Federation) -> None:
        super().__init__()
        self._attack, self._hostile = attack, federation.hostile if attack != Attack() else ()
        self._lost = federation.lost if attack.eclipses else ()
        self._twins: dict[str, ArrayRecord] = {}  # what the first of colluding clients sent in a round

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message as the real ClientApp does, or as the attack does."""
        client, kind = context.node_config["partition-id"], message.metadata.message_type
        if kind not in (protocol.TRAIN, protocol.STATISTICS):
            return client_module.app(message, context)
        if client in self._lost:
            return Message(Error(1, "cut off"), reply_to=message)
        if client not in self._hostile:
            return client_module.app(message, context)
        with _flipped_labels() if self._attack.flips_labels else nullcontext():
            reply = client_module.app(message, context)
        if reply.has_content():
            self._change(kind, reply, message.metadata.group_id)
        return reply

    def _change(self, kind: str, reply: Message, server_round: str) -> None:
        factor = self._attack.update if kind == protocol.TRAIN else self._attack.statistics
        key = protocol.MODEL if kind == protocol.TRAIN else protocol.STATISTIC_VALUES
        for name in [name for name in reply.content.array_records if name.startswith(key)]:
            reply.content[name] = _times(reply.content.array_records[name], factor)
        if self._attack.colludes and kind == protocol.TRAIN:
            reply.content[key] = self._twins.setdefault(server_round, reply.content.array_records[key])


def _times(record: ArrayRecord, factor: float) -> ArrayRecord:
    arrays = {name: array.numpy() for name, array in record.items()}
    return ArrayRecord({name: Array(np.asarray(value * factor, value.dtype)) for name, value in arrays.items()})


@contextmanager
def _flipped_labels() -> Iterator[None]:
    """Make a client read its labels with the order of the classes reversed."""
    read = LocalDomain.batches

    def flipped(own: LocalDomain, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in read(own, parts):
            yield inputs, int(own.data.labels.max()) - labels

    with patch.object(LocalDomain, "batches", flipped):
        yield


@dataclass
class Recording(NormBound):
    """No bound; keeps the largest ratio of a norm to the median it would be compared with, by what was sent."""

    largest: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(0)

    def screen(
        self,
        replies: Iterable[tuple[Sender, Sent]],
        norms_of: Callable[[Sender, Sent], Norms],
        reject: Callable[[Sender, str], None],
        *,
        asked: int,
    ) -> Iterator[tuple[Sender, Sent]]:
        """Record the norms of a phase and let every reply pass."""
        held = list(replies)
        norms = [norms_of(*reply) for reply in held]
        for what in norms[0] if norms else ():
            values = [each[what] for each in norms]
            median = self.median(what, values)
            ratio = max(values) / median if median else 1.0
            self.largest[what] = max(self.largest.get(what, 1.0), ratio)
        yield from super().screen(held, norms_of, reject, asked=asked)


def settings(benchmark: str, model: str, strategy: str, seed: int, more: Mapping[str, Any]) -> RunConfig:
    """Return the settings of one run: the recipe of benchmark and model, updated with ``more``."""
    given = default_settings(model, benchmark=benchmark) | {
        **{"domains": benchmark, "model": model, "strategy": strategy, "seed": seed, "threads": 1, "device": "cpu"},
        "strategy_args": default_strategy_args(strategy, model=model, benchmark=benchmark),
    }
    if strategy == "fish":  # its server takes no other step; full-batch recipes run at a tenth of their rate
        given |= {"server_optimizer": "SGD", "server_lr": 1.0, "lr": min(given["lr"], 0.1)}
    return RunConfig.checked({**given, **more})


def attack_once(place: str, strategy: str, mean_of: str, attack: str, seed: int, rounds: int) -> Results:
    """Run one federation under attack.

    Returns:
        JSON: accuracy of the last round on the target in percent, or why the run stopped; the honest and hostile
        clients that failures name.
    """
    federation, rows, servers = FEDERATIONS[place], list[Row](), list[Server]()
    reference = {"krum": "median", "multikrum": "median"}.get(mean_of, mean_of)
    more = {"sources": SOURCES, "targets": (TARGET,), "rounds": rounds, "evaluate_every": rounds}
    more |= {"reference_mean": reference, "update_mean": mean_of, **federation.settings}
    config = settings("IconPACS", "lite0-features", strategy, seed, more)

    def prepare(server: Server) -> None:
        server.on_round = lambda _, new: rows.extend(new)
        servers.append(server)

    result: Results = {"rounds": rounds}
    diverged = False
    try:
        run_federation(config, prepare=prepare, app=Hostile(ATTACKS[attack], federation))
        (target,) = [row for row in rows if row["role"] == "target" and row["round"] == rounds]
        result["accuracy"] = 100 * target["accuracy"]
    except FederationError as error:
        result["stopped"] = str(error)
        diverged = isinstance(error, DivergedError)  # no client is blamed for the divergence
    clients = servers[0].federation.source_clients
    hostile = {clients[number].label for number in federation.hostile}
    lost = {clients[number].label for number in federation.lost if ATTACKS[attack].eclipses}
    blamed = [failure for failure in servers[0].federation.ledger.failures if not (diverged and failure.diverged)]
    named = {failure.client for failure in blamed} - lost
    return result | {"hostile": sorted(named & hostile), "honest": sorted(named - hostile)}


def norms_once(place: str, strategy: str, seed: int) -> Results:
    """Run one honest federation without a bound; return the largest ratios by what was sent."""
    model, more = HONEST[place]
    name = place.partition(",")[0]
    scenario = open_benchmark(name, seed=seed, options=more.get("domains_options", {})).scenarios[0]
    bound = Recording()
    run_federation(
        settings(name, model, strategy, seed, {"sources": scenario.sources, "targets": scenario.targets, **more}),
        prepare=lambda server: setattr(server.federation, "bound", bound),
    )
    return {what: round(ratio, 2) for what, ratio in bound.largest.items()}


@cli.command(cls=Command)
def hostile(
    only: Annotated[str, typer.Option(help="attacks, norms, or both.")] = "attacks,norms",
    strategy: Annotated[
        str, typer.Option(help=f"Strategies, separated by commas; attacks has {', '.join(ATTACKED)} alone.")
    ] = ",".join(STRATEGIES),
    attack: Annotated[str, typer.Option(help="Attacks, separated by commas.")] = ",".join(ATTACKS),
    seeds: SeedsOption = "0,1,2",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of a run under attack.")] = 8,
    out: Annotated[Path, typer.Option(help="File for the runs; Markdown goes beside it.")] = RESULTS / "hostile.json",
    allow_dirty: AllowDirtyOption = False,
    render_only: RenderOption = False,
) -> None:
    """Measure what attacks do under every mean, and how far apart honest norms are; print and write the tables."""
    sections = chosen_names("--only", only, ("attacks", "norms"))
    strategies = chosen_names("--strategy", strategy, STRATEGIES)
    attacks = chosen_names("--attack", attack, ATTACKS)
    require_ready(out, allow_dirty=allow_dirty, render_only=render_only)
    recorded = read_results(out, render)
    made = {result["rounds"] for result in recorded.get("attacks", {}).get("runs", {}).values()}
    if made - {rounds} and "attacks" in sections and not render_only:
        raise UsageError(
            f"--rounds {rounds}: {out} has runs of {', '.join(map(str, made))}, which would be averaged with "
            "these; give the same number, or another --out"
        )
    environment = describe_environment()
    for section, key, run in () if render_only else _runs(sections, strategies, attacks, read_seeds(seeds), rounds):
        kept = recorded.setdefault(section, {"runs": {}})
        kept["environment"] = environment
        kept["runs"][key] = run()
        write_results(out, recorded, render(recorded), indent=1)
    if render_only:
        write_results(out, recorded, render(recorded), indent=1)
    typer.echo(render(recorded))


def _runs(
    sections: Sequence[str], strategies: Sequence[str], attacks: Sequence[str], seeds: Sequence[int], rounds: int
) -> Iterator[tuple[str, str, Callable[[], Results]]]:
    """List the runs: section, key in it, and the function that makes the run."""
    for seed, strategy in itertools.product(seeds, strategies):
        for place, federation in FEDERATIONS.items() if "attacks" in sections else ():
            if strategy not in federation.strategies:
                continue
            for mean_of, attack in itertools.product(federation.means, attacks):
                if _means_something(ATTACKS[attack], federation, strategy):
                    key = f"{place}|{strategy}|{attack}|{mean_of}|{seed}"
                    yield "attacks", key, partial(attack_once, place, strategy, mean_of, attack, seed, rounds)
        for benchmark in HONEST if "norms" in sections else ():
            yield "norms", f"{benchmark}|{strategy}|{seed}", partial(norms_once, benchmark, strategy, seed)


def _means_something(attack: Attack, federation: Federation, strategy: str) -> bool:
    several = len(federation.hostile) > 1 or not attack.colludes
    return several and (attack.statistics == 1 or strategy != "erm")


def render(recorded: Results) -> str:
    """Render recorded runs as Markdown."""
    lines = ["# Finite but hostile numbers", ""]
    if "attacks" in recorded:
        lines += _render_attacks(recorded["attacks"])
    if "norms" in recorded:
        lines += _render_norms(recorded["norms"])
    return "\n".join(lines).rstrip()


def _render_attacks(section: Results) -> list[str]:
    cells: dict[str, dict[str, dict[str, list[Results]]]] = {}
    order = list(ATTACKS)
    for key, result in sorted(section["runs"].items(), key=lambda run: order.index(run[0].split("|")[2])):
        place, strategy, attack, mean_of, _ = key.split("|")
        cells.setdefault(f"{place}, {strategy}", {}).setdefault(attack, {}).setdefault(mean_of, []).append(result)
    rounds = sorted({result["rounds"] for result in section["runs"].values()})
    lines = [
        f"IconPACS, target {TARGET}, lite0-features, {', '.join(map(str, rounds))} rounds of the recipe; accuracy (%) "
        f"on the target after the last, mean over seeds (their number in brackets). **Bold** is more than {NEAR:g} "
        "points below the honest run of the plain mean. Named: in how many runs failures named hostile clients. "
        + describe_environment_of(section),
    ]
    for title, attacks in cells.items():
        means = FEDERATIONS[title.rpartition(", ")[0]].means
        bar = (_accuracy(attacks.get("honest", {}).get("mean", [])) or 0.0) - NEAR
        rows = [[attack, *(_shown(found.get(each, []), bar) for each in means)] for attack, found in attacks.items()]
        lines += ["", f"## {title}", "", markdown_table(["attack", *means], rows)]
    return [*lines, ""]


def _accuracy(results: list[Results]) -> float | None:
    return mean([result.get("accuracy") for result in results])


def _shown(results: list[Results], bar: float) -> str:
    """Show a cell: accuracy, and in how many runs a hostile or an honest client was named, or the run stopped."""
    accuracy = _accuracy(results)
    shown = "" if accuracy is None else f"{accuracy:.1f} ({len(results)})"
    parts = [f"**{shown}**" if shown and accuracy is not None and accuracy < bar else shown]
    for words, key in (("*{}* named", "hostile"), ("**{} named honest**", "honest"), ("{} stopped", "stopped")):
        if count := sum(bool(result.get(key)) for result in results):
            parts.append(words.format(count))
    return ", ".join(filter(None, parts))


def _render_norms(section: Results) -> list[str]:
    """Show the largest ratio over seeds of each strategy on each benchmark, and what had this ratio."""
    largest: dict[str, dict[str, tuple[float, str]]] = {}
    for key, ratios in section["runs"].items():
        place, strategy, _ = key.split("|")
        worst = max((ratio, what) for what, ratio in ratios.items())
        cell = largest.setdefault(strategy, {})
        cell[place] = max(cell.get(place, worst), worst)
    every = [worst for cell in largest.values() for worst in cell.values()]
    seeds = sorted({key.rpartition("|")[2] for key in section["runs"]})
    table = [
        [name, *(f"{cell[place][0]:.1f} {cell[place][1]}" if place in cell else "" for place in HONEST)]
        for name, cell in largest.items()
    ]
    return [
        "## How far apart honest norms are",
        "",
        "The largest ratio of an honest client's norm to the median that --norm-bound holds it against, over all "
        f"rounds and seeds {', '.join(seeds)}, and of what; the largest of all is {max(every)[0]:.1f}, the default "
        f"bound {RunConfig.model_fields['norm_bound'].default:g}. " + describe_environment_of(section),
        "",
        markdown_table(["strategy", *HONEST], table),
        "",
    ]


if __name__ == "__main__":
    sys.exit(run_command(cli, "hostile"))
