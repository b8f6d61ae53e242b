"""The options of a job: :class:`JobOptions`, and one option for each setting of :class:`RunConfig` that has a group.

``fedhess.simulate`` and ``fedhess.run`` take both.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.cli.config_file import read_config_file
from fedhess.domains import BENCHMARKS
from fedhess.settings.assignments import parse_assignments
from fedhess.settings.defaults import describe_default
from fedhess.settings.mistakes import describe_error
from fedhess.settings.run_config import DATA, MACHINE, MAIN, MAX_PIXELS, METHOD, OUTPUT, RunConfig


def _option(group: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=group, show_default=False, **more)


DataDir = Annotated[Path | None, _option(DATA, "Folder with the data. [default: $FEDHESS_DATA, then a download]")]
DomainsArgs = Annotated[str, _option(DATA, "Options of the benchmark: key=value,...")]
MaxPixels = Annotated[
    int, _option(DATA, f"{RunConfig.model_fields['max_pixels'].description} [default: {MAX_PIXELS}]", min=1)
]
Device = Annotated[str, _option(MAIN, f"{RunConfig.model_fields['device'].description} [default: auto]")]
Config = Annotated[
    Path | None,
    _option(
        MAIN,
        "File of options (TOML), or the config.json of a job to run again; options given here go over it. "
        "[default: none]",
        "--config",
        is_eager=True,
        callback=read_config_file,
    ),
]
ListAll = Annotated[bool, _option(MAIN, "List benchmarks, strategies and models, and stop.", "--list")]
ShowPartition = Annotated[
    bool, _option(DATA, "Print which client holds what, and stop; --json for all of it.", "--show-partition")
]
Quiet = Annotated[bool, _option(OUTPUT, "Print the final table only.", "--quiet")]
AsJson = Annotated[bool, _option(OUTPUT, "Print the summary as JSON, and nothing else.", "--json")]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """All options of a job except the settings of :class:`RunConfig`: data, methods, outputs and machines."""

    domains: Annotated[
        str, _option(MAIN, f"Benchmark: {', '.join(BENCHMARKS)} (any tree PATH/DOMAIN/CLASS). [default: PACS]")
    ] = "PACS"
    strategy: Annotated[
        str,
        _option(
            MAIN,
            "Strategies, separated by commas: names (see --list) or package.module:Class; A+B combines two. "
            "[default: hgp]",
        ),
    ] = "hgp"
    target: Annotated[
        str,
        _option(
            MAIN,
            "Domain never seen in training; several by commas, A+B holds out two at once, all takes each in turn. "
            "[default: all]",
        ),
    ] = "all"
    trials: Annotated[int, _option(MAIN, "Trials; their seeds count up from --seed. [default: 3]")] = 3
    out: Annotated[
        Path | None, _option(MAIN, "Directory of the job. [default: a new one, runs/DATA_STRATEGIES_TIME]")
    ] = None
    resume: Annotated[
        bool, _option(MAIN, "Continue the interrupted job in --out; options left out are that job's.", "--resume")
    ] = False
    resume_from: Annotated[
        int | None,
        _option(
            OUTPUT,
            "Continue the job in --out from an earlier round, the one before the last or the selected one; what came "
            "after is dropped. [default: none]",
        ),
    ] = None
    add: Annotated[
        bool,
        _option(
            MAIN,
            "Add strategies, targets, trials, rounds or variants to the job in --out; options left out are that job's.",
            "--add",
        ),
    ] = False
    data_dir: DataDir = None
    domains_args: DomainsArgs = ""
    require_real: Annotated[
        bool, _option(DATA, "Fail rather than use a stand-in for data that cannot be had.", "--require-real")
    ] = False
    skip_bad_images: Annotated[
        bool, _option(DATA, "Leave out, and count, images that cannot be decoded.", "--skip-bad-images")
    ] = False
    strategy_args: Annotated[
        str, _option(METHOD, "Arguments of strategies: key=value,...; NAME.key=value is for strategy NAME alone.")
    ] = ""
    variants: Annotated[
        str,
        _option(
            METHOD,
            "Settings to select among, each as key=value,... and separated by semicolons: lr=0.01; lr=0.1,alpha=1e-4. "
            "[default: one setting]",
        ),
    ] = ""
    selection: Annotated[
        str | None,
        _option(
            METHOD,
            "What the reported round and setting are selected by: source (validation), or lodo, cross-validation by "
            "more runs that leave out each source domain as well. [default: source, or what the job to resume has]",
        ),
    ] = None
    track: Annotated[
        str,
        _option(
            OUTPUT,
            "Trackers to feed as the job goes, separated by commas: tensorboard, wandb, mlflow, trackio "
            "(pip install 'fedhess[NAME]'). [default: none, or what the job to resume has]",
        ),
    ] = ""
    engine: Annotated[
        str,
        _option(
            MACHINE,
            "in-process, or ray: clients side by side, on a cluster if there is one (pip install 'fedhess[ray]'). "
            "[default: in-process]",
        ),
    ] = "in-process"
    cpus_per_client: Annotated[
        int | None, _option(MACHINE, "With --engine ray: CPU cores for a client. [default: 1]")
    ] = None
    gpus_per_client: Annotated[
        float | None,
        _option(MACHINE, "With --engine ray: GPUs for a client; 0.25 lets four share one. [default: 0]"),
    ] = None
    ray_address: Annotated[
        str | None,
        _option(
            MACHINE,
            "Address of a running Ray cluster, for --engine ray or --parallel. [default: with --engine ray one of its "
            "own]",
        ),
    ] = None
    parallel: Annotated[
        int | None,
        _option(
            MACHINE,
            "Runs of the job side by side, each on a worker: processes of this machine, or with --ray-address or "
            "--slurm of a cluster. [default: one run after the other]",
        ),
    ] = None
    gpus: Annotated[
        str | None,
        _option(MACHINE, "With --parallel: GPUs that the processes share, as 0,1. [default: all that are visible]"),
    ] = None
    slurm: Annotated[
        bool, _option(MACHINE, "With --parallel: each run as a Slurm job (pip install 'fedhess[slurm]').", "--slurm")
    ] = False
    slurm_args: Annotated[
        str, _option(MACHINE, "Options of sbatch: key=value,...; time in minutes. [default: time=60]")
    ] = ""

    @property
    def continuing(self) -> str:
        """The option that continues or adds to the job in ``out``; empty for a new job."""
        return "--add" if self.add else "--resume" if self.resume or self.resume_from is not None else ""


def with_job_options(command: Callable[..., None], *, without: Collection[str] = ()) -> Callable[..., None]:
    """Replace a command's ``**given`` by the options of a job; Typer reads a command's signature and annotations.

    An option that is not given is None, a flag False.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    hints = typing.get_type_hints(JobOptions, include_extras=True)
    parameters = [
        inspect.Parameter(
            each.name, keyword, default=None if each.default is not False else False, annotation=hints[each.name]
        )
        for each in dataclasses.fields(JobOptions)
        if each.name not in without
    ]
    parameters += [inspect.Parameter(name, keyword, default=None, annotation=_annotation(name)) for name in SETTINGS]
    own = inspect.signature(command)
    parameters += [each for each in own.parameters.values() if each.kind is keyword]
    command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    return command


