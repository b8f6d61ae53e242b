"""The settings of one run, validated once and carried to server and clients as Flower's flat run config.

Each setting is written here once: options of the commands, ``--help`` and the run config of ``flwr run`` are made from
:attr:`RunConfig.model_fields`.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from fedhess.base.errors import UsageError
from fedhess.settings import privacy
from fedhess.settings.assignments import Scalar, decode
from fedhess.settings.mistakes import describe_error
from fedhess.settings.partition import Partition, PartitionSettings
from fedhess.settings.privacy import Unit
from fedhess.settings.schedules import LearningRate, Schedule, average_args

if TYPE_CHECKING:
    import torch

# The groups of --help: what most people set first, then the rest.
MAIN, SEARCH, DATA, METHOD, TRAINING, FEDERATION, PRIVACY, MACHINE, OUTPUT = GROUPS = (
    "Main options",
    "Search",
    "Data",
    "Method",
    "Training",
    "Federation",
    "Privacy",
    "Machine",
    "Output",
)


MAX_PIXELS = 50_000_000  # of an image; a small file may claim to be larger


def _setting(default: Any, group: str, text: str, **limits: Any) -> Any:
    """Declare a setting that is also an option: its default, its group of ``--help`` and its description."""
    return Field(default, description=text, json_schema_extra={"group": group}, **limits)


class RunConfig(BaseModel):
    """Everything that determines one run: a strategy, a choice of source and target domains, and a seed.

    The same object reaches the ServerApp and every ClientApp, so that both build the same strategy, model and data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # What differs between the runs of a job
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    strategy: str = "hgp"
    strategy_args: dict[str, Scalar] = {}
    seed: int = _setting(0, MAIN, "Seed of the first trial.", ge=0, lt=2**31)
    # Data
    domains: str
    domains_options: dict[str, Scalar] = {}
    stand_in_for: str | None = None
    data_dir: str | None = None
    split: Literal["sources", "every", "domainbed"] = _setting(
        "sources",
        DATA,
        "Which domains hold examples out: sources; every (a target is read on the larger part, the rest is the "
        "oracle's); domainbed (every domain, by DomainBed's own draw).",
    )
    partition: Partition = _setting(
        PartitionSettings.partition,
        DATA,
        "How source domains are shared among clients: domain (one each), lambda (--clients over all of them), "
        "dirichlet (--clients-per-domain, of unlike classes).",
    )
    clients: int = _setting(
        PartitionSettings.clients, DATA, "Clients that share the source domains, with --partition lambda.", ge=0
    )
    heterogeneity: float = _setting(
        PartitionSettings.heterogeneity,
        DATA,
        "Their lambda: 1 makes them all alike, 0 gives each one domain.",
        ge=0,
        le=1,
    )
    clients_per_domain: int = _setting(
        PartitionSettings.clients_per_domain, DATA, "Clients of each domain, with --partition dirichlet.", ge=0
    )
    dirichlet_alpha: float = _setting(
        PartitionSettings.dirichlet_alpha, DATA, "Their concentration: the smaller, the fewer classes each has.", gt=0
    )
    dirichlet_min_size: int = _setting(
        PartitionSettings.dirichlet_min_size, DATA, "Training examples that each of them gets at least.", ge=1
    )
    augment: Literal["none", "domainbed"] = _setting(
        "none", DATA, "Augmentation of training images: none or domainbed."
    )
    images: Literal["cached", "streamed"] = _setting(
        "cached", DATA, "Image files: cached (decoded once, kept in the cache) or streamed (decoded whenever used)."
    )
    image_cache_gb: float | None = _setting(
        None, DATA, "Most room that cached images may take, in GB; by default what the disk has free.", gt=0
    )
    max_pixels: int = _setting(
        MAX_PIXELS, DATA, "Most pixels of an image, width times height; a larger one is refused.", ge=1
    )
    # Model and method
    model: str = _setting(
        ...,
        MAIN,
        "Model: a name (see --list), timm:NAME or package.module:Class. [default: resnet18 for images, lite0-features "
        "for IconPACS, mlp for digits, mnist-cnn for ColoredMNIST form=domainbed]",
    )
    pretrained: bool = _setting(True, METHOD, "Begin from ImageNet weights where the model has them.")
    weights: str | None = _setting(
        None, METHOD, "File of initial weights for the model: safetensors, or a state dict of torch. [default: none]"
    )
    weights_digest: str | None = None
    references: Literal["current", "previous"] = _setting(
        "current",
        METHOD,
        "current (exact), or previous: statistics a round old, one exchange a round, for slow links.",
    )
    statistics_batches: int = _setting(1, METHOD, "Batches behind a round's reference statistics.", ge=1)
    # Training
    rounds: int = _setting(50, MAIN, "Rounds of training.", ge=1)
    local_steps: int = _setting(5, MAIN, "Steps a client takes in a round.", ge=1)
    local_epochs: int = _setting(
        0, TRAINING, "Passes a client makes over its own examples in a round, in place of steps; 0 for steps.", ge=0
    )
    batch_size: int = _setting(32, TRAINING, "Examples in a step; 0 takes all.", ge=0)
    client_optimizer: Literal["SGD", "Adam"] = _setting(
        "SGD", TRAINING, "The clients' optimizer, new each round: SGD or Adam."
    )
    lr: float = _setting(0.01, MAIN, "Learning rate of the clients.", gt=0)
    lr_schedule: Schedule = _setting(
        "constant", TRAINING, "How it changes by round: constant, step (a tenth at the end) or cosine (towards zero)."
    )
    warmup_rounds: int = _setting(0, TRAINING, "First rounds in which it rises to its full value.", ge=0)
    lr_drop_after: float = _setting(
        0.8, TRAINING, "Share of the rounds after which a step schedule has a tenth.", gt=0, lt=1
    )
    momentum: float = _setting(0.0, TRAINING, "Momentum of the clients' SGD.", ge=0, lt=1)
    weight_decay: float = _setting(0.0, TRAINING, "Weight decay of the clients' optimizer.", ge=0)
    l2: float = _setting(0.0, TRAINING, "Weight of the sum of squared parameters in the loss.", ge=0)
    batchnorm: Literal["frozen", "averaged"] = _setting(
        "frozen", TRAINING, "Running statistics of batch norms: frozen, or averaged over the clients."
    )
    # Federation
    clients_per_round: int = _setting(0, FEDERATION, "Source clients drawn for a round; 0 for all of them.", ge=0)
    weighting: Literal["domain", "examples"] = _setting(
        "domain",
        FEDERATION,
        "Mean over clients: domain (equal weights) or examples; plain Flower strategies have their own.",
    )
    reference_mean: Literal["mean", "median", "trimmed", "geometric"] = _setting(
        "mean",
        FEDERATION,
        "Mean of statistics, over a domain's clients and over domains: mean (exact), or one that a hostile minority "
        "cannot move at will: median, trimmed or geometric.",
    )
    update_mean: Literal["mean", "median", "trimmed", "geometric", "krum", "multikrum"] = _setting(
        "mean",
        FEDERATION,
        "Mean of updates over clients: the same, krum or multikrum; robust ones count every client once and hold all "
        "replies. Plain Flower strategies have their own.",
    )
    hostile_clients: int = _setting(
        1, FEDERATION, "Clients of a round that trimmed, krum and multikrum are to bear.", ge=1
    )
    norm_bound: float = _setting(
        50.0,
        FEDERATION,
        "Most that the norm of a client's statistic or update may be, in medians of the clients of this and earlier "
        "rounds; who exceeds it is named and left out of the round. 0 for no bound.",
        ge=0,
    )
    server_optimizer: str = _setting(
        "SGD",
        FEDERATION,
        "Class of torch.optim that steps along the mean update; not for plain Flower strategies (fedadam), which step "
        "themselves.",
    )
    server_lr: float = _setting(1.0, FEDERATION, "Its learning rate; SGD with 1 is federated averaging.", gt=0)
    server_lr_schedule: Schedule = _setting(
        "constant", FEDERATION, "How the server's learning rate changes by round: constant, step or cosine."
    )
    server_warmup_rounds: int = _setting(
        0, FEDERATION, "First rounds in which the server's learning rate rises to its full value.", ge=0
    )
    server_optimizer_args: dict[str, Scalar] = _setting(
        {}, FEDERATION, "Other arguments of the server's optimizer: key=value,..."
    )
    average: Literal["none", "swa", "swad", "ema"] = _setting(
        "none",
        FEDERATION,
        "Average of the model over rounds, which is evaluated and reported in its place: swa (of the last rounds), "
        "swad (from the start of a valley of the validation loss to its end) or ema (exponential moving average).",
    )
    average_args: dict[str, Scalar] = _setting(
        {},
        FEDERATION,
        "Its arguments, key=value,...: of swa start=0.75 (share of the rounds), every=1 (rounds); of ema decay=0.9; of "
        "swad n_converge=3, n_tolerance=6, tolerance_ratio=0.3 (0.2 on VLCS).",
        validate_default=True,
    )
    quorum: int = _setting(0, FEDERATION, "Source clients that every phase needs; 0 for all of them.", ge=0)
    deadline: float = _setting(3600.0, FEDERATION, "Seconds a client may take to train or evaluate.", gt=0)
    exchange_deadline: float = _setting(600.0, FEDERATION, "Seconds a client may take for statistics.", gt=0)
    # Privacy
    dp_epsilon: float = _setting(
        0.0,
        PRIVACY,
        "Differential privacy: the epsilon that each source client's replies of a whole run have; 0 for none "
        "(pip install 'fedhess[dp]').",
        ge=0,
    )
    dp_delta: float = _setting(0.0, PRIVACY, "Its delta.", ge=0, lt=1)
    dp_clip: dict[str, Annotated[float, Field(gt=0)]] = _setting(
        {},
        PRIVACY,
        "Greatest norms, name=bound,...: of an update and of statistics, as in update=0.1,statistics=1; a name of a "
        "statistic (gradient) gives it a bound of its own.",
    )
    dp_unit: Unit = _setting(
        "client",
        PRIVACY,
        "What it is a promise to: client (all examples of one), or example (one of them, but for its label: statistics "
        "then take far less noise, updates the same).",
    )
    # Machine
    device: str = _setting(
        "auto",
        MAIN,
        "auto (a GPU if there is one, the CPU for batches of mlp and lite0-features), cpu, cuda, cuda:N or mps.",
    )
    threads: int = _setting(0, MACHINE, "Threads of torch while it trains; 0 for torch's own choice.", ge=0, le=1024)
    dtype: Literal["float32", "float64"] = _setting("float32", MACHINE, "float32 or float64.")
    precision: Literal["float32", "bf16"] = _setting(
        "float32", MACHINE, "Of the featurizer: float32, or bf16 where that is safe (autocast)."
    )
    compile: bool = _setting(False, MACHINE, "Compile the featurizer with torch.compile.")
    deterministic: bool = _setting(
        False, MACHINE, "Refuse operations that may round differently each time, as on a GPU."
    )
    # Output
    evaluate_every: int = _setting(1, OUTPUT, "Rounds between evaluations.", ge=1)
    checkpoint_every: int = _setting(1, OUTPUT, "Rounds between checkpoints; the last is kept.", ge=1)

    @field_validator("server_optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        from fedhess.settings.optimizers import optimizer_name

        return optimizer_name(name)

    @field_validator("average_args")
    @classmethod
    def _complete_average(cls, given: dict[str, Scalar], info: ValidationInfo) -> dict[str, Scalar]:
        if "average" not in info.data:  # an invalid average has an error of its own
            return given
        return average_args(info.data["average"], given, benchmark=info.data.get("domains", ""))

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        domains = [*self.sources, *self.targets]
        if len(set(domains)) < len(domains):
            raise ValueError(
                f"--sources, --targets: expected each domain once, got {', '.join(self.sources)} and "
                f"{', '.join(self.targets)}"
            )
        for option, warmup in (("warmup", self.warmup_rounds), ("server-warmup", self.server_warmup_rounds)):
            if warmup >= self.rounds:
                raise ValueError(f"--{option}-rounds: expected fewer than --rounds {self.rounds}, got {warmup}")
        self.partition_settings.check_together()
        if self.clients_per_round > self.source_clients:
            raise ValueError(
                f"--clients-per-round: expected at most {self.source_clients}, the number of source clients, got "
                f"{self.clients_per_round}"
            )
        privacy.check_together(self)
        return self

    @property
    def is_private(self) -> bool:
        """Whether what source clients send is clipped and noised."""
        return self.dp_epsilon > 0

    @property
    def partition_settings(self) -> PartitionSettings:
        """How the source domains are shared among clients."""
        return PartitionSettings(**{name: getattr(self, name) for name in PartitionSettings.__dataclass_fields__})

    @property
    def source_clients(self) -> int:
        """Number of source clients."""
        return self.partition_settings.source_clients(len(self.sources))

    def describe_clients(self) -> str:
        """Describe in a few words who the source clients are; nothing if each domain has one and all take part."""
        drawn = f"{self.clients_per_round} of {self.source_clients} clients drawn a round"
        sampled = 0 < self.clients_per_round < self.source_clients
        return ", ".join(filter(None, [self.partition_settings.describe(), drawn if sampled else ""]))

    @property
    def splits_targets(self) -> bool:
        """Whether targets are split too: accuracy is then measured on the larger part; the rest serves the oracle."""
        return self.split != "sources"

    @property
    def client_rate(self) -> LearningRate:
        """The clients' learning rate by round."""
        return LearningRate(self.lr, self.lr_schedule, self.rounds, self.warmup_rounds, self.lr_drop_after)

    @property
    def server_rate(self) -> LearningRate:
        """The learning rate of the server's optimizer by round."""
        warmup = self.server_warmup_rounds
        return LearningRate(self.server_lr, self.server_lr_schedule, self.rounds, warmup, self.lr_drop_after)

    @property
    def average_words(self) -> str:
        """Description of the reported average over rounds; empty if there is none."""
        args = ", ".join(f"{key}={value}" for key, value in self.average_args.items())
        return "" if self.average == "none" else f", average over rounds {self.average} ({args})"

    @property
    def robust_words(self) -> str:
        """Description of means other than the plain one; empty if both are plain."""
        means = {"reference": self.reference_mean, "update": self.update_mean}
        words = "".join(f", {what} mean {kind}" for what, kind in means.items() if kind != "mean")
        counted = {"trimmed", "krum", "multikrum"} & set(means.values())
        return words + (f" (against {self.hostile_clients} hostile)" if counted else "")

    @property
    def bound_to_rounds(self) -> list[str]:
        """Names of the settings that make an early round depend on the total number of rounds.

        A finished run with such a setting cannot train further: more rounds from the start would be another run.
        """
        named = [name for name in ("lr_schedule", "server_lr_schedule") if getattr(self, name) != "constant"]
        named += ["average_args"] if self.average_args.get("start", 0) else []
        return [*named, "dp_epsilon"] if self.is_private else named

    @property
    def local_work(self) -> str:
        """What a client does in a round, in words."""
        return f"{self.local_epochs} local epochs" if self.local_epochs else f"{self.local_steps} local steps"

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The floating-point type of the model."""
        import torch

        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def device_here(self) -> str:
        """The device that this process uses; ``cuda`` may mean workers on other machines, which resolve it again."""
        import torch

        from fedhess.base.environment import resolve_device

        elsewhere = self.device == "cuda" and not torch.cuda.is_available()
        if self.device != "auto" and not elsewhere:
            return self.device
        return resolve_device("auto", model=self.model, batch_size=self.batch_size)

    def is_evaluated(self, server_round: int) -> bool:
        """Whether the model after ``server_round`` is evaluated: before training, at the end and every few rounds."""
        return server_round % self.evaluate_every == 0 or server_round == self.rounds

    def to_run_config(self) -> dict[str, Scalar]:
        """Flatten into kebab-case keys and scalar values, as Flower's run config requires."""
        flat: dict[str, Scalar] = {}
        for key, value in self.model_dump(mode="json").items():
            wire_key = key.replace("_", "-")
            if value is None:
                continue
            flat[wire_key] = json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
        return flat

    @classmethod
    def given_in(cls, run_config: Mapping[str, Scalar]) -> dict[str, object]:
        """Read what :meth:`to_run_config` wrote, by field name; empty texts and unknown keys are left out.

        Lists and dictionaries are JSON, or as on the command line: ``"a,b"`` and ``"key=value,..."``.
        """
        values: dict[str, object] = {}
        for key, field in cls.model_fields.items():
            wire_key = key.replace("_", "-")
            value = run_config.get(wire_key, "")
            if value == "":
                continue
            nested = isinstance(field.default, dict) or key in ("sources", "targets")
            values[key] = decode(wire_key, value) if nested else value
        return values

    @classmethod
    def checked(cls, values: Mapping[str, object]) -> "RunConfig":
        """Validate, and turn every error into one line that names the option, the range and the value."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UsageError("\n".join(describe_error(detail, cls.model_fields) for detail in error.errors())) from None
