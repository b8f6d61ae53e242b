"""What docs/own-models-and-data.md prints runs: a network and data in a module, with the commands beside them."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Outcome

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-models-and-data.md").read_text(encoding="utf-8")
QUICK = ["--rounds", "1", "--trials", "1", "--local-steps", "1", "--batch-size", "8"]


@pytest.fixture(autouse=True)
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Save the page's modules under the names that it gives them."""
    names = re.findall(r"Save this as `(\w+)\.py`", PAGE)
    for name, code in zip(names, re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M), strict=True):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("what", ["--model small:Small", "--domains rings:Rings", "--domains sites:sites"])
def test_the_printed_commands_run(command: Callable[..., Outcome], tmp_path: Path, what: str) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith("PYTHONPATH=. ") and what in line]
    done = command(*shlex.split(line)[4:], *QUICK, "--target", "sketch" if "small" in what else "far", "--out", "job")
    assert done.status == 0, done.err
    assert what.partition(" ")[2] in (tmp_path / "job" / "config.json").read_text(encoding="utf-8")
