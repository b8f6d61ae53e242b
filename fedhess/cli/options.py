"""The options of the commands: their types and what ``--help`` says of them.

Help texts name their defaults themselves, since many depend on the model.
"""

import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.domains import BENCHMARKS
from fedhess.settings.defaults import describe_default
from fedhess.settings.run_config import RunConfig


def _default(setting: str) -> str:
    return f"[default: {describe_default(setting, otherwise=RunConfig.model_fields[setting].default)}]"


def read_config_file(context: click.Context, path: Path | None) -> Path | None:
    """Take the options of a file as defaults of a command.

    Raises:
        UsageError: The file cannot be read, or names an option that the command does not have.
    """
    if path is None:
        return None
    known = {parameter.name.rstrip("_"): parameter.name for parameter in context.command.params if parameter.name}
    try:
        text = path.read_text(encoding="utf-8")
        given = options_of_job(json.loads(text), known) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--config: {path} cannot be read ({type(error).__name__}: {error}); expected TOML with options as keys, "
            "or a job's config.json"
        ) from error
    options = {key.replace("-", "_"): value for key, value in given.items()}
    for key in options:
        if key not in known or key in ("config", "list_all"):
            raise UsageError(f"--config: {path}: there is no option {key!r}; {did_you_mean(key, known)}")
    context.default_map = {known[key]: value for key, value in options.items()}
    return path