_KINDS = {
    name: TypeAdapter(kind, config=ConfigDict(coerce_numbers_to_str=True))
    for name, kind in typing.get_type_hints(JobOptions).items()
}
SETTINGS = [name for name, field in RunConfig.model_fields.items() if isinstance(field.json_schema_extra, dict)]


def read_options(given: Mapping[str, Any]) -> tuple[JobOptions, dict[str, Any]]:
    """Split the given values that are not None into the options of a job and the settings, by name.

    Dictionaries and lists are equivalent to text: ``"key=value,..."``, ``"erm,hgp"``.
    """
    own = {each.name for each in dataclasses.fields(JobOptions)}
    for name in given:
        if name not in own and name not in SETTINGS:
            raise UsageError(f"there is no option {name!r}; {did_you_mean(name, [*own, *SETTINGS])}")
    options = {name: _option_of(name, value) for name, value in given.items() if name in own and value is not None}
    settings = {name: value for name, value in given.items() if name in SETTINGS and value is not None}
    for name, value in settings.items():
        if isinstance(RunConfig.model_fields[name].default, dict) and isinstance(value, str):
            settings[name] = parse_assignments(value, option=f"--{name.replace('_', '-')}")
    return JobOptions(**options), settings


def _option_of(name: str, value: Any) -> Any:
    """Return an option in its own type; a number may be given as text, as for a setting."""
    try:
        return _KINDS[name].validate_python(_text(name, value))
    except ValidationError as error:
        raise UsageError(describe_error(error.errors()[0] | {"loc": (name,)}, ())) from error


def _text(name: str, value: Any) -> Any:
    """Return an option as the command line would give it."""
    if name in ("out", "data_dir"):
        return None if value is None else Path(value)
    if isinstance(value, Mapping):
        return ",".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return (";" if name == "variants" else ",").join(str(_text(name, each)) for each in value)
    if not isinstance(value, str | int | float | Path | None):
        raise UsageError(
            f"{name}: expected text, got {value!r}; what is your own goes by its name, 'package.module:Name'"
        )
    return str(value) if isinstance(value, Path) else value


def _annotation(name: str) -> Any:
    """Return the type of a setting's option, with its help."""
    field = RunConfig.model_fields[name]
    extra, option = typing.cast("dict[str, Any]", field.json_schema_extra), f"--{name.replace('_', '-')}"
    default = (
        f"[default: {describe_default(name, otherwise=field.default)}]"
        if field.default not in (None, {}, PydanticUndefined)
        else ""
    )
    kind: Any = field.annotation
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    kind = str if typing.get_origin(kind) in (Literal, dict) else kind
    names = (f"{option}/--no-{name.replace('_', '-')}",) if kind is bool else (option,)
    return Annotated[kind | None, _option(extra["group"], f"{field.description} {default}".strip(), *names)]
