"""What a deployed node's own configuration allows, whatever the settings of a run are.

A run is code that includes these limits, so they protect a node against settings only. To be protected against code, a
node has to accept signed apps only.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhess.base.errors import UsageError
from fedhess.domains import FOLDER, HUGGING_FACE, find_benchmark
from fedhess.domains.images.hugging_face import settle_hugging_face
from fedhess.domains.opening import Opening
from fedhess.domains.partition import batch_sizes
from fedhess.models import TIMM
from fedhess.settings.assignments import Scalar
from fedhess.settings.combined import parts_of
from fedhess.settings.run_config import RunConfig

MODULES = "modules"  # comma-separated modules of the node that a run may name, submodules included
LEAST_BATCH = "min-batch-size"
LIMITS = (MODULES, LEAST_BATCH)
WHOLE_NUMBERS = {LEAST_BATCH: 1, "client": 0, "threads": 0}  # integers among a node's settings, and the least of each
ALWAYS = ("fedhess.strategies", "flwr.serverapp.strategy")  # modules that come with the run and with Flower
ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")  # an existing path has been made absolute; a mere name loads files


def check_node(node_config: Mapping[str, Scalar]) -> None:
    """Check the types and ranges of a node's own settings; ``UsageError`` for the first that is wrong."""
    for key, least in WHOLE_NUMBERS.items():
        value = node_config.get(key, least)
        if type(value) is not int or value < least:
            raise UsageError(f"this node's {key}: expected a whole number from {least}, got {value!r}")
    if not isinstance(modules := node_config.get(MODULES, ""), str):
        raise UsageError(f"this node's {MODULES}: expected names joined by commas, in quotes, got {modules!r}")


def check_run(given: Mapping[str, object], node_config: Mapping[str, Scalar]) -> None:
    """Check what a run names before any of it is imported or opened.

    Raises:
        UsageError: The run names a module that the node does not list, or a folder, which only the node may name; or
            one of the node's own settings is wrong.
    """
    check_node(node_config)
    listed = [*ALWAYS, *(name.strip() for name in str(node_config.get(MODULES, "")).split(",") if name.strip())]
    named = [("strategy", part) for part in parts_of(str(given.get("strategy", ""))).values()]
    for option, name in (*named, *((option, str(given.get(option, ""))) for option in ("model", "domains"))):
        module = name.partition(":")[0]
        known = option == "domains" and find_benchmark(name)[0] != "module:Class"
        if ":" not in name or known or (option == "model" and name.startswith(TIMM)):
            continue
        if not any(f"{module}.".startswith(f"{allowed}.") for allowed in listed):
            raise UsageError(
                f"--{option} {name}: this node imports {', '.join(listed)}, and not {module!r}; its operator allows it "
                f"with --node-config '{MODULES}=\"{module}\"'"
            )
    own = node_config.get("data-dir")  # where it is given, no other folder is opened
    if own is not None and not Path(str(own)).is_dir():
        raise UsageError(f"--data-dir {own}: this node has no such folder; start it with another")
    if own is None and (folder := _folder(given)):
        raise UsageError(f"{folder}: this node opens no folder that a run names; its operator gives it --data-dir")


def check_batches(
    config: RunConfig, counts: Sequence[int], held_out: Sequence[int], node_config: Mapping[str, Scalar]
) -> None:
    """Check that nothing is computed from fewer examples than the node allows."""
    least = node_config.get(LEAST_BATCH, 1)
    assert isinstance(least, int), "checked by check_node"
    if least == 1:
        return
    sizes = batch_sizes(counts, config.batch_size) if len(counts) > 1 else [config.batch_size]
    batches = [min(size or count, count) for count, size in zip(counts, sizes, strict=True)]
    if config.local_epochs:  # the last batch of a pass has the rest
        batches += [count % batch or batch for count, batch in zip(counts, batches, strict=True)]
    for what, size in (("a batch", min(batches)), ("held out", min(filter(None, held_out), default=least))):
        if size < least:
            raise UsageError(f"this node computes nothing from fewer than {least} examples, got {size} ({what})")


def _folder(given: Mapping[str, object]) -> str:
    """Return the option and the folder if a run names a folder on the node; "" if it names none."""
    name, options = str(given.get("domains", "")).strip(), given.get("domains_options", {})
    assert isinstance(options, dict)
    if folder := given.get("data_dir") or options.get("data_dir"):
        return f"--data-dir {folder}"
    if name.lower().startswith(FOLDER):
        return f"--domains {name}"
    if not name.lower().startswith(HUGGING_FACE):
        return ""
    opening, columns = settle_hugging_face(Opening("hf:NAME", name=name, options=options))
    on_the_hub = ON_THE_HUB.fullmatch(str(columns["dataset"])) and "data_dir" not in opening.options
    return "" if on_the_hub else f"--domains {name}"
