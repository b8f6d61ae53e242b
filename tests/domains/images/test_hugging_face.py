"""A data set of Hugging Face by its name and columns, here from disk; without a network it fails at once."""

import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import fedhess
from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark

STYLES, KINDS = ("oil", "ink", "photo"), ["fish", "bird"]


def rows(*, images: int = 1, missing: bool = False) -> datasets.Dataset:
    """Four pictures of each style and kind, whose colour says which they are."""
    made: dict[str, list[object]] = {"style": [], "kind": []} | {f"picture{n}": [] for n in range(images)}
    for style in range(len(STYLES)):
        for number in range(8):
            made["style"].append(STYLES[style])
            made["kind"].append(None if missing and number == 5 else number % 2)
            for n in range(images):
                colour = (80 * style, 100 * (number % 2), number)
                made[f"picture{n}"].append(Image.fromarray(np.full((12, 12, 3), colour, dtype=np.uint8)))
    features = {"style": datasets.Value("string"), "kind": datasets.ClassLabel(names=KINDS)}
    features |= {f"picture{n}": datasets.Image() for n in range(images)}
    return datasets.Dataset.from_dict(made, features=datasets.Features(features))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.delenv("FEDHESS_DATA", raising=False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets.DatasetDict({"train": rows().select(range(12)), "test": rows().select(range(12, 24))}).save_to_disk(
        tmp_path / "saved"
    )
    return tmp_path / "saved"


def test_a_saved_data_set_is_a_benchmark_with_its_domains_and_classes(saved: Path) -> None:
    benchmark = open_benchmark(f"hf:{saved}?domain=style&label=kind", options={"side": 12})
    assert benchmark.name == "hf:saved"
    assert benchmark.domains == tuple(sorted(STYLES))
    assert benchmark.classes == ("bird", "fish")
    assert benchmark.input_shape == (3, 12, 12)
    data = benchmark.load("photo")
    assert data.labels.tolist() == [0] * 4 + [1] * 4
    first, last = data.inputs(torch.tensor([0, 7]))[:, :, 0, 0].tolist()
    assert (first, last) == ([160, 100, 1], [160, 0, 6])
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again.identity() == benchmark.identity()
    elsewhere = open_benchmark(benchmark.name, options=benchmark.options | {"data_dir": "/absent"}, held=())
    assert (elsewhere.domains, elsewhere.classes) == (benchmark.domains, benchmark.classes)


def test_parquet_is_read_once_and_anew_when_it_has_changed(tmp_path: Path) -> None:
    folder = tmp_path / "pq"
    folder.mkdir()
    rows().to_parquet(folder / "train.parquet")
    address = f"hf:{folder}?domain=style&label=kind"
    said: list[str] = []
    one = open_benchmark(address, options={"side": 12}, notify=said.append).identity()
    assert any("unpacking" in message for message in said)
    said.clear()
    assert open_benchmark(address, options={"side": 12}, notify=said.append).identity() == one
    assert not any("unpacking" in message for message in said)
    rows().select(range(23)).to_parquet(folder / "train.parquet")
    assert open_benchmark(address, options={"side": 12}).identity()["digest"] != one["digest"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "",
            r"has no column 'domain'; give domain=COLUMN; its columns: style \(Value\), kind \(ClassLabel\)",
        ),
        ("?domain=style&label=kinds", "has no column 'kinds'; give label=COLUMN"),
        ("?domain=style&label=kind&image=style", "has no column 'style' of images; name one with image=COLUMN"),
        ("?domain=style&label=kind&split=tset", "has no split 'tset'; did you mean 'test'?"),
        ("?domian=style", "no option 'domian'; did you mean 'domain'?"),
        ("?domain", r"expected hf:NAME\?key=value&key=value, got 'domain'"),
    ],
)
def test_wrong_columns_are_named_with_those_there_are(saved: Path, query: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_benchmark(f"hf:{saved}{query}")


def test_several_columns_of_images_and_missing_values_are_said(tmp_path: Path) -> None:
    rows(images=2).save_to_disk(tmp_path / "two")
    rows(missing=True).save_to_disk(tmp_path / "holes")
    with pytest.raises(UsageError, match="2 columns of images; name one with image=COLUMN"):
        open_benchmark(f"hf:{tmp_path}/two?domain=style&label=kind")
    with pytest.raises(UsageError, match="row 5 lacks its image, domain or label"):
        open_benchmark(f"hf:{tmp_path}/holes?domain=style&label=kind")


def test_names_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    labels = datasets.ClassLabel(names=["TV/radio", "TV_radio"])
    rows().cast_column("kind", labels).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match="label 'TV_radio' and label 'TV/radio' would share the folder 'TV_radio'"):
        open_benchmark(f"hf:{tmp_path}/saved?domain=style&label=kind")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"set.py": "import datasets"}, "Dataset scripts are no longer supported, but found set.py; save its rows as"),
        ({"a.csv": "style,kind\n1,2\n", "b.csv": 'style,kind\n"1,2\n3,4'}, "Error tokenizing data.*; save its rows as"),
    ],
)
def test_a_data_set_that_its_library_cannot_read_is_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    (tmp_path / "set").mkdir()
    for name, content in files.items():
        (tmp_path / "set" / name).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=f"hf:{tmp_path}/set cannot be read: {message}"):
        open_benchmark(f"hf:{tmp_path}/set?domain=style&label=kind")


