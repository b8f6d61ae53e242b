"""What trackers recorded, read back from their files: by run, the settings and by round the metrics."""

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes of a block of a .wandb file, which is LevelDB's log


@dataclass
class Recorded:
    """One run of a tracker."""

    group: str
    settings: dict[str, Any] = field(default_factory=dict)
    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # in the order recorded


def of_tensorboard(folder: Path) -> dict[str, Recorded]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found: dict[str, Recorded] = {}
    for directory in sorted({file.parent for file in folder.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(directory)).Reload()
        run = found[directory.relative_to(folder).as_posix()] = Recorded(folder.parents[1].name)
        points: dict[int, dict[str, float]] = {}
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                assert tag not in points.setdefault(event.step, {})
                points[event.step][tag] = event.value
        run.points = sorted(points.items())
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        settings = HParamsPluginData.FromString(content).session_start_info.hparams
        run.settings = {key: getattr(value, str(value.WhichOneof("kind"))) for key, value in settings.items()}
    return found


def of_mlflow(folder: Path) -> dict[str, Recorded]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    found: dict[str, Recorded] = {}
    for experiment in client.search_experiments(filter_string="name != 'Default'"):
        for run in client.search_runs([experiment.experiment_id]):
            assert run.info.status == "FINISHED"
            recorded = found[run.info.run_name] = Recorded(experiment.name, dict(run.data.params))
            points: dict[int, dict[str, float]] = {}
            for key in run.data.metrics:
                for metric in client.get_metric_history(run.info.run_id, key):
                    assert key not in points.setdefault(metric.step, {})
                    points[metric.step][key] = metric.value
            recorded.points = sorted(points.items())
    return found


def of_wandb(folder: Path) -> dict[str, Recorded]:
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Recorded] = {}
    for file in sorted(folder.rglob("*.wandb"), key=lambda path: path.parent.name):
        run = Recorded("")
        for data in _records(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                assert file.name == f"run-{record.run.run_id}.wandb"
                run = found.setdefault(f"{record.run.display_name}", Recorded(record.run.run_group))
                run.settings |= {each.key: json.loads(each.value_json) for each in record.run.config.update}
            elif record.WhichOneof("record_type") == "history":
                items = {each.key or "/".join(each.nested_key): each.value_json for each in record.history.item}
                numbers = {key: json.loads(value) for key, value in items.items() if not key.startswith("_")}
                run.points.append((record.history.step.num, numbers))
    return found


def _records(data: bytes) -> Iterator[bytes]:
    assert data.startswith(b":W&B")
    position, parts = 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:  # too short for a header: filled up
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def of_trackio(folder: Path) -> dict[str, Recorded]:
    found: dict[str, Recorded] = {}
    for file in folder.glob("*.db"):
        with sqlite3.connect(file) as database:
            for name, config in database.execute("select run_name, config from configs"):
                found[name] = Recorded(file.stem, json.loads(config))
            for name, step, metrics in database.execute("select run_name, step, metrics from metrics order by id"):
                found[name].points.append((step, json.loads(metrics)))
    return found


READERS: dict[str, Callable[[Path], dict[str, Recorded]]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}
