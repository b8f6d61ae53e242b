"""What a client knows of one domain: labelled examples, fetched by index."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from fedhess.base.files import digest_of

Notify = Callable[[str], None]


def keep_silent(message: str) -> None:
    """Drop a message: the default of every ``notify`` argument."""
    del message


class DomainData(Protocol):
    """The examples of one domain. ``inputs`` may read and decode files; everything else is in memory."""

    @property
    def name(self) -> str:
        """The domain."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, in [0, C)."""

    @property
    def groups(self) -> Tensor | None:
        """(N,) int64 or None; examples of one group show the same drawing and belong on one side of a split.

        Groups with a negative number are kept for targets: no source holds them, and targets hold nothing else.
        """

    @property
    def digest(self) -> str:
        """Sha256 that changes when any example or label does."""

    def __len__(self) -> int:
        """Return N."""

    def inputs(self, indices: Tensor) -> Tensor:
        """Fetch examples by (B,) int64 indices: images as uint8 (B, 3 or 1, H, W), or float32 (B, ...)."""


class TensorDomain:
    """A domain held in memory.

    Args:
        name: The domain.
        examples: (N, ...) uint8 or float32.
        labels: (N,) int64.
        groups: (N,) int64 or None.
        digest: Computed from the tensors when left out.
    """

    def __init__(
        self, name: str, examples: Tensor, *, labels: Tensor, groups: Tensor | None = None, digest: str | None = None
    ) -> None:
        assert len(examples) == len(labels), (len(examples), len(labels))
        self.name = name
        self.labels = labels
        self.groups = groups
        self._examples = examples
        self.digest = digest or digest_of(
            [
                f"{name} {examples.dtype} {tuple(examples.shape)}",
                examples.contiguous().numpy().tobytes(),
                labels.numpy().tobytes(),
                b"" if groups is None else groups.numpy().tobytes(),
            ]
        )

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def inputs(self, indices: Tensor) -> Tensor:
        """Fetch examples by index; see `DomainData.inputs`."""
        return self._examples[indices]