@pytest.mark.parametrize("kind", ["absolute", "relative", "metadata"])
def test_a_row_names_no_file_that_is_not_the_data_sets(tmp_path: Path, kind: str) -> None:
    """Its pictures may be files of its own folder; a path to another one of this machine is refused."""
    folder, secret = tmp_path / "set", tmp_path / "secret.png"
    folder.mkdir()
    table = rows()
    secret.write_bytes(table.cast_column("picture0", datasets.Image(decode=False))[0]["picture0"]["bytes"])
    for number, picture in enumerate(table["picture0"]):
        picture.save(folder / f"{number}.png")

    def named(last: str) -> str:
        names = [*(f"{number}.png" for number in range(len(table) - 1)), last]
        columns = {"style": table["style"], "kind": table["kind"]}
        if kind == "metadata":
            lines = [",".join(map(str, row)) for row in zip(names, *columns.values(), strict=True)]
            (folder / "metadata.csv").write_text("\n".join(["file_name,style,kind", *lines]), encoding="utf-8")
            return f"hf:{folder}?domain=style&label=kind"
        pictures = [{"bytes": None, "path": str(folder / name) if kind == "absolute" else name} for name in names]
        made = datasets.Dataset.from_dict({**columns, "picture0": pictures}, features=table.features)
        pq.write_table(made.data.table, folder / "rows.parquet")  # unlike to_parquet it leaves the files where they are
        return f"hf:{folder / 'rows.parquet'}?domain=style&label=kind"

    own = open_benchmark(named(f"{len(table) - 1}.png"), options={"side": 12})
    assert sum(len(own.load(style)) for style in STYLES) == len(table)
    with pytest.raises(UsageError, match=r"a row whose image is the file .*secret.png, which is none of the"):
        open_benchmark(named(str(secret) if kind == "absolute" else "../secret.png"), options={"side": 12})


def test_without_a_network_it_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"hf:owner/name cannot be had \(.*\), and there is no such path here"):
        open_benchmark("hf:owner/name")
    assert time.monotonic() - began < 8


def test_a_job_is_added_to_under_the_name_that_it_began_with(saved: Path, tmp_path: Path) -> None:
    name = f"hf:{saved}?domain=style&label=kind"
    options: dict[str, Any] = {"model": "mlp", "strategy": "erm", "target": "photo", "trials": 1, "augment": "none"}
    fedhess.run(domains=name, domains_args="side=12", rounds=1, **options, out=tmp_path / "job")
    fedhess.run(domains=name, rounds=2, **options, out=tmp_path / "job", add=True)
    with pytest.raises(UsageError, match=r"--domains: the job in .* is on hf:saved, got .*domain=kind"):
        fedhess.run(domains=f"hf:{saved}?domain=kind&label=kind", out=tmp_path / "job", add=True)
