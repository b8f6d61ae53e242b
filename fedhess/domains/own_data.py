"""Data of a user: ``--domains package.module:Name``, or an entry point of group ``fedhess.benchmarks``."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.base.files import digest_of
from fedhess.base.loading import checked_arguments, find_object, installed, text_parameters
from fedhess.base.users_code import users_code
from fedhess.domains import ENTRY_POINT_GROUP
from fedhess.domains.benchmark import Benchmark, OptionValue, leave_one_out
from fedhess.domains.domain import DomainData, TensorDomain
from fedhess.domains.images.any_tree import LEAST, SIDES, require_domain_names
from fedhess.domains.images.image_files import DECODE_ERRORS, ImageDomain, ImageFile, in_threads, read_pixels, to_rgb
from fedhess.domains.images.release import SIDE
from fedhess.domains.opening import Opening

# Our own options; the others go to the user's class. The first three describe data that is not on this machine.
OURS = ("domain_names", "class_names", "input_shape", "image_side")


def open_own(opening: Opening) -> Benchmark:
    """Open the benchmark that a user's class or function returns when it is called with the options.

    The call returns a `Benchmark`, a mapping from domains to their data, or an object with such a mapping as
    ``domains`` and optionally ``classes``, the names of the labels. The data of a domain is a torch ``Dataset`` of
    (input, label) items; a pair of arrays or tensors, inputs (N, ...) and labels (N,); or a function that returns
    either, called when the domain is needed. Inputs are PIL images, or arrays of one shape, in bytes or floats.

    Args:
        opening: ``name`` is the entry point, or ``package.module:Name``. Options: the arguments of the class, and
            ``image_side`` (pixels that PIL images are resized to, 224). ``data_dir`` is passed if the class takes it.
    """
    ours = {key: value for key, value in opening.options.items() if key in OURS}
    names, classes = _split(ours.get("domain_names", "")), _split(ours.get("class_names", ""))
    shape = tuple(int(side) for side in str(ours.get("input_shape", "")).split("x") if side.isdigit())
    if names and classes and shape and opening.held == ():
        known = dict(opening.options)
        nothing = _Own(opening.name, {}, SIDE)
        return _benchmark(opening, nothing, names=names, classes=classes, shape=shape, options=known)
    made, args = _make(opening)
    if isinstance(made, Benchmark):
        return replace(made, name=opening.name, options=args, recipe=made.recipe or made.name)
    domains = made if isinstance(made, Mapping) else getattr(made, "domains", None)
    if not isinstance(domains, Mapping) or not all(isinstance(name, str) for name in domains):
        raise UsageError(
            f"--domains {opening.name}: expected a mapping from names of domains to their data, an object with one as "
            f"`domains`, or a fedhess.domains.Benchmark, got {type(made).__name__}"
        )
    side = _side(opening, ours)
    stated = classes or _class_names(made)
    own = _Own(opening.name, domains, side, stated=bool(stated))
    names = names or tuple(sorted(domains))
    if len(names) < LEAST["domains"]:
        raise UsageError(
            f"--domains {opening.name}: expected at least three domains (two to learn from, one to leave out), got "
            f"{', '.join(names) or 'none'}"
        )
    require_domain_names(names, f"--domains {opening.name}")
    classes = stated or own.classes(names)
    if len(classes) < LEAST["classes"]:
        raise UsageError(f"--domains {opening.name}: expected at least two classes, got {', '.join(classes) or 'none'}")
    if "" in classes or len(set(classes)) < len(classes):
        raise UsageError(f"--domains {opening.name}: expected a name for each class, none twice, got {list(classes)}")
    images = "image_side" in ours
    if not shape:
        first = own.load((opening.held or names)[0])
        shape = own.shape(first)
        if images and not isinstance(first, ImageDomain):
            raise UsageError(f"--domains {opening.name}: image_side is for PIL images, and its inputs are arrays")
        images = isinstance(first, ImageDomain)
    options = args | {
        "domain_names": _join(names),
        "class_names": _join(classes),
        "input_shape": "x".join(map(str, shape)),
        **({"image_side": side} if images else {}),
    }
    return _benchmark(opening, own, names=names, classes=classes, shape=shape, options=options)


def locate_own(opening: Opening) -> Path | None:
    """Return the file of the module that a benchmark's name refers to, if it is here; the module is not imported."""
    path = installed(ENTRY_POINT_GROUP).get(opening.name, opening.name)
    try:
        spec = find_spec(path.partition(":")[0]) if path else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


