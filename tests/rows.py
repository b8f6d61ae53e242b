"""Recorded rows for tests of what is made of them."""

from fedhess.runs import Row


def source(number: int, domain: str, accuracy: float | None, loss: float | None = 1.0, **more: object) -> Row:
    row = {"round": number, "domain": domain, "role": "source", "split": "validation", "examples": 10}
    return row | {"accuracy": accuracy, "loss": loss, **more}


def target(
    number: int, accuracy: float | None, *, domain: str = "t", examples: int = 10, split: str = "all", loss: float = 1.0
) -> Row:
    row = {"round": number, "domain": domain, "role": "target", "split": split, "examples": examples}
    return row | {"accuracy": accuracy, "loss": loss}
