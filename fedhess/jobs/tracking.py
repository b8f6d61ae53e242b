"""Experiment trackers, fed from the rows of a job's runs: TensorBoard, MLflow, Weights & Biases, Trackio.

Each run of the job is one run of the tracker, grouped by job; the step is the round. Files are written below
``runs/NAME/tracking`` unless the tracker's own environment variables name another place. ``tracking.json`` beside the
run's rows records what a tracker already has, so that a resumed run continues its tracker run.
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

PROJECT = "fedhess"  # for trackers that have projects above groups
STATE = "tracking.json"
OF_DOMAIN = ("loss", "accuracy", "gradient_distance", "hgp_distance", "train_loss", "train_objective")
Settings = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class About:
    """What a tracker records of a run."""

    folder: Path  # where the tracker writes unless its environment variables name another place
    job: str  # name of the job
    name: str  # name of the run, STRATEGY/TARGET/SEED
    settings: Settings  # its settings and its strategy's arguments
    run_id: str | None  # the tracker run to continue; None for a new one
    first_round: int  # the first round that the tracker does not have


class Tracker(ABC):
    """One tracker run, made from an :class:`About`; ``run_id`` identifies it when it is continued."""

    run_id: str

    @abstractmethod
    def __init__(self, about: About) -> None: ...

    @abstractmethod
    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Record a round."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Close the tracker run; ``failed`` if the run did not reach its last round."""


class TensorBoard(Tracker):
    """Event files, one folder for each run; settings are in the HPARAMS tab."""

    def __init__(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415

        self.run_id = "/".join(map(slug, about.name.split("/")))
        # A job that went back to a round logs to the same folder anew; purge what is there from the first round on
        self._writer = cast(Any, SummaryWriter(str(about.folder / self.run_id), purge_step=about.first_round))
        if about.run_id is None:
            for summary in hparams(dict(about.settings), {"sources/accuracy": 0.0}):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(summary)

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Add one scalar for each metric, and flush the file."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Close the event file."""
        del failed
        self._writer.close()


class MLflow(Tracker):
    """A run of the experiment named after the job, in a file store or at ``MLFLOW_TRACKING_URI``."""

    def __init__(self, about: About) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no database store
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # 7 would block for minutes if the server is down
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
        for start in range(0, len(settings), 100):  # the most that one request may hold
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
    """A run in the group named after the job; offline unless ``WANDB_MODE`` is set."""

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
    """A run of the project named after the job, in its database or where ``TRACKIO_...`` variables point."""

    def __init__(self, about: About) -> None:
        folder = about.folder.resolve()
        given = os.environ.setdefault("TRACKIO_DIR", str(folder)) != str(folder)  # read on import only
        with contextlib.redirect_stdout(io.StringIO()):  # Trackio prints how to start its dashboard
            import trackio  # noqa: PLC0415
            from trackio.context_vars import current_run  # noqa: PLC0415
            from trackio.utils import TRACKIO_DIR  # noqa: PLC0415

            if not given:
                del os.environ["TRACKIO_DIR"]  # it is for one job, not for the process
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
            current_run.set(None)  # runs are finished one by one, not at process exit
        self.run_id = self._run.id

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Add a step."""
        self._run.log(dict(metrics), step=server_round)

    def close(self, *, failed: bool) -> None:
        """Finish the run, once all of it is in the database."""
        del failed
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()  # type: ignore[no-untyped-call]


# Keyed by the name that --track takes, which is also the name of the extra to install.
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
    """Feeds a job's trackers; a tracker that fails is named in a warning and receives nothing more."""

    def __init__(self, job: Job, warn: Callable[[str], None]) -> None:
        self._job, self._warn = job, warn
        self._failed: set[str] = set()

    @contextlib.contextmanager
    def follow(self, run: PlannedRun, on_round: OnRound, names: Sequence[str] | None = None) -> Iterator[OnRound]:
        """Feed the trackers of a run, or some of them; they are opened with the first reported round.

        Yields:
            A callback for each evaluated round: it calls ``on_round``, then feeds the trackers. The first call also
            feeds the earlier rows that they lack.
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
                    if name not in self._failed and number > state[name]["round"]:  # else repeated after a resume
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
        """Feed the trackers the rows of an earlier run that they lack; complete trackers stay closed."""
        rounds = rows_by_round(run.directory.rows()) if self._job.trackers else {}
        state, last = _state(run), max(rounds, default=-1)
        if lacking := [name for name in self._job.trackers if state.get(name, {}).get("round", -1) < last]:
            with self.follow(run, lambda *_: None, lacking) as report:
                report(last, rounds[last])

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Turn a tracker's error into a warning; the tracker receives nothing more."""
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
            name=known.get("name", named),  # the name stays the same when the job grows
            settings=_settings(self._job, run),
            run_id=known.get("run"),
            first_round=known.get("round", -1) + 1,
        )


def track_recorded(job: Job, warn: Callable[[str], None]) -> None:
    """Feed a job's trackers the recorded rows that they lack."""
    tracking = Tracking(job, warn)
    for run in job.runs:
        tracking.catch_up(run)


def metrics_of_round(rows: Sequence[Row], *, classes: int) -> dict[str, float]:
    """Name the metrics of a round for a tracker; missing and non-finite values are left out.

    Returns:
        ``source/DOMAIN/...`` and ``target/DOMAIN/...`` (``target-out/DOMAIN/...`` for an out split): losses, accuracy,
        distances and metrics of counts, in the units of rounds.jsonl; ``sources/...`` and ``targets/...``: means over
        the domains; ``round/...``: seconds, change of the head, and bytes and failures of all clients.

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
    """Read what the trackers of a run have: for each tracker name, its run and its last round."""
    file = run.directory.path / STATE
    state: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    return state


def _settings(job: Job, run: PlannedRun) -> dict[str, str | int | float | bool]:
    """Flatten the settings of a run to one level; lists become text, and unset settings are left out."""
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
