"""Experiment trackers, fed from the rows of a job's runs: TensorBoard, MLflow, Weights & Biases, Trackio.

Each run of the job is one run of the tracker, grouped by job; the step is the round. Files are written below
``runs/NAME/tracking`` unless the tracker's own environment variables name another place. What a tracker has is in
``tracking.json`` beside the run's rows, so that a run that is resumed continues its tracker run.
"""

import contextlib
import importlib.util
import io
import json
import math
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.files import replace_file
from fedhess.base.tables import mean
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation.server.round_selection import rows_by_round
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.job import Job, PlannedRun, slug
from fedhess.jobs.metrics import balanced_accuracy, calibration_error, worst_class_accuracy
from fedhess.jobs.rows import domain_rows

OnRound = Callable[[int, list[Row]], None]

PROJECT = "fedhess"  # of the trackers that have projects above groups
STATE = "tracking.json"
OF_DOMAIN = ("loss", "accuracy", "gradient_distance", "hgp_distance", "train_loss", "train_objective")
Settings = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class About:
    """What a tracker records of a run."""

    folder: Path  # where the tracker writes unless its environment variables name another place
    job: str  # name of the job
    name: str  # of the run, STRATEGY/TARGET/SEED
    settings: Settings  # its settings and its strategy's arguments
    run_id: str | None  # of the tracker run that is continued; None for a new one
    first_round: int  # the first round that the tracker does not have


class Tracker(ABC):
    """One tracker run, made of an :class:`About`; ``run_id`` is what it is continued by."""

    run_id: str

    @abstractmethod
    def __init__(self, about: About) -> None: ...

    @abstractmethod
    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Record a round."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """End it; ``failed`` where the run did not come to its last round."""


class TensorBoard(Tracker):
    """Event files, a folder a run; settings are in the HPARAMS tab."""

    def __init__(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415

        self.run_id = "/".join(map(slug, about.name.split("/")))
        # A job that went back to a round begins anew in the same folder: what it had there no longer counts
        self._writer = cast(Any, SummaryWriter(str(about.folder / self.run_id), purge_step=about.first_round))
        if about.run_id is None:
            for summary in hparams(dict(about.settings), {"sources/accuracy": 0.0}):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(summary)

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Add a scalar a metric, and write the file out."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Close the event file."""
        del failed
        self._writer.close()


class MLflow(Tracker):
    """A run of the experiment that is named like the job; its file store, or what ``MLFLOW_TRACKING_URI`` names."""

    def __init__(self, about: About) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its package without a database has no other store
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # of 7, a server that is down stops for minutes
        from mlflow import MlflowClient  # noqa: PLC0415
        from mlflow.entities import Param  # noqa: PLC0415

        about.folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or about.folder.resolve().as_uri()
        )
        if about.run_id is not None:
            self.run_id = about.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            return
        with FileLock(about.folder / ".lock"):  # runs of one job may begin at the same time
            found = self._client.get_experiment_by_name(about.job)
            experiment = self._client.create_experiment(about.job) if found is None else found.experiment_id
        self.run_id = self._client.create_run(experiment, run_name=about.name).info.run_id
        settings = [Param(key, str(value)) for key, value in about.settings.items()]
        for start in range(0, len(settings), 100):  # the most that one request may have
            self._client.log_batch(self.run_id, params=settings[start : start + 100])

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics in one request."""
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        named = {re.sub(r"[^/\w.\- :]", "_", name): value for name, value in metrics.items()}
        self._client.log_batch(
            self.run_id, metrics=[Metric(name, value, now, server_round) for name, value in named.items()]
        )

    def close(self, *, failed: bool) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self.run_id, status="FAILED" if failed else "FINISHED")


class WandB(Tracker):
    """A run in the group that is named like the job; offline unless ``WANDB_MODE`` is set."""

    def __init__(self, about: About) -> None:
        import wandb  # noqa: PLC0415

        about.folder.mkdir(parents=True, exist_ok=True)
        self.run_id = about.run_id or uuid.uuid4().hex[:8]
        mode: Any = None if "WANDB_MODE" in os.environ else "offline"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            dir=os.environ.get("WANDB_DIR") or str(about.folder),
            group=about.job,
            name=about.name,
            id=self.run_id,
            config=dict(about.settings),
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Add a step."""
        self._run.log(dict(metrics), step=server_round)

    def close(self, *, failed: bool) -> None:
        """Finish the run."""
        self._run.finish(exit_code=int(failed))


