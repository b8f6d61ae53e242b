"""A run on a SuperLink elsewhere: start it, show its log, and ask the SuperLink how it ended."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fedhess.base.errors import FederationError
from fedhess.deploy import programs
from fedhess.deploy.programs import answer

POLL_SECONDS = 1.0
STATUS_SECONDS = 60.0  # after the end of its log, for the SuperLink to note how the run ended
Say = Callable[[str], object]  # called with every command


def start_run(app: Path, *, flower_home: Path, run_config: Sequence[str], say: Say) -> str:
    """Send the app, start a run with arguments of ``flwr run --run-config``, and return the run's id.

    Raises:
        FederationError: The run could not be started; the message is Flower's.
    """
    program = programs.run(app, flower_home=flower_home, run_config=run_config, stream=False)
    say(f"$ {program}")
    return str(answer(program)["run-id"])


def follow_run(run_id: str, *, flower_home: Path, say: Say) -> None:
    """Show the log of a run until it ends, and check that it ended well: ``flwr run --stream`` ends with 0 either way.

    Raises:
        FederationError: The run failed or was stopped; the message has Flower's reason.
    """
    stop = programs.flwr("stop", run_id, programs.CONNECTION, home=flower_home)
    say(f"run {run_id} has started; Ctrl-C ends its log here, not the run, which `{stop}` does")
    log = programs.flwr("log", run_id, programs.CONNECTION, home=flower_home)
    say(f"$ {log}")
    subprocess.run(log.command(), env=log.environment(), check=False)

    listing = programs.flwr("list", programs.CONNECTION, "--run-id", run_id, *programs.JSON, home=flower_home)
    say(f"$ {listing}")
    end = time.monotonic() + STATUS_SECONDS
    while not (run := answer(listing)["runs"][0])["status"].startswith("finished") and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    if run["status"] != "finished:completed":
        raise FederationError(f"run {run_id}: {run['status']}: {run.get('status-details') or 'no details given'}")
    say(f"run {run_id}: {run['status']}")
