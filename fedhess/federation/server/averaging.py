"""Averages of the global model over rounds, evaluated and reported in its place; training continues from the model.

Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
UAI 2018 (SWA); Cha et al., "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS 2021. For clients only the
model that they evaluate differs.

Trained parameters and floating-point buffers are averaged; integer buffers are those of the newest model. Deviation:
running statistics of batch norms are averaged too, while SWA computes them from training data. That would take another
exchange, and with ``batchnorm="frozen"``, the default and the choice of the DomainBed code that SWAD is built on, they
never change.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedhess.federation.server.checkpoint import State, below
from fedhess.federation.server.clients import ModelPayload
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.tensors import encode_tensors
from fedhess.settings.run_config import RunConfig

Tensors = dict[str, Tensor]


class EvaluatedModel:
    """The model that is evaluated, reported and kept: the global one, or its average over rounds."""

    def __init__(self, model: GlobalModel, config: RunConfig) -> None:
        self._model = model
        self._names = [name for name in model.update_names if model.tensors[name].is_floating_point()]
        self._average = AVERAGES[config.average](config.average_args, rounds=config.rounds)
        self._payload: ModelPayload | None = None

    @property
    def averages(self) -> bool:
        """Whether it is an average now, and not the global model itself."""
        return self._average.count > 0

    @property
    def follows_loss(self) -> bool:
        """Whether the average needs the validation loss of the global model of this round."""
        return self._average.follows_loss

    @property
    def tensors(self) -> Tensors:
        """Every tensor of the model, by name; they change with the next round."""
        return self._model.tensors | self._averaged()

    def _averaged(self) -> Tensors:
        if not self.averages:
            return {}
        return {name: value.to(self._model.tensors[name].dtype) for name, value in self._average.result().items()}

    def payload(self) -> ModelPayload:
        """Return the encoded model; it is encoded once."""
        if not self.averages:
            return self._model.payload()
        if self._payload is None:
            self._payload = ModelPayload(f"{self._model.payload().model_id}-average", encode_tensors(self.tensors))
        return self._payload

    def add(self, server_round: int) -> None:
        """Add the global model after a round of training."""
        self._average.add({name: self._model.tensors[name] for name in self._names}, server_round)
        self._payload = None

    def observe(self, loss: float) -> None:
        """Add the global model's validation loss after the round that was last added."""
        self._average.observe(loss)
        self._payload = None

    def row(self) -> dict[str, Any]:
        """Return the fields of rows about the average, such as its number of models; none if the run has no average."""
        return {} if type(self._average) is NoAverage else self._average.row()

    def state(self) -> State:
        """Return the average's state, and as ``"evaluated/NAME"`` its tensors if it replaces the model."""
        tensors, plain = self._average.state()
        named = {f"average/{name}": tensor for name, tensor in tensors.items()}
        named |= {f"evaluated/{name}": tensor for name, tensor in self._averaged().items()}
        return named, {f"average/{name}": value for name, value in plain.items()}

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._average.restore(below("average/", tensors), below("average/", plain))
        self._payload = None


