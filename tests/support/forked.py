"""A process that begins as a copy of this one: what may be killed, without the seconds that an import takes."""

import os
import sys
import traceback
from collections.abc import Callable


def fork(run: Callable[[], object]) -> int:
    """Call ``run`` in a copy of this process; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        run()
    except BaseException:  # noqa: BLE001 - nothing of the test runner may go on here
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(child: int) -> int:
    """Wait for the end; return the exit status, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
