"""``flower-supernode`` whose replies to training are each followed by a second one, with other arrays if it has any.

python insistent_node.py ARGUMENTS OF flower-supernode
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

from fedhess.federation.flower_compat import set_message_id

Send = Callable[[Message, Any, float], tuple[set[str], str]]
push_messages = start_client_internal._push_messages


def push_twice(state: Any, object_store: Any, send: Send, push_object: Callable[[int, str, str, bytes], None]) -> None:
    """Push replies as the real node does, and after each to ``train`` the same with other numbers."""

    def send_twice(message: Message, tree: Any, duration: float) -> tuple[set[str], str]:
        answer = send(message, tree, duration)
        if message.metadata.message_type == "train":
            identity = message.metadata.message_id
            contents = {part.object_id: object_store.get(part.object_id) for part in iterate_object_tree(tree)}
            second = other(inflate_object_from_contents(identity, contents))
            missing, session = send(second, get_object_tree(second), duration)
            for name, part in get_all_nested_objects(second).items():
                if name in missing:
                    push_object(message.metadata.run_id, session, name, part.deflate())
            kind = "the same" if second.object_id == identity else "another"
            sys.stderr.write(f"second reply, {kind}: {len(missing)} parts of it wanted\n")
        return answer

    push_messages(state, object_store, send_twice, push_object)


def other(reply: Message) -> Message:
    """Make a reply to the same message with every array of the first one turned to ones."""
    second = Message(reply.content, metadata=copy.copy(reply.metadata))
    for name, record in reply.content.array_records.items():
        ones = {key: Array(np.ones_like(array.numpy())) for key, array in record.items()}
        second.content[name] = ArrayRecord(ones)
    set_message_id(second, second.object_id)
    return second


if __name__ == "__main__":
    start_client_internal._push_messages = push_twice
    flower_supernode()
