"""``--config``: options of a command from a TOML file, or from the config.json of an earlier job."""

import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.settings.ranges import GIVEN
from fedhess.settings.schedules import current_settings


def read_config_file(context: click.Context, path: Path | None) -> Path | None:
    """Take the options of a file as defaults of a command."""
    if path is None:
        return None
    known = {parameter.name: parameter for parameter in context.command.params if parameter.name}
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
    context.default_map = options
    return path


def options_of_job(recorded: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the options that run a recorded job again; ``out`` is not among them."""

    def joined(values: Mapping[str, Any]) -> str:
        return ",".join(f"{key}={value}" for key, value in values.items() if value not in ("", None))

    dataset, strategies, seeds = recorded["dataset"], recorded["strategies"], sorted(recorded["seeds"])
    if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        raise ValueError(f"its seeds are {seeds}, which --seed and --trials cannot name")
    settings = current_settings(recorded["settings"])
    settings = {key: value for key, value in settings.items() if key in known and value is not None}
    settings = {key: joined(value) if isinstance(value, dict) else value for key, value in settings.items()}
    options = {key: value for key, value in dataset["options"].items() if key not in ("data_dir", "seed")}
    several: dict[str, Any] = {"variants": "; ".join(joined(each["settings"]) for each in recorded.get("variants", []))}
    if search := recorded.get("search"):
        if "draws" not in known:
            raise UsageError("--config: it is the config.json of a sweep; run it again with fedhess sweep --config")
        searched = {
            key for space in search["spaces"].values() for key, each in space.items() if each["source"] != GIVEN
        }
        settings = {key: value for key, value in settings.items() if key not in searched}  # what is given is not drawn
        several = {"draws": search["draws"] or None, "grid": search["grid"], "ranges": search["ranges"]}
        several |= {"search": search["kind"]}
    return settings | {
        "domains": dataset["name"],
        "domains_args": joined(options),
        "strategy": ",".join(strategies),
        "strategy_args": joined(
            {f"{name}.{key}": value for name, args in strategies.items() for key, value in args.items()}
        ),
        **several,
        "target": ",".join(recorded["targets"]),
        "trials": len(seeds),
        "seed": seeds[0],
        "selection": recorded.get("selection", "source"),
    }
