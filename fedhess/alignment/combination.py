"""Combine strategies under a name such as ``hgp+sagm``: at most one penalty, one step rule and one server rule.

The hooks that a strategy overrides decide which places it takes: ``penalty``, ``objective`` or ``auxiliary`` the
penalty, ``compute_gradient`` the step rule, ``local_training`` the server rule. Each part keeps its own ``reference``
and ``check``. SCAFFOLD takes two places.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

from torch import Tensor, nn

from fedhess.alignment.step import LocalStep, Step
from fedhess.alignment.strategy import Ask, DomainStrategy, LocalTraining, Reference
from fedhess.base.errors import UsageError
from fedhess.base.loading import text_parameters
from fedhess.models.headed import HeadedModel
from fedhess.settings.combined import parts_of
from fedhess.settings.run_config import RunConfig

PENALTY, STEP, SERVER = PLACES = ("penalty", "step rule", "server rule")
APART = {  # pairs of which one part would do nothing beside the other, or something else
    ("fish", "mixup"): "a client of Fish's relay trains on one domain at a time, and Mixup mixes two",
    ("fish", "fedprox"): "in Fish's relay the model comes from the domain before, and FedProx would pull to it",
}
_HOOKS = {PENALTY: ("penalty", "objective", "auxiliary"), STEP: ("compute_gradient",), SERVER: ("local_training",)}


class Combined(DomainStrategy):
    """Strategies in different places, each with its own references and state; :func:`combine` derives subclasses.

    Args:
        args: Arguments of the parts, their names prefixed by part.
    """

    classes: ClassVar[Mapping[str, type[DomainStrategy]]] = {}  # by prefix
    parameters: ClassVar[Sequence[inspect.Parameter]] = ()  # that text can set

    def __init__(self, **args: Any) -> None:
        self._parts = {
            prefix: made(**{k.removeprefix(prefix): value for k, value in args.items() if k.startswith(prefix)})
            for prefix, made in self.classes.items()
        }
        self._prefixes = {place: prefix for prefix, made in self.classes.items() for place in places(made)}
        if PENALTY in self._prefixes:
            penalty = self._parts[self._prefixes[PENALTY]]
            self.schedule, self.limited = penalty.schedule, penalty.limited

    def __getattr__(self, name: str) -> Any:
        """Return an argument's value from the part that it belongs to."""
        for prefix, part in self.__dict__.get("_parts", {}).items():
            if name.startswith(prefix):
                return getattr(part, name.removeprefix(prefix))
        raise AttributeError(name)

    def check(self, config: RunConfig) -> None:
        """Check that the settings suit every part."""
        self._check_each(config, lambda part, own: part.check(own))

    def check_steps(self, config: RunConfig, steps: int) -> None:
        """Check that every part's penalty begins within the run's steps."""
        self._check_each(config, lambda part, own: part.check_steps(own, steps))

    def _check_each(self, config: RunConfig, check: Callable[[DomainStrategy, RunConfig], None]) -> None:
        for prefix, part in self._parts.items():
            name = parts_of(config.strategy)[prefix]
            try:
                check(part, config.model_copy(update={"strategy": name}))
            except UsageError as error:
                text = str(error).replace(f"--strategy {name}:", f"--strategy {config.strategy}:")
                raise UsageError(text.replace(f"{name}.", f"{config.strategy}.{prefix}")) from error

    def check_model(self, model: HeadedModel) -> None:
        """Check that the network suits every part."""
        for part in self._parts.values():
            part.check_model(model)

    def auxiliary(self, model: HeadedModel) -> nn.Module | None:
        """Return the modules of the part with the penalty."""
        return self._of(PENALTY).auxiliary(model)

    def reference(self, ask: Ask) -> Reference:
        """Return the references of every part."""
        return {
            f"{prefix}/{name}": value
            for prefix, part in self._parts.items()
            for name, value in part.reference(ask).items()
        }

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Return the penalty of the part that has one."""
        return self._of(PENALTY).penalty(step, self._own(PENALTY, reference))

    def objective(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor:
        """Return the objective of the part with the penalty."""
        return self._of(PENALTY).objective(step, self._own(PENALTY, reference))

    def compute_gradient(self, step: LocalStep) -> None:
        """Follow the step rule."""
        self._of(STEP).compute_gradient(step)

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        """Follow the server rule."""
        return self._of(SERVER).local_training(phase, self._own(SERVER, reference))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of every part."""
        return {
            f"{prefix}/{k}": value for prefix, part in self._parts.items() for k, value in part.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for prefix, part in self._parts.items():
            own = {k.removeprefix(f"{prefix}/"): value for k, value in state.items() if k.startswith(f"{prefix}/")}
            part.load_state_dict(own)

    def _of(self, place: str) -> DomainStrategy:
        prefix = self._prefixes.get(place)
        return DomainStrategy() if prefix is None else self._parts[prefix]

    def _own(self, place: str, reference: Mapping[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(f"{self._prefixes.get(place)}/"): value for name, value in reference.items()}


def places(strategy: type[DomainStrategy]) -> list[str]:
    """Return the places that a strategy takes, by the hooks that it overrides."""
    return [
        place
        for place, hooks in _HOOKS.items()
        if any(getattr(strategy, hook) is not getattr(DomainStrategy, hook) for hook in hooks)
    ]


@cache  # clients ask with every message
def strategy_parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of a strategy's constructor that text can set."""
    return text_parameters(cls, what=f"strategy {cls.__qualname__!r}")


def combine(name: str, classes: Mapping[str, type]) -> type[Combined]:
    """Make the class of a combination.

    Args:
        name: Name of the combination, for messages.
        classes: Classes of its parts, by prefix.

    Raises:
        UsageError: A part has no hooks or overrides none; two parts take the same place, or use one name for different
            statistics; or one part would do nothing beside the other.
    """
    for pair, reason in APART.items():
        if set(pair) <= set(parts_of(name).values()):
            raise UsageError(f"--strategy {name}: {reason}; leave one of the two out")
    taken: dict[str, str] = {}
    kinds: dict[str, dict[str, Any]] = {"statistics": {}, "network_statistics": {}}
    for prefix, made in classes.items():
        part = parts_of(name)[prefix]
        if not issubclass(made, DomainStrategy):
            raise UsageError(
                f"--strategy {name}: {part!r} is a plain Flower strategy, which has no hooks to combine; give it "
                "alone, or --server-optimizer Adam in its place"
            )
        if not places(made):
            raise UsageError(f"--strategy {name}: {part!r} adds nothing to the others; leave it out")
        for place in places(made):
            other = taken.setdefault(place, part)
            if other != part:
                raise UsageError(
                    f"--strategy {name}: {other!r} and {part!r} are each a {place}; expected one "
                    f"{', one '.join(PLACES)} at most ({part!r} is a {' and a '.join(places(made))})"
                )
        for kind, known in kinds.items():
            for key, function in getattr(made, kind).items():
                if known.setdefault(key, function) is not function:
                    raise UsageError(f"--strategy {name}: two of its parts mean different statistics by {key!r}")
    parameters = [
        parameter.replace(name=f"{prefix}{key}", kind=inspect.Parameter.KEYWORD_ONLY)
        for prefix, made in classes.items()
        for key, parameter in strategy_parameters(made).items()
    ]
    bound = any(getattr(made, "bound_to_rounds", False) for made in classes.values())
    own = {"classes": dict(classes), "parameters": parameters, "bound_to_rounds": bound, **kinds}
    return type("Combined", (Combined,), own)