class Trackio(Tracker):
    """A run of the project that is named like the job; in its database, or where ``TRACKIO_...`` variables point."""

    def __init__(self, about: About) -> None:
        folder = about.folder.resolve()
        given = os.environ.setdefault("TRACKIO_DIR", str(folder)) != str(folder)  # read when it is imported, and then
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how to start its dashboard
            import trackio  # noqa: PLC0415
            from trackio.context_vars import current_run  # noqa: PLC0415
            from trackio.utils import TRACKIO_DIR  # noqa: PLC0415

            if not given:
                del os.environ["TRACKIO_DIR"]  # of one job, not of the process
                if folder != TRACKIO_DIR:
                    raise RuntimeError(f"it keeps to {TRACKIO_DIR} in this process; set TRACKIO_DIR, or start another")
            self._run = trackio.init(
                project=about.job,
                name=about.name,
                group=about.name.partition("/")[0],
                config=dict(about.settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            current_run.set(None)  # of several: each is finished by itself, and none when the process ends
        self.run_id = self._run.id

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Add a step."""
        self._run.log(dict(metrics), step=server_round)

    def close(self, *, failed: bool) -> None:
        """Finish the run, when all of it is in the database."""
        del failed
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()  # type: ignore[no-untyped-call]


# By the name that --track takes; the extra to install has the same.
TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def read_trackers(given: str) -> tuple[str, ...]:
    """Read ``--track``: names of trackers, separated by commas."""
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"--track: unknown tracker {name!r}; {did_you_mean(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--track {name}: {name} is not installed; pip install 'fedhess[{name}]'")
    return names


class Tracking:
    """Feeds a job's trackers; one that fails is named in a warning and fed no more."""

    def __init__(self, job: Job, warn: Callable[[str], None]) -> None:
        self._job, self._warn = job, warn
        self._failed: set[str] = set()

    @contextlib.contextmanager
    def follow(self, run: PlannedRun, on_round: OnRound, names: Sequence[str] | None = None) -> Iterator[OnRound]:
        """Feed the trackers of a run, or some of them; they are opened with the first round that comes.

        Yields:
            What is to be called with each evaluated round: it calls ``on_round``, then feeds the trackers, the first
            time with all that they lack of the rows before it.
        """
        names = self._job.trackers if names is None else names
        opened: dict[str, Tracker] = {}
        state: dict[str, dict[str, Any]] | None = None

        def report(server_round: int, rows: list[Row]) -> None:
            nonlocal state
            on_round(server_round, rows)
            if not names:
                return
            rounds = {server_round: rows}
            if state is None:
                state = _state(run)
                before = [row for row in run.directory.rows() if row["round"] < server_round]
                rounds = rows_by_round(before) | rounds
                for name in [name for name in names if name not in self._failed]:
                    with self._guarded(name):
                        about = self._about(name, run, state.get(name, {}))
                        opened[name] = TRACKERS[name](about)
                        state.setdefault(name, {"round": -1}).update(run=opened[name].run_id, name=about.name)
            for number, each in rounds.items():
                metrics = metrics_of_round(each, classes=len(self._job.classes))
                for name, tracker in opened.items():
                    if name not in self._failed and number > state[name]["round"]:  # else made again after a resume
                        with self._guarded(name):
                            tracker.log(number, metrics)
                            state[name]["round"] = number
                replace_file(run.directory.path / STATE, (json.dumps(state) + "\n").encode())

        try:
            yield report
        finally:
            for name, tracker in opened.items():
                if name not in self._failed:
                    with self._guarded(name):
                        tracker.close(failed=_state(run)[name]["round"] < run.config.rounds)

    def catch_up(self, run: PlannedRun) -> None:
        """Bring the trackers up to the rows of a run that ran before; those that have all stay closed."""
        rounds = rows_by_round(run.directory.rows()) if self._job.trackers else {}
        state, last = _state(run), max(rounds, default=-1)
        if lacking := [name for name in self._job.trackers if state.get(name, {}).get("round", -1) < last]:
            with self.follow(run, lambda *_: None, lacking) as report:
                report(last, rounds[last])

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Turn a tracker's error into a warning; it is fed no more."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
            self._failed.add(name)
            self._warn(
                f"--track {name} failed, the job goes on without it: {type(error).__name__}: {error}\n"
                f"`fedhess report {self._job.path} --track {name}` adds what is missing."
            )

    def _about(self, name: str, run: PlannedRun, known: Mapping[str, Any]) -> About:
        variant = [f"variant-{run.number}"] if self._job.variants else []
        named = "/".join([run.strategy, *variant, run.scenario.name, str(run.config.seed)])
        return About(
            folder=self._job.path / "tracking" / name,
            job=self._job.path.resolve().name,
            name=known.get("name", named),  # it stays the same when the job grows
            settings=_settings(self._job, run),
            run_id=known.get("run"),
            first_round=known.get("round", -1) + 1,
        )


def track_recorded(job: Job, warn: Callable[[str], None]) -> None:
    """Feed a job's trackers with what its rows have and they lack."""
    tracking = Tracking(job, warn)
    for run in job.runs:
        tracking.catch_up(run)


def metrics_of_round(rows: Sequence[Row], *, classes: int) -> dict[str, float]:
    """Name the numbers of a round for a tracker; those that are missing or not finite are left out.

    Returns:
        ``source/DOMAIN/...`` and ``target/DOMAIN/...`` (``target-out/DOMAIN/...`` of an out split): loss, accuracy and
        what is counted, in the units of rounds.jsonl; ``sources/...`` and ``targets/...``: means over the domains;
        ``round/...``: seconds, bytes and failures of all clients.

    >>> row = {"round": 1, "role": "source", "domain": "a", "split": "validation", "accuracy": 0.5, "failures": []}
    >>> metrics_of_round([row, row | {"domain": "b", "accuracy": 1.0}], classes=2)["sources/accuracy"]
    0.75
    """
    found: dict[str, float | None] = {}
    by_domain = domain_rows(rows)
    for row in by_domain:
        place = f"{row['role']}{'-out' if row['split'] == 'out' else ''}/{row['domain']}"
        numbers = {key: row.get(key) for key in OF_DOMAIN}
        if row.get("confusion") is not None:
            numbers["balanced_accuracy"] = balanced_accuracy(row["confusion"], classes=classes)
            numbers["worst_class_accuracy"] = worst_class_accuracy(row["confusion"], classes=classes)
            numbers["calibration_error"] = calibration_error(row["calibration"] or ())
        found |= {f"{place}/{key}": value for key, value in numbers.items()}
    for role in (SOURCE, TARGET):
        group = [row for row in by_domain if row["role"] == role and row["split"] not in ("out", "none")]
        found |= {f"{role}s/{key}": mean([row.get(key) for row in group]) for key in ("loss", "accuracy")}
    found |= {f"round/{key}": rows[0].get(key) for key in ("seconds", "head_change")}
    found |= {f"round/{key}": sum(row.get(key, 0) for row in rows) for key in ("bytes_down", "bytes_up")}
    found["round/failures"] = sum(len(row["failures"]) for row in rows)
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def _state(run: PlannedRun) -> dict[str, dict[str, Any]]:
    """Read what the trackers of a run have: by name the tracker's run and the last round."""
    file = run.directory.path / STATE
    state: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    return state


def _settings(job: Job, run: PlannedRun) -> dict[str, str | int | float | bool]:
    """Flatten the settings of a run: one level, lists in one text, nothing that is not set."""
    found: dict[str, str | int | float | bool] = {
        "data": job.data["title"],
        "target": run.scenario.name,
        "selection": job.selection,
        "cross_validation": run.inner,
    }
    for key, value in run.config.model_dump(mode="json").items():
        parts = {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
        for name, each in parts.items():
            if each is not None:
                found[name] = ", ".join(map(str, each)) if isinstance(each, list) else each
    return found
