"""A run on a SuperLink elsewhere: start it, show its log, and learn from the SuperLink how it ended."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedhess.base.errors import FederationError
from fedhess.deploy import programs
from fedhess.deploy.programs import Program

COMPLETED = "finished:completed"
POLL_SECONDS = 1.0
LAST_WORD_SECONDS = 60.0  # after the end of its log, for the SuperLink to note how the run ended


def submit(app: Path, *, flower_home: Path, run_config: Sequence[str], say: Callable[[str], object]) -> None:
    """Send the app, start a run, show its log until it ends, and insist that it ended well.

    Flower's ``flwr run --stream`` does all but the last: its status is 0 however the run ended.

    Args:
        app: The app's folder.
        flower_home: Where the connection to the SuperLink is written.
        run_config: Arguments of ``flwr run --run-config``.
        say: Told every command, and how to stop the run.

    Raises:
        FederationError: The run could not be started, failed or was stopped; the message has Flower's reason.
    """
    started = _answer(programs.run(app, flower_home=flower_home, run_config=run_config, stream=False), say)
    run_id = str(started["run-id"])
    stop = programs.of_run("stop", run_id, flower_home=flower_home)
    say(f"run {run_id} has started; Ctrl-C ends its log here, not the run, which `{stop}` does")
    log = programs.of_run("log", run_id, flower_home=flower_home)
    say(f"$ {log}")
    subprocess.run(log.command(), env=log.environment(), check=False)  # what it says is no word on how the run ended

    listed = programs.listing(run_id, flower_home=flower_home)
    say(f"$ {listed}")
    end = time.monotonic() + LAST_WORD_SECONDS
    while True:
        (run,) = _answer(listed)["runs"]
        if run["status"].startswith("finished") or time.monotonic() >= end:
            break
        time.sleep(POLL_SECONDS)
    if run["status"] != COMPLETED:
        details = run.get("status-details") or "no details given"
        raise FederationError(f"run {run_id}: {run['status']}: {details}")
    say(f"run {run_id}: {run['status']}")


def _answer(program: Program, say: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """Run one of Flower's commands that answer in JSON.

    Raises:
        FederationError: It failed; the message is Flower's.
    """
    say(f"$ {program}")
    done = subprocess.run(program.command(), env=program.environment(), capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr or done.stdout).strip() or f"status {done.returncode}"
        raise FederationError(f"{program.name} {program.arguments[0]}: {said}") from None
    if not answer.get("success"):
        raise FederationError(f"{program.name} {program.arguments[0]}: {str(answer.get('error-message')).strip()}")
    return answer
