import hashlib

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedhess.domains import TensorDomain, split_domain, split_indices
from fedhess.domains.split import split_as_domainbed


def domain(labels: Tensor, groups: Tensor | None = None, name: str = "a") -> TensorDomain:
    return TensorDomain(name, torch.arange(len(labels)), labels=labels, groups=groups)


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60),
    holdout=st.sampled_from([0.1, 0.2, 0.5, 0.9]),
    seed=st.integers(0, 5),
    grouped=st.booleans(),
)
def test_every_example_is_on_exactly_one_side(pairs, holdout, seed, grouped):
    labels = torch.tensor([label for label, _ in pairs])
    groups = torch.tensor([10 * label + group for label, group in pairs]) if grouped else None
    train, held = split_indices(domain(labels, groups), holdout=holdout, seed=seed)
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(len(pairs)))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(held, held.sort().values)
    if groups is not None:
        for label in set(labels.tolist()):
            members = groups[labels == label]
            if len(members.unique()) >= 3:
                on_held = set(groups[held[labels[held] == label]].tolist())
                on_train = set(groups[train[labels[train] == label]].tolist())
                assert on_held
                assert not on_held & on_train


def test_a_class_is_held_out_in_proportion():
    labels = torch.tensor([0] * 100 + [1] * 50)
    _, held = split_indices(domain(labels), holdout=0.2, seed=1)
    assert torch.bincount(labels[held]).tolist() == [20, 10]


def test_half_a_drawing_is_rounded_up():
    # Banker's rounding would hold out 2 of 5 half the time: the rule is fixed.
    groups = torch.arange(5).repeat_interleave(4)
    _, held = split_indices(domain(torch.zeros(20, dtype=torch.int64), groups), holdout=0.5, seed=0)
    assert len(groups[held].unique()) == 3


def test_without_holdout_both_sides_are_everything():
    train, held = split_indices(domain(torch.zeros(7, dtype=torch.int64)), holdout=0.0, seed=0)
    assert train.tolist() == held.tolist() == list(range(7))


def test_the_split_depends_on_seed_and_name_and_on_nothing_else():
    labels = torch.zeros(50, dtype=torch.int64)
    one = split_indices(domain(labels), holdout=0.2, seed=0)[1]
    torch.manual_seed(99)
    assert torch.equal(one, split_indices(domain(labels), holdout=0.2, seed=0)[1])
    assert not torch.equal(one, split_indices(domain(labels), holdout=0.2, seed=1)[1])
    assert not torch.equal(one, split_indices(domain(labels, name="b"), holdout=0.2, seed=0)[1])


def test_a_class_of_one_example_stays_in_training():
    train, held = split_indices(domain(torch.tensor([0, 1, 1, 1, 1, 1])), holdout=0.9, seed=0)
    assert 0 in train.tolist()
    assert len(held) == 4


# -- DomainBed's own draw ----------------------------------------------------------------------------------------------


def test_domainbeds_draw_is_the_one_of_its_code():
    # Its seed is the MD5 of "(trial_seed, environment)" modulo 2^31; its out split the first fifth of a shuffled list.
    seed = int(hashlib.md5(b"(2, 1)").hexdigest(), 16) % 2**31
    assert seed == 181139023
    order = list(range(23))
    np.random.RandomState(seed).shuffle(order)
    kept, held = split_as_domainbed(23, holdout=0.2, trial_seed=2, position=1)
    assert held.tolist() == sorted(order[:4])
    assert kept.tolist() == sorted(order[4:])


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 80),
    holdout=st.sampled_from([0.0, 0.1, 0.2, 0.9]),
    seed=st.integers(0, 5),
    position=st.integers(0, 3),
)
def test_domainbeds_draw_has_every_example_on_exactly_one_side(size, holdout, seed, position):
    kept, held = split_as_domainbed(size, holdout=holdout, trial_seed=seed, position=position)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(size))
    assert len(held) == int(size * holdout)


def test_rule_chooses_the_split():
    data = domain(torch.tensor([0, 1] * 50))
    given = {"holdout": 0.2, "seed": 3, "position": 1}
    ours, theirs = (
        split_indices(data, holdout=0.2, seed=3),
        split_as_domainbed(100, holdout=0.2, trial_seed=3, position=1),
    )
    for rule, (_, held) in {"sources": ours, "every": ours, "domainbed": theirs}.items():
        assert torch.equal(split_domain(data, rule=rule, **given)[1], held)
    assert not torch.equal(ours[1], theirs[1])
