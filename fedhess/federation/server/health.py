"""Signs of failed training in a run's rows: the penalty dominates, nothing is learned, the head does not move."""

from collections.abc import Mapping, Sequence

from fedhess.alignment.loading import load_strategy
from fedhess.alignment.step import round_steps
from fedhess.alignment.strategy import DomainStrategy
from fedhess.base.errors import UsageError
from fedhess.base.tables import mean
from fedhess.domains.benchmark import SOURCE
from fedhess.federation.server.round_selection import rows_by_round
from fedhess.federation.server.run_directory import Row
from fedhess.settings.assignments import Scalar
from fedhess.settings.run_config import RunConfig

DROWNED = 10.0  # penalty over loss
FIRST = 3  # evaluated rounds in which the penalty is checked: later a small loss is a good sign
STILL = 1e-4  # the head's change relative to its norm


def sickness(
    rows: Sequence[Row], config: RunConfig, *, args: Mapping[str, Scalar], classes: int, train_size: int
) -> str:
    """Describe what is wrong with a run so far and which settings to change; "" if nothing is.

    Whether anything is learned, and whether the head moves, is checked from the middle of the run on. ``train_size`` is
    the number of training examples of the client that has the fewest.
    """
    rounds = rows_by_round([row for row in rows if row["role"] == SOURCE and row["round"] > 0])
    for number in sorted(rounds)[:FIRST]:
        loss, objective = _mean(rounds[number], "train_loss"), _mean(rounds[number], "train_objective")
        if loss is None or objective is None:
            continue
        steps = round_steps(config, train_size=train_size, server_round=number)  # the others took as many or more
        penalty = objective * _divisor(steps.start, config, args) - loss
        if penalty > DROWNED * loss:
            return f"the penalty is {penalty / loss:.0f} times the loss in round {number}: {remedy(config, args)}"
    for number in sorted(rounds):
        if 2 * number < config.rounds:
            continue
        moved = rounds[number][0].get("head_change")
        if moved is not None and moved < STILL:
            return (
                f"the head has moved by {moved:.1g} of its length in {number} rounds: raise --lr "
                f"({config.lr:g}) or --server-lr ({config.server_lr:g})"
            )
        accuracy = _mean(rounds[number], "accuracy")
        if accuracy is not None and classes and accuracy <= 1 / classes:
            return (
                f"accuracy on the sources is {100 * accuracy:.1f} % after round {number}, no better than chance with "
                f"{classes} classes: {remedy(config, args)}, or train for longer"
            )
    return ""


def remedy(config: RunConfig, args: Mapping[str, Scalar]) -> str:
    """Name the coefficients and the learning rates that may be too high, with their values."""
    numbers = [f"{key}={value:g}" for key, value in args.items() if isinstance(value, float)]
    lower = f"--strategy-args ({', '.join(numbers)}) or " if numbers else ""
    adaptive = f" or --server-lr ({config.server_lr:g})" if config.server_optimizer != "SGD" else ""
    return f"lower {lower}--lr ({config.lr:g}){adaptive}"


def _divisor(step: int, config: RunConfig, args: Mapping[str, Scalar]) -> float:
    """Return what the objective of a step was divided by, see ``DomainStrategy.objective``."""
    try:
        strategy = load_strategy(config.strategy, args)
    except UsageError:  # the strategy of a recorded run is not on this machine
        return 1.0
    if not isinstance(strategy, DomainStrategy) or strategy.limited or strategy.schedule.is_off:
        return 1.0
    return strategy.schedule.divisor(step)


def _mean(rows: Sequence[Row], key: str) -> float | None:
    return mean([row[key] for row in rows if row.get(key) is not None])
