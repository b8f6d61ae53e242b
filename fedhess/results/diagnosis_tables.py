"""Write a diagnosis as tables, CSV, JSON and heat maps. Every table names data, protocol and seeds."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhess.base.files import replace_file, writing
from fedhess.base.tables import markdown_table, short
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.jobs.job import slug
from fedhess.results.diagnosis import MIXED_PAIR, SOURCE_PAIR, mean
from fedhess.results.figures import draw_pairs, draw_strategies, drawable
from fedhess.results.paired import BASELINE

COLUMNS = ["dataset", "protocol", "strategy", "scenario", "seed", "domain_a", "role_a", "domain_b", "role_b"]
COLUMNS += ["attribute", "kind", "value"]


def pair_tables(diagnosis: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Render one table for every strategy and scenario: attributes by pairs of domains, averaged over the trials."""
    tables: dict[tuple[str, str], str] = {}
    for (strategy, scenario), runs in _grouped(diagnosis).items():
        domains = runs[0]["domains"]
        letters = name_domains(domains)
        heads = ["attribute", *("-".join(letters[d] for d in pair["domains"]) for pair in runs[0]["pairs"])]
        lines = [
            [attribute["label"], *map(short, _pair_means(runs, name))]
            for name, attribute in diagnosis["attributes"].items()
        ]
        legend = markdown_table(
            ["", "domain", "role", "split", "accuracy (%)", "loss", "gradient norm"],
            [_domain_line(letters[domain["domain"]], domain, runs) for domain in domains],
            left=4,
        )
        tables[strategy, scenario] = "\n".join(
            [
                *_heading(diagnosis, f"{strategy}, target {scenario}: domains compared in pairs"),
                f"T: target, never seen in training and read only now; {_trials(diagnosis)}; "
                "distances are norms, 0 for equal domains; inner product and cosine grow with alignment",
                "",
                legend,
                "",
                markdown_table(heads, lines),
            ]
        )
    return tables


def strategy_table(diagnosis: Mapping[str, Any]) -> str:
    """Render a table of which strategy aligned which attribute, among the sources and between sources and target."""
    with_erm = BASELINE in diagnosis["strategies"]
    heads = ["attribute", "strategy"]
    for kind in ("source pairs", "source-target pairs"):
        heads += [kind, *(["to erm"] if with_erm else [])]
    lines: list[list[str]] = []
    for name, attribute in diagnosis["attributes"].items():
        for position, (strategy, result) in enumerate(diagnosis["strategies"].items()):
            line = [attribute["label"] if position == 0 else "", strategy]
            for kind in (SOURCE_PAIR, MIXED_PAIR):
                cell = result[name][kind]
                error = cell["standard_error"]
                line.append(short(cell["mean"]) + (f" +- {error:.2g}" if error is not None else ""))
                line += [_relative(cell["relative_to_erm"], attribute["kind"])] if with_erm else []
            lines.append(line)
    relative = "; to erm: ratio of distances, difference of similarities (inner product, cosine)" if with_erm else ""
    return "\n".join(
        [
            *_heading(diagnosis, "which method aligns which attribute"),
            f"mean over pairs of domains, {_trials(diagnosis, 'mean +- standard error')}; the target was read only "
            f"after training{relative}",
            "distances are absolute: a model with small features or gradients has small ones",
            "",
            markdown_table(heads, lines, left=2),
        ]
    )


