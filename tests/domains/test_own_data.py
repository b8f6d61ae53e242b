"""Data that a user brings, by domain: arrays, data sets of tensors and of images, functions, or a benchmark."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fedhess.base.errors import UsageError
from fedhess.domains import Benchmark, TensorDomain, leave_one_out, open_benchmark
from fedhess.domains.images.image_files import ImageDomain
from fedhess.domains.own_data import DatasetImages
from fedhess.models import prepare_inputs
from fedhess.settings.assignments import parse_assignments
from tests.conftest import Outcome

LABELS = np.arange(6) % 2
calls: list[str] = []


class Pictures(Dataset[tuple[Image.Image, int]]):
    def __init__(self, seed: int, *, turning: bool = False) -> None:
        self.seed, self.turning = seed, turning

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        draws = np.random.default_rng() if self.turning else np.random.default_rng((self.seed, index))
        return Image.fromarray(draws.integers(0, 255, (10, 20, 3), dtype=np.uint8)), index % 2


class Shapes:
    """Domains as an attribute, with names of classes and options."""

    classes = ("n/a, or none", "50%")

    def __init__(self, *, width: int = 3, scale: float = 1.0) -> None:
        self.domains = {
            "arrays": (scale * np.ones((6, width)), LABELS),
            "tensors": TensorDataset(torch.zeros(6, width), torch.tensor(LABELS)),
            "later": lambda: (torch.arange(6.0 * width).view(6, width), torch.tensor(LABELS)),
        }


def pictures() -> Mapping[str, Any]:
    return {name: Pictures(seed) for seed, name in enumerate("xyz")}


def counted() -> Mapping[str, Any]:
    def load(name: str) -> tuple[Tensor, Tensor]:
        calls.append(name)
        return torch.zeros(4, 2), torch.arange(4) % 2

    return {name: (lambda name=name: load(name)) for name in "abc"}


def whole() -> Benchmark:
    return Benchmark(
        name="Whole",
        domains=("a", "b", "c"),
        classes=("x", "y"),
        input_shape=(2,),
        outputs=2,
        default_model="mlp",
        scenarios=leave_one_out(("a", "b", "c")),
        loader=lambda domain: TensorDomain(domain, torch.zeros(4, 2), labels=torch.arange(4) % 2),
    )


def wrong_length() -> Mapping[str, Any]:
    return {name: (np.ones((5, 2)), LABELS) for name in "abc"}


def another_shape() -> Mapping[str, Any]:
    return {name: (np.ones((6, 2 + (name == "c"))), LABELS) for name in "abc"}


def a_label_too_many() -> Any:
    return type("Data", (), {"domains": another_shape() | {"c": (np.ones((6, 2)), LABELS * 2)}, "classes": ["x", "y"]})


def turning() -> Mapping[str, Any]:
    return {name: Pictures(0, turning=True) for name in "abc"}


def raising() -> Mapping[str, Any]:
    return {name: (lambda: 1 / 0) for name in "abc"}


def two() -> Mapping[str, Any]:
    return {"a": (np.ones((6, 2)), LABELS), "b": (np.ones((6, 2)), LABELS)}


def number() -> int:
    return 3


def no_pairs() -> Mapping[str, Any]:
    return {name: [1, 2, 3] for name in "abc"}


def named_labels() -> Mapping[str, Any]:
    return {name: [(np.ones(2), "dog")] * 4 for name in "abc"}


def fractions() -> Mapping[str, Any]:
    return {name: [(Image.new("L", (9, 9)), 0.5)] * 4 for name in "abc"}


def empty() -> Mapping[str, Any]:
    return {name: [] for name in "abc"}


def of_names() -> Mapping[str, Any]:
    return {name: (np.ones((6, 2)), np.array(["x", "y"] * 3)) for name in "abc"}


def truths() -> Mapping[str, Any]:
    return {name: (np.ones((6, 2), dtype=bool), LABELS) for name in "abc"}


def with_labels(*labels: int) -> Callable[[], Mapping[str, Any]]:
    return lambda: {name: (np.ones((len(labels), 2)), np.array(labels)) for name in "abc"}


negative, gap = with_labels(-1, 0, 1), with_labels(0, 1, 5)


def channels_last() -> Mapping[str, Any]:
    return {name: (np.ones((6, 8, 8, 3), dtype=np.uint8), LABELS) for name in "abc"}


def not_finite() -> Mapping[str, Any]:
    inputs = np.ones((6, 2))
    inputs[3, 1], inputs[5, 0] = np.nan, np.inf
    return {name: (inputs if name == "b" else np.ones((6, 2)), LABELS) for name in "abc"}


def same_classes() -> Any:
    return type("Data", (), {"domains": {name: (np.ones((6, 2)), LABELS) for name in "abc"}, "classes": ["x", "x"]})


class Named(TensorDataset):
    """A data set that names its classes, as torchvision's do."""

    def __init__(self, *classes: str) -> None:
        super().__init__(torch.zeros(6, 2), torch.arange(6) % len(classes))
        self.classes = np.array(classes)


