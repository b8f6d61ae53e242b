import shutil
from pathlib import Path

import pytest

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark

IMAGES = 7 * 3


@pytest.mark.parametrize("nesting", ["", "PACS", "pacs", "kfold", "PACS/kfold", "Pacs/KFold"])
def test_every_nesting_is_found(pacs: Path, tmp_path: Path, nesting: str):
    root = tmp_path / "root"
    (root / nesting).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(pacs, root / nesting)
    benchmark = open_benchmark("PACS", data_dir=root)
    assert benchmark.title == "PACS"
    assert len(benchmark.load("sketch")) == IMAGES


@pytest.mark.parametrize(
    "spellings",
    [
        {"art_painting": "A", "cartoon": "C", "photo": "P", "sketch": "S"},
        {"art_painting": "a", "cartoon": "c", "photo": "p", "sketch": "s"},
        {"art_painting": "Art Painting", "cartoon": "Cartoon", "photo": "PHOTO", "sketch": "Sketch"},
        {"art_painting": "art-painting"},
        {"art_painting": "Art"},
    ],
)
def test_every_spelling_of_a_domain_is_found(pacs: Path, spellings: dict[str, str]):
    for domain, spelling in spellings.items():
        (pacs / domain).rename(pacs / "moving")
        (pacs / "moving").rename(pacs / spelling)
    benchmark = open_benchmark("PACS", data_dir=pacs)
    assert benchmark.domains == ("art_painting", "cartoon", "photo", "sketch")
    assert [len(benchmark.load(domain)) for domain in benchmark.domains] == [IMAGES] * 4


def test_class_folders_may_differ_in_case_and_hidden_files_do_not_count(pacs: Path):
    (pacs / "photo" / "dog").rename(pacs / "photo" / "Dog ")
    (pacs / "photo" / "cat").mkdir()
    (pacs / "photo" / "Dog " / "._pic_000.jpg").write_bytes(b"resource fork")
    (pacs / "photo" / "Dog " / "Thumbs.db").write_bytes(b"thumbs")
    assert len(open_benchmark("PACS", data_dir=pacs).load("photo")) == IMAGES


def refusal(root: Path) -> str:
    with pytest.raises(UsageError) as caught:
        open_benchmark("PACS", data_dir=root)
    return str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    message = refusal(tmp_path / "nowhere")
    assert "nowhere" in message
    assert "cannot be read: No such file" in message


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    assert "cannot be read: Not a directory" in refusal(tmp_path / "file")


def test_an_empty_folder_is_refused(tmp_path: Path):
    message = refusal(tmp_path)
    assert message.startswith(f"no PACS in {tmp_path}: expected {tmp_path}/PACS/{{art_painting,")
    assert "nothing: it is empty" in message


def test_a_folder_with_other_things_is_refused_and_says_what_is_there(tmp_path: Path):
    for name in "abcdefghij":
        (tmp_path / f"x{name}").mkdir()
    message = refusal(tmp_path)
    assert "found xa, xb" in message
    assert message.endswith(", ...")


def test_a_missing_domain_is_named(pacs: Path):
    shutil.rmtree(pacs / "cartoon")
    assert "domain 'cartoon' is missing, art_painting, photo, sketch found" in refusal(pacs)


def test_a_domain_that_is_there_twice_is_named(pacs: Path):
    shutil.copytree(pacs / "photo", pacs / "P")
    message = refusal(pacs)
    assert "'photo' of PACS is there more than once" in message
    assert str(pacs / "P") in message


def test_a_missing_class_is_named_with_its_domain(pacs: Path):
    shutil.rmtree(pacs / "sketch" / "guitar")
    message = refusal(pacs)
    assert "domain 'sketch' lacks class 'guitar'" in message
    assert "classes found: dog, elephant, giraffe, horse, house, person" in message


def test_a_class_without_images_is_named_with_its_domain(pacs: Path):
    for file in (pacs / "photo" / "horse").iterdir():
        file.rename(file.with_suffix(".txt"))
    assert "domain 'photo', class 'horse'" in refusal(pacs)
