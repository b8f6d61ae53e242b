"""Heads drawn by hypothesis: one example, absent classes, extreme logits, no bias, one logit."""

import oracles
import torch
from hypothesis import strategies as st
from torch import Tensor


def make_head(
    examples: int, features: int, outputs: int, has_bias: bool = True, scale: float = 1.0, seed: int = 0
) -> oracles.Head:
    generator = torch.Generator().manual_seed(seed)
    width = features + has_bias
    return oracles.Head(
        features=torch.randn(examples, features, dtype=torch.float64, generator=generator),
        labels=torch.randint(0, max(outputs, 2), (examples,), generator=generator),
        theta=scale * torch.randn(outputs, width, dtype=torch.float64, generator=generator),
        has_bias=has_bias,
    )


def like_theta(head: oracles.Head, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(head.theta.shape, dtype=head.theta.dtype, generator=generator)


@st.composite
def heads(draw: st.DrawFn) -> oracles.Head:
    head = make_head(
        examples=draw(st.integers(1, 7)),
        features=draw(st.integers(1, 6)),
        outputs=draw(st.integers(1, 5)),
        has_bias=draw(st.booleans()),
        scale=draw(st.sampled_from([0.0, 1.0, 30.0])),
        seed=draw(st.integers(0, 2**16)),
    )
    if draw(st.booleans()):
        head.labels = torch.zeros_like(head.labels)  # every class but one is absent
    return head