def options_of_job(recorded: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the options that run a recorded job again; ``out`` is not among them."""

    def joined(values: Mapping[str, Any]) -> str:
        return ",".join(f"{key}={value}" for key, value in values.items() if value not in ("", None))

    dataset, strategies = recorded["dataset"], recorded["strategies"]
    settings = {key: value for key, value in recorded["settings"].items() if key in known and value is not None}
    settings = {key: joined(value) if isinstance(value, dict) else value for key, value in settings.items()}
    options = {key: value for key, value in dataset["options"].items() if key not in ("data_dir", "seed")}
    return settings | {
        "domains": dataset["name"],
        "domains_args": joined(options),
        "strategy": ",".join(strategies),
        "strategy_args": joined(
            {f"{name}.{key}": value for name, args in strategies.items() for key, value in args.items()}
        ),
        "variants": "; ".join(joined(variant["settings"]) for variant in recorded.get("variants", [])),
        "target": ",".join(recorded["targets"]),
        "trials": len(recorded["seeds"]),
        "seed": min(recorded["seeds"]),
        "selection": recorded.get("selection", "source"),
    }


Domains = Annotated[
    str,
    typer.Option(
        help=f"Benchmark: {', '.join(BENCHMARKS)} (any tree PATH/DOMAIN/CLASS). [default: PACS]",
        show_default=False,
    ),
]
Strategy = Annotated[
    str,
    typer.Option(
        help="Strategies, separated by commas: names (see --list) or package.module:Class. [default: hgp]",
        show_default=False,
    ),
]
StrategyArgs = Annotated[
    str, typer.Option(help="Their arguments: key=value,...; NAME.key=value is for strategy NAME alone.")
]
Target = Annotated[
    str,
    typer.Option(
        help="Domain never seen in training; several by commas, A+B holds out two at once, all takes each in turn. "
        "[default: all]",
        show_default=False,
    ),
]
Variants = Annotated[
    str,
    typer.Option(
        help="Settings to select among, each as key=value,... and separated by semicolons: lr=0.01; lr=0.1,alpha=1e-4. "
        "[default: one setting]",
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Which domains hold examples out: sources; every (a target is read on the larger part, the rest is "
        f"the oracle's); domainbed (every domain, by DomainBed's own draw). {_default('split')}"
    ),
]
Selection = Annotated[
    str | None,
    typer.Option(
        help="What the reported round and setting are selected by: source (validation), or lodo, cross-validation by "
        "more runs that leave out each source domain as well. [default: source, or what the job to resume has]",
        show_default=False,
    ),
]
Partition = Annotated[
    str | None,
    typer.Option(
        help="How source domains are shared among clients: domain (one each), lambda (--clients over all of them), "
        f"dirichlet (--clients-per-domain, of unlike classes). {_default('partition')}"
    ),
]
Clients = Annotated[
    int | None,
    typer.Option(help=f"Clients that share the source domains, with --partition lambda. {_default('clients')}"),
]
Heterogeneity = Annotated[
    float | None,
    typer.Option(help=f"Their lambda: 1 makes them all alike, 0 gives each one domain. {_default('heterogeneity')}"),
]
ClientsPerDomain = Annotated[
    int | None,
    typer.Option(help=f"Clients of each domain, with --partition dirichlet. {_default('clients_per_domain')}"),
]
DirichletAlpha = Annotated[
    float | None,
    typer.Option(help=f"Their concentration: the smaller, the fewer classes each has. {_default('dirichlet_alpha')}"),
]
DirichletMinSize = Annotated[
    int | None,
    typer.Option(help=f"Training examples that each of them gets at least. {_default('dirichlet_min_size')}"),
]
ClientsPerRound = Annotated[
    int | None,
    typer.Option(help=f"Source clients drawn for a round; 0 for all of them. {_default('clients_per_round')}"),
]
ShowPartition = Annotated[
    bool, typer.Option("--show-partition", help="Print which client holds what, and stop; --json for all of it.")
]
Rounds = Annotated[int | None, typer.Option(help=f"Rounds of training. {_default('rounds')}")]
LocalSteps = Annotated[int | None, typer.Option(help=f"Steps a client takes in a round. {_default('local_steps')}")]
LocalEpochs = Annotated[
    int | None,
    typer.Option(
        help="Passes a client makes over its own examples in a round, in place of steps; 0 for steps. "
        f"{_default('local_epochs')}"
    ),
]
BatchSize = Annotated[int | None, typer.Option(help=f"Examples in a step; 0 takes all. {_default('batch_size')}")]
ClientOptimizer = Annotated[
    str | None,
    typer.Option(help=f"The clients' optimizer, new each round: SGD, Adam. {_default('client_optimizer')}"),
]
Lr = Annotated[float | None, typer.Option(help=f"Its learning rate. {_default('lr')}")]
LrDropAfter = Annotated[
    float | None,
    typer.Option(help=f"Share of the rounds after which it is a tenth; 0 never. {_default('lr_drop_after')}"),
]
Momentum = Annotated[float | None, typer.Option(help=f"Momentum of the clients' SGD. {_default('momentum')}")]
WeightDecay = Annotated[float | None, typer.Option(help=f"Its weight decay. {_default('weight_decay')}")]
L2 = Annotated[
    float | None, typer.Option(help=f"Weight of the sum of squared parameters in the loss. {_default('l2')}")
]
ServerOptimizer = Annotated[
    str | None,
    typer.Option(
        help="Class of torch.optim that steps along the mean update; not for plain Flower strategies (fedadam), which "
        f"step themselves. {_default('server_optimizer')}"
    ),
]
ServerLr = Annotated[
    float | None, typer.Option(help=f"Its learning rate; SGD with 1 is federated averaging. {_default('server_lr')}")
]
ServerOptimizerArgs = Annotated[str, typer.Option(help="Its other arguments: key=value,...")]
Weighting = Annotated[
    str | None,
    typer.Option(
        help="Mean over clients: domain (equal weights) or examples; plain Flower strategies have their own. "
        f"{_default('weighting')}"
    ),
]
Quorum = Annotated[
    int | None, typer.Option(help=f"Source clients that every phase needs; 0 for all of them. {_default('quorum')}")
]
Deadline = Annotated[
    float | None, typer.Option(help=f"Seconds a client may take to train or evaluate. {_default('deadline')}")
]
ExchangeDeadline = Annotated[
    float | None, typer.Option(help=f"Seconds a client may take for statistics. {_default('exchange_deadline')}")
]
StatisticsBatches = Annotated[
    int | None, typer.Option(help=f"Batches behind a round's reference statistics. {_default('statistics_batches')}")
]
References = Annotated[
    str | None,
    typer.Option(
        help="current (exact), or previous: statistics a round old, one exchange a round, for slow links. "
        f"{_default('references')}"
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="in-process, or ray: clients side by side, on a cluster if there is one (pip install 'fedhess[ray]'). "
        "[default: in-process]",
        show_default=False,
    ),
]
CpusPerClient = Annotated[int | None, typer.Option(help="With --engine ray: CPU cores for a client. [default: 1]")]
GpusPerClient = Annotated[
    float | None, typer.Option(help="With --engine ray: GPUs for a client; 0.25 lets four share one. [default: 0]")
]
RayAddress = Annotated[
    str | None, typer.Option(help="With --engine ray: address of a running cluster. [default: one of its own]")
]
EvaluateEvery = Annotated[int | None, typer.Option(help=f"Rounds between evaluations. {_default('evaluate_every')}")]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(help=f"Rounds between checkpoints; the last is kept. {_default('checkpoint_every')}"),
]
Seed = Annotated[int, typer.Option(help="Seed of the first trial. [default: 0]", show_default=False)]
Trials = Annotated[int, typer.Option(help="Trials; their seeds count up from --seed. [default: 3]", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option(
        help="Model; --list names them. [default: resnet18 for images, lite0-features for IconPACS, mlp for digits, "
        "mnist-cnn for ColoredMNIST form=domainbed]"
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option(
        help="Begin from ImageNet weights where the model has them. [default: pretrained]", show_default=False
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto (a GPU if there is one, the CPU for batches of mlp and lite0-features), cpu, cuda, cuda:N or mps. "
        "[default: auto]",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None, typer.Option(help=f"Threads of torch while it trains; 0 for torch's own choice. {_default('threads')}")
]
Dtype = Annotated[str | None, typer.Option(help=f"float32 or float64. {_default('dtype')}")]
Precision = Annotated[
    str | None,
    typer.Option(help=f"Of the featurizer: float32, or bf16 where that is safe (autocast). {_default('precision')}"),
]
BatchNorm = Annotated[
    str | None,
    typer.Option(
        "--batchnorm",
        help=f"Running statistics of batch norms: frozen, or averaged over the clients. {_default('batchnorm')}",
    ),
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the featurizer with torch.compile.")]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Refuse operations that may round differently each time, as on a GPU.")
]
Augment = Annotated[
    str | None, typer.Option(help=f"Augmentation of training images: none or domainbed. {_default('augment')}")
]
Images = Annotated[
    str | None,
    typer.Option(
        help="Image files: cached (decoded once, kept in the cache) or streamed (decoded whenever used). "
        "[default: cached]",
        show_default=False,
    ),
]
ImageCacheGb = Annotated[
    float | None, typer.Option(help="Most room that cached images may take, in GB. [default: what the disk has free]")
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the data. [default: $FEDHESS_DATA, then a download]")]
DomainsArgs = Annotated[str, typer.Option(help="Options of the benchmark: key=value,...")]
RequireReal = Annotated[
    bool, typer.Option("--require-real", help="Fail rather than use a stand-in for data that cannot be had.")
]
SkipBadImages = Annotated[
    bool, typer.Option("--skip-bad-images", help="Leave out, and count, images that cannot be decoded.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=read_config_file,
        help="File of options (TOML), or the config.json of a job to run again; options given here go over it. "
        "[default: none]",
    ),
]
Out = Annotated[Path | None, typer.Option(help="Directory of the job. [default: a new one, runs/DATA_STRATEGIES_TIME]")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the interrupted job in --out.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the final table only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and nothing else.")]
ListAll = Annotated[bool, typer.Option("--list", help="List benchmarks, strategies and models, and stop.")]
