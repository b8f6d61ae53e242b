import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fedhess.domains.inspection.duplicates import TAIL, example_keys, file_key, shared_examples, shared_files
from image_trees import write_image

from fedhess.domains import TensorDomain


def keyed(files: dict[str, list[Path]]) -> dict[str, np.ndarray]:
    return {domain: np.array([file_key(path) for path in paths], dtype=np.uint64) for domain, paths in files.items()}


def test_files_that_two_domains_share_are_grouped(tmp_path: Path):
    files = {domain: [tmp_path / f"{domain}{index}.png" for index in range(4)] for domain in "abc"}
    numbers = {"a": [1, 2, 3, 3], "b": [4, 2, 5, 6], "c": [2, 7, 8, 4]}
    for domain, paths in files.items():
        for path, number in zip(paths, numbers[domain], strict=True):
            write_image(path, number)
    groups = shared_files(keyed(files), files.__getitem__)
    assert sorted(sorted(path.name for path in group) for group in groups) == [
        ["a1.png", "b1.png", "c0.png"],
        ["b0.png", "c3.png"],
    ], "what one domain has twice is not shared between domains"


def test_equal_ends_alone_make_no_duplicate(tmp_path: Path):
    end = b"e" * TAIL
    files = {domain: [tmp_path / domain] for domain in "ab"}
    for domain, (path,) in files.items():
        path.write_bytes(domain.encode() + end)
    keys = keyed(files)
    assert keys["a"] == keys["b"], "they may be duplicates"
    assert shared_files(keys, files.__getitem__) == []


def test_half_a_million_files_take_seconds_and_are_not_listed():
    rng = np.random.default_rng(0)
    keys = {domain: rng.integers(0, 2**63, 100_000, dtype=np.uint64) for domain in "abcdef"}
    start = time.process_time()
    assert shared_files(keys, lambda domain: pytest.fail(f"{domain} was listed")) == []
    assert time.process_time() - start < 5


def test_examples_in_memory_are_compared_too():
    images = torch.arange(12, dtype=torch.uint8).reshape(6, 1, 2)
    domains = {"a": images[:3], "b": images[2:5], "c": images[5:]}
    data = {name: TensorDomain(name, each, labels=torch.zeros(len(each))) for name, each in domains.items()}
    assert shared_examples({name: example_keys(each) for name, each in data.items()}) == [["a[2]", "b[0]"]]