def name_domains(domains: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Give short names to the domains of a run: S1, S2, ... for sources, T (or T1, T2, ...) for targets."""
    by_role = {role: [d["domain"] for d in domains if d["role"] == role] for role in (SOURCE, TARGET)}
    letters = {domain: f"S{number}" for number, domain in enumerate(by_role[SOURCE], start=1)}
    targets = by_role[TARGET]
    return letters | {name: f"T{i}" if len(targets) > 1 else "T" for i, name in enumerate(targets, start=1)}


def write_diagnosis(folder: Path, diagnosis: Mapping[str, Any]) -> list[Path]:
    """Write ``diagnosis.md``, ``.json`` and ``.csv`` and the heat maps; their titles name a stand-in."""
    text = "\n\n".join([strategy_table(diagnosis), *pair_tables(diagnosis).values()])
    contents = {
        "diagnosis.md": text + "\n",
        "diagnosis.json": json.dumps(diagnosis, indent=2, allow_nan=False) + "\n",
        "diagnosis.csv": _csv(diagnosis),
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            replace_file(folder / name, content.encode())
        figures: list[Path] = []
        for (strategy, scenario), runs in _grouped(diagnosis).items():
            figures += _draw_pairs(folder / f"{slug(strategy)}-{slug(scenario)}.png", diagnosis, runs)
        if BASELINE in diagnosis["strategies"] and len(diagnosis["strategies"]) > 1:
            title = f"{diagnosis['title']}: distance relative to erm's"
            figures += draw_strategies(folder / "strategies.png", diagnosis, title=title)
    return [*(folder / name for name in contents), *figures]


def _draw_pairs(path: Path, diagnosis: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[Path]:
    letters = name_domains(runs[0]["domains"])
    names = {
        letters[d["domain"]]: d["domain"] + (" (target)" if d["role"] == TARGET else "") for d in runs[0]["domains"]
    }
    order = {domain["domain"]: number for number, domain in enumerate(runs[0]["domains"])}
    where = [(order[a], order[b]) for a, b in (pair["domains"] for pair in runs[0]["pairs"])]
    panels = {
        attribute["label"]: dict(zip(where, _pair_means(runs, name), strict=True))
        for name, attribute in diagnosis["attributes"].items()
    }
    what = f"{runs[0]['strategy']}, target {drawable(runs[0]['scenario'], 'T')}: domains compared in pairs"
    note = f"seeds {', '.join(map(str, diagnosis['seeds']))}: {_trials(diagnosis)}; each map has a scale of its own"
    return draw_pairs(path, title=f"{diagnosis['title']}: {what}", note=note, domains=names, panels=panels)


def _csv(diagnosis: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in diagnosis["runs"]:
        before = [diagnosis["title"], diagnosis["protocol"], run["strategy"], run["scenario"], run["seed"]]
        for pair in run["pairs"]:
            (a, b), (role_a, role_b) = pair["domains"], pair["roles"]
            for name, value in pair["values"].items():
                kind = diagnosis["attributes"][name]["kind"]
                writer.writerow([*before, a, role_a, b, role_b, name, kind, "" if value is None else repr(value)])
    return stream.getvalue()


def _grouped(diagnosis: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in diagnosis["runs"]:
        groups.setdefault((run["strategy"], run["scenario"]), []).append(run)
    return groups


def _pair_means(runs: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
    return [mean([run["pairs"][number]["values"][name] for run in runs]) for number in range(len(runs[0]["pairs"]))]


def _domain_line(letter: str, domain: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    same = [d for run in runs for d in run["domains"] if d["domain"] == domain["domain"]]
    accuracy = mean([d["accuracy"] for d in same])
    splits = " or ".join(dict.fromkeys(d["split"] for d in same))
    role = domain["role"].upper() if domain["role"] == TARGET else domain["role"]
    figures = [mean([d[key] for d in same]) for key in ("loss", "gradient_norm")]
    return [letter, domain["domain"], role, splits, f"{100 * (accuracy or 0.0):.1f}", *map(short, figures)]


def _heading(diagnosis: Mapping[str, Any], what: str) -> list[str]:
    return [f"{diagnosis['title']}: {what}", diagnosis["protocol"], diagnosis["examples"]]


def _trials(diagnosis: Mapping[str, Any], mean: str = "mean") -> str:
    return "one trial" if len(diagnosis["seeds"]) == 1 else f"{mean} over {len(diagnosis['seeds'])} trials"


def _relative(value: float | None, kind: str) -> str:
    if value is None:
        return "n/a"
    return f"{value:+.2g}" if kind == "similarity" else f"x{value:.2f}"
