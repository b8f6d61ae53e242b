"""Published accuracies (percent) to compare ours with, each with its source; values that could not be read are None."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedhess.jobs.selectors import ORACLE

FISHR_README = "Fishr's README, ColoredMNIST table: 10 restarts of 501 full-batch steps, 25 % label noise"
AUTHORS_SCRIPT = "the HGP authors' released script (it differentiates the mean HGP too), run by us once: seed 0, CPU"
HESSIAN_PAPER = "Hemati et al. 2023 (arXiv 2308.11778): its result tables could not be read, so not verified"
DOMAINBED = (
    "DomainBed's published sweep (Fishr: its README): centralised, another network, selection on source validation, "
    "20 hyperparameter draws x 3 trials"
)
FEDIIR_PAPER = "Guo et al., ICML 2023: its result tables could not be read, so not verified"
FEDIIR_ON_PACS = (
    "Guo et al., ICML 2023, as quoted in issue 2 of its repository (YamingGuo98/FedIIR), whose author reached "
    "92.6/79.4/77.9/81.8 on photo, art_painting, cartoon, sketch"
)
BAI_PAPER = "Bai et al., ICLR 2024 (arXiv 2307.04942): its result tables could not be read, so not verified"
FEDERATED_PACS = "as quoted in later federated work: ResNet-18, one client a domain"


@dataclass(frozen=True)
class Published:
    """A published accuracy, in percent; None if the source's value could not be verified."""

    value: float | None
    deviation: float | None  # over restarts, if given
    source: str  # with its protocol


Table = Mapping[str, Mapping[str, Published]]  # strategy -> column -> value


def _row(source: str, **values: float | tuple[float, float]) -> dict[str, Published]:
    """Make the columns of one strategy; a pair is a value and its deviation."""
    pairs = {column: value if isinstance(value, tuple) else (value, None) for column, value in values.items()}
    return {column: Published(value, deviation, source) for column, (value, deviation) in pairs.items()}


def _unread(source: str, *columns: str) -> dict[str, Published]:
    return {column: Published(None, None, source) for column in columns}


def _by_domain(source: str, **values: float) -> dict[str, Published]:
    return _row(source, **values, average=round(sum(values.values()) / len(values), 1))


_COLOURED = ("sources", "flip-0.9", "grey")


def _coloured(source: str, train: float, target: float | tuple[float, float], grey: float) -> dict[str, Published]:
    return _row(source, **dict(zip(_COLOURED, (train, target, grey), strict=True)))


CORRELATION_SHIFT: Table = {
    "erm": _coloured(FISHR_README, 86.4, (14.0, 0.7), 71.0),
    "irm": _coloured(FISHR_README, 71.0, (65.6, 1.8), 66.1),
    "vrex": _coloured(FISHR_README, 71.7, (67.2, 1.5), 68.6),
    "fishr": _coloured(FISHR_README, 71.0, (69.5, 1.0), 70.2),
    "hgp": _unread(HESSIAN_PAPER, *_COLOURED),
    "hutchinson": _unread(HESSIAN_PAPER, *_COLOURED),
}
# Not published: the result of the authors' code, run here.
CORRELATION_SHIFT_SCRIPTS: Table = {"hgp": _coloured(AUTHORS_SCRIPT, 73.0, 69.1, 71.1)}

LABEL_SHIFT: Table = {
    name: _unread(HESSIAN_PAPER, *_COLOURED) for name in ("erm", "irm", "vrex", "fishr", "hgp", "hutchinson")
}

ROTATED_MNIST: Table = {
    "erm": _row(DOMAINBED, average=98.0),
    "irm": _row(DOMAINBED, average=97.7),
    "coral": _row(DOMAINBED, average=98.0),
    "vrex": _row(DOMAINBED, average=97.9),
    "fishr": _row(DOMAINBED, average=97.8),
}

PACS: Table = {
    "erm": _by_domain(FEDERATED_PACS, photo=92.7, art_painting=77.2, cartoon=77.9, sketch=81.0),
    "fediir": _by_domain(FEDIIR_ON_PACS, photo=94.2, art_painting=82.9, cartoon=75.8, sketch=81.9),
    "irm": _row(DOMAINBED, average=83.5),
    "coral": _row(DOMAINBED, average=86.2),
    "vrex": _row(DOMAINBED, average=84.9),
    "fishr": _row(DOMAINBED, average=85.5),
    "hgp": _unread(HESSIAN_PAPER, "average"),
    "hutchinson": _unread(HESSIAN_PAPER, "average"),
}

