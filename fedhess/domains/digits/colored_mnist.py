"""ColoredMNIST, in two forms: colour predicts the label in training, and the opposite label in the target.

Form "irm": Arjovsky et al. 2019, "Invariant risk minimization", section 5.1 and its released script; the scripts of
Fishr (Rame et al. 2022) and of Hessian alignment (Hemati et al. 2023) build their domains in the same way and add the
grey target. Two sources of 25,000 digits, and two targets of 10,000 evaluated in one scenario.

Form "domainbed": Gulrajani and Lopez-Paz 2021, "In search of lost domain generalization", released code: all 70,000
digits shuffled, every third one in a domain, every domain a target once. There the domains are called +90%, +80% and
-90%, by how often colour and label agree (the last one reversed). Here, in both forms, a name states how often they
disagree, since names become folders. Deviation: random draws are torch's own, so single examples differ.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.domains.benchmark import Benchmark, KnownCounts, OptionValue, Scenario, leave_one_out
from fedhess.domains.digits.mnist import find_mnist, generator_of, read_mnist, read_whole_mnist
from fedhess.domains.domain import TensorDomain
from fedhess.domains.opening import Opening

FORMS = ("irm", "domainbed")
CLASSES = ("5 to 9", "0 to 4")
LABEL_FLIP = 0.25
# Probability that the colour disagrees with the label.
COLOUR_FLIPS = {"flip-0.2": 0.2, "flip-0.1": 0.1, "flip-0.9": 0.9, "grey": 0.9}
SOURCES = ("flip-0.2", "flip-0.1")
TARGETS = ("flip-0.9", "grey")
TRAINING_DIGITS = 50_000  # the other 10,000 of MNIST's training part make the targets
SHIFTED_OTHERS = 1_500  # digits >= 5 in the first domain under label shift
COMPLETE = KnownCounts({"flip-0.2": 25_000, "flip-0.1": 25_000, "flip-0.9": 10_000, "grey": 10_000})
DOMAINBED = KnownCounts({"flip-0.1": 23_334, "flip-0.2": 23_333, "flip-0.9": 23_333})
# What seeds the draws of each form; change the number whenever the examples change.
DRAWS = {"irm": ("ColoredMNIST", "1"), "domainbed": ("ColoredMNIST domainbed", "1")}


def open_colored_mnist(opening: Opening) -> Benchmark:
    """Open ColoredMNIST.

    Args:
        opening: Options: ``form`` ("irm" or "domainbed"); ``label_shift`` (the scripts' "imbalanced" form, for
            "irm" only); ``per_domain`` (only the first so many examples of each domain, for quick checks; 0 =
            all); ``seed`` and ``data_dir``, which override the arguments.

    Returns:
        Form "irm": (2, 14, 14) float32 in [0, 1], one logit, sources evaluated on what they train on. Form
        "domainbed": (2, 28, 28) uint8, two logits, a fifth of each domain held out for validation.
    """
    opening, options = settle_colored_mnist(opening)
    root = find_mnist(opening)
    options = {**options, "data_dir": str(root.resolve())}
    if options["form"] == "domainbed":
        return Benchmark(
            name="ColoredMNIST",
            domains=tuple(DOMAINBED.domains),
            classes=CLASSES,
            input_shape=(2, 28, 28),
            outputs=2,
            default_model="mnist-cnn",
            scenarios=leave_one_out(tuple(DOMAINBED.domains)),
            options=options,
            loader=partial(_load_domainbed, root=root, options=options),
            known=None if options["per_domain"] else DOMAINBED,
            recipe="ColoredMNIST form=domainbed",
        )
    return Benchmark(
        name="ColoredMNIST",
        domains=(*SOURCES, *TARGETS),
        classes=CLASSES,
        input_shape=(2, 14, 14),
        outputs=1,
        default_model="mlp",
        holdout=0.0,
        scenarios=(Scenario(sources=SOURCES, targets=TARGETS, name="+".join(TARGETS)),),
        options=options,
        loader=partial(_load_irm, root=root, options=options),
        known=None if options["per_domain"] or options["label_shift"] else COMPLETE,
    )


def settle_colored_mnist(opening: Opening) -> tuple[Opening, dict[str, OptionValue]]:
    """Check the options; see `Opening.settled`."""
    opening, options = opening.settled(form="irm", label_shift=False, per_domain=0, seed=opening.seed)
    if options["form"] not in FORMS:
        raise UsageError(f"ColoredMNIST has no form {options['form']!r}; {did_you_mean(str(options['form']), FORMS)}")
    if options["form"] == "domainbed" and options["label_shift"]:
        raise UsageError("ColoredMNIST: label_shift belongs to form irm, got it with form domainbed; leave one out")
    return opening, options


def _load_irm(domain: str, *, root: Path, options: Mapping[str, OptionValue]) -> TensorDomain:
    """Load a domain; grey keeps both channels, as in Fishr's script, and its labels carry the same noise."""
    images, digits = read_mnist(root)
    chosen = _members(domain, digits, options)
    labels, colours = _labels_and_colours(domain, digits[chosen], options)
    small = images[chosen][:, ::2, ::2].to(torch.float32) / 255
    count = int(options["per_domain"]) or len(chosen)
    examples = _coloured(small[:count], None if domain == "grey" else colours[:count])
    return TensorDomain(domain, examples, labels=labels[:count].contiguous())