@dataclass
class _Own:
    """What the user returned, read domain by domain."""

    name: str
    domains: Mapping[str, Any]
    side: int
    stated: bool = False  # classes are named for all domains; a data set may have its own names for the same labels
    loaded: dict[str, DomainData] = field(default_factory=dict)
    named: dict[str, tuple[str, ...]] = field(default_factory=dict)  # loaded domain -> classes that it names

    def load(self, domain: str) -> DomainData:
        if domain not in self.loaded:
            self.loaded[domain] = self._read(domain)
        return self.loaded[domain]

    def classes(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the class names of a data set (torchvision's have them), else the labels as text."""
        if given := next(filter(None, (_class_names(self.domains[name]) for name in names)), None):
            return given
        found = {label for name in names for label in self.load(name).labels.tolist()}
        if given := next(filter(None, self.named.values()), None):
            return given
        lacking = sorted(set(range(max(found))) - found)
        if lacking:
            raise UsageError(
                f"--domains {self.name}: no domain has an example of label {', '.join(map(str, lacking[:10]))}; count "
                "labels from 0 without a gap, or name the classes: an attribute `classes`"
            )
        return tuple(str(label) for label in range(len(found)))

    def shape(self, data: DomainData) -> tuple[int, ...]:
        return tuple(data.inputs(torch.zeros(1, dtype=torch.int64)).shape[1:])

    def what(self, domain: str) -> str:
        return f"benchmark {self.name!r}, domain {domain!r}"

    def _read(self, domain: str) -> DomainData:
        if domain not in self.domains:
            raise UsageError(f"{self.what(domain)}: it is not there; found {', '.join(self.domains) or 'nothing'}")
        value, what = self.domains[domain], self.what(domain)
        if callable(value) and not hasattr(value, "__getitem__"):
            with users_code(what, "function", value):
                value = value()
        self.named[domain] = _class_names(value)
        if isinstance(value, tuple | list) and len(value) == 2 and all(hasattr(each, "shape") for each in value):
            inputs, labels = (_tensor(each, what) for each in value)
        elif hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, Mapping | str):
            if len(value) == 0:
                raise UsageError(f"{what}: expected examples, and its data set has none")
            first = _item(value, 0, what)
            if isinstance(first[0], Image.Image):
                return DatasetImages(domain, value, side=self.side, what=what)
            items = [first, *(_item(value, index, what) for index in range(1, len(value)))]
            tensors = [_tensor(item[0], what) for item in items]
            if shapes := {tuple(each.shape) for each in tensors} - {tuple(tensors[0].shape)}:
                raise UsageError(f"{what}: expected inputs of one shape, got {tuple(tensors[0].shape)} and {shapes}")
            inputs, labels = (
                torch.stack(tensors),
                torch.tensor([whole_label(item[1], f"{what}, example {index}") for index, item in enumerate(items)]),
            )
        else:
            raise UsageError(
                f"{what}: expected a torch Dataset of (input, label), a pair of arrays, or a function that returns one "
                f"of them, got {type(value).__name__}"
            )
        if inputs.dim() < 2:
            raise UsageError(
                f"{what}: expected inputs of shape (N, ...), got {tuple(inputs.shape)}; reshape numbers to (N, 1)"
            )
        if labels.shape != inputs.shape[:1] or labels.is_floating_point() or len(labels) == 0:
            raise UsageError(
                f"{what}: expected a whole number as label of each of {len(inputs)} inputs, got labels of shape "
                f"{tuple(labels.shape)}, {labels.dtype}"
            )
        if inputs.dtype not in (torch.uint8, torch.float32):
            raise UsageError(f"{what}: expected inputs of bytes (uint8) or floats, got {inputs.dtype}; convert them")
        labels = labels.long()
        _check_values(inputs, labels, what)
        return TensorDomain(domain, inputs, labels=labels)


def _check_values(inputs: Tensor, labels: Tensor, what: str) -> None:
    """Check for values that would break training, or train on something that was not meant."""
    if int(labels.min()) < 0:
        raise UsageError(f"{what}: expected labels that count from 0, got {int(labels.min())}")
    if inputs.dtype == torch.uint8 and inputs.dim() == 4 and inputs.shape[3] in (1, 3) and min(inputs.shape[1:3]) > 4:
        raise UsageError(
            f"{what}: expected images with their channels first, (N, 3, H, W), got shape {tuple(inputs.shape)}; "
            "transpose them"
        )
    finite = inputs.flatten(1).isfinite().all(1) if inputs.is_floating_point() else torch.ones(1)
    if not finite.all():
        raise UsageError(
            f"{what}: {int((~finite).sum())} of {len(inputs)} inputs have values that are not finite, the first is "
            f"example {int((~finite).nonzero()[0])}; leave them out, or put numbers there"
        )


class DatasetImages(ImageDomain):
    """The (PIL image, label) pairs of a ``Dataset``; see `ImageDomain`.

    Args:
        name: The domain.
        dataset: Read by one thread at a time.
        side: Height and width of the decoded images, pixels.
        what: Description of the domain, for messages.
    """

    def __init__(self, name: str, dataset: Any, *, side: int, what: str) -> None:
        self._dataset, self._what, self._lock = dataset, what, Lock()
        found = in_threads(self._look, range(len(dataset)))
        if self._look(0) != found[0]:
            raise UsageError(
                f"{what}: its first example is another when it is read again; leave random transforms out, since "
                "--augment does that while training"
            )
        super().__init__(
            name,
            [ImageFile(Path(), str(number), label) for number, (label, _, _) in enumerate(found)],
            digest=digest_of([name, *(part for label, sha256, _ in found for part in (str(label), sha256))]),
            side=side,
            aspects=[aspect for _, _, aspect in found],
        )

    def decode(self, index: int) -> Tensor:
        """Decode one image: (3, side, side) uint8 RGB."""
        return read_pixels(self._read(index)[0], self.side)

    def _look(self, index: int) -> tuple[int, str, float]:
        """Return label, digest of size and pixels, width / height."""
        rgb, label = self._read(index)
        pixels = f"{rgb.size}".encode() + np.asarray(rgb).tobytes()
        return label, hashlib.sha256(pixels).hexdigest(), rgb.width / rgb.height

    def _read(self, index: int) -> tuple[Image.Image, int]:
        with self._lock, users_code(self._what, f"example {index}", type(self._dataset).__getitem__):
            item = self._dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[0], Image.Image):
            raise UsageError(f"{self._what}, example {index}: expected (PIL image, label), got {item!r:.100}")
        try:
            return to_rgb(item[0]), whole_label(item[1], f"{self._what}, example {index}")
        except DECODE_ERRORS as error:
            raise UsageError(f"{self._what}, example {index}: {error}; replace it, or leave it out") from error


