"""ColoredMNIST: colour predicts the label in training, and the opposite in the target. Two forms.

Form "irm": Arjovsky et al. 2019, "Invariant risk minimization", section 5.1 and its released script; the scripts of
Fishr (Rame et al. 2022) and of Hessian alignment (Hemati et al. 2023) build their domains in the same way and add the
grey target.

Form "domainbed": Gulrajani and Lopez-Paz 2021, "In search of lost domain generalization", released code: all 70,000
digits shuffled, every third one in a domain, every domain a target once; it is in colored_mnist_domainbed.py.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.files import digest_of
from fedhess.domains.benchmark import Benchmark, KnownCounts, OptionValue, Scenario
from fedhess.domains.digits.colored_mnist_domainbed import domainbed_form
from fedhess.domains.digits.mnist import find_mnist, read_mnist
from fedhess.domains.domain import TensorDomain
from fedhess.domains.opening import Opening

FORMS = ("irm", "domainbed")
LABEL_FLIP = 0.25
# Probability that the colour disagrees with the label.
COLOUR_FLIPS = {"flip-0.2": 0.2, "flip-0.1": 0.1, "flip-0.9": 0.9, "grey": 0.9}
SOURCES = ("flip-0.2", "flip-0.1")
TARGETS = ("flip-0.9", "grey")
TRAINING_DIGITS = 50_000  # the other 10,000 of MNIST's training part make the targets
SHIFTED_OTHERS = 1_500  # digits >= 5 in the first domain under label shift
COMPLETE = KnownCounts({"flip-0.2": 25_000, "flip-0.1": 25_000, "flip-0.9": 10_000, "grey": 10_000})
FORMAT = "1"  # change it whenever the examples do


def open_colored_mnist(opening: Opening) -> Benchmark:
    """Open ColoredMNIST; form "irm": two source domains, and two targets evaluated in one scenario.

    Args:
        opening: Options: ``form`` ("irm" or "domainbed"); ``label_shift`` (the scripts' "imbalanced" form, of "irm"
            alone); ``per_domain`` (the first so many examples of each domain, for quick checks; 0 = all: 25,000 a
            source, 10,000 a target; 23,333 or 23,334 in form "domainbed"); ``seed`` and ``data_dir``, which overrule
            the arguments.

    Returns:
        Form "irm": (2, 14, 14) float32 in [0, 1], one logit, sources evaluated on what they train on. Form
        "domainbed": see `domainbed_form`.

    Raises:
        UsageError: An unknown form or option, or no MNIST; see `find_mnist`.
    """
    opening, options = settle_colored_mnist(opening)
    where = opening.data_dir
    root = find_mnist(opening, where) if opening.held != () else where or Path()  # a server reads no example
    if options["form"] == "domainbed":
        return domainbed_form({**options, "data_dir": str(root.resolve())}, root)
    return Benchmark(
        name="ColoredMNIST",
        domains=(*SOURCES, *TARGETS),
        classes=("5 to 9", "0 to 4"),
        input_shape=(2, 14, 14),
        outputs=1,
        default_model="mlp",
        holdout=0.0,
        scenarios=(Scenario(sources=SOURCES, targets=TARGETS, name="+".join(TARGETS)),),
        options={**options, "data_dir": str(root.resolve())},
        loader=partial(_load, root=root, options=options),
        known=None if options["per_domain"] or options["label_shift"] else COMPLETE,
    )


def settle_colored_mnist(opening: Opening) -> tuple[Opening, dict[str, OptionValue]]:
    """Check the options.

    Args:
        opening: As for `open_colored_mnist`.

    Returns:
        The opening with the data folder that the options name, and a value for each option.

    Raises:
        UsageError: An unknown form or option, a value out of range, or two that exclude each other.
    """
    opening, options = opening.settled(form="irm", label_shift=False, per_domain=0, seed=opening.seed)
    if options["form"] not in FORMS:
        raise UsageError(f"ColoredMNIST has no form {options['form']!r}; {did_you_mean(str(options['form']), FORMS)}")
    if options["form"] == "domainbed" and options["label_shift"]:
        raise UsageError("ColoredMNIST: label_shift belongs to form irm, got it with form domainbed; leave one out")
    return opening, options


def _load(domain: str, *, root: Path, options: dict[str, OptionValue]) -> TensorDomain:
    images, digits = read_mnist(root)
    seed = int(options["seed"])
    chosen = _members(domain, digits, label_shift=bool(options["label_shift"]), seed=seed)
    examples, labels = _colour(domain, images[chosen], digits=digits[chosen], seed=seed)
    count = int(options["per_domain"]) or len(labels)
    return TensorDomain(domain, examples[:count].contiguous(), labels=labels[:count].contiguous())


def _members(domain: str, digits: Tensor, *, label_shift: bool, seed: int) -> Tensor:
    """Choose the examples of a domain.

    Balanced: every other one of the 50,000 shuffled. Under label shift the first domain gets all digits below 5 and
        1,500 of the
    others, the second the rest.

    Args:
        domain: Its name.
        digits: (60000,) int64.
        label_shift: The scripts' "imbalanced" form.
        seed: Of the shuffle.

    Returns:
        (N,) int64 indices into MNIST, shuffled for sources.
    """
    if domain in TARGETS:
        return torch.arange(TRAINING_DIGITS, len(digits))
    order = torch.randperm(TRAINING_DIGITS, generator=_generator(seed, "shuffle"))
    first = domain == SOURCES[0]
    if not label_shift:
        return order[0 if first else 1 :: 2]
    low, high = order[digits[order] < 5], order[digits[order] >= 5]
    members = torch.cat([low, high[:SHIFTED_OTHERS]]) if first else high[SHIFTED_OTHERS:]
    return members[torch.randperm(len(members), generator=_generator(seed, "shift", domain))]


def _colour(domain: str, images: Tensor, *, digits: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw noisy labels and colours: label = [digit < 5] xor flip(.25), colour = label xor flip(e).

    Grey keeps both channels, as in Fishr's script: the digit is as bright as in the coloured domains, in each
    channel, and colour says nothing. Its labels carry the same noise, from draws of its own.

    Args:
        domain: Decides e and whether colour is there.
        images: (N, 28, 28) uint8.
        digits: (N,) int64.
        seed: Of the flips; each domain has its own generators.

    Returns:
        (N, 2, 14, 14) float32 in [0, 1], by striding, and (N,) int64 labels.
    """
    labels = (digits < 5) ^ _flips(len(digits), LABEL_FLIP, _generator(seed, "label", domain))
    colours = labels ^ _flips(len(digits), COLOUR_FLIPS[domain], _generator(seed, "colour", domain))
    small = images[:, ::2, ::2].to(torch.float32) / 255
    examples = torch.stack([small, small], dim=1)
    if domain != "grey":
        examples[torch.arange(len(examples)), 1 - colours.to(torch.int64)] = 0
    return examples, labels.to(torch.int64)


def _flips(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability


def _generator(seed: int, *purpose: str) -> torch.Generator:
    """Give a generator of its own for each purpose."""
    return torch.Generator().manual_seed(int(digest_of(["ColoredMNIST", FORMAT, str(seed), *purpose])[:15], 16))
