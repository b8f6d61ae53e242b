"""``--config``: options of a command from a TOML file, or from the config.json of an earlier job."""

import json
import tomllib
from collections.abc import Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.settings.ranges import GIVEN
from fedhess.settings.schedules import current_settings

# The option that a recorded value belongs to: the value is left out if the command line changes that option.
GOES_WITH = {
    "local_steps": "local_epochs",
    "local_epochs": "local_steps",
    "average_args": "average",
    "server_optimizer_args": "server_optimizer",
    "domains_args": "domains",
    "target": "domains",
}


def read_config_file(context: click.Context, path: Path | None) -> Path | None:
    """Use the options of a file as defaults of a command."""
    if path is None:
        return None
    known = {parameter.name: parameter for parameter in context.command.params if parameter.name}
    try:
        text = path.read_text(encoding="utf-8")
        recorded = json.loads(text) if path.suffix == ".json" else None
        given = tomllib.loads(text) if recorded is None else options_of_job(recorded, known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--config: {path} cannot be read ({type(error).__name__}: {error}); expected TOML with options as keys, "
            "or a job's config.json"
        ) from error
    options = {key.replace("-", "_"): value for key, value in given.items()}
    for key in options:
        if key not in known or key in ("config", "list_all"):
            raise UsageError(f"--config: {path}: there is no option {key!r}; {did_you_mean(key, known)}")
    if recorded is None:
        context.default_map = options
        return path

    @cache
    def beside_the_command_line() -> dict[str, Any]:
        sources = {key: context.get_parameter_source(key) for key in context.params}
        line = {key: context.params[key] for key in sources if sources[key] is ParameterSource.COMMANDLINE}
        return options_of_job(recorded, known, line)

    # Click asks for defaults after it has read the command line
    context.default_map = {key: partial(lambda key: beside_the_command_line().get(key), key) for key in options}
    return path


def options_of_job(
    recorded: Mapping[str, Any], known: Collection[str], line: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the options that run a recorded job again, without ``out``.

    Args:
        recorded: The job's config.json.
        known: Names of the command's options.
        line: Options of the command line, which override these; options that do not apply beside them are left out.
    """
    from fedhess.alignment.loading import find_method  # noqa: PLC0415 (seconds that no other option needs)
    from fedhess.alignment.server_step import SERVER_SETTINGS  # noqa: PLC0415

    line = line or {}
    dataset, recorded_args, seeds = recorded["dataset"], recorded["strategies"], sorted(recorded["seeds"])
    if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        raise ValueError(f"its seeds are {seeds}, which --seed and --trials cannot name")
    named = line.get("strategy") or ",".join(recorded_args)
    strategies = [name.strip() for name in named.split(",") if name.strip()]

    def joined(values: Mapping[str, Any]) -> str:
        gone = recorded_args.keys() - set(strategies)
        kept = {key: value for key, value in values.items() if key.rpartition(".")[0] not in gone}
        return ",".join(f"{key}={value}" for key, value in kept.items() if value not in ("", None))

    settings = current_settings(recorded["settings"])
    settings = {key: value for key, value in settings.items() if key in known and value is not None}
    settings.pop("local_steps" if settings.get("local_epochs") else "local_epochs", None)
    if all(find_method(name).is_flower for name in strategies):  # they bring their own server
        settings = {key: value for key, value in settings.items() if key not in SERVER_SETTINGS}
    settings = {key: joined(value) if isinstance(value, dict) else value for key, value in settings.items()}
    data = {key: value for key, value in dataset["options"].items() if key != "data_dir"}
    if "seed" in data:  # the first trial's; equal to the trial's seed if none was given
        data["seed"] = int(data["seed"]) + seeds[0] - recorded["seeds"][0]
        data = {key: value for key, value in data.items() if key != "seed" or value != seeds[0]}
    args = unvaried_args(recorded)
    own = joined({"lr": line.get("lr") or recorded["settings"].get("lr")})  # a setting that changes nothing
    variants = list(dict.fromkeys(joined(each["settings"]) or own for each in recorded.get("variants", [])))
    several: dict[str, Any] = {"variants": "; ".join(variants)} if variants not in ([], [own]) else {}
    search = recorded.get("search")
    if bool(search) != ("draws" in known):
        kind, command = ("a", "sweep") if search else ("no", "simulate")
        raise UsageError(
            f"--config: it is the config.json of {kind} sweep; run it again with fedhess {command} --config"
        )
    if search:  # what is searched must not be given
        several = {"draws": search["draws"] or None, "grid": search["grid"], "ranges": search["ranges"]}
        several |= {"search": search["kind"]}
        spaces = search["spaces"].items()
        searched = {(name, key) for name, space in spaces for key, each in space.items() if each["source"] != GIVEN}
        settings = {key: value for key, value in settings.items() if key not in {own for _, own in searched}}
        args = {key: value for key, value in args.items() if key.rpartition(".")[::2] not in searched}
    options = settings | {
        "domains": dataset["name"],
        "domains_args": joined(data),
        "strategy": ",".join(recorded_args),
        "strategy_args": joined(args),
        **several,
        "target": ",".join(recorded["targets"]),
        "trials": len(seeds),
        "seed": seeds[0],
        "selection": recorded.get("selection", "source"),
    }
    was, now = ({key: str(of.get(key)).lower() for key in GOES_WITH.values()} for of in (options, {**options, **line}))
    other = {key for key in was if now[key] not in (was[key], "none", "")}
    return {key: value for key, value in options.items() if GOES_WITH.get(key) not in other}


def open_args(recorded: Mapping[str, Any]) -> dict[str, set[Any]]:
    """Return, by ``NAME.key``, the values that each argument of a job's strategies has where no variant sets it."""
    found = {f"{name}.{key}": {value} for name, args in recorded["strategies"].items() for key, value in args.items()}
    for variant in recorded.get("variants", []):
        varied = () if variant.get("folder") == "" else variant["settings"]  # the former only setting
        for name, args in variant["arguments"].items():
            for key, value in args.items():
                if not {key, f"{name}.{key}"} & set(varied):
                    found.setdefault(f"{name}.{key}", set()).add(value)
    return found


def unvaried_args(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that no variant sets, by ``NAME.key``; arguments that differ with the scale are left out."""
    return {key: next(iter(values)) for key, values in open_args(recorded).items() if len(values) == 1}
