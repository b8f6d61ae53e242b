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
    """The examples of one domain. ``inputs`` may read and decode files; everything else is in memory.

    Attributes:
        name: The domain.
        labels: (N,) int64, in [0, C).
        groups: (N,) int64 or None; examples of one group show the same drawing and belong on one side of a split.
        digest: sha256 that changes when any example or label does.
    """

    @property
    def name(self) -> str:
        """The domain."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    @property
    def groups(self) -> Tensor | None:
        """(N,) int64, or None when every example stands for itself."""

    @property
    def digest(self) -> str:
        """Sha256 of the content's identity."""

    def __len__(self) -> int:
        """Give N."""

    def inputs(self, indices: Tensor) -> Tensor:
        """Fetch examples.

        Args:
            indices: (B,) int64.

        Returns:
            (B, ...) images as uint8 (B, 3 or 1, H, W), or float32.
        """


class TensorDomain:
    """A domain held in memory.

    Args:
        name: The domain.
        examples: (N, ...) uint8 or float32.
        labels: (N,) int64.
        groups: (N,) int64 or None.
        digest: Its sha256; computed from the tensors when left out.
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
        """Give N."""
        return len(self.labels)

    def inputs(self, indices: Tensor) -> Tensor:
        """Fetch examples by index; see `DomainData.inputs`."""
        return self._examples[indices]
