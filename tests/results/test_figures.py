"""Figures: what their lines are, that they can be read without colour, and names in any script."""

import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rows import source, target

from fedhess.domains import Scenario
from fedhess.federation.server.round_selection import Candidate
from fedhess.results.figures import (
    Panel,
    draw_pairs,
    draw_rounds,
    draw_strategies,
    drawable,
    drawing,
    line_look,
    trained_rounds,
)
from fedhess.results.selection import Cell
from fedhess.simulations import load
from fedhess.simulations.scenarios import comparison
from fedhess.simulations.scenarios.comparison import Comparison
from fedhess.simulations.transfer import report as transfer_report

pytestmark = pytest.mark.usefixtures("rendered_figures")
UNKNOWN = "\U0010fffd"  # for private use: no font has it
IN_ANOTHER_FONT = "\u1d81"  # of matplotlib's own fonts, STIXGeneral has it and the usual one has not


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that are saved; a warning while they are drawn fails the test."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *args: Any, **more: Any) -> None:
        figures.append(figure)
        save(figure, *args, **more)

    monkeypatch.setattr(Figure, "savefig", kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield figures


# -- What a line is ----------------------------------------------------------------------------------------------------


def cell(seed: int, *settings: tuple[float, float | None], targets: tuple[str, ...] = ("t",), last: int = 1) -> Cell:
    """Make a cell whose settings have an accuracy on the sources and one on the target, the same in every round."""
    distances = {"gradient_distance": 4.0 + seed}
    candidates = tuple(
        Candidate(
            [
                row
                for number in range(last + 1)
                for row in (
                    *(source(number, domain, on_sources, **distances) for domain in "ab"),
                    *(target(number, on_target, domain=name) for name in targets),
                )
            ],
            last,
        )
        for on_sources, on_target in settings
    )
    return Cell(Scenario(("a", "b"), targets, "+".join(targets)), seed, tuple(range(len(settings))), candidates)


def test_line_is_the_selected_setting_in_per_cent_with_its_standard_error() -> None:
    cells = [cell(seed, (0.5, 0.9), (0.8, on_target)) for seed, on_target in enumerate((0.2, 0.3, 0.6))]
    found = trained_rounds(cells, "source", {("t", "t"): "t"}, ["gradient_distance"])
    assert list(found["t"]) == [1], "the untrained model is left out"
    assert found["t"][1]["mean"] == pytest.approx(100 * statistics.mean((0.2, 0.3, 0.6)))
    assert found["t"][1]["standard_error"] == pytest.approx(100 * statistics.stdev((0.2, 0.3, 0.6)) / math.sqrt(3))
    assert found["gradient_distance"][1]["mean"] == 5.0, "a distance is no fraction"


def test_targets_are_averaged_within_a_trial_or_not_at_all() -> None:
    apart = [cell(seed, (0.8, 0.2 + 0.2 * seed), targets=("t",)) for seed in (0, 1)]
    apart += [cell(seed, (0.8, 0.8 - 0.2 * seed), targets=("u",)) for seed in (0, 1)]
    (mean,) = trained_rounds(apart, "source", {("t", "t"): "mean", ("u", "u"): "mean"}, [])["mean"].values()
    assert mean["mean"] == pytest.approx(50)
    assert mean["standard_error"] == pytest.approx(0, abs=1e-9)
    together = cell(0, (0.8, 0.2), targets=("flip", "grey"))
    columns = {("flip+grey", name): name for name in ("flip", "grey")}
    assert list(trained_rounds([together], "source", columns, [])) == ["flip", "grey"]


def test_a_strategy_that_did_not_run_on_every_target_has_no_mean_over_them() -> None:
    columns = {("t", "t"): "mean", ("u", "u"): "mean"}
    found = trained_rounds([cell(0, (0.8, 0.2), targets=("t",))], "source", columns, ["gradient_distance"])
    assert [found[name][1]["mean"] for name in ("mean", "gradient_distance")] == [None, None]


def test_round_that_a_run_lacks_has_no_mean() -> None:
    cells = [cell(0, (0.8, 0.2), last=3), cell(1, (0.8, 0.4), last=2), cell(2, (0.8, 0.6), last=3)]
    found = trained_rounds(cells, "source", {("t", "t"): "t"}, [])["t"]
    assert {number: value["mean"] for number, value in found.items()} == pytest.approx({1: 40, 2: 40, 3: None})
    failed = [cell(0, (0.8, 0.2)), cell(1, (0.8, None))]
    assert trained_rounds(failed, "source", {("t", "t"): "t"}, [])["t"][1]["mean"] is None


# -- How it is drawn ---------------------------------------------------------------------------------------------------


def test_lines_differ_without_their_colours() -> None:
    looks = [line_look(number) for number in range(36)]
    assert len({(look["marker"], look["linestyle"]) for look in looks}) == 36


def rounds(path: Path, *, title: str = "Toy", strategies: tuple[str, ...] = ("erm", "hgp"), **more: Any) -> None:
    curve = {number: {"mean": 60.0 + number, "standard_error": 2.0} for number in range(1, 30)}
    panels = [Panel("accuracy (%)", dict.fromkeys(strategies, curve)), Panel("distance", {"erm": curve}, True)]
    draw_rounds(path, title=title, note="band: standard error of the mean", panels=panels, **more)


def scenario(path: Path) -> None:
    rows = [
        {"benchmark": "B", "strategy": strategy, "seed": seed, "settings": {}, "options": {}, "per_domain": 0}
        | {"digest": "", "environment": {"git_revision": "abc"}}
        | {"accuracy": {"sources": 50.0 + seed, "t": 70.0, "u": 60.0}, "average": 60.0 + seed}
        for strategy in ("erm", "hgp")
        for seed in (0, 1)
    ]
    shown = Comparison(name="toy", title="Toy", published={})
    comparison.draw(shown, {"quick": False, "rows": rows}, path)


def loads(path: Path) -> None:
    series = {"a round (s)": [1.0, 2.0], "server: memory (MB)": [5.0, 6.0], "server: open files": [3.0, 3.0]}
    load.draw(path, {name: {"what": name, "series": series} for name in ("one", "other")})


def transfer(path: Path) -> None:
    points = [{"delta": d, "tilted": d, "bound": 2 * d, "actual": d, "actual_bound": 3 * d} for d in (0.1, 1.0)]
    runs = [{"strategy": name, "points": points} for name in ("erm", "hgp", "irm", "coral", "vrex")]
    transfer_report.draw(path, {"title": "Toy", "targets": ["t"], "seeds": [0], "runs": runs})


@pytest.mark.parametrize("draw", [rounds, scenario, loads, transfer])
def test_figure_has_axis_labels_its_error_and_a_legend_beside_the_data(
    draw: Callable[[Path], None], drawn: list[Figure], tmp_path: Path
) -> None:
    draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    figure = drawn[-1]
    shown = [axis for axis in figure.axes if axis.axison]
    (legend,) = figure.legends
    bottom = min(axis.get_tightbbox().y0 for axis in shown)
    assert legend.get_window_extent().y1 <= bottom
    assert all(axis.get_legend() is None for axis in shown)
    assert "error" in figure.get_suptitle()
    labelled = {axis.get_xlabel() for axis in shown} - {""}
    assert len(labelled) == 1
    names = {axis.get_ylabel() for axis in shown} | {label.get_text() for label in shown[0].get_yticklabels()}
    assert names & {"accuracy (%)", "memory (MB)", "transfer measure", "erm"}
    lines = [line for axis in shown for line in axis.get_lines() if not line.get_label().startswith("_")]
    by_axis = [[(line.get_marker(), line.get_linestyle()) for line in lines if line.axes is axis] for axis in shown]
    assert all(len(set(looks)) == len(looks) for looks in by_axis)


def test_same_figure_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rounds(tmp_path / f"{name}.png")
    for ending in ("png", "svg"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


# -- Names in any script -----------------------------------------------------------------------------------------------


def test_name_is_drawn_where_an_installed_font_has_it_and_numbered_otherwise() -> None:
    assert drawable("lac été") == "lac été"
    assert drawable(IN_ANOTHER_FONT, "target 1") == IN_ANOTHER_FONT
    assert drawable(f"{UNKNOWN} and more", "target 1") == "target 1"
    assert drawable(f"folder:{UNKNOWN}") == r"folder:\U0010fffd"
    assert drawable("$a$") == r"\$a\$", "no formula"


@pytest.mark.parametrize("name", [UNKNOWN, IN_ANOTHER_FONT, "山水画", "\udcef", "$x"])
def test_names_of_any_script_are_drawn_without_a_warning(name: str, drawn: list[Figure], tmp_path: Path) -> None:
    rounds(tmp_path / "a.png", title=f"folder:{name}", strategies=("erm", f"{name}:Class"), endings=(".svg",))
    labels = [text.get_text() for text in drawn[-1].legends[0].get_texts()]
    assert labels == ["erm", drawable(f"{name}:Class", "strategy 2")]
    with drawing(tmp_path / "b.png", (1, 1), size=(3, 3), title=name, names=[name], endings=(".svg",)) as axes:
        axes[0, 0].set_xticks([0], [drawable(name, "S1")])


def test_heat_maps_name_domains_as_the_table_does(drawn: list[Figure], tmp_path: Path) -> None:
    domains = {"S1": "photo", "S2": UNKNOWN, "T": "sketch (target)"}
    draw_pairs(tmp_path / "a.png", title="Toy", note="", domains=domains, panels={"loss": {(0, 1): 1.0, (0, 2): None}})
    (axis,) = drawn[-1].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["S1: photo", "S2", "T: sketch (target)"]


def test_heat_map_of_strategies_is_ordered_in_greyscale(drawn: list[Figure], tmp_path: Path) -> None:
    pairs = {"source-source": {"relative_to_erm": 0.5}, "source-target": {"relative_to_erm": 2.0}}
    diagnosis = {
        "attributes": {"loss": {"kind": "distance", "label": "loss"}},
        "strategies": {"erm": {}, "hgp": {"loss": pairs}},
        "seeds": [0],
    }
    draw_strategies(tmp_path / "a.png", diagnosis, title="Toy")
    (image,) = drawn[-1].axes[0].get_images()
    colours = image.cmap(np.linspace(0, 1, 50))[:, :3] @ (0.3, 0.59, 0.11)
    assert (np.diff(colours) > 0).all()
