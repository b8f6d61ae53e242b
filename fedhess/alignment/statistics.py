"""Statistics of a batch at the classifier head, and the shapes of a strategy's statistics on the run's own head."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache

from torch import Tensor

from fedhess.base.errors import did_you_mean
from fedhess.base.users_code import users_code
from fedhess.curvature import HeadBatch
from fedhess.models.headed import HeadedModel
from fedhess.settings.assignments import Scalar

# A function of a ``HeadBatch``, and of named tensors and scalars, such as :func:`fedhess.curvature.head_gradient`.
Statistic = Callable[..., Tensor]


def head_batch(model: HeadedModel, features: Tensor, labels: Tensor) -> HeadBatch:
    """Pair features with the model's head."""
    return HeadBatch(features, labels, model.head.weight, model.head.bias)


def compute_statistic(function: Statistic, batch: HeadBatch, /, **given: Tensor | Scalar) -> Tensor:
    """Evaluate a statistic of the head, with the given tensors and scalars that it has a parameter for."""
    return function(batch, **{name: value for name, value in given.items() if name in _parameter_names(function)})


def strategy_statistic(
    strategy: str, hook: str, function: Statistic, of: object, /, **given: Tensor | Scalar
) -> Tensor:
    """Evaluate a strategy's statistic on a head batch, or on a whole pass, detached from its graph.

    Raises:
        StrategyError: The statistic raised, or returned no tensor.
    """
    with users_code(f"strategy {strategy!r}", hook, function):
        value = compute_statistic(function, of, **given) if isinstance(of, HeadBatch) else function(of)
        if not isinstance(value, Tensor):
            raise TypeError(f"expected a tensor, got {type(value).__name__}")
        return value.detach()


def disclosed_by(statistic: Callable[..., Tensor]) -> str:
    """Return what a statistic discloses to its receiver: the paragraph ``Discloses:`` of its docstring.

    >>> disclosed_by(head_loss)[:48]
    "the batch's mean loss; of a head that ignores fe"
    >>> disclosed_by(lambda batch: batch.loss)
    'not stated'
    """
    _, _, after = (inspect.getdoc(statistic) or "").partition("Discloses:")
    return " ".join(after.partition("\n\n")[0].split()).removesuffix(".") or "not stated"


def head_loss(batch: HeadBatch) -> Tensor:
    """Return the mean loss of the batch, ().

    Discloses: the batch's mean loss; of a head that ignores features, which a server can send, the class counts.
    """
    return batch.loss


@lru_cache(maxsize=256)
def _parameter_names(function: Statistic) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


class StatisticShapes:
    """The shape and dtype that each statistic of a strategy must have on the run's model.

    ``network`` names the statistics of the whole network, which are flat vectors over its trained parameters.
    """

    def __init__(
        self,
        statistics: Mapping[str, Statistic],
        template: HeadedModel,
        network: Collection[str] = (),
        *,
        strategy: str = "",
    ) -> None:
        self._strategy, self._statistics = strategy, statistics
        self._network, self._template = network, template
        self._known: dict[str, tuple[dict[str, Scalar], Tensor]] = {}

    def of(self, names: Sequence[str], given: Mapping[str, Tensor | Scalar]) -> dict[str, Tensor]:
        """Return a tensor of the right shape and dtype for each statistic, computed on one blank example.

        A tensor is computed again if scalars of the function, other than a seed, differ from the last call.

        Raises:
            LookupError: The strategy lists no such statistic.
            StrategyError: The statistic raised, or returned no tensor.
        """
        for name in names:
            if name not in self._statistics and name not in self._network:
                raise LookupError(f"no statistic {name!r}; {did_you_mean(name, [*self._statistics, *self._network])}")
            takes = _parameter_names(self._statistics[name]) - {"seed"} if name in self._statistics else ()
            scalars = {key: own for key, own in given.items() if key in takes and not isinstance(own, Tensor)}
            if name not in self._known or self._known[name][0] != scalars:
                self._known[name] = scalars, self._blank(name, given)
        return {name: self._known[name][1] for name in names}

    def _blank(self, name: str, given: Mapping[str, Tensor | Scalar]) -> Tensor:
        if name in self._network:
            trained = [parameter for parameter in self._template.parameters() if parameter.requires_grad]
            return trained[0].detach().new_zeros(sum(parameter.numel() for parameter in trained))
        head = self._template.head
        features = head.weight.detach().new_zeros(1, head.in_features)
        batch = head_batch(self._template, features, features.new_zeros(1).long())
        hook = f"statistic {name!r} on one blank example"
        return strategy_statistic(self._strategy, hook, self._statistics[name], batch, **given)