class NoAverage:
    """No average: the model itself is evaluated. Base class of the averages."""

    follows_loss = False  # whether the next model's loss is to be observed

    def __init__(self, args: Mapping[str, Any], *, rounds: int) -> None:
        self.args, self.rounds = args, rounds
        self.count = 0  # models in the average; 0 while the model itself is evaluated

    def add(self, model: Tensors, server_round: int) -> None:
        """Add a model; it is read, never kept."""

    def observe(self, loss: float) -> None:
        """Add the validation loss of the model that was last added."""

    def result(self) -> Tensors:
        """Return the average, in any dtype; there is one while `count` is positive."""
        return {}

    def row(self) -> dict[str, Any]:
        """Return the fields of rows about the average."""
        return {"averaged": self.count}

    def state(self) -> State:
        """Return what the next round needs."""
        return {}, {}

    def restore(self, tensors: Tensors, plain: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""


@dataclass
class Mean:
    """The mean of models, added up in float64 in the order of the calls."""

    total: Tensors = field(default_factory=dict)
    count: int = 0

    def add(self, model: Tensors, times: int = 1) -> None:
        """Add a model ``times`` times."""
        for name, value in model.items():
            if name in self.total:
                self.total[name].add_(value, alpha=times)
            else:
                self.total[name] = value.double() * times
        self.count += times

    def result(self) -> Tensors:
        """Return the mean in float64."""
        return {name: total / self.count for name, total in self.total.items()}


class Swa(NoAverage):
    """The mean of the models after rounds F, F + every, F + 2 every, ... with F = start * rounds, at least 1.

    FedSAM and FedASAM average on the server in this way (Caldarola et al., ECCV 2022), with start=0.75 and every=10.
    """

    def __init__(self, args: Mapping[str, Any], *, rounds: int) -> None:
        super().__init__(args, rounds=rounds)
        self._mean = Mean()

    def add(self, model: Tensors, server_round: int) -> None:
        """Add the model if it is the round's turn."""
        first = max(1, round(self.args["start"] * self.rounds))
        if server_round >= first and (server_round - first) % self.args["every"] == 0:
            self._mean.add(model)
            self.count = self._mean.count

    def result(self) -> Tensors:
        """Return the mean."""
        return self._mean.result()

    def state(self) -> State:
        """Return sum and count."""
        return self._mean.total, {"count": self.count}

    def restore(self, tensors: Tensors, plain: Mapping[str, Any]) -> None:
        """Restore sum and count."""
        self.count = plain["count"]
        self._mean = Mean(tensors, self.count)


class Ema(NoAverage):
    """The exponential moving average: decay * average + (1 - decay) * model after each round, from the first model."""

    def __init__(self, args: Mapping[str, Any], *, rounds: int) -> None:
        super().__init__(args, rounds=rounds)
        self._average: Tensors = {}

    def add(self, model: Tensors, server_round: int) -> None:
        """Move towards the model."""
        del server_round
        decay = self.args["decay"]
        for name, value in model.items():
            if name in self._average:
                self._average[name].mul_(decay).add_(value, alpha=1 - decay)
            else:
                self._average[name] = value.double().clone()
        self.count += 1

    def result(self) -> Tensors:
        """Return the average."""
        return {name: value.clone() for name, value in self._average.items()}  # no file holds a tensor twice

    def state(self) -> State:
        """Return average and count."""
        return self._average, {"count": self.count}

    def restore(self, tensors: Tensors, plain: Mapping[str, Any]) -> None:
        """Restore average and count."""
        self._average, self.count = tensors, plain["count"]


class Swad(NoAverage):
    """The mean of the models from the start of a valley of the source validation loss to its end: SWAD's algorithm 1.

    The valley begins at the oldest of the last ``n_converge`` losses once that loss is their minimum. Its threshold is
    the mean of these losses times 1 + ``tolerance_ratio``. It ends before the last ``n_tolerance`` losses once all of
    them exceed the threshold. Until the valley begins the model itself is reported, as in the released code
    (khanrc/swad). During the valley the mean of its rounds so far is reported, as if training ended there.

    Deviations: rounds stand in for the algorithm's steps; the rounds between two evaluations enter and leave together.
    Training continues after the valley, where the code stops. The code adds evaluations from before the valley, and
    some of the valley twice; the paper, which is followed here, does not.

    Memory: a model for each of the last ``n_tolerance`` evaluations, and two sums in float64.
    """

    def __init__(self, args: Mapping[str, Any], *, rounds: int) -> None:
        super().__init__(args, rounds=rounds)
        self._since, self._valley = Mean(), Mean()  # since the last evaluation; certain to be in the mean
        self._recent: deque[tuple[Tensors, int]] = deque()  # may be in it: mean and number, by evaluation
        self._losses: list[float] = []
        self._threshold: float | None = None
        self.follows_loss = True  # until the valley has ended
        self._loss: float | None = None  # of the model that was last added, if observed
        self._dtypes: dict[str, torch.dtype] = {}

    def add(self, model: Tensors, server_round: int) -> None:
        """Add the model, unless the valley has ended."""
        del server_round
        self._loss = None
        if self.follows_loss:
            self._since.add(model)
            self._dtypes = {name: value.dtype for name, value in model.items()}

    def observe(self, loss: float) -> None:
        """Check whether the valley begins or ends with this loss."""
        self._loss = loss
        mean = {name: value.to(self._dtypes[name]) for name, value in self._since.result().items()}
        self._recent.append((mean, self._since.count))
        self._since = Mean()
        converge, tolerance = self.args["n_converge"], self.args["n_tolerance"]
        self._losses = [*self._losses, loss][-max(converge, tolerance) :]
        if self._threshold is None:
            while len(self._recent) > converge:
                self._recent.popleft()
            latest = self._losses[-converge:]
            if len(latest) == converge and latest[0] == min(latest):
                self._threshold = (1 + self.args["tolerance_ratio"]) * sum(latest) / converge
        elif min(self._losses[-tolerance:]) > self._threshold:
            self.follows_loss = False
        if self._threshold is not None:
            while len(self._recent) > tolerance:
                self._valley.add(*self._recent.popleft())
            if not self.follows_loss:
                self._recent.clear()
            self.count = self._valley.count + sum(count for _, count in self._recent)

    def result(self) -> Tensors:
        """Return the mean."""
        mean = Mean({name: total.clone() for name, total in self._valley.total.items()}, self._valley.count)
        for model, count in self._recent:
            mean.add(model, count)
        return mean.result()

    def row(self) -> dict[str, Any]:
        """Return the number of models in it, and the loss of the model in training; none after the valley."""
        return {"averaged": self.count, "unaveraged_loss": self._loss}

    def state(self) -> State:
        """Return everything but the arguments."""
        tensors = {f"since/{name}": total for name, total in self._since.total.items()}
        tensors |= {f"valley/{name}": total for name, total in self._valley.total.items()}
        for place, (model, _) in enumerate(self._recent):
            tensors |= {f"recent/{place}/{name}": value for name, value in model.items()}
        counts = {"since": self._since.count, "valley": self._valley.count, "recent": [n for _, n in self._recent]}
        found = {
            "losses": self._losses,
            "threshold": self._threshold,
            "ended": not self.follows_loss,
            "loss": self._loss,
        }
        return tensors, {"count": self.count, **counts, **found}

    def restore(self, tensors: Tensors, plain: Mapping[str, Any]) -> None:
        """Restore it."""
        self._since = Mean(below("since/", tensors), plain["since"])
        self._valley = Mean(below("valley/", tensors), plain["valley"])
        self._recent = deque((below(f"recent/{n}/", tensors), count) for n, count in enumerate(plain["recent"]))
        self._losses, self._threshold, self.follows_loss = plain["losses"], plain["threshold"], not plain["ended"]
        self.count, self._loss = plain["count"], plain["loss"]


AVERAGES: Mapping[str, type[NoAverage]] = {"none": NoAverage, "swa": Swa, "swad": Swad, "ema": Ema}
