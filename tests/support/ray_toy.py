"""The ClientApp for Ray actors, which know the toy benchmark; and clients that misbehave."""

import time

from flwr.app import Context, Message

from fedhess.domains import BENCHMARKS
from fedhess.federation import protocol
from fedhess.federation.client.app import app


class ToyClient:
    """The real ClientApp; one client may do something else in training: raise or hang."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def __call__(self, message: Message, context: Context) -> Message:
        BENCHMARKS["Toy"] = "toy:open_toy"
        if self.fault and message.metadata.message_type == protocol.TRAIN and context.node_config["partition-id"] == 1:
            if self.fault == "hang":
                time.sleep(3600)
            raise OSError("the disk is gone")
        return app(message, context)