def whole_label(value: Any, where: str) -> int:
    """Return a label as a number."""
    try:
        if (label := int(value)) == value:
            return label
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass  # a name, several numbers, None
    raise UsageError(f"{where}: expected a whole number as label, got {value!r:.100}")


def _make(opening: Opening) -> tuple[Any, dict[str, OptionValue]]:
    """Call the class or function that the name refers to; return its result and the arguments."""
    path = installed(ENTRY_POINT_GROUP).get(opening.name, opening.name)
    make = find_object(path, name=opening.name, kind="domains")
    what = f"benchmark {opening.name!r}"
    if not callable(make):
        raise UsageError(f"--domains: {path} is no benchmark: expected a class or a function, got {make!r}")
    parameters = text_parameters(make, what=what)
    given = {key: value for key, value in opening.options.items() if key not in OURS}
    signature = inspect.signature(make)
    if opening.data_dir is not None and "data_dir" in signature.parameters:
        given.setdefault("data_dir", str(opening.data_dir))
    args = checked_arguments(parameters, given, option="--domains-args", what=what, of=make)
    try:
        signature.bind(**args)
    except TypeError as error:
        raise UsageError(
            f"--domains-args: {what}: {error}; give it as NAME=VALUE (data_dir: --data-dir), or a default in the code"
        ) from error
    with users_code(what, "constructor", make):
        return make(**args), args


