"""Freed memory stays with the process."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from fedhess.federation.engines.allocator import keep_freed_memory
import torch
kept = keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):  # until its blocks have settled
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)
print(kept, (faults() - before) * resource.getpagesize() / 2**20)
"""

glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")


def cleared_mib(**settings: str) -> tuple[str, float]:
    """Return whether memory is kept, and how much the kernel clears while ten tensors of 64 MiB come and go."""
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, env=os.environ | settings
    ).stdout.split()
    return out[0], float(out[1])


@glibc
def test_large_blocks_are_used_again_instead_of_being_mapped_anew() -> None:
    kept, cleared = cleared_mib()
    assert kept == "True"
    assert cleared < 64


@glibc
def test_an_allocator_that_the_user_has_set_up_is_left_alone() -> None:
    kept, cleared = cleared_mib(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False"
    assert cleared > 600
