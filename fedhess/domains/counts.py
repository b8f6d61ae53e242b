"""How many images the complete copy of a benchmark has, and where a copy at hand differs."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KnownCounts:
    """The counts of a benchmark's complete copy.

    Attributes:
        domains: Domain -> number of examples.
        classes: Domain -> class -> number of examples, of those domains where it is known for sure.
        others: Name of another release -> its counts by domain, so that a copy of it can be called by its name.
    """

    domains: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of examples in all domains."""
        return sum(self.domains.values())

    def differences(
        self, counts: Mapping[str, Mapping[str, int]], *, unreadable: Mapping[str, int] | None = None
    ) -> list[str]:
        """Compare a copy with the complete one.

        Args:
            counts: Domain -> class -> number of examples that can be read.
            unreadable: Domain -> number of images that are there and cannot be decoded; they count as there.

        Returns:
            A sentence for each domain there that differs, naming its classes where they are known; else nothing.

        >>> complete = KnownCounts({"photo": 3}, classes={"photo": {"dog": 2, "cat": 1}})
        >>> complete.differences({"photo": {"dog": 1, "cat": 1}})
        ["domain 'photo': 2 images, the complete copy has 3 (dog 1 of 2)"]
        """
        totals = {name: sum(classes.values()) + (unreadable or {}).get(name, 0) for name, classes in counts.items()}
        for release, domains in self.others.items():
            if totals == dict(domains):
                return [f"this is {release}: {sum(totals.values()):,} images, expected {self.total:,}"]
        sentences = []
        for name, expected in self.domains.items():
            if name not in totals:
                continue
            found = totals[name]
            details = [
                f"{label} {counts.get(name, {}).get(label, 0):,} of {number:,}"
                for label, number in self.classes.get(name, {}).items()
                if counts.get(name, {}).get(label, 0) != number
            ]
            if found != expected or (details and not (unreadable or {}).get(name, 0)):
                which = f" ({', '.join(details)})" if details else ""
                sentences.append(f"domain {name!r}: {found:,} images, the complete copy has {expected:,}{which}")
        return sentences


def by_class(classes: tuple[str, ...], **domains: tuple[int, ...]) -> dict[str, dict[str, int]]:
    """Lay out counts by domain and class.

    >>> by_class(("dog", "cat"), photo=(2, 1))
    {'photo': {'dog': 2, 'cat': 1}}
    """
    return {name: dict(zip(classes, numbers, strict=True)) for name, numbers in domains.items()}
