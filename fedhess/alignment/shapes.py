"""The shapes that a strategy's statistics have on the run's own head, so that a client's reply can be checked."""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from fedhess.alignment.statistics import Statistic, head_batch, strategy_statistic
from fedhess.base.errors import did_you_mean
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import Scalar


class StatisticShapes:
    """The statistics of a strategy, each with the shape and dtype its value must have.

    Args:
        statistics: The strategy's statistics of the head, by name.
        template: A model of the run's architecture.
        network: Names of the strategy's statistics of the whole network: flat vectors over its trained parameters.
        strategy: The strategy as the run names it, for messages.
    """

    def __init__(
        self,
        statistics: Mapping[str, Statistic],
        template: HeadedModel,
        network: Collection[str] = (),
        *,
        strategy: str = "",
    ) -> None:
        self._strategy = strategy
        self._statistics = statistics
        self._network = network
        self._template = template
        self._known: dict[str, Tensor] = {}

    def of(self, names: Sequence[str], given: Mapping[str, Tensor | Scalar]) -> dict[str, Tensor]:
        """Return a tensor of the right shape and dtype for each statistic, computed once on one blank example.

        Args:
            names: Names of statistics.
            given: What their functions take besides the batch.

        Raises:
            LookupError: The strategy lists no such statistic.
            StrategyError: The statistic raised, or returned no tensor.
        """
        for name in names:
            if name not in self._statistics and name not in self._network:
                raise LookupError(f"no statistic {name!r}; {did_you_mean(name, [*self._statistics, *self._network])}")
            if name not in self._known:
                self._known[name] = self._blank(name, given)
        return {name: self._known[name] for name in names}

    def _blank(self, name: str, given: Mapping[str, Tensor | Scalar]) -> Tensor:
        if name in self._network:
            trained = [parameter for parameter in self._template.parameters() if parameter.requires_grad]
            return trained[0].detach().new_zeros(sum(parameter.numel() for parameter in trained))
        linear = next(module for module in self._template.head.modules() if isinstance(module, nn.Linear))
        features = linear.weight.detach().new_zeros(1, linear.in_features)
        batch = head_batch(self._template, features, features.new_zeros(1).long())
        return strategy_statistic(self._strategy, name, self._statistics[name], batch, **given)