def a_class_lacking() -> Mapping[str, Any]:
    return {"a": Named("bird", "cat", "dog"), "b": Named("bird", "dog"), "c": Named("bird", "cat", "dog")}


def other_classes_later() -> Mapping[str, Any]:
    return {name: (lambda name=name: Named("cat", "dog" if name == "a" else "fox")) for name in "abc"}


def other_classes_than_stated() -> Any:
    return type("Data", (), {"domains": {name: Named("dog", "cat") for name in "abc"}, "classes": ["cat", "dog"]})


def a_class_more_than_stated() -> Any:
    return type("Data", (), {"domains": {n: Named("cat", "dog", "fox") for n in "abc"}, "classes": ["cat", "dog"]})


def stated() -> Any:
    return type("Data", (), {"domains": {n: Named("0 - cat", "1 - dog") for n in "abc"}, "classes": ["cat", "dog"]})


def named_by_one() -> Mapping[str, Any]:
    arrays = (np.ones((6, 2)), LABELS.astype(np.uint16))
    return {"a": arrays, "b": arrays, "c": lambda: Named("cat", "dog")}


def single_numbers() -> Mapping[str, Any]:
    return {name: (np.ones(6), LABELS) for name in "abc"}


def photographs(*, low: float = 0.0, high: float = 1.0) -> Mapping[str, Any]:
    ramp = np.linspace(low, high, 6 * 3 * 64).reshape(6, 3, 8, 8)
    return {name: (ramp if name == "c" else np.clip(ramp, 0, 1), LABELS) for name in "abc"}


def reversed_arrays() -> Mapping[str, Any]:
    return {name: (np.arange(12.0).astype(">f4").reshape(6, 2)[::-1], LABELS[::-1]) for name in "abc"}


def needs(width: int) -> Mapping[str, Any]:
    return {name: (np.ones((6, width)), LABELS) for name in "abc"}


def from_a_path(data_dir: Path) -> Mapping[str, Any]:
    raise NotImplementedError(data_dir)


def own(name: str, **options: Any) -> Benchmark:
    return open_benchmark(f"{__name__}:{name}", **options)


def test_arrays_data_sets_and_functions_are_domains() -> None:
    benchmark = own("Shapes", options={"width": 4, "scale": 2})
    assert benchmark.domains == ("arrays", "later", "tensors")
    assert benchmark.classes == ("n/a, or none", "50%")
    assert (benchmark.input_shape, benchmark.outputs, benchmark.default_model) == ((4,), 2, "mlp")
    data = benchmark.load("arrays")
    assert torch.equal(data.inputs(torch.tensor([1])), torch.full((1, 4), 2.0))
    assert data.labels.tolist() == LABELS.tolist()
    assert torch.equal(benchmark.load("later").inputs(torch.tensor([1])), torch.tensor([[4.0, 5, 6, 7]]))


