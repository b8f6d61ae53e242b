"""Every example belongs to exactly one client, in the numbers that the formula gives."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhess.base.errors import UsageError
from fedhess.domains.partition import Examples, Share, apportion, batch_sizes, lambda_counts, main_shares, share_out
from fedhess.settings.partition import PartitionSettings

SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=6)
LAMBDA = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0])


def examples(*, held_out: int = 5, classes: int = 3, **sizes: int) -> dict[str, Examples]:
    """Domains of these sizes, every ``held_out``-th example of which is held out; 0 holds none out."""
    made = {}
    for name, size in sizes.items():
        everything = torch.arange(size)
        held = everything % held_out == 0 if held_out else torch.zeros(size, dtype=torch.bool)
        train = everything[~held]
        made[name] = Examples(everything % classes, train, everything[held] if held_out else train)
    return made


def by_lambda(made: dict[str, Examples], clients: int, heterogeneity: float, seed: int = 0) -> list[Share]:
    return share_out(PartitionSettings("lambda", clients=clients, heterogeneity=heterogeneity), made, seed=seed)


def by_dirichlet(made: dict[str, Examples], clients: int, alpha: float, least: int, seed: int = 0) -> list[Share]:
    how = PartitionSettings("dirichlet", clients_per_domain=clients, dirichlet_alpha=alpha, dirichlet_min_size=least)
    return share_out(how, made, seed=seed)


def flat(shares: list[Share]) -> list[object]:
    return [
        (share.domain, share.client, name, holding.train.tolist(), holding.evaluate.tolist())
        for share in shares
        for name, holding in share.holdings.items()
    ]


def every_example_once(shares: list[Share], made: dict[str, Examples]) -> None:
    for name, own in made.items():
        for part in ("train", "evaluate"):
            held = [getattr(share.holdings[name], part) for share in shares if name in share.holdings]
            assert sorted(torch.cat(held).tolist()) == getattr(own, part).tolist()


@settings(deadline=None)
@given(quotas=st.lists(st.fractions(0, 50, max_denominator=97), min_size=1, max_size=12))
def test_rounding_keeps_the_sum_and_changes_no_quota_by_one(quotas: list[Fraction]) -> None:
    total = int(sum(quotas))
    quotas[0] += total + 1 - sum(quotas)  # a whole sum
    counts = apportion(total + 1, quotas)
    assert sum(counts) == total + 1
    assert all(abs(count - quota) < 1 for count, quota in zip(counts, quotas, strict=True))


@settings(deadline=None)
@given(sizes=SIZES, clients=st.integers(1, 40), heterogeneity=LAMBDA)
def test_counts_add_up_and_follow_the_formula(sizes: list[int], clients: int, heterogeneity: float) -> None:
    shares = main_shares(sizes, clients)
    counts = lambda_counts(sizes, shares, heterogeneity=heterogeneity)
    assert len(counts) == clients
    assert [sum(row[d] for row in counts) for d in range(len(sizes))] == sizes
    mains = [sum(row[d] > 0 for row in shares) for d in range(len(sizes))]
    for row, share in zip(counts, shares, strict=True):
        for d, size in enumerate(sizes):
            quota = size * ((1 - heterogeneity) * (share[d] > 0) / mains[d] + heterogeneity / clients)
            assert abs(row[d] - quota) < 1 + 1e-9


@settings(deadline=None)
@given(sizes=SIZES, more=st.integers(0, 40))
def test_main_clients_go_to_the_most_crowded_domain(sizes: list[int], more: int) -> None:
    shares = main_shares(sizes, len(sizes) + more)
    mains = [sum(row[d] > 0 for row in shares) for d in range(len(sizes))]
    assert all(sum(share > 0 for share in row) == 1 for row in shares)
    assert min(mains) >= 1
    # Nobody could give a client away and still be less crowded than the most crowded domain is now.
    worst = max(Fraction(size, count) for size, count in zip(sizes, mains, strict=True))
    assert all(count == 1 or Fraction(size, count - 1) >= worst for size, count in zip(sizes, mains, strict=True))


@pytest.mark.parametrize(
    ("sizes", "clients", "mains"),
    [
        # PACS without sketch: 2344, 2048, 1670; then 1172 (cartoon halved) is less than 2048 ...
        ([2048, 2344, 1670], 4, [1, 2, 1]),
        ([2048, 2344, 1670], 5, [2, 2, 1]),
        ([10, 10], 5, [3, 2]),
    ],
)
def test_main_clients_by_hand(sizes: list[int], clients: int, mains: list[int]) -> None:
    assert [sum(row[d] > 0 for row in main_shares(sizes, clients)) for d in range(len(sizes))] == mains


@pytest.mark.parametrize(
    ("heterogeneity", "counts"),
    [(0.0, [[0, 40, 15, 0], [20, 0, 0, 30]]), (1.0, [[10, 20, 8, 15], [10, 20, 7, 15]])],
)
def test_fewer_clients_than_domains_take_whole_domains(heterogeneity: float, counts: list[list[int]]) -> None:
    # 40 and 30 to one each; 20 to the client of 30; 15 to the one of 40.
    sizes = [20, 40, 15, 30]
    assert lambda_counts(sizes, main_shares(sizes, 2), heterogeneity=heterogeneity) == counts


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(30, 90), min_size=2, max_size=4), clients=st.integers(1, 12), heterogeneity=LAMBDA,
    held_out=st.sampled_from([0, 3, 5]), seed=st.integers(0, 9),
)  # fmt: skip
def test_every_example_once(sizes: list[int], clients: int, heterogeneity: float, held_out: int, seed: int) -> None:
    made = examples(held_out=held_out, **{f"d{number}": size for number, size in enumerate(sizes)})
    shares = by_lambda(made, clients, heterogeneity, seed)
    assert len({(share.domain, share.client) for share in shares}) == clients
    every_example_once(shares, made)
    assert flat(shares) == flat(by_lambda(made, clients, heterogeneity, seed))


def test_lambda_one_makes_all_alike_and_lambda_zero_gives_one_domain_each() -> None:
    made = examples(art=205, cartoon=160, photo=91)
    alike = by_lambda(made, 7, 1.0)
    for name in made:
        counts = [len(share.holdings[name].train) for share in alike]
        assert max(counts) - min(counts) <= 1
    totals = [share.train_size for share in alike]
    assert max(totals) - min(totals) <= 1, "left-over examples go to whoever has least"
    apart = by_lambda(made, 7, 0.0)
    assert all(list(share.holdings) == [share.domain] for share in apart)
    assert [share.domain for share in apart] == ["art"] * 3 + ["cartoon"] * 2 + ["photo"] * 2
    assert [share.client for share in apart] == [0, 1, 2, 0, 1, 0, 1]


def test_seed_domain_and_part_decide_who_gets_which() -> None:
    made = examples(art=100, photo=100)
    one, other = (by_lambda(made, 4, 1.0, seed) for seed in (0, 1))
    assert flat(one) != flat(other)
    assert not torch.equal(one[0].holdings["art"].train[:10], torch.arange(10)), "drawn, not cut from the front"
    for part in ("train", "evaluate"):
        cuts = [[getattr(share.holdings[name], part).tolist() for share in one] for name in made]
        assert cuts[0] != cuts[1], "domains of one size are cut differently"


def test_one_client_a_domain_keeps_the_split_as_it_is() -> None:
    made = examples(a=10, b=7)
    shares = share_out(PartitionSettings(), made, seed=0)
    assert [(share.domain, share.client) for share in shares] == [("a", 0), ("b", 0)]
    assert shares[0].holdings["a"].train is made["a"].train


@pytest.mark.parametrize("held_out", [0, 5])
def test_dirichlet_shares_every_example_once_with_unlike_classes(held_out: int) -> None:
    made = examples(held_out=held_out, classes=4, a=400, b=300)
    shares = by_dirichlet(made, 5, 0.3, 5)
    assert [(share.domain, share.client) for share in shares] == [(n, i) for n in "ab" for i in range(5)]
    every_example_once(shares, made)
    assert min(share.train_size for share in shares) >= 5
    classes = [torch.bincount(made["a"].labels[share.holdings["a"].train], minlength=4) for share in shares[:5]]
    fractions = torch.stack(classes) / torch.stack(classes).sum(1, keepdim=True)
    assert fractions.max() > 0.5, "alike would be 0.25"
    assert flat(shares) == flat(by_dirichlet(made, 5, 0.3, 5))
    assert flat(shares) != flat(by_dirichlet(made, 5, 0.3, 5, seed=1))
    assert flat(shares[5:]) == flat(by_dirichlet({"b": made["b"]}, 5, 0.3, 5)), "the same without the other domain"


def test_held_out_examples_of_a_class_follow_its_training_examples() -> None:
    made = examples(held_out=5, classes=3, a=600)
    shares = by_dirichlet(made, 4, 0.5, 1)
    labels = made["a"].labels
    for label in range(3):
        train = [int((labels[share.holdings["a"].train] == label).sum()) for share in shares]
        held = [int((labels[share.holdings["a"].evaluate] == label).sum()) for share in shares]
        assert all(abs(h - t * sum(held) / sum(train)) < 1 for t, h in zip(train, held, strict=True))


def test_a_class_that_is_held_out_but_never_trained_on_is_shared_all_the_same() -> None:
    labels = torch.tensor([0] * 20 + [1])
    one = {"a": Examples(labels, torch.arange(16), torch.arange(16, 21))}
    every_example_once(by_dirichlet(one, 2, 1.0, 1), one)


def test_too_many_clients_are_counted() -> None:
    with pytest.raises(UsageError, match=r"--clients 12: the 8 training examples of a, b leave 4 clients with nothing"):
        by_lambda(examples(a=5, b=5), 12, 0.5)
    for clients, alpha in ((40, 0.05), (500, 1.0)):
        with pytest.raises(UsageError, match=r"--clients-per-domain \d+: the 240 training examples of 'a' cannot"):
            by_dirichlet(examples(a=300), clients, alpha, 10)


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 200), min_size=1, max_size=6), more=st.integers(0, 60))
def test_a_batch_has_room_for_every_domain(counts: list[int], more: int) -> None:
    size = len(counts) + more
    sizes = batch_sizes(counts, size)
    assert sum(sizes) == size
    assert min(sizes) >= 1
    assert all(own <= size * count / sum(counts) + 1 for count, own in zip(counts, sizes, strict=True))
