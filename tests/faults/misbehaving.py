"""The real ClientApp, which misbehaves where its node's configuration says so: ``faults="train@2=nan,train@3=hang"``.

Packed into the bundle of the tests' own Flower app, so a real SuperNode runs it.
"""

import os
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from fedhess.federation.client.app import app as real_app


class Misbehaving(ClientApp):
    """Answers as the real one, but for the faults of its node."""

    def __call__(self, message: Message, context: Context) -> Message:
        metadata = message.metadata
        key = f"{metadata.message_type}@{metadata.group_id}"
        faults = dict(part.split("=") for part in str(context.node_config.get("faults", "")).split(",") if part)
        fault = faults.get(key)
        if fault == "raise":
            raise OSError("the disk is gone")
        if fault == "hang":
            time.sleep(3600)
        if fault == "die":
            os._exit(7)
        reply = real_app(message, context)
        if fault == "late":
            time.sleep(float(context.node_config["late-seconds"]))
        if fault in SPOILERS:
            name = next(iter(reply.content.array_records))
            reply.content[name] = SPOILERS[fault](reply.content.array_records[name])
        return reply


def _nan(record: ArrayRecord) -> ArrayRecord:
    first = next(iter(record))
    values = np.array(record[first].numpy())
    values.flat[0] = np.nan
    return ArrayRecord({**record, first: Array(values)})


def _shape(record: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({**record, next(iter(record)): Array(np.zeros((3, 5), np.float32))})


def _keys(record: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({f"other.{name}": array for name, array in record.items()})


def _huge(record: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({**record, next(iter(record)): Array(np.zeros(50_000_000, np.float32))})


SPOILERS = {"nan": _nan, "shape": _shape, "keys": _keys, "huge": _huge}
app = Misbehaving()
