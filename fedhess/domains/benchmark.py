"""A benchmark: named domains with the same classes, and which of them are sources and targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.files import digest_of
from fedhess.domains.counts import KnownCounts
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
class Benchmark:
    """A set of domains, opened; nothing but file names has been read yet.

    Attributes:
        name: ``"PACS"``.
        stand_in_for: The benchmark the user asked for when this one replaces it, else None.
        domains: Sorted names.
        classes: Class names; a label is an index into them.
        input_shape: Of one example, without the batch axis.
        outputs: Logits of the model: C, or 1 for the logistic form.
        default_model: A name of `fedhess.models.MODELS`.
        holdout: Fraction of each source held out for validation; 0 evaluates on the training split.
        scenarios: Leave one domain out, unless the benchmark fixes them.
        options: What `open_benchmark` needs besides ``name`` to open the same data in another process.
        known: What the complete copy holds, where that is known.
        recipe: The name that `fedhess.settings.defaults` knows it by, where that is not ``name``.
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
        """Load one domain and nothing of the others; it is kept.

        Args:
            domain: One of ``domains``.

        Returns:
            Its examples.

        Raises:
            UsageError: An unknown domain, or data that cannot be read (the message names the file).
        """
        if domain not in self.domains:
            raise UsageError(f"{self.title} has no domain {domain!r}; {did_you_mean(domain, self.domains)}")
        if domain not in self._loaded:
            self._loaded[domain] = self.loader(domain)
        return self._loaded[domain]

    def identity(self) -> dict[str, object]:
        """Say what data this is, for config.json; loads every domain.

        Returns:
            JSON: name, whether real or a stand-in, options, examples per domain and class, a digest over
                everything, and, if there are any, the differences from the complete copy in words.

        Raises:
            UsageError: As `load`.
        """
        counts: dict[str, dict[str, int]] = {}
        digests: list[str] = []
        skipped: dict[str, int] = {}
        for domain in self.domains:
            data = self.load(domain)
            per_class = torch.bincount(data.labels, minlength=len(self.classes)).tolist()
            counts[domain] = dict(zip(self.classes, per_class, strict=True))
            digests += [domain, data.digest]
            skipped[domain] = getattr(data, "skipped", 0)
        differences = self.known.differences(counts, unreadable=skipped) if self.known else []
        return {
            "name": self.name,
            "title": self.title,
            "stand_in_for": self.stand_in_for,
            "options": dict(self.options),
            "counts": counts,
            "skipped_images": skipped,
            "digest": digest_of(digests),
            **({"differences": differences} if differences else {}),
        }


def leave_one_out(domains: tuple[str, ...]) -> tuple[Scenario, ...]:
    """Make each domain the target once, the others its sources.

    >>> [s.name for s in leave_one_out(("a", "b", "c"))]
    ['a', 'b', 'c']
    """
    return tuple(
        Scenario(sources=tuple(d for d in domains if d != target), targets=(target,), name=target) for target in domains
    )
