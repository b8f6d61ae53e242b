"""Each round's probes are of a seed of its own that its domains share."""

from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message
from methods import METHODS

from fedhess import protocol
from fedhess.client import app as client_app

Run = Callable[..., Any]


def test_each_round_draws_its_own_probes_and_all_domains_the_same(toy_run: Run) -> None:
    seeds: list[tuple[int, int]] = []

    class Listening:
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == protocol.STATISTICS:
                given = message.content.config_records[protocol.GIVEN_SCALARS]
                seeds.append((int(message.metadata.group_id), int(given["seed"])))  # type: ignore[arg-type]
            return client_app(message, context)

    toy_run(strategy="hutchinson", strategy_args=METHODS["hutchinson-probes"].args, app=Listening())
    by_round = {number: {seed for n, seed in seeds if n == number} for number, _ in seeds}
    assert [len(values) for values in by_round.values()] == [1, 1, 1]
    assert len(set.union(*by_round.values())) == 3
