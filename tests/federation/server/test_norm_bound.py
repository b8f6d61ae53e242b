"""The bound on norms: who is rejected, what it holds back and for how long, and that it never acts on the honest."""

from collections.abc import Iterator

import pytest
import torch

from fedhess.federation.server.norm_bound import NormBound, norm


def phase(bound: NormBound, *norms: float, asked: int = 0) -> tuple[list[int], dict[int, str]]:
    """Screen replies that are their own norms; return those that pass, in order, and why others do not."""
    rejected: dict[int, str] = {}
    replies = list(enumerate(norms))
    passed = bound.screen(replies, lambda _, sent: {"update": sent}, rejected.__setitem__, asked=asked or len(norms))
    return [number for number, _ in passed], rejected


@pytest.mark.parametrize("hostile", [0, 1, 2])
def test_in_the_first_round_the_clients_are_compared_with_one_another(hostile: int) -> None:
    norms = [1.0, 2.0, 3.0]
    norms[hostile] = 1e6
    passed, rejected = phase(NormBound(30), *norms)
    assert passed == [number for number in range(3) if number != hostile]
    assert rejected.keys() == {hostile}
    assert "update has norm 1e+06" in rejected[hostile]


def test_a_tiny_reply_gets_nobody_rejected() -> None:
    assert phase(NormBound(30), 1.0, 1e-12, 3.0)[1] == {}


def test_where_norms_jump_together_or_vanish_the_bound_does_not_act() -> None:
    bound = NormBound(30)
    for norms in ((1.0, 2.0, 1.5), (1e4, 2e4, 1.5e4), (1e-9, 1e-3, 1e-9), (0.0, 0.0, 0.0)):
        assert phase(bound, *norms)[1] == {}


def test_a_hard_batch_long_after_the_others_are_fitted_gets_nobody_rejected() -> None:
    """Small batches at the end of a run: IconPACS, batch 4, one local step, ERM at round 272 and HGP at 236."""
    bound = NormBound(50)
    phase(bound, 3.0, 4.0, 6.0)
    for _ in range(100):
        phase(bound, 0.01, 0.016, 0.02)
    assert phase(bound, 0.01, 3.85, 0.02)[1] == {}
    assert phase(bound, 0.01, 385.0, 0.02)[1].keys() == {1}


def test_two_clients_are_compared_once_there_are_earlier_rounds() -> None:
    bound = NormBound(30)
    assert phase(bound, 1.0, 1e6)[1] == {}, "neither is more credible"
    bound.restore({"update": 1.0})
    assert phase(bound, 1.0, 1e6)[1].keys() == {1}
    assert phase(bound, 93.0, 2e3)[1] == {}, "both have risen: the model may be at fault"
    bound.restore({"update": 1.0})
    assert phase(bound, 1e6)[1].keys() == {0}


def test_who_is_rejected_does_not_count_for_later_rounds() -> None:
    bound = NormBound(30)
    phase(bound, 1.0, 2.0, 3.0)
    for _ in range(3):
        phase(bound, 1e6)
    assert bound.state() == {"update": 2.0}


def test_replies_pass_one_by_one_as_soon_as_the_median_is_certain() -> None:
    bound = NormBound(30)

    def held_back(*norms: float) -> list[int]:
        """Return how many replies had come when each one passed."""
        come = 0

        def replies() -> Iterator[tuple[int, float]]:
            nonlocal come
            for number, value in enumerate(norms):
                come += 1
                yield number, value

        return [come for _ in bound.screen(replies(), lambda _, v: {"update": v}, lambda *_: None, asked=len(norms))]

    assert held_back(1.0, 2.0, 1.0, 3.0, 2.0) == [3, 3, 3, 4, 5], "half of them, in the first round"
    assert held_back(1.0, 2.0, 1.0, 3.0, 2.0) == [1, 2, 3, 4, 5]
    assert held_back(1.0, 1e6, 1.0, 3.0, 2.0) == [1, 5, 5, 5], "behind one that exceeds all wait, to keep their order"


def test_without_a_bound_everything_passes() -> None:
    assert phase(NormBound(0), 1.0, 1e300, 0.0)[1] == {}


def test_a_norm_is_of_all_floating_point_tensors_in_float64() -> None:
    tensors = {"a": torch.tensor([3e25, 0.0]), "b": torch.tensor([[4e25]]), "count": torch.tensor(10**9)}
    assert norm(tensors) == pytest.approx(5e25)