def test_the_digest_changes_with_the_data_and_the_options_open_it_again() -> None:
    one, other = own("Shapes"), own("Shapes", options={"scale": 2.0})
    assert one.identity()["digest"] != other.identity()["digest"]
    text = ",".join(f"{key}={value}" for key, value in one.options.items())  # as --config has them of a config.json
    again = open_benchmark(one.name, options=parse_assignments(text, option="--domains-args"))
    assert again.identity() == one.identity()


def test_the_options_describe_the_data_where_it_is_not() -> None:
    benchmark = own("counted")
    calls.clear()
    elsewhere = open_benchmark("absent_module:Data", options=benchmark.options, held=())
    assert (elsewhere.domains, elsewhere.classes, elsewhere.input_shape) == (("a", "b", "c"), ("0", "1"), (2,))
    held = open_benchmark(benchmark.name, options=benchmark.options, held=("b",))
    held.load("b")
    assert calls == ["b"], "a client loads its own domain only"


def test_images_go_through_the_pixel_cache() -> None:
    benchmark = own("pictures", options={"image_side": 8})
    assert (benchmark.input_shape, benchmark.default_model) == ((3, 8, 8), "resnet18")
    data = benchmark.load("y")
    assert isinstance(data, ImageDomain)
    stored = prepare_inputs("resnet18", data)
    everything = torch.arange(6)
    assert torch.equal(stored.inputs(everything), data.inputs(everything))
    image, label = Pictures(1)[3]
    expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(stored.inputs(torch.tensor([3]))[0].permute(1, 2, 0).numpy(), expected)
    assert data.labels[3] == label
    assert data.aspects is not None
    assert data.aspects.tolist() == [2.0] * 6
    assert benchmark.load("x").digest != data.digest


def test_arrays_may_be_reversed_and_of_another_byte_order() -> None:
    data = own("reversed_arrays").load("a")
    assert torch.equal(data.inputs(torch.tensor([0])), torch.tensor([[10.0, 11.0]]))
    assert data.labels.tolist() == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.5), (-0.5, 0.5), (0.0, 255.0)])
def test_images_of_floats_are_in_the_unit_interval_where_a_model_or_the_augmentation_asks(
    low: float, high: float, command: Callable[..., Outcome]
) -> None:
    resized = {"low": -0.28, "high": 1.28}  # as bicubic interpolation leaves black beside white
    good, bad = (own("photographs", options=given).load("c") for given in (resized, {"low": low, "high": high}))
    for name, augment in (("lite0", "none"), ("cnn", "domainbed"), ("timm:x", "none")):
        assert prepare_inputs(name, good, augment=augment) is good
        with pytest.raises(UsageError, match=r"domain 'c' has images of .*, expected floats in \[0, 1\]; give bytes"):
            prepare_inputs(name, bad, augment=augment)
    assert prepare_inputs("cnn", bad) is bad
    data = ("--domains", f"{__name__}:photographs", "--domains-args", f"low={low},high={high}", "--rounds", "1")
    ended = command(*data, "--model", "cnn", "--augment", "domainbed", "--strategy", "erm")
    assert ended.status == 2
    assert f"--augment domainbed: domain 'c' has images of {low:g} to {high:g}, expected floats in [0, 1]" in ended.err


def test_the_classes_that_a_data_set_names_are_those_of_all() -> None:
    benchmark = own("named_by_one")
    assert benchmark.classes == ("cat", "dog")
    assert benchmark.load("a").labels.tolist() == LABELS.tolist()


def test_names_that_are_stated_stand_for_other_names_of_the_same_labels() -> None:
    benchmark = own("stated")
    load_all(benchmark)
    assert benchmark.classes == ("cat", "dog")
    load_all(own("stated", options=benchmark.options))
    load_all(own("named_by_one", options={"class_names": "felis/canis"}))


def test_the_same_bytes_in_another_shape_are_other_images() -> None:
    made = [
        DatasetImages("a", [(Image.new("RGB", size), 0)] * 2, side=8, what="a").digest for size in ((10, 20), (20, 10))
    ]
    assert made[0] != made[1]


