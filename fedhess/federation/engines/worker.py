"""How engines call a client: exceptions become error replies, and a hung client blocks only its own thread."""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedhess.federation.flower_compat import ErrorCode

CLIENT_THREAD = "fedhess-client"

logger = logging.getLogger(__name__)


def answer(client_app: ClientApp, message: Message, context: Context) -> Message:
    """Call a client; an exception becomes Flower's error reply, with the exception's type and message."""
    try:
        reply: Message = client_app(message, context)
    except Exception as error:
        logger.debug("client %d raised", message.metadata.dst_node_id, exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
    return reply


class Worker:
    """One daemon thread that runs clients in turn; unlike an executor's thread, a hung one does not block the exit."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Message], Callable[[], Message]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=CLIENT_THREAD, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Message]) -> "Future[Message]":
        """Queue a job; the future holds its result or its exception."""
        future: Future[Message] = Future()
        self._jobs.put((future, job))
        return future

    def stop(self, *, wait: bool) -> None:
        """End the thread after its current job; wait for it unless that job hangs."""
        self._jobs.put(None)
        if wait:  # the interpreter aborts if it ends while this thread drops its last job's tensors
            self._thread.join()

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            future, job = work
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - passed to whoever waits for the result
                future.set_exception(error)
