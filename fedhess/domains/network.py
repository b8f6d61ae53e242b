"""Whether something can be downloaded, decided within seconds."""

import threading
from collections.abc import Callable, Sequence
from urllib.request import Request, urlopen

DECISION_SECONDS = 6.0
REQUEST_SECONDS = 4.0  # for one server


def why_no_answer(urls: Sequence[str]) -> str:
    """Ask servers in turn for the head of a file.

    Args:
        urls: The same file on one or more servers.

    Returns:
        Why none can be had, or nothing when one can.
    """
    return decide(lambda: _ask(urls))


def decide(ask: Callable[[], str]) -> str:
    """Give a question to the network ``DECISION_SECONDS`` and no more.

    Name resolution may hang for longer than any timeout that a request takes, hence a thread that is given up.

    Args:
        ask: Returns a reason against, or nothing; must not raise.

    Returns:
        What ``ask`` returned, or that it did not.
    """
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(DECISION_SECONDS)
    return answers[0] if answers else f"no answer within {DECISION_SECONDS:g} s"


def _ask(urls: Sequence[str]) -> str:
    reasons = []
    for url in urls:
        try:
            with urlopen(Request(url, method="HEAD"), timeout=REQUEST_SECONDS):
                return ""
        except (OSError, ValueError) as error:
            reasons.append(f"{url} cannot be reached: {error}")
    return "; ".join(reasons)