# DomainBed's own table: averages over targets, and for PACS also the results of its oracle.
_SWEPT = ("erm", "irm", "coral", "vrex", "fishr")


def _swept(*averages: float) -> Table:
    return {name: _row(DOMAINBED, average=value) for name, value in zip(_SWEPT, averages, strict=True)} | {
        name: _unread(HESSIAN_PAPER, "average") for name in ("hgp", "hutchinson")
    }


_ORACLE_ON_PACS = dict(zip(_SWEPT, (86.7, 84.5, 87.1, 87.2, 86.9), strict=True))
_ERM_ON_PACS = {"art_painting": 84.7, "cartoon": 80.8, "photo": 97.2, "sketch": 79.3}
SWEPT_PACS = {
    name: {**row, **(_row(DOMAINBED, **{ORACLE: _ORACLE_ON_PACS[name]}) if name in _ORACLE_ON_PACS else {})}
    for name, row in _swept(85.5, 83.5, 86.2, 84.9, 85.5).items()
}
SWEPT_PACS["erm"] = {**_row(DOMAINBED, **_ERM_ON_PACS), **SWEPT_PACS["erm"]}
DOMAINBED_SWEEP: Mapping[str, Table] = {
    "PACS": SWEPT_PACS,
    "VLCS": _swept(77.5, 78.5, 78.8, 78.3, 77.8),
    "OfficeHome": _swept(66.5, 64.3, 68.7, 66.4, 67.8),
    "TerraIncognita": _swept(46.1, 47.6, 47.6, 46.4, 47.4),
    "DomainNet": _swept(40.9, 33.9, 41.5, 33.6, 41.7),
}

# FedAvg as quoted in later federated work for PACS with one client a domain; FedIIR as its own thread quotes the paper.
FEDERATED_ON_PACS: Table = {name: PACS[name] for name in ("erm", "fediir")}
GA_PROTOCOL: Mapping[str, Table] = {"PACS": FEDERATED_ON_PACS}
FEDIIR_PROTOCOL: Mapping[str, Table] = {
    "PACS": {"erm": _unread(FEDIIR_PAPER, "average"), "fediir": PACS["fediir"]},
    **{
        name: {strategy: _unread(FEDIIR_PAPER, "average") for strategy in ("erm", "fediir")}
        for name in ("VLCS", "OfficeHome")
    },
}
BAI_PROTOCOL: Mapping[str, Table] = {name: {"erm": _unread(BAI_PAPER, "average")} for name in ("PACS", "OfficeHome")}

# Keyed by the benchmark's title: a stand-in has its own title, and no published values.
DIVERSITY_SHIFT: Mapping[str, Table] = {"RotatedMNIST": ROTATED_MNIST, "PACS": PACS}

# Every table of a benchmark, whatever the protocol: a report names the source of each value.
BY_BENCHMARK: Mapping[str, tuple[Table, ...]] = {
    **{name: (table,) for name, table in DOMAINBED_SWEEP.items()},
    "PACS": (PACS, SWEPT_PACS),
    "RotatedMNIST": (ROTATED_MNIST,),
    "ColoredMNIST": (CORRELATION_SHIFT,),
}


def published_values(title: str, strategy: str, options: Mapping[str, object]) -> list[tuple[str, Published]]:
    """List the published values of a strategy on a benchmark, as column and value; none for a stand-in.

    Args:
        title: Title of the benchmark.
        strategy: Name of the strategy.
        options: Options of the benchmark; those of ColoredMNIST make different data under the same title.

    >>> [(column, each.value) for column, each in published_values("PACS", "coral", {})]
    [('average', 86.2), ('oracle (looks at the target)', 87.1)]
    """
    tables = BY_BENCHMARK.get(title, ())
    if options.get("form", "irm") != "irm":
        tables = ()
    elif options.get("label_shift"):
        tables = (LABEL_SHIFT,)
    found = [item for table in tables for item in table.get(strategy, {}).items()]
    return list(dict.fromkeys(found))
