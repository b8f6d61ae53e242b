"""How many images the complete copies have, and what is said of a copy that has others."""

from pathlib import Path

import pytest

from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import KnownCounts
from fedhess.domains.images.releases import RELEASES


@pytest.mark.parametrize(
    ("name", "total"), [("PACS", 9991), ("VLCS", 10729), ("OfficeHome", 15588), ("DomainNet", 586575)]
)
def test_known_counts_add_up(name: str, total: int) -> None:
    release = RELEASES[name]
    assert release.known is not None
    assert release.known.total == total
    assert set(release.known.domains) == set(release.layout.domains)
    for domain, classes in release.known.classes.items():
        assert sum(classes.values()) == release.known.domains[domain]
        assert set(classes) == set(release.layout.classes)


def test_where_classes_are_not_known_the_domain_counts() -> None:
    (sentence,) = KnownCounts({"photo": 3, "sketch": 2}).differences({"photo": {"dog": 2}, "sketch": {"dog": 2}})
    assert sentence == "domain 'photo': 2 images, the complete copy has 3"


def test_a_part_of_a_benchmark_is_told_from_the_whole(complete: dict[str, Path]) -> None:
    identity = open_benchmark("VLCS", data_dir=complete["VLCS"]).identity()
    assert identity["differences"][0] == (
        "domain 'Caltech101': 10 images, the complete copy has 1,415 "
        "(bird 2 of 237, car 2 of 123, chair 2 of 118, dog 2 of 67, person 2 of 870)"
    )
    assert len(identity["differences"]) == 4
    assert "differences" not in open_benchmark("TerraIncognita", data_dir=complete["TerraIncognita"]).identity()


def test_the_original_domainnet_is_called_by_its_name() -> None:
    known = RELEASES["DomainNet"].known
    assert known is not None
    (original,) = known.others.values()
    counts = {domain: {"zebra": number} for domain, number in original.items()}
    assert known.differences(counts) == [
        "this is the original release, with duplicates: 596,010 images, expected 586,575"
    ]
    cleaned = {domain: {"zebra": number} for domain, number in known.domains.items() if domain != "quickdraw"}
    assert known.differences(cleaned) == []


def test_unreadable_images_count_as_there() -> None:
    known = RELEASES["PACS"].known
    assert known is not None
    counts = {domain: dict(classes) for domain, classes in known.classes.items()}
    assert known.differences(counts) == []
    counts["photo"]["dog"] -= 1
    assert known.differences(counts, unreadable={"photo": 1}) == []
    counts["photo"]["cat"] = 1
    (sentence,) = known.differences(counts)
    assert sentence == "domain 'photo': 1,670 images, the complete copy has 1,670 (dog 188 of 189)"