def _benchmark(
    opening: Opening,
    own: _Own,
    *,
    names: tuple[str, ...],
    classes: tuple[str, ...],
    shape: tuple[int, ...],
    options: Mapping[str, OptionValue],
) -> Benchmark:
    return Benchmark(
        name=opening.name,
        domains=names,
        classes=classes,
        input_shape=shape,
        outputs=len(classes),
        default_model="resnet18" if "image_side" in options else "mlp",
        scenarios=leave_one_out(names),
        options=options,
        loader=_checked(own, classes, shape),
    )


def _checked(own: _Own, classes: tuple[str, ...], shape: tuple[int, ...]) -> Callable[[str], DomainData]:
    """Return a loader of domains that fit the benchmark."""

    def load(domain: str) -> DomainData:
        data = own.load(domain)
        named = own.named.get(domain) or classes
        if own.stated and len(named) == len(classes) and set(named).isdisjoint(classes):
            named = classes
        for label, (name, expected) in enumerate(zip_longest(named, classes)):
            if name != expected:
                raise UsageError(
                    f"{own.what(domain)}: its data set calls label {label} {name!r}, the benchmark {expected!r}; "
                    "number the classes alike in every domain, and name them alike in each data set's `classes`"
                )
        if own.shape(data) != shape:
            raise UsageError(f"{own.what(domain)}: expected inputs of shape {shape}, got {own.shape(data)}")
        low, high = int(data.labels.min()), int(data.labels.max())
        if low < 0 or high >= len(classes):
            raise UsageError(
                f"{own.what(domain)}: expected labels 0 to {len(classes) - 1}, one a class, got {low} to {high}"
            )
        return data

    return load


def _side(opening: Opening, ours: Mapping[str, OptionValue]) -> int:
    side = ours.get("image_side", SIDE)
    if not isinstance(side, int) or not SIDES[0] <= side <= SIDES[1]:
        raise UsageError(f"{opening.name}: image_side must be {SIDES[0]} to {SIDES[1]} pixels, got {side}")
    return side


def _class_names(holder: Any) -> tuple[str, ...]:
    """Return an object's ``classes`` as text, if it has any."""
    given = getattr(holder, "classes", None)
    return tuple(map(str, given)) if isinstance(given, Iterable) and not isinstance(given, str) else ()


def _item(dataset: Any, index: int, what: str) -> tuple[Any, Any]:
    with users_code(what, f"example {index}", type(dataset).__getitem__):
        item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UsageError(f"{what}, example {index}: expected (input, label), got {type(item).__name__}")
    return item[0], item[1]


def _tensor(value: Any, what: str) -> Tensor:
    """Return bytes and whole numbers as they are, and floats as float32."""
    if not isinstance(value, Tensor | np.ndarray | np.generic):
        raise UsageError(f"{what}: expected PIL images, tensors or arrays, got {type(value).__name__}")
    if isinstance(value, np.ndarray):  # torch takes neither reversed arrays nor another byte order
        value = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except TypeError as error:
        raise UsageError(f"{what}: expected arrays of numbers, got {value.dtype}") from error
    return tensor.float() if tensor.is_floating_point() else tensor


def _join(names: Sequence[str]) -> str:
    """Join names by slashes into one value of --domains-args, without commas."""
    return "/".join(name.replace("%", "%25").replace("/", "%2F").replace(",", "%2C") for name in names)


def _split(text: OptionValue) -> tuple[str, ...]:
    return tuple(unquote(name) for name in str(text).split("/") if name)