def _load_domainbed(domain: str, *, root: Path, options: Mapping[str, OptionValue]) -> TensorDomain:
    images, digits = read_whole_mnist(root)
    order = torch.randperm(len(digits), generator=_generator(options, "shuffle"))
    mine = order[list(DOMAINBED.domains).index(domain) :: len(DOMAINBED.domains)]
    labels, colours = _labels_and_colours(domain, digits[mine], options)
    count = int(options["per_domain"]) or len(mine)
    return TensorDomain(domain, _coloured(images[mine[:count]], colours[:count]), labels=labels[:count].contiguous())


def _members(domain: str, digits: Tensor, options: Mapping[str, OptionValue]) -> Tensor:
    """Return the indices of a domain's digits among MNIST's 60,000, shuffled for sources.

    Balanced: every other one of the 50,000 shuffled. Under label shift the first domain gets all digits below 5 and
    1,500 of the others, the second the rest.
    """
    if domain in TARGETS:
        return torch.arange(TRAINING_DIGITS, len(digits))
    order = torch.randperm(TRAINING_DIGITS, generator=_generator(options, "shuffle"))
    first = domain == SOURCES[0]
    if not options["label_shift"]:
        return order[0 if first else 1 :: 2]
    low, high = order[digits[order] < 5], order[digits[order] >= 5]
    members = torch.cat([low, high[:SHIFTED_OTHERS]]) if first else high[SHIFTED_OTHERS:]
    return members[torch.randperm(len(members), generator=_generator(options, "shift", domain))]


def _labels_and_colours(domain: str, digits: Tensor, options: Mapping[str, OptionValue]) -> tuple[Tensor, Tensor]:
    """Draw noisy labels and colours, (N,) int64: label = [digit < 5] xor flip(.25), colour = label xor flip(e)."""
    flips = [
        torch.rand(len(digits), generator=_generator(options, purpose, domain)) < probability
        for purpose, probability in (("label", LABEL_FLIP), ("colour", COLOUR_FLIPS[domain]))
    ]
    labels = (digits < 5) ^ flips[0]
    return labels.to(torch.int64), (labels ^ flips[1]).to(torch.int64)


def _coloured(images: Tensor, colours: Tensor | None) -> Tensor:
    """Put (N, H, W) images into one of two channels, by colour, or into both without colours: (N, 2, H, W)."""
    examples = images.unsqueeze(1).repeat(1, 2, 1, 1)
    if colours is not None:
        examples[torch.arange(len(examples)), 1 - colours] = 0
    return examples


def _generator(options: Mapping[str, OptionValue], *purpose: str) -> torch.Generator:
    """Make a separate generator for each purpose."""
    return generator_of(*DRAWS[str(options["form"])], str(options["seed"]), *purpose)
