"""Default settings by benchmark and model, each with its source. Options on the command line take precedence."""

from collections.abc import Mapping
from typing import Any

from fedhess.settings.combined import joined

# Settings of the public ColoredMNIST scripts, as read in released code (IRM, V-REx, Fishr, Hessian alignment): 501
# full-batch steps of Adam, L2 on the sum of squared parameters, penalty weight 1 before step 190. One local step of
# SGD with learning rate 1 hands the gradient itself to the server's Adam. The scripts sum the alignment penalties over
# the two domains, while a federation takes their mean, so their alpha = beta = 1 is 2 here. They sum Fishr's penalty
# over the head's 391 entries too, which is 2 x 391 times a mean. They average IRM's penalty. V-REx's squared difference
# of two risks is 4 times their variance. The Fishr script has no moving average. Deviation: the HGP script
# differentiates the mean HGP too, which is a constant here (and in its authors' DomainBed version).
_IRM_SCRIPTS = {
    "rounds": 501,
    "local_steps": 1,
    "batch_size": 0,
    "lr": 1.0,
    "server_optimizer": "Adam",
    "server_lr": 4.898536566546834e-4,
    "l2": 1.10794568e-3,
    "evaluate_every": 50,
}
_IRM_SCRIPTS_ANNEALING = {"weight": 91257.18613115903, "anneal_steps": 190, "annealing": "rescale"}
_IRM_SCRIPTS_ALIGNMENT = _IRM_SCRIPTS_ANNEALING | {"scale": "absolute", "alpha": 2.0, "beta": 2.0}
_IRM_SCRIPTS_PENALTIES: dict[str, dict[str, Any]] = {
    "hgp": _IRM_SCRIPTS_ALIGNMENT,
    "hutchinson": _IRM_SCRIPTS_ALIGNMENT,
    "irm": _IRM_SCRIPTS_ANNEALING | {"form": "squared"},
    "vrex": _IRM_SCRIPTS_ANNEALING | {"coefficient": 4.0},
    "fishr": _IRM_SCRIPTS_ANNEALING | {"coefficient": 2.0 * 391, "ema": 0.0},
}

# Training from scratch. Chosen on source validation of RotatedMNIST, Digits and, with cnn, EmojiStyles. On the first
# two, alignment penalties sometimes diverge with learning rate 0.1.
_FROM_SCRATCH = {
    "rounds": 40,
    "local_steps": 20,
    "batch_size": 32,
    "lr": 0.05,
    "momentum": 0.9,
    "evaluate_every": 5,
    "threads": 1,
}

# Fishr's penalty begins at 30 % of the run's steps, as in DomainBed (1,500 of 5,000).
_IRM_SCRIPTS_ELSEWHERE: dict[str, dict[str, Any]] = {"fishr": {"anneal_steps": 150}}

# DomainBed's defaults for ColoredMNIST and RotatedMNIST (hparams_registry.py, datasets.py): 5,000 steps of Adam with
# 1e-3 on 64 examples of each domain, evaluated every 300. One local step of SGD with learning rate 1 hands the gradient
# itself to the server's Adam: that is the centralised algorithm. Coefficients are the strategies' own defaults; those
# of HGP and Hutchinson in their published form.
_DOMAINBED_DIGITS = {
    "rounds": 5000,
    "local_steps": 1,
    "batch_size": 64,
    "lr": 1.0,
    "server_optimizer": "Adam",
    "server_lr": 1e-3,
    "evaluate_every": 300,
}

_DOMAINBED_PENALTIES: dict[str, dict[str, Any]] = {"hgp": {"scale": "absolute"}, "hutchinson": {"scale": "absolute"}}

# Fine-tuning of whole networks: optimizer of GA's released protocol (SGD 1e-3, momentum .9, weight decay 5e-4; there
# with batches of 16), augmentation of DomainBed.
_FINE_TUNING = {
    "rounds": 40,
    "local_steps": 20,
    "batch_size": 32,
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "augment": "domainbed",
}
_FINE_TUNING_PENALTIES: dict[str, dict[str, Any]] = {"fishr": {"anneal_steps": 240}}

# Adapter and head on frozen embeddings; chosen on source validation accuracy of IconPACS.
# One thread: the operations are so small that two threads take twice the time of one.
_FROZEN_FEATURES = {"rounds": 40, "local_steps": 10, "batch_size": 32, "lr": 0.03, "evaluate_every": 5, "threads": 1}
# On frozen features IRM and V-REx diverge with weight 1, with which their schedules begin, and IGA with its 1000. The
# server's alignment step of 0.01 costs accuracy on source validation. Fishr's default would begin its penalty at step
# 1,500 of 400; DomainBed begins it at 30 % of the steps. With its weight of 1000, or with 100, training diverges here.
_FROZEN_FEATURES_PENALTIES: dict[str, dict[str, Any]] = {
    "irm": {"weight": 0.1, "anneal_steps": 0},
    "vrex": {"weight": 0.1, "anneal_steps": 0},
    "iga": {"coefficient": 1e-2, "form": "mean"},
    "server_alignment": {"step": 1e-3},
    "fishr": {"weight": 10.0, "anneal_steps": 120},
}

