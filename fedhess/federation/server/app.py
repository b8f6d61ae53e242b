"""The ServerApp: build the strategy and the model from the run config, then rounds and evaluations until the end."""

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedhess.alignment.loading import load_strategy, resolved_args, strategy_model
from fedhess.alignment.privacy import check_privacy
from fedhess.alignment.rehearsal import check_training
from fedhess.alignment.strategy import DomainStrategy
from fedhess.base.environment import torch_threads
from fedhess.base.errors import DivergedError, FederationError, StrategyError, UsageError
from fedhess.base.seeds import seeded_globally
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation import protocol
from fedhess.federation.run_settings import settings_of_run
from fedhess.federation.server.averaging import EvaluatedModel
from fedhess.federation.server.checkpoint import snapshot
from fedhess.federation.server.clients import Federation, ModelPayload
from fedhess.federation.server.evaluation import (
    Measured,
    alignment_shapes,
    evaluate_clients,
    make_rows,
    validation_loss,
)
from fedhess.federation.server.flower_round import FlowerRounds
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.server.health import remedy, sickness
from fedhess.federation.server.local_training import RoundOutcome
from fedhess.federation.server.round import DomainRounds
from fedhess.federation.server.round_selection import BestSoFar
from fedhess.federation.server.run_directory import TRAINED, Row, RunDirectory
from fedhess.settings.combinations import check_combinations
from fedhess.settings.run_config import RunConfig

logger = logging.getLogger(__name__)

# Files in the run's directory with the tracebacks of exceptions in the strategy's own code.
CLIENT_LOG, SERVER_LOG = "client.log", "server.log"

MEASURED = "measured"  # key of what sources have measured of the model to be reported, if no row has it yet

MEDIANS = "largest-medians"  # key of the norms' largest medians so far
RELEASED = "released"  # key of how often each private client was asked for something that depends on its examples

OnRound = Callable[[int, list[Row]], None]


def make_server_app(directory: RunDirectory | None = None, on_round: OnRound | None = None) -> ServerApp:
    """Make the ServerApp of a run; :mod:`fedhess.deploy.app` has the one that records a whole job.

    ``on_round`` is called with each evaluated round's number and rows; 0 is the model before training.
    """
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        config = settings_of_run(context.run_config)
        check_combinations([config])
        with torch_threads(config.threads):
            Server(grid, config, directory=directory, on_round=on_round or log_round).run()

    return server_app


