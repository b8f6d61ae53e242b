import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from toy import open_toy

from fedhess.base.errors import UsageError
from fedhess.domains import BENCHMARKS, Benchmark, DomainData, TensorDomain, open_benchmark
from fedhess.domains.opening import Opening


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each domain of the toy benchmark has been loaded."""
    counts: Counter[str] = Counter()

    def counted(opening: Opening) -> Benchmark:
        benchmark = open_toy(opening)

        def load(domain: str, loader: Callable[[str], DomainData] = benchmark.loader) -> DomainData:
            counts[domain] += 1
            return loader(domain)

        object.__setattr__(benchmark, "loader", load)
        return benchmark

    monkeypatch.setattr("toy.open_toy", counted)
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    return counts


def test_a_benchmark_loads_each_domain_once(loads: Counter[str]) -> None:
    benchmark = open_benchmark("Toy")
    assert benchmark.load("north") is benchmark.load("north")
    benchmark.identity()
    assert loads == dict.fromkeys(benchmark.domains, 1)
    open_benchmark("Toy").load("north")
    assert loads["north"] == 2, "another object loads again"


def test_a_job_and_its_clients_load_each_domain_once(loads: Counter[str], command: Callable[..., object]) -> None:
    ended = command("--domains", "Toy", "--strategy", "erm,hgp", "--trials", "2", "--rounds", "2", "--batch-size", "8")
    assert ended.status == 0, ended.err
    assert set(loads.values()) == {1}
    assert len(loads) == 4


def test_an_unknown_benchmark_domain_or_option_is_refused_with_the_nearest_names() -> None:
    known = r"unknown benchmark 'IconPAC'; did you mean 'IconPACS'\? known: IconPACS, PACS"
    with pytest.raises(UsageError, match=known):
        open_benchmark("IconPAC")
    with pytest.raises(UsageError, match="IconPACS has no domain 'fotos'; did you mean 'photo'"):
        open_benchmark("IconPACS").load("fotos")
    with pytest.raises(UsageError, match="IconPACS has no option 'per_domain'"):
        open_benchmark("IconPACS", options={"per_domain": 3})


def test_opening_and_naming_the_models_load_no_heavy_library() -> None:
    code = "import sys, fedhess.models; from fedhess.domains import open_benchmark; open_benchmark('IconPACS')"
    code += "; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"datasets", "torchvision", "huggingface_hub", "flwr_datasets", "scipy"} & set(loaded)


def test_every_name_leads_to_a_function() -> None:
    for target in BENCHMARKS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function))


def test_a_digest_changes_with_any_example_label_or_group() -> None:
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
