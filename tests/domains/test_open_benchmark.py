import subprocess
import sys
from importlib import import_module

import pytest
import torch

from fedhess.base.errors import UsageError
from fedhess.domains import BENCHMARKS, TensorDomain, open_benchmark


def test_an_unknown_benchmark_is_refused_with_the_nearest_names():
    with pytest.raises(
        UsageError, match=r"unknown benchmark 'IconPAC'; did you mean 'IconPACS'\? known: IconPACS, PACS"
    ):
        open_benchmark("IconPAC")


def test_an_unknown_domain_is_refused_with_the_nearest_names():
    with pytest.raises(UsageError, match="IconPACS has no domain 'fotos'; did you mean 'photo'"):
        open_benchmark("IconPACS").load("fotos")


def test_an_option_of_another_benchmark_is_refused():
    with pytest.raises(UsageError, match="IconPACS has no option 'per_domain'"):
        open_benchmark("IconPACS", options={"per_domain": 3})


@pytest.mark.parametrize("value", [True, "1.5"])
def test_a_number_is_wanted_where_the_default_is_one(value: object):
    with pytest.raises(UsageError, match="option 'per_domain' must be int"):
        open_benchmark("ColoredMNIST", options={"per_domain": value})


def test_opening_loads_no_heavy_library():
    code = "import sys; from fedhess.domains import open_benchmark; open_benchmark('IconPACS'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"datasets", "torchvision", "huggingface_hub", "flwr_datasets"} & set(loaded)


def test_every_name_leads_to_a_function():
    for target in BENCHMARKS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function))


def test_a_digest_changes_with_any_example_label_or_group():
    labels, groups = torch.tensor([0, 1]), torch.tensor([3, 4])
    examples = torch.zeros(2, 3)
    digests = {
        TensorDomain("a", examples, labels=labels, groups=groups).digest,
        TensorDomain("a", examples + 1, labels=labels, groups=groups).digest,
        TensorDomain("a", examples, labels=labels.flip(0), groups=groups).digest,
        TensorDomain("a", examples, labels=labels, groups=groups.flip(0)).digest,
        TensorDomain("a", examples, labels=labels).digest,
        TensorDomain("b", examples, labels=labels, groups=groups).digest,
    }
    assert len(digests) == 6
