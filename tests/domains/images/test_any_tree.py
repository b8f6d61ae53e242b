"""``folder:PATH``: any tree PATH/DOMAIN/CLASS/image, and every tree that is none."""

import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from image_trees import write_image, write_tree
from PIL import Image

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.images.any_tree import require_domain_names

DOMAINS = ("городской", "lac été", "山")
CLASSES = {"naïve": 2, "Zebra": 3, "犬": 1}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "my photos", DOMAINS, CLASSES)


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        open_benchmark(f"folder:{root}", options=options)
    return str(caught.value)


def test_a_tree_with_names_in_any_script_is_opened(tree: Path) -> None:
    benchmark = open_benchmark(f"folder:{tree}")
    assert (benchmark.name, benchmark.title) == ("folder:my photos", "folder:my photos")
    assert benchmark.domains == ("lac été", "городской", "山")
    assert benchmark.classes == ("Zebra", "naïve", "犬")
    assert (benchmark.input_shape, benchmark.outputs, benchmark.default_model) == ((3, 224, 224), 3, "resnet18")
    data = benchmark.load("山")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert len(torch.unique(data.inputs(torch.arange(6)).flatten(1), dim=0)) == 6
    assert [scenario.sources for scenario in benchmark.scenarios][2] == ("lac été", "городской")


def test_opened_again_by_name_and_options_it_is_the_same(tree: Path) -> None:
    benchmark = open_benchmark(f"FOLDER:{tree}", options={"side": "32"})
    assert benchmark.input_shape == (3, 32, 32)
    again = open_benchmark(benchmark.name, data_dir="/another/folder", options=benchmark.options)
    assert again == benchmark
    assert again.identity() == benchmark.identity()


def test_a_relative_path_and_the_home_folder_are_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree.parent)
    monkeypatch.setenv("HOME", str(tree.parent))
    for path in ("my photos", "~/my photos"):
        assert open_benchmark(f"folder:{path}").options["data_dir"] == str(tree)


def test_hidden_things_and_files_that_are_no_images_do_not_count(tree: Path) -> None:
    before = open_benchmark(f"folder:{tree}").load("山").digest
    (tree / ".git").mkdir()
    (tree / "__MACOSX" / "山").mkdir(parents=True)
    (tree / "README.md").write_text("about")
    (tree / "山" / "Thumbs.db").write_bytes(b"thumbs")
    (tree / "山" / ".ipynb_checkpoints").mkdir()
    (tree / "山" / "犬" / "notes.txt").write_text("a note")
    write_image(tree / "山" / "犬" / "._pic_000.jpg", 900)
    said: list[str] = []
    assert open_benchmark(f"folder:{tree}", notify=said.append).load("山").digest == before
    assert said == [f"domain '山': 1 files are no images, ignored: '{tree / '山' / '犬' / 'notes.txt'}'"]


@pytest.mark.parametrize("suffix", ["jfif", "pgm", "avif", "jp2", "JPEG"])
def test_images_of_rarer_formats_count(tree: Path, suffix: str) -> None:
    before = len(open_benchmark(f"folder:{tree}").load("山"))
    Image.new("L", (9, 9), 99).save(tree / "山" / "犬" / f"new.{suffix}")
    assert len(open_benchmark(f"folder:{tree}").load("山")) == before + 1


def test_accents_stored_in_two_ways_are_one_name(tree: Path) -> None:
    before = open_benchmark(f"folder:{tree}").identity()
    for path in (tree / "山" / "naïve", tree / "lac été"):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert open_benchmark(f"folder:{tree}").identity() == before


# -- Wrong trees -------------------------------------------------------------------------------------------------------


