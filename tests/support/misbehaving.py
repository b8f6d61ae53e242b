"""Clients that do something else than they should with some messages."""

from collections.abc import Callable, Collection

from flwr.app import Context, Message, MetricRecord

from fedhess.federation import protocol
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.app import return_nonce

BAD = 1  # partition of the client that misbehaves: domain "south"
ALL, TARGET_PARTITION = range(4), 3

Act = Callable[[Message, Message], Message]


class Misbehaving:
    """The real ClientApp, except that ``act`` changes the replies of some clients to one type of messages.

    Args:
        message_type: Whose replies are changed; "" for all.
        act: Gets a message and its reply; raises, or returns another reply.
        first_round: From which round on; 0 for the identification and the evaluation before training too.
        partitions: Clients that misbehave.
    """

    def __init__(
        self, message_type: str, act: Act, *, first_round: int = 1, partitions: Collection[int] = (BAD,)
    ) -> None:
        self.message_type, self.act, self.first_round, self.partitions = message_type, act, first_round, partitions

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        number = message.content.config_records.get(protocol.CONFIG, {}).get(protocol.ROUND, 0)
        typed = self.message_type in ("", message.metadata.message_type)
        chosen = typed and context.node_config["partition-id"] in self.partitions and number >= self.first_round
        return return_nonce(message, context, lambda *_: self.act(message, reply)) if chosen else reply


def crash(message: Message, reply: Message) -> Message:
    raise OSError("the disk is gone")


def with_metrics(message: Message, reply: Message, **changes: object) -> Message:
    """Change metrics of a reply; None takes one away."""
    changed = dict(reply.content.metric_records[protocol.METRICS]) | changes
    reply.content[protocol.METRICS] = MetricRecord({k: v for k, v in changed.items() if v is not None})
    return reply
