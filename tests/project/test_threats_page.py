"""Every statement of docs/threats.md names a test that is there."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "threats.md").read_text(encoding="utf-8")
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def statements() -> list[str]:
    """Return the lines of lists and the paragraphs below the headings."""
    sections = PAGE.split("\n## ")[1:]
    texts = [section.partition("\n")[2] for section in sections]
    return [part.strip() for text in texts for part in re.split(r"\n(?=- )|\n\n", text) if part.strip()]


def test_every_statement_has_its_test() -> None:
    assert len(statements()) > 20
    assert [text for text in statements() if not TEST.search(text)] == []


def test_every_named_test_is_there() -> None:
    named = TEST.findall(PAGE)
    there = {file: re.findall(r"(?m)^def (test_\w+)", (TESTS / file).read_text(encoding="utf-8")) for file, _ in named}
    assert [(file, name) for file, name in named if name not in there[file]] == []
