"""What `fedhess.data` prints for people to read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedhess.base.tables import markdown_table
from fedhess.domains.inspection.check import Inspection

MOST_CLASSES = 20  # larger tables are left to --json
MOST_LINES = 20  # of broken files or duplicates


def listing(entries: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the benchmarks, as ``fedhess.data list --json`` prints them, a few lines each."""
    lines: list[str] = []
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        below = [f"here: {entry['where']}"]
        if not entry["here"]:
            looked = entry["looked_in"] and f"not here: looked in {', '.join(entry['looked_in'])}"
            first, *others = entry["ways"]
            below = [f"WRONG: {entry['problem']}" if entry["problem"] else looked, f"to get it: {first}"]
            below += [f"       or: {way}" for way in others]
        lines.append(f"{entry['name'].ljust(width)}  {entry['about']}")
        lines += [" " * (width + 2) + line for line in below if line]
    return "\n".join(lines)


def inspection(found: Inspection) -> str:
    """Lay out what ``check`` has found: counts, then notes, then everything that is wrong, then the verdict."""
    lines = [f"{found.benchmark} in {found.root}" if found.root else found.benchmark]
    if found.counts:
        lines += ["", _table(found)]
    lines += ["", *(f"note: {note}" for note in found.notes)] if found.notes else []
    wrong = [f"wrong: {problem}" for problem in found.problems]
    wrong += _few(f"broken: {file}: {reason}" for file, reason in found.broken.items())
    wrong += _few("duplicate, the same bytes in several domains: " + " = ".join(group) for group in found.duplicates)
    lines += ["", *wrong] if wrong else []
    count = len(found.problems) + len(found.broken) + len(found.duplicates)
    verdict = f"{count:,} thing{'s are' if count > 1 else ' is'} wrong"
    if found.ok:
        verdict = "all is well" + (
            ": every count is that of the complete copy"
            if found.known
            else ", as far as can be seen: the counts of the complete copy are not known"
        )
    return "\n".join([*lines, "", verdict])


def readiness(ready: Mapping[str, Any], default_model: str) -> str:
    """Lay out what ``prepare`` has made ready, as ``fedhess.data prepare --json`` prints it."""
    counts = ", ".join(f"{domain} {count:,}" for domain, count in ready["examples"].items())
    lines = [f"{ready['benchmark']} is ready in {ready['where'] or 'the package'}: {counts}"]
    if ready["model"]:
        lines.append(f"model {ready['model']} is ready")
    elif default_model.startswith("resnet"):
        lines.append(f"weights of {default_model} come with the first run, or now with --model {default_model}")
    return "\n".join(lines)


def _table(found: Inspection) -> str:
    """Lay out counts by domain, and by class where there are not too many; "of N" where the complete copy has N."""
    known = found.known
    classes = list(next(iter(found.counts.values())))
    rows = []
    for domain, counts in found.counts.items():
        by_class = known.classes.get(domain, {}) if known else {}
        cells = [_count(counts[name], by_class.get(name)) for name in classes]
        if len(classes) > MOST_CLASSES:
            numbers = [number for number in counts.values() if number]
            spread = f", {min(numbers):,} to {max(numbers):,} each" if numbers else ""
            cells = [f"{len(numbers)} of {len(classes)}{spread}"]
        rows.append([domain, _count(sum(counts.values()), known.domains.get(domain) if known else None), *cells])
    return markdown_table(["domain", "images", *(classes if len(classes) <= MOST_CLASSES else ["classes"])], rows)


def _count(number: int, expected: int | None) -> str:
    return f"{number:,}" if expected is None or number == expected else f"{number:,} of {expected:,}"


def _few(lines: Iterable[str]) -> list[str]:
    everything = list(lines)
    more = len(everything) - MOST_LINES
    return everything[:MOST_LINES] + ([f"... and {more:,} more; --json lists them all"] if more > 0 else [])