def test_different_classes_are_listed_by_domain(tree: Path) -> None:
    shutil.rmtree(tree / "山" / "Zebra")
    write_image(tree / "lac été" / "Quagga" / "a.png", 901)
    lines = refusal(tree).splitlines()
    assert lines[0].startswith(f"folder {tree}: every domain must have the same classes, 4 in all")
    assert set(lines[1:]) == {"  '山' lacks 'Quagga', 'Zebra'", "  'городской' lacks 'Quagga'"}
    for domain in DOMAINS:
        (tree / domain / "Quagga").mkdir(exist_ok=True)
        (tree / domain / "Zebra").mkdir(exist_ok=True)
    assert f"class 'Quagga': {tree / 'городской' / 'Quagga'} holds no image (.avif" in refusal(tree)


def test_one_folder_too_high_is_seen(tree: Path) -> None:
    message = refusal(tree.parent)
    assert "at least three domains (two to learn from, one to leave out), found 1: my photos" in message
    assert message.endswith(f"did you mean folder:{tree}?")
    assert "cannot be read: No such file" in refusal(tree / "nowhere")


def test_images_without_folders_of_classes_are_seen(tmp_path: Path) -> None:
    for number, domain in enumerate("abc"):
        write_image(tmp_path / domain / "x.jpg", number)
    message = refusal(tmp_path)
    assert "found none; are images in the folders of domains, where the folders of classes are expected?" in message


def test_a_tree_that_is_one_level_deeper_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, ["a", "b", "c"], {"train/x": 1, "val/x": 1})
    assert "found x/pic_000.jpg in a folder below; is the tree one level deeper?" in refusal(tmp_path)


def test_of_two_files_with_one_name_only_the_broken_one_is_left_out(tree: Path) -> None:
    folder = tree / "山" / "Zebra"
    twins = [folder / unicodedata.normalize(form, "éa.png") for form in ("NFD", "NFC")]  # listed first and last
    for twin in twins:
        Image.new("RGB", (40, 20), (0, 0, 200)).save(twin)
    Image.new("RGB", (20, 40), (0, 200, 0)).save(folder / "fa.png")
    twins[1].write_bytes(b"")
    data = open_benchmark(f"folder:{tree}", skip_bad_images=True).load("山")
    assert (len(data), data.skipped) == (8, 1)
    assert torch.bincount(data.labels).tolist() == [5, 2, 1]
    aspects = data.aspects[:5].tolist()
    assert (aspects.count(2.0), aspects.count(0.5)) == (1, 1)
    for index in (aspects.index(2.0), aspects.index(0.5)):
        colour = data.inputs(torch.tensor([index]))[0, :, 0, 0].tolist()
        assert colour == ([0, 0, 200] if aspects[index] == 2.0 else [0, 200, 0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a,b", "c", "d"), "the name of domain 'a,b' has a comma or a plus; rename it"),
        (("a+b", "c", "d"), "the name of domain 'a+b' has a comma or a plus; rename it"),
        (("a b", "a-b", "d"), "the name of domain 'a-b' differs from 'a b' only in signs or case; rename it"),
        (("Dog", "dog", "d"), "the name of domain 'dog' differs from 'Dog' only in signs or case; rename it"),
        (("é", unicodedata.normalize("NFD", "é"), "d"), "'é' is there more than once"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    assert message in refusal(write_tree(tmp_path / "tree", names, {"x": 1, "y": 1}))


@pytest.mark.parametrize("name", ["..", ".", "--"])
def test_a_name_that_makes_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="has nothing but signs; rename it"):
        require_domain_names(["photo", name], "own data")


@pytest.mark.parametrize("side", [7, 1025])
def test_a_side_out_of_range_is_refused(tree: Path, side: int) -> None:
    assert f"side must be 8 to 1024 pixels, got {side}" in refusal(tree, side=side)


@pytest.mark.parametrize("options", [{"domains": "a/b/c"}, {"classes": "x/y"}, {"domains": "a/b", "classes": "x/y"}])
def test_domains_and_classes_are_named_together(tree: Path, options: dict[str, str]) -> None:
    assert "expected neither or both of domains=A/B/C, at least 3, and classes=X/Y" in refusal(tree, **options)
