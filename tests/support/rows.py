"""Recorded rows for tests of what is made of them."""

from fedhess.federation.server.run_directory import Row

REST: Row = {"gradient_distance": None, "hgp_distance": None, "failures": []}


def source(number: int, domain: str, accuracy: float | None, loss: float | None = 1.0, **more: object) -> Row:
    row = {"round": number, "domain": domain, "role": "source", "split": "validation", "examples": 10}
    return row | REST | {"accuracy": accuracy, "loss": loss, **more}


def target(
    number: int, accuracy: float | None, *, domain: str = "t", examples: int = 10, split: str = "all", loss: float = 1.0
) -> Row:
    row = {"round": number, "domain": domain, "role": "target", "split": split, "examples": examples}
    return row | REST | {"accuracy": accuracy, "loss": loss}