@dataclass
class Server:
    """One run from discovery to the last evaluation, recorded in ``directory`` if there is one."""

    grid: Grid
    config: RunConfig
    directory: RunDirectory | None = None
    on_round: OnRound | None = None
    nodes: Mapping[str, int] = field(default_factory=dict)  # client -> the only node that may answer for it

    def __post_init__(self) -> None:
        config = self.config
        check_privacy([config])
        check_training([config])
        self.strategy = load_strategy(config.strategy, config.strategy_args)
        template = strategy_model(config.model_copy(update={"device": "cpu"}))  # the clients' device need not be here
        self._rounds: DomainRounds | FlowerRounds
        if isinstance(self.strategy, DomainStrategy):
            self._rounds = DomainRounds(self.strategy, config, template)
        else:
            self._rounds = FlowerRounds(self.strategy)
        self.model = GlobalModel(
            template,
            optimizer=config.server_optimizer,
            lr=config.server_lr,
            optimizer_args=config.server_optimizer_args,
        )
        self.evaluated = EvaluatedModel(self.model, config)
        self.alignment_shapes = alignment_shapes(template.head)
        log = None if self.directory is None else partial(self.directory.log, CLIENT_LOG)
        self.federation = Federation(self.grid, config, on_traceback=log)
        self._best = BestSoFar(quorum=config.quorum)
        self._seconds = 0.0  # of training since the last evaluation
        self._args = resolved_args(config.strategy, config.strategy_args)
        self._first_head = self._head().clone()
        self._rows: list[Row] = []  # until one sign of failed training is logged
        self._named_sick = False

    def run(self) -> GlobalModel:
        """Run every round that is not yet in the run directory's checkpoint; return the final model.

        Raises:
            FederationError: A round could not be completed; the rounds before it are in the checkpoint.
            StrategyError: The strategy's own code raised; the traceback is in server.log, or a client's in client.log.
        """
        try:
            return self._run()
        except DivergedError as error:
            raise DivergedError(f"{error}\nBegin again: {remedy(self.config, self._args)}") from error
        except StrategyError as error:
            if self.directory is None:
                raise
            file = self.directory.path / CLIENT_LOG  # unless it was on the server
            if error.__cause__ is not None:
                file = self.directory.log(SERVER_LOG, "".join(traceback.format_exception(error.__cause__)))
            if not file.exists():  # fedhess refused what the strategy did
                raise
            raise StrategyError(f"{error}, the full traceback is in {file}") from error

    def _run(self) -> GlobalModel:
        finished, pending = self._restore()
        if finished == self.config.rounds and pending is None:
            return self.model
        self.federation.discover(self.nodes)
        self._named_sick = bool(self._sickness())  # by the rows before the checkpoint
        self._record_clients()
        self._check_average()
        if finished >= 0 and any(c.identity.noise == protocol.SYSTEM for c in self.federation.source_clients):
            raise UsageError(
                f"round {finished}: this private run cannot continue: its nodes would answer the rounds since then "
                "once more, with new noise, and send more than --dp-epsilon allows; begin another run"
            )
        if finished < 0:
            self._complete(0, RoundOutcome())
            finished = 0
        elif pending is not None:
            self._report(finished, pending)
        for server_round in range(finished + 1, self.config.rounds + 1):
            with seeded_globally(self.config.seed, "server", server_round):  # for strategies that draw from them
                outcome = self._rounds.run(self.federation, self.model, server_round)
            self._complete(server_round, outcome)
        return self.model

    def _restore(self) -> tuple[int, RoundOutcome | None]:
        """Go back to the checkpoint; return its round (-1 without one), and the round's outcome if no row has it."""
        if self.directory is None:
            return -1, None
        checkpoint = self.directory.load_checkpoint()
        self.directory.rewind()
        if checkpoint is None:
            return -1, None
        self._rows = self.directory.rows()
        self._best = BestSoFar(quorum=self.config.quorum, rows=self._rows)
        checkpoint.restore(self.model)
        self._rounds.restore(checkpoint.tensors, checkpoint.plain)
        self.evaluated.restore(checkpoint.tensors, checkpoint.plain)
        self.federation.ledger.restore(checkpoint.unreported)
        self.federation.bound.restore(checkpoint.plain.get(MEDIANS, {}))
        self.federation.ledger.released = dict(checkpoint.plain.get(RELEASED, {}))
        self._seconds = checkpoint.unreported.get("seconds", 0.0)
        trained = checkpoint.unreported.get(TRAINED)
        if trained is None:
            return checkpoint.server_round, None
        measured = {(client, domain): found for client, domain, found in checkpoint.unreported.get(MEASURED, ())}
        return checkpoint.server_round, RoundOutcome(metrics=trained, measured=measured)

    def _complete(self, server_round: int, outcome: RoundOutcome) -> None:
        """Write a checkpoint every few rounds and at the end; then evaluate if the round is to be evaluated.

        In this order a failed evaluation loses no training. Only with an average that follows the loss may it lose the
        round, since the checkpoint must hold the model that is reported.
        """
        self._seconds += outcome.seconds
        evaluated = self.config.is_evaluated(server_round)
        if server_round > 0:
            self.evaluated.add(server_round)
            if evaluated and self.evaluated.follows_loss:
                self._observe_loss(server_round, outcome)
        if self.directory is not None and self._is_kept(server_round):
            unreported = self.federation.ledger.unreported() | {"seconds": self._seconds}
            if evaluated:
                unreported[TRAINED] = outcome.metrics
            if outcome.measured:
                unreported[MEASURED] = [[*place, found] for place, found in outcome.measured.items()]
            tensors, plain = self._rounds.state()
            more_tensors, more_plain = self.evaluated.state()
            own = {MEDIANS: self.federation.bound.state()}
            if self.config.is_private:
                own[RELEASED] = dict(self.federation.ledger.released)
            state = (tensors | more_tensors, plain | more_plain | own)
            self.directory.save_checkpoint(snapshot(server_round, self.model, state, unreported))
        if evaluated:
            self._report(server_round, outcome)

    def _observe_loss(self, server_round: int, outcome: RoundOutcome) -> None:
        """Have the sources evaluate the global model, whose loss decides which models are averaged.

        While there is no average yet, this is also their part of the round's evaluation.
        """
        started = time.monotonic()
        measured = self._measure(self.model.payload(), server_round, (SOURCE,))
        loss = validation_loss(self.federation, measured)
        if loss is not None:
            self.evaluated.observe(loss)
        if not self.evaluated.averages:
            outcome.measured = measured
        self._seconds += time.monotonic() - started

    def _record_clients(self) -> None:
        """Record the clients; those of a run that continues must have the same data as before."""
        if self.directory is None:
            return
        before = self.directory.clients()
        for client in self.federation.clients:
            now, was = client.identity.data_digest, before.get(client.label, {}).get(protocol.DATA_DIGEST)
            if now and was and now != was:
                raise FederationError(
                    f"client {client.label} has other data than when the run began: digest {now}, was {was}; put it "
                    "back, or begin another run"
                )
        self.directory.record_clients([{**c.identity.to_record(), "node": c.node_id} for c in self.federation.clients])

    def _check_average(self) -> None:
        held_out = any(client.identity.holds_out for client in self.federation.source_clients)
        if self.evaluated.follows_loss and not held_out:
            raise UsageError(
                f"--average {self.config.average}: it follows the loss on examples that the sources hold out, and they "
                "hold none out; give --average swa or ema, or hold examples out"
            )

    def _is_kept(self, server_round: int) -> bool:
        return server_round % self.config.checkpoint_every == 0 or server_round == self.config.rounds

    def _report(self, server_round: int, outcome: RoundOutcome) -> None:
        """Evaluate, write the rows, keep the model if it is the best so far; after the last round sync the disk."""
        rows = self._evaluate(server_round, outcome)
        if self.directory is not None:
            self.directory.append(rows)
            if self._best.add(rows):
                self.directory.save_selected(server_round, self.evaluated.tensors)
            if self._is_kept(server_round):
                self.directory.settle()
            if server_round == self.config.rounds:
                self.directory.sync()
        if self.on_round is not None:
            self.on_round(server_round, rows)
        self._warn_once(rows)

    def _evaluate(self, server_round: int, outcome: RoundOutcome) -> list[Row]:
        """Have every client evaluate the model; one row per client and domain, failed clients included."""
        started = time.monotonic()
        roles = (TARGET,) if outcome.measured else (SOURCE, TARGET)
        measured = outcome.measured | self._measure(self.evaluated.payload(), server_round, roles)
        rows = make_rows(self.federation, measured, outcome, server_round=server_round)
        seconds, self._seconds = round(self._seconds + time.monotonic() - started, 4), 0.0
        change = float((self._head() - self._first_head).norm() / self._first_head.norm())
        return [row | {"seconds": seconds, "head_change": change} | self.evaluated.row() for row in rows]

    def _measure(self, model: ModelPayload, server_round: int, roles: Sequence[str]) -> Measured:
        shapes = self.alignment_shapes
        return evaluate_clients(self.federation, model, alignment=shapes, server_round=server_round, roles=roles)

    def _warn_once(self, rows: list[Row]) -> None:
        """Log the first sign of failed training."""
        if self._named_sick:
            return
        self._rows += rows
        if sick := self._sickness():
            self._named_sick = True
            targets = "+".join(self.config.targets)
            logger.warning("%s, target %s, seed %d: %s", self.config.strategy, targets, self.config.seed, sick)

    def _sickness(self) -> str:
        classes = max(2, len(self.alignment_shapes["gradient"]))
        fewest = min(client.identity.train_examples for client in self.federation.source_clients)
        return sickness(self._rows, self.config, args=self._args, classes=classes, train_size=fewest)

    def _head(self) -> Tensor:
        """Return the head's parameters as one vector."""
        return torch.cat([value.flatten() for name, value in self.model.tensors.items() if name.startswith("head.")])


def log_round(server_round: int, rows: list[Row]) -> None:
    """Log the accuracy of every row."""
    for row in rows:
        logger.info("round %d, %s (%s): accuracy %s", server_round, row["domain"], row["role"], row["accuracy"])