TIMM = "timm:NAME"  # stands for every model timm:...

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "mlp": _IRM_SCRIPTS,
    "mnist-cnn": _DOMAINBED_DIGITS,
    "cnn": _FROM_SCRATCH,
    **dict.fromkeys(("lite0-features", "lite1-features", "lite2-features"), _FROZEN_FEATURES),
    **dict.fromkeys(("lite0", "lite1", "lite2", "resnet18", "resnet50", TIMM), _FINE_TUNING),
}

# As for frozen features: the coefficients of DomainBed diverge with SGD at 0.1.
_FROM_SCRATCH_PENALTIES: dict[str, dict[str, Any]] = {
    "irm": {"weight": 0.1, "anneal_steps": 0},
    "vrex": {"weight": 0.1, "anneal_steps": 0},
    "fishr": {"anneal_steps": 240},
    "iga": {"coefficient": 0.01, "form": "mean"},
}

# Fishr diverges on Digits with its 1000 (per_domain=1500, seed 0).
_DIGITS_PENALTIES = _FROM_SCRATCH_PENALTIES | {"fishr": {"weight": 100.0, "anneal_steps": 240}}

# Settings of a model on one benchmark, in place of the model's.
BENCHMARK_SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "RotatedMNIST": {"mlp": _FROM_SCRATCH},
    "Digits": {"mlp": _FROM_SCRATCH},
}

# Arguments of strategies by model, where the strategies' own defaults do not fit its settings.
STRATEGY_ARGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "mlp": _IRM_SCRIPTS_ELSEWHERE,
    "mnist-cnn": _DOMAINBED_PENALTIES,
    # MixStyle behind the first two convolutions and their norms.
    "cnn": _FROM_SCRATCH_PENALTIES | {"mixstyle": {"layers": "rest.1+rest.4"}},
    **dict.fromkeys(("lite0", "lite1", "lite2", "resnet18", "resnet50", TIMM), _FINE_TUNING_PENALTIES),
    **dict.fromkeys(("lite0-features", "lite1-features", "lite2-features"), _FROZEN_FEATURES_PENALTIES),
    # MixStyle at a quarter and an eighth of the side, as in a ResNet; Lite0's stages have no names.
    "lite0": _FINE_TUNING_PENALTIES | {"mixstyle": {"layers": "_blocks.2+_blocks.4"}},
}

# Arguments of strategies with a model on one benchmark, in place of the model's.
BENCHMARK_STRATEGY_ARGS: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "ColoredMNIST": {"mlp": _IRM_SCRIPTS_PENALTIES},
    "RotatedMNIST": {"mlp": _FROM_SCRATCH_PENALTIES},
    "Digits": {"mlp": _DIGITS_PENALTIES},
}


def default_settings(model: str, *, benchmark: str = "") -> dict[str, Any]:
    """Return the default settings of a model, or those that a benchmark has for it, by their names in ``RunConfig``."""
    return dict(BENCHMARK_SETTINGS.get(benchmark, {}).get(model, SETTINGS.get(_of_timm(model), {})))


def default_strategy_args(strategy: str, *, model: str, benchmark: str = "") -> dict[str, Any]:
    """Return the default arguments of a strategy with a model, or on a benchmark, where its own do not fit."""
    by_strategy = BENCHMARK_STRATEGY_ARGS.get(benchmark, {}).get(model, STRATEGY_ARGS.get(_of_timm(model), {}))
    return joined(strategy, lambda part: by_strategy.get(part, {}))


def describe_default(setting: str, *, otherwise: object) -> str:
    """Describe a setting's default for ``--help``: the commonest over models (and benchmarks), then those that differ.

    ``otherwise`` is the default of models that do not set it.

    >>> describe_default("batch_size", otherwise=32)
    '32; all with mlp; 64 with mnist-cnn'
    """
    special = {
        f"{model} on {name}": settings for name, own in BENCHMARK_SETTINGS.items() for model, settings in own.items()
    }
    models_by_value: dict[object, list[str]] = {}
    for model, settings in {**SETTINGS, **special}.items():
        models_by_value.setdefault(settings.get(setting, otherwise), []).append(model)
    ranked = sorted(models_by_value.items(), key=lambda item: -len(item[1]))
    shown = {value: "all" if (setting, value) == ("batch_size", 0) else _short(value) for value, _ in ranked}
    common, *others = ranked
    return "; ".join([shown[common[0]], *(f"{shown[value]} with {', '.join(models)}" for value, models in others)])


def _of_timm(model: str) -> str:
    return TIMM if model.startswith("timm:") else model


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
