"""FontStyles: letters as a package's font draws them, and families that sources and targets do not share."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from matplotlib import get_data_path

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.domains.opening import Opening
from fedhess.domains.split import is_for_role
from fedhess.domains.styles.drawings import render
from fedhess.domains.styles.font_families import FAMILIES
from fedhess.domains.styles.font_styles import (
    DOMAINS,
    LETTERS,
    MARGIN,
    group_of,
    prepare_font_styles,
    read_letters,
)


def package(file: Path, family: str) -> Path:
    """Write a package as Fontsource's, with the font that matplotlib ships."""
    ttfont = pytest.importorskip("fontTools.ttLib")
    font, content = ttfont.TTFont(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), io.BytesIO()
    font.flavor = "woff"
    font.save(content)
    with tarfile.open(file, "w:gz") as tar:
        member = tarfile.TarInfo(f"package/files/{family}-latin-400-normal.woff")
        member.size = content.tell()
        content.seek(0)
        tar.addfile(member, content)
    return file


def test_letters_stand_upright_and_fill_the_square_but_for_the_margin(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    side = 40
    images = render(read_letters({"dejavu": package(tmp_path / "dejavu.tgz", "dejavu")}), side=side)
    ink = (images[:, 0] < 128).float()
    assert len(ink) == len(LETTERS)
    for letter, drawn in zip(LETTERS, ink, strict=True):
        sides = [torch.nonzero(drawn.sum(dim)).flatten() for dim in (1, 0)]
        assert max(int(at.max() - at.min()) + 1 for at in sides) == pytest.approx((1 - 2 * MARGIN) * side, abs=1), (
            letter
        )
        assert [float(at.min() + at.max()) / 2 for at in sides] == pytest.approx([(side - 1) / 2] * 2, abs=1), letter
    upper, lower = (ink[:, half].mean((1, 2)) for half in (slice(0, side // 2), slice(side // 2, side)))
    for letter, heavy, light in (("P", upper, lower), ("T", upper, lower), ("L", lower, upper), ("b", lower, upper)):
        assert heavy[LETTERS.index(letter)] > light[LETTERS.index(letter)], letter


def test_nine_families_of_a_style_are_kept_for_targets_and_no_two_share_a_group() -> None:
    groups = {style: [group_of(style, family) for family in FAMILIES[style]] for style in DOMAINS}
    assert [sum(group < 0 for group in of) for of in groups.values()] == [9] * 5
    assert len({abs(group) for of in groups.values() for group in of}) == 150
    assert len({family for families in FAMILIES.values() for family in families}) == 150


def test_a_node_needs_the_families_of_its_own_style(tmp_path: Path) -> None:
    opened = open_benchmark("FontStyles", data_dir=tmp_path, held=())
    assert [scenario.sources for scenario in opened.scenarios] == [
        (DOMAINS[1], *DOMAINS[2:]),
        (DOMAINS[0], *DOMAINS[2:]),
    ]
    with pytest.raises(UsageError, match=r"FontStyles: anonymous-pro is not there: .*data prepare FontStyles"):
        open_benchmark("FontStyles", data_dir=tmp_path, held=("mono",))


@pytest.mark.network
@pytest.mark.slow
def test_the_prepared_letters_are_the_known_ones(tmp_path: Path) -> None:
    assert prepare_font_styles(Opening("FontStyles", cache_dir=tmp_path)) == ""
    for side in (32, 64):
        benchmark = open_benchmark("FontStyles", cache_dir=tmp_path, options={"side": side})
        for style in DOMAINS:
            data = benchmark.load(style)
            assert data.inputs(torch.arange(2)).shape == (2, 1, side, side)
            assert [int(is_for_role(data, role).sum()) for role in (SOURCE, TARGET)] == [21 * 50, 9 * 50]
        assert benchmark.identity().get("differences") is None
