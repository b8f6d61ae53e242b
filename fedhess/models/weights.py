"""Initial weights from a file: safetensors, or a torch file that holds only tensors."""

import hashlib
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import RunConfig

logger = logging.getLogger(__name__)

NETWORK = "featurizer.network."  # prefix, in our models, of the names of the original network
NESTED = ("state_dict", "model")  # keys that training scripts put the weights under
OF_PARALLEL = "module."  # prefix of names that DataParallel saved
NOT_NEEDED = "num_batches_tracked"  # a counter of batch norms; older files have none
SHOWN = 5


def with_recorded_weights(config: RunConfig) -> RunConfig:
    """Return settings with the absolute path of their weights file and its sha256."""
    if config.weights is None:
        return config
    file = Path(config.weights).expanduser().resolve()
    return config.model_copy(update={"weights": str(file), "weights_digest": _checked_digest(file, config)})


def load_weights(model: HeadedModel, config: RunConfig) -> None:
    """Load a model's weights from the run's file.

    Names are those of the model, or of the original network: torchvision's, timm's, the user's own. If the file has no
    head, or one of another shape, the model's head keeps its initial weights, with a warning.
    """
    file = Path(str(config.weights))
    _checked_digest(file, config)
    wanted, given = model.state_dict(), _read(file)
    ours = {name: name for name in wanted}
    made_of = {name.removeprefix(NETWORK): name for name in wanted if name.startswith(NETWORK)}
    if model.head_name:
        made_of |= {f"{model.head_name}.{part}": f"head.{part}" for part in ("weight", "bias")}
    names = max(ours, made_of, key=lambda known: sum(name in known for name in given))
    fitting = {names[name]: value for name, value in given.items() if name in names}
    head = [name for name in wanted if name.startswith("head.")]
    unlike = [name for name in head if name not in fitting or fitting[name].shape != wanted[name].shape]
    if unlike:
        _warn_once(f"--weights {file}: its head does not fit {tuple(wanted['head.weight'].shape)}, and is initialised")
        fitting = {name: value for name, value in fitting.items() if name not in head and name in wanted}
    _check(file, model, given, fitting, names=names, head=head if unlike else [])
    model.load_state_dict(fitting, strict=False)


def _check(
    file: Path,
    model: HeadedModel,
    given: Mapping[str, Tensor],
    fitting: Mapping[str, Tensor],
    *,
    names: Mapping[str, str],
    head: list[str],
) -> None:
    """Check that nothing is missing, unknown or of another shape."""
    wanted = model.state_dict()
    missing = [n for n in wanted if n not in fitting and n not in head and not n.endswith(NOT_NEEDED)]
    unknown = [name for name in given if name not in names]
    shapes = [
        f"{name} {tuple(value.shape)} for {tuple(wanted[name].shape)}"
        for name, value in fitting.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    wrong = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    if lines := [f"\n  {what}: {_some(several)}" for what, several in wrong.items() if several]:
        raise UsageError(f"--weights {file} does not fit the model; give a file of this network{''.join(lines)}")


def _read(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            content: object = safetensors.torch.load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise _absent(file) from error
    except UnpicklingError as error:
        raise UsageError(
            f"--weights {file}: it is damaged, or holds more than tensors, and no code of a file is run; save a state "
            "dict: torch.save(network.state_dict(), FILE)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"--weights {file} cannot be read ({str(error).splitlines()[0]}); expected safetensors (FILE.safetensors), "
            "or a state dict that torch.save wrote"
        ) from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(f"--weights {file}: expected a state dict, names with tensors, got {type(content).__name__}")
    return {name.removeprefix(OF_PARALLEL): value for name, value in content.items()}


def _checked_digest(file: Path, config: RunConfig) -> str:
    """Return the sha256 of the run's file, and check it against the recorded one, if any."""
    try:
        found = _digest_of_state(file, file.stat().st_size, file.stat().st_mtime_ns)
    except OSError as error:
        raise _absent(file) from error
    if config.weights_digest not in (None, found):
        raise UsageError(
            f"--weights {file}: expected sha256 {str(config.weights_digest)[:12]}..., as when the run began, got "
            f"{found[:12]}...; restore the file"
        )
    return found


@lru_cache(maxsize=8)
def _digest_of_state(file: Path, size: int, changed: int) -> str:
    del size, changed
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _absent(file: Path) -> UsageError:
    return UsageError(f"--weights: there is no file {file}; give the path of a file of weights")


@lru_cache(maxsize=8)
def _warn_once(message: str) -> None:
    logger.warning(message)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
