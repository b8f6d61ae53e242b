"""Read the next items while the caller works on the present one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = AHEAD) -> Iterator[Result]:
    """Yield ``read(item)`` in the order of the items, reading ahead of the requests in a separate thread.

    An error in ``read`` is raised in place of its result. At most ``ahead`` results wait; with 0 each item is read when
    it is requested, without a thread.

    >>> list(read_ahead(str, [1, 2, 3]))
    ['1', '2', '3']
    """
    if ahead == 0:
        yield from map(read, items)
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="fedhess-reader")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the caller stops early
        pool.shutdown(wait=False, cancel_futures=True)
