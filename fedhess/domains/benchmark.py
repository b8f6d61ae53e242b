"""A benchmark: named domains with the same classes, which of them are sources and targets, and its known counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.files import digest_of
from fedhess.domains.domain import DomainData

# The roles of a domain in a run.
SOURCE = "source"
TARGET = "target"

OptionValue = str | int | float | bool


@dataclass(frozen=True)
class Scenario:
    """One training: the domains learned from and the domains only evaluated.

    Attributes:
        sources: Two or more domains.
        targets: One or more domains, never seen in training.
        name: The target or targets; names a table column and a directory.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class KnownCounts:
    """How many examples the complete copy of a benchmark has."""

    domains: Mapping[str, int]  # domain -> number of examples
    # Domain -> class -> number of examples, for those domains where it is known
    classes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    # Name of another release -> its counts by domain
    others: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of examples in all domains."""
        return sum(self.domains.values())

    def differences(
        self, counts: Mapping[str, Mapping[str, int]], *, unreadable: Mapping[str, int] | None = None
    ) -> list[str]:
        """Return a sentence for each domain that differs from the complete copy.

        Args:
            counts: Domain -> class -> number of examples that can be read.
            unreadable: Domain -> number of images that cannot be decoded; the domain's total includes them.

        >>> complete = KnownCounts({"photo": 3}, classes={"photo": {"dog": 2, "cat": 1}})
        >>> complete.differences({"photo": {"dog": 1, "cat": 1}})
        ["domain 'photo': 2 images, the complete copy has 3 (dog 1 of 2)"]
        """
        lost = unreadable or {}
        totals = {name: sum(classes.values()) + lost.get(name, 0) for name, classes in counts.items()}
        for release, domains in self.others.items():
            if totals == dict(domains):
                return [f"this is {release}: {sum(totals.values()):,} images, expected {self.total:,}"]
        sentences = []
        for name in [name for name in self.domains if name in totals]:
            details = [
                f"{label} {counts[name].get(label, 0):,} of {number:,}"
                for label, number in self.classes.get(name, {}).items()
                if counts[name].get(label, 0) != number
            ]
            if totals[name] != self.domains[name] or (details and not lost.get(name, 0)):
                which = f" ({', '.join(details)})" if details else ""
                sentences.append(
                    f"domain {name!r}: {totals[name]:,} images, the complete copy has {self.domains[name]:,}{which}"
                )
        return sentences


def by_class(classes: tuple[str, ...], **domains: tuple[int, ...]) -> dict[str, dict[str, int]]:
    """Lay out counts by domain and class.

    >>> by_class(("dog", "cat"), photo=(2, 1))
    {'photo': {'dog': 2, 'cat': 1}}
    """
    return {name: dict(zip(classes, numbers, strict=True)) for name, numbers in domains.items()}


@dataclass(frozen=True)
class Benchmark:
    """A set of domains, opened; no example has been read yet.

    Attributes:
        name: ``"PACS"``.
        stand_in_for: The benchmark the user asked for when this one replaces it, else None.
        domains: Sorted names.
        classes: Class names; a label is an index into them.
        input_shape: Shape of one example, without the batch axis.
        outputs: Logits of the model: C, or 1 for the logistic form.
        default_model: A name of `fedhess.models.MODELS`.
        holdout: Fraction of each source held out for validation; 0 evaluates on the training split.
        scenarios: Leave one domain out, unless the benchmark fixes them.
        options: What `open_benchmark` needs besides ``name`` to open the same data in another process.
        known: Counts of the complete copy, if they are known.
        recipe: Its name in `fedhess.settings.defaults`, if that is not ``name``.
        loader: Loads one domain.
    """

    name: str
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    outputs: int
    default_model: str
    scenarios: tuple[Scenario, ...]
    loader: Callable[[str], DomainData] = field(repr=False, compare=False)
    stand_in_for: str | None = None
    holdout: float = 0.2
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    known: KnownCounts | None = None
    recipe: str = ""
    _loaded: dict[str, DomainData] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def title(self) -> str:
        """Name for headers, tables and files: ``"IconPACS (stand-in for PACS)"``."""
        return f"{self.name} (stand-in for {self.stand_in_for})" if self.stand_in_for else self.name

    def load(self, domain: str) -> DomainData:
        """Load one of ``domains``, once for this object.

        Raises:
            UsageError: An unknown domain, or data that cannot be read (the message names the file).
        """
        if domain not in self.domains:
            raise UsageError(f"{self.title} has no domain {domain!r}; {did_you_mean(domain, self.domains)}")
        if domain not in self._loaded:
            self._loaded[domain] = self.loader(domain)
        return self._loaded[domain]

    def identity(self) -> dict[str, object]:
        """Describe the data for config.json; loads every domain, and raises what `load` raises.

        Returns:
            JSON: name, whether real or a stand-in, options, examples per domain and class, whether inputs are bytes, a
            digest over everything, and any differences from the complete copy, as sentences.
        """
        loaded = {domain: self.load(domain) for domain in self.domains}
        counts = {domain: count_classes(data.labels, self.classes) for domain, data in loaded.items()}
        skipped = {domain: getattr(data, "skipped", 0) for domain, data in loaded.items()}
        differences = self.known.differences(counts, unreadable=skipped) if self.known else []
        return {
            "name": self.name,
            "title": self.title,
            "stand_in_for": self.stand_in_for,
            "options": dict(self.options),
            "counts": counts,
            "skipped_images": skipped,
            "bytes": all(data.inputs(torch.tensor([0])).dtype == torch.uint8 for data in loaded.values() if len(data)),
            "digest": digest_of(part for domain, data in loaded.items() for part in (domain, data.digest)),
            **({"differences": differences} if differences else {}),
        }


def count_classes(labels: Tensor, classes: Sequence[str]) -> dict[str, int]:
    """Count the labels (N,) of each class.

    >>> count_classes(torch.tensor([0, 2, 0]), ["dog", "cat", "owl"])
    {'dog': 2, 'cat': 0, 'owl': 1}
    """
    return dict(zip(classes, torch.bincount(labels, minlength=len(classes)).tolist(), strict=True))


def leave_one_out(domains: tuple[str, ...]) -> tuple[Scenario, ...]:
    """Make each domain the target once, the others its sources.

    >>> [s.name for s in leave_one_out(("a", "b", "c"))]
    ['a', 'b', 'c']
    """
    return tuple(
        Scenario(sources=tuple(d for d in domains if d != target), targets=(target,), name=target) for target in domains
    )