def test_a_benchmark_is_taken_as_it_is_under_its_users_name() -> None:
    benchmark = own("whole")
    assert benchmark.name == f"{__name__}:whole"
    assert (benchmark.recipe, benchmark.classes) == ("Whole", ("x", "y"))


def load_all(benchmark: Benchmark) -> None:
    for domain in benchmark.domains:
        benchmark.load(domain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: own("wrong_length"), "'a': expected a whole number as label of each of 5 inputs, got labels of shape"),
        (lambda: load_all(own("another_shape")), r"'c': expected inputs of shape \(2,\), got \(3,\)"),
        (lambda: load_all(own("a_label_too_many")), "'c': expected labels 0 to 1, one a class, got 0 to 2"),
        (lambda: load_all(own("a_class_lacking")), "'b': its data set calls label 1 'dog', the benchmark 'cat'"),
        (lambda: load_all(own("other_classes_later")), "'b': its data set calls label 1 'fox', the benchmark 'dog'"),
        (lambda: load_all(own("other_classes_than_stated")), "'a': .* calls label 0 'dog', the benchmark 'cat'"),
        (lambda: load_all(own("a_class_more_than_stated")), "'a': .* calls label 2 'fox', the benchmark None"),
        (lambda: own("single_numbers"), r"'a': expected inputs of shape \(N, ...\), got \(6,\); reshape"),
        (lambda: own("turning"), "its first example is another when it is read again; leave random transforms out"),
        (lambda: own("raising"), r"benchmark '.*:raising', domain 'a', function: ZeroDivisionError"),
        (lambda: own("two"), r"expected at least three domains \(two to learn from, one to leave out\), got a, b"),
        (lambda: own("number"), "expected a mapping from names of domains to their data, .* got int"),
        (lambda: own("no_pairs"), r"example 0: expected \(input, label\), got int"),
        (lambda: own("named_labels"), "'a', example 0: expected a whole number as label, got 'dog'"),
        (lambda: own("fractions"), "'a', example 0: expected a whole number as label, got 0.5"),
        (lambda: own("empty"), "'a': expected examples, and its data set has none"),
        (lambda: own("of_names"), "'a': expected arrays of numbers, got <U1"),
        (lambda: own("truths"), r"'a': expected inputs of bytes \(uint8\) or floats, got torch.bool"),
        (lambda: own("negative"), "'a': expected labels that count from 0, got -1"),
        (lambda: own("gap"), "no domain has an example of label 2, 3, 4; count labels from 0 without a gap, or name"),
        (lambda: own("channels_last"), r"images with their channels first, \(N, 3, H, W\), got shape \(6, 8, 8, 3\)"),
        (lambda: load_all(own("not_finite")), "'b': 2 of 6 inputs have values that are not finite, .* example 3"),
        (lambda: own("same_classes"), r"expected a name for each class, none twice, got \['x', 'x'\]"),
        (lambda: own("LABELS"), "is no benchmark: expected a class or a function, got array"),
        (lambda: own("Shapes", options={"with": 3}), "--domains-args: benchmark .* has no argument 'with'; did you"),
        (lambda: own("Shapes", options={"width": "x"}), "width of benchmark .*: expected a whole number, got 'x'"),
        (lambda: own("pictures", options={"image_side": 2}), "image_side must be 8 to 1024 pixels, got 2"),
        (lambda: own("Shapes", options={"image_side": 20}), "image_side is for PIL images, and its inputs are arrays"),
        (lambda: own("needs"), "--domains-args: .*:needs': missing a required argument: 'width'; give it as"),
        (lambda: own("from_a_path", data_dir="/"), "'data_dir' that text cannot give; annotate it as a str"),
        (lambda: own("Shape"), "has no 'Shape'; did you mean 'Shapes'"),
        (lambda: open_benchmark("absent_module:X"), "--domains: cannot import 'absent_module'"),
    ],
)
def test_what_cannot_be_read_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
