"""Digits: real files of MNIST, USPS and optdigits."""

import gzip
from pathlib import Path

import pytest
import torch

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.digits import digit_collections, optdigits
from fedhess.domains.digits.known_file import KnownFile
from fedhess.domains.digits.mnist import read_mnist
from fedhess.domains.digits.optdigits import read_optdigits
from fedhess.domains.digits.usps import FILE as USPS
from fedhess.domains.digits.usps import read_usps

OPTDIGITS = optdigits.FILE


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where scikit-learn is not installed."""
    monkeypatch.setattr(digit_collections, "installed_optdigits", lambda: None)


def test_three_collections_each_left_out_once(digits_root: Path) -> None:
    benchmark = open_benchmark("digits", data_dir=digits_root)
    assert benchmark.domains == ("mnist", "optdigits", "usps")
    assert (benchmark.input_shape, benchmark.outputs, benchmark.default_model) == ((1, 28, 28), 10, "mlp")
    assert [scenario.name for scenario in benchmark.scenarios] == ["mnist", "optdigits", "usps"]
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again == benchmark
    identity = benchmark.identity()
    assert "differences" not in identity, "every digit of every collection is counted"
    assert again.identity() == identity


def test_usps_shows_what_its_labels_say(digits_root: Path) -> None:
    images, labels = read_usps(digits_root / USPS.path)
    assert images.shape == (9298, 16, 16)
    assert (int(images.min()), int(images.max())) == (0, 255)
    ones, zeros = images[labels == 1].double().mean(0), images[labels == 0].double().mean(0)
    assert ones[8, 7:9].mean() > 150, "a one is ink in the middle"
    assert zeros[8, 7:9].mean() < 80, "a zero is not"
    sevens = images[labels == 7].double().mean(0)
    assert sevens[:5].mean() > 1.5 * sevens[:, :5].mean(), "a seven has its bar above, not at the left"


def test_optdigits_shows_what_its_labels_say(digits_root: Path) -> None:
    images, labels = read_optdigits(digits_root / OPTDIGITS.path)
    assert images.shape == (1797, 8, 8)
    assert (labels.dtype, int(images.max())) == (torch.int64, 255)
    assert images[labels == 1].double()[:, 4, 3:5].mean() > 150, "a one is ink in the middle"
    assert images[labels == 0].double()[:, 4, 3:5].mean() < 50, "a zero is not"
    sevens = images[labels == 7].double().mean(0)
    assert sevens[:2].mean() > 1.5 * sevens[:, :2].mean(), "a seven has its bar above, not at the left"


def test_mnist_is_left_as_it_is(digits_root: Path) -> None:
    data = open_benchmark("Digits", data_dir=digits_root).load("mnist")
    images, labels = read_mnist(digits_root)
    assert torch.equal(data.inputs(torch.arange(100))[:, 0], images[:100])
    assert torch.equal(data.labels[:60000], labels)


def test_a_part_is_drawn_from_everywhere_and_always_the_same(digits_root: Path) -> None:
    options = {"per_domain": 200}
    one, two = (open_benchmark("Digits", data_dir=digits_root, seed=s, options=options).load("usps") for s in (0, 1))
    assert one.digest == two.digest
    assert len(one) == 200
    assert not torch.equal(one.labels, read_usps(digits_root / USPS.path)[1][:200]), "not the first"
    assert (one.labels.bincount(minlength=10) > 5).all()
    assert "differences" not in open_benchmark("Digits", data_dir=digits_root, options=options).identity()


def test_optdigits_is_read_from_an_installed_scikit_learn(
    digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "site" / "sklearn" / optdigits.INSTALLED
    target.parent.mkdir(parents=True)
    target.symlink_to(digits_root / OPTDIGITS.path)
    (tmp_path / "site" / "sklearn" / "__init__.py").write_text("raise ImportError('it must not be imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert optdigits.installed_optdigits() == target
    target.unlink()
    target.write_bytes(gzip.compress(b"other numbers"))
    assert optdigits.installed_optdigits() is None


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("missing", [USPS, OPTDIGITS])
def test_a_missing_collection_is_named_with_what_to_do(digits_root: Path, tmp_path: Path, missing: KnownFile) -> None:
    for file in {USPS, OPTDIGITS} - {missing}:
        (tmp_path / file.path).parent.mkdir(parents=True)
        (tmp_path / file.path).symlink_to(digits_root / file.path)
    with pytest.raises(UsageError) as caught:
        open_benchmark("Digits", data_dir=tmp_path)
    assert str(caught.value) == (
        f"Digits: {missing.name} is not there: looked for {missing.path} in {tmp_path}; `python -m fedhess.data "
        "prepare Digits` fetches it into the cache, or name a folder that has it with --data-dir"
    )


def test_missing_svhn_is_named_when_asked_for(digits_root: Path) -> None:
    with pytest.raises(UsageError, match=r"SVHN is not there.*prepare Digits --domains-args svhn=true` fetches it"):
        open_benchmark("Digits", data_dir=digits_root, options={"svhn": True})


def test_a_damaged_file_is_named(digits_root: Path, tmp_path: Path) -> None:
    (tmp_path / "USPS").mkdir()
    (tmp_path / USPS.path).write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"usps_resampled\.mat is damaged: expected the USPS file of sha256:fb398d"):
        open_benchmark("Digits", data_dir=tmp_path)


def test_a_negative_part_is_refused() -> None:
    with pytest.raises(UsageError, match=r"per_domain must be 0 \(all\) or more, got -1"):
        open_benchmark("Digits", options={"per_domain": -1})


def test_files_are_looked_for_in_the_environment_and_the_cache(
    digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USPS", "optdigits"):
        (tmp_path / name).symlink_to(digits_root / name)
    (tmp_path / "mnist").symlink_to(digits_root)
    assert open_benchmark("Digits", cache_dir=tmp_path).options["data_dir"] == ""
    monkeypatch.setenv("FEDHESS_DATA", str(digits_root))
    assert open_benchmark("Digits", cache_dir=tmp_path / "empty").domains[0] == "mnist"
