"""Every mistake of the user has a message of its own, status 2, no traceback, and leaves nothing behind."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedhess.base.files import cache_directory
from tests.conftest import TOY, Outcome

Command = Callable[..., Outcome]
BRIEF = ["--target", "sketch", "--rounds", "1", "--local-steps", "1", "--strategy", "erm", "--trials", "1"]


# -- Mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = {
    "--domains PACZ": "--domains PACZ: unknown benchmark 'PACZ'; did you mean 'PACS'?",
    "--strategy hpg": "--strategy: unknown strategy 'hpg'; did you mean 'hgp'?",
    "--strategy ,": "--strategy: expected a strategy, or several separated by commas; got nothing",
    "--strategy hgp,erm,hgp": "--strategy: 'hgp' is given twice",
    "--strategy-args alfa=1": "--strategy-args: strategy 'hgp' has no argument 'alfa'; did you mean 'alpha'?",
    "--strategy-args alpha=big": "--strategy-args: alpha of strategy 'hgp': expected a finite number, got 'big'",
    "--strategy-args alpha=-1": "--strategy-args: strategy 'hgp' rejects its arguments: expected alpha, beta",
    "--strategy-args erm.alpha=1": "--strategy-args: 'erm.alpha' is for strategy 'erm', which does not run here",
    "--strategy hgp+mixstyle": "--strategy mixstyle: layers=layer1+layer2: expected one module of the model whose name",
    "--target wst": "--target: Toy has no target 'wst'; did you mean 'east'?",
    "--model mpl": "--model: unknown model 'mpl'; did you mean 'mlp'?",
    "--model resnet18": "--model resnet18: ",
    "--rounds 0": "--rounds: expected at least 1, got 0",
    "--rounds many": "Invalid value for '--rounds': 'many' is not a valid integer",
    "--local-steps 0": "--local-steps: expected at least 1, got 0",
    "--batch-size -1": "--batch-size: expected at least 0, got -1",
    "--lr 0": "--lr: expected more than 0, got 0.0",
    "--lr nan": "--lr: expected a finite number, got nan",
    "--lr fast": "Invalid value for '--lr': 'fast' is not a valid float",
    "--momentum 1": "--momentum: expected less than 1, got 1.0",
    "--weight-decay -1": "--weight-decay: expected at least 0, got -1.0",
    "--l2 inf": "--l2: expected a finite number, got inf",
    "--server-lr -1": "--server-lr: expected more than 0, got -1.0",
    "--server-optimizer Adm": "--server-optimizer: expected a class of torch.optim, got 'Adm'; did you mean 'Adam'?",
    "--server-optimizer-args nesterov=1": "--server-optimizer-args: nesterov of SGD: expected true or false, got 1",
    "--strategy fedadam": "--server-optimizer: expected a strategy that steps by the run's server optimizer, got 'fed",
    "--weighting equal": "--weighting: expected 'domain' or 'examples', got 'equal'",
    "--quorum 4": "--quorum: expected at most 3, the number of source clients (north, south, west), got 4",
    "--deadline 0": "--deadline: expected more than 0, got 0.0",
    "--exchange-deadline -1": "--exchange-deadline: expected more than 0, got -1.0",
    "--dp-epsilon 1": "--dp-epsilon: Gaussian noise has no epsilon without a delta; give --dp-delta",
    "--dp-epsilon 1 --dp-delta 1e-5": "--dp-clip: expected the greatest norm of an update, and of statistics",
    "--dp-epsilon 1 --dp-delta 1e-5 --dp-clip update=1": "--dp-clip: strategy hgp sends the statistic 'gradient'",
    "--dp-epsilon 1 --dp-delta 1e-5 --dp-clip update=1,statistics=1 --selection lodo": "--dp-epsilon: the sources of",
    "--strategy ga --dp-epsilon 9 --dp-delta 1e-5 --dp-clip update=1": "--strategy ga: its clients evaluate what they",
    "--dp-clip update=1": "--dp-clip: it belongs to --dp-epsilon, which is not given",
    "--statistics-batches 0": "--statistics-batches: expected at least 1, got 0",
    "--evaluate-every 0": "--evaluate-every: expected at least 1, got 0",
    "--seed -1": "--seed: expected at least 0, got -1",
    "--seed 2147483648": "--seed: expected less than 2147483648, got 2147483648",
    "--trials 0": "--trials: expected 1 to 1000, got 0",
    "--dtype float16": "--dtype: expected 'float32' or 'float64', got 'float16'",
    "--device tpu": "--device: expected auto, cpu, cuda, cuda:N or mps, got 'tpu'",
    "--data-dir /": "--data-dir: Toy reads no folder, got /; leave the option out",
    "--domains-args size=3": "Toy has no option 'size'; did you mean 'six'? known: six",
    "--domains-args size": "--domains-args: expected key=value[,key=value...], got 'size'",
    "--out /proc/none": "--out: cannot write to /proc/none: ",
    "--out here/file/below": "--out: cannot write to here/file/below: Not a directory",
    "--out here": "--out: here is already used; choose another directory, or add --resume",
    "--out here/file": "--out: here/file is already used",
    "--resume --out here": "--resume: there is no here/config.json",
    "--resume --out typo": "--resume: expected --out with the directory of the job to continue, there is no typo",
    "--resume": "--resume: expected --out with the directory of the job to continue, got none",
    "--bogus": "No such option",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_mistake_is_named_with_status_2_and_nothing_is_written(options: str, command: Command) -> None:
    Path("here").mkdir()
    Path("here/file").write_text("precious")
    quick = [*TOY] if "--domains-args" not in options else TOY[:2]
    out = [] if "--out" in options or options == "--resume" else ["--out", "job"]
    outcome = command(*quick, *out, *options.split())
    assert outcome.status == 2
    assert MISTAKES[options] in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert sorted(map(str, Path().rglob("*"))) == ["here", "here/file"]
    assert Path("here/file").read_text() == "precious"


def test_absent_cuda_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = command(*TOY, "--device", "cuda:1", "--out", "job")
    assert outcome.status == 2
    assert "--device cuda:1: torch sees 0 CUDA device(s); use --device auto or cpu" in outcome.err
    assert not Path("job").exists()


# -- A strategy of one's own -------------------------------------------------------------------------------------------

STRATEGY = """from fedhess.alignment.strategy import DomainStrategy


def measured(batch):
    {measured}


class Bad(DomainStrategy):
    statistics = {{"mine": measured}}

    def reference(self, ask):
        {reference}

    def penalty(self, step, reference):
        {penalty}
"""
FINE = {"measured": "return batch.loss", "reference": "return {'mine': ask('mine').mean()}", "penalty": "return None"}
OF_SERVER, OF_CLIENTS = "server.log", "client.log"
# By what is wrong: which part of the code is how, what the message calls it, and whose log has the traceback.
BROKEN: dict[str, tuple[str, str, str, str]] = {
    "reference raises": ("reference", "return 1 / 0", "reference: ZeroDivisionError: division by zero", OF_SERVER),
    "reference is a number": ("reference", "return 3", "reference: TypeError: expected a mapping of names", OF_SERVER),
    "reference is a tensor": ("reference", "return ask('mine').mean()", "reference: TypeError: expected a", OF_SERVER),
    "a number is referred to": ("reference", "return {'mine': 3}", "got int for 'mine'", OF_SERVER),
    "statistic is unknown": ("reference", "ask('mien')", "no statistic 'mien'; did you mean 'mine'?", OF_SERVER),
    "statistic is a number": ("measured", "return 3", "'mine' on one blank example: TypeError: expected", OF_SERVER),
    "statistic raises": ("measured", "raise OSError('no')", "'mine' on one blank example: OSError: no", OF_SERVER),
    "statistic raises on data": ("measured", "return batch.loss if len(batch.labels) < 2 else batch.lost",
                                 "statistic 'mine': AttributeError: 'HeadBatch' object has no", OF_CLIENTS),
    "penalty raises": ("penalty", "return step.lost", "penalty: AttributeError: 'Step' object has no", OF_CLIENTS),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_mistake_in_a_strategy_is_one_message_with_its_place_and_a_traceback_in_the_log(
    what: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, code, message, log = BROKEN[what]
    module = f"broken_{list(BROKEN).index(what)}"
    text = STRATEGY.format(**FINE | {part: code})
    (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = command(*TOY, "--strategy", f"{module}:Bad", "--quiet", "--out", "job")
    assert outcome.status == 2, outcome.err
    assert outcome.out == ""
    assert outcome.err.count(f"strategy '{module}:Bad', ") == 1
    assert outcome.err.count(message) == 1
    assert "Traceback" not in outcome.err
    (place,) = re.findall(rf"\({tmp_path}/{module}.py, line (\d+), in {part}\)", outcome.err)
    line = text.splitlines()[int(place) - 1]
    returned = "return 3" in code or "expected" in message or "got" in message  # and nothing raised there
    assert line.strip().startswith(f"def {part}" if returned else code), "the line that is wrong, or where it begins"
    assert outcome.err.endswith(f"correct it there, the full traceback is in job/east/0/{log}\n")
    written = Path("job/east/0", log).read_text(encoding="utf-8")
    assert written.count("Traceback (most recent call last)") == (1 if log == OF_SERVER else 3), "one of each source"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of PACS: three tiny images a class."""
    root = tmp_path_factory.mktemp("data") / "PACS"
    for number, domain in enumerate(("art_painting", "cartoon", "photo", "sketch")):
        for label, name in enumerate(("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")):
            for index in range(3):
                file = root / domain / name / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (30 * label, 60 * number, 99 * index)).save(file)
    return root


def test_real_folder_is_not_called_a_stand_in(command: Command, pacs: Path) -> None:
    given = ["--domains", "PACS", "--data-dir", pacs, "--model", "lite0-features", "--batch-size", 4]
    outcome = command(*given, *BRIEF, "--out", "job")
    assert outcome.status == 0, outcome.err
    assert "PACS: accuracy (%)" in outcome.out
    assert "stand" not in outcome.out
    assert Path("job/summary.json").exists()


def test_too_few_images_to_hold_out_are_named(command: Command, pacs: Path) -> None:
    root = Path("PACS").resolve()
    shutil.copytree(pacs, root)
    for file in (*root.glob("photo/*/1.png"), *root.glob("photo/*/2.png")):
        file.unlink()
    outcome = command("--domains", "PACS", "--data-dir", root, "--model", "lite0-features", "--out", "job")
    assert outcome.status == 2
    assert "'photo' has 7 examples, too few in each class to hold 20% out" in outcome.err
    assert not Path("job").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("shutil.rmtree(root / 'sketch')", "no domain 'sketch', found art_painting"),
        ("shutil.rmtree(root / 'photo' / 'horse')", "domain 'photo' lacks class 'horse'"),
        ("[file.unlink() for file in (root / 'cartoon' / 'dog').iterdir()]", "domain 'cartoon', class 'dog'"),
        ("shutil.rmtree(root), root.mkdir()", "found nothing"),
        ("shutil.rmtree(root)", "No such file or directory"),
        ("(root / 'photo' / 'dog' / '1.png').write_bytes(b'x')", "photo/dog/1.png"),
    ],
)
def test_broken_folder_is_named(command: Command, pacs: Path, damage: str, message: str) -> None:
    root = Path("PACS").resolve()
    shutil.copytree(pacs, root)
    eval(damage, {"root": root, "shutil": shutil})
    outcome = command("--domains", "PACS", "--data-dir", root, "--model", "lite0-features", "--out", "job")
    assert outcome.status == 2
    assert message in outcome.err
    assert not Path("job").exists()


def test_require_real_lists_the_ways_to_get_the_data(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("FEDHESS_DATA", raising=False)
    outcome = command("--domains", "PACS", "--require-real", "--out", "job")
    assert outcome.status == 2
    assert [f"  {number}. " in outcome.err for number in (1, 2, 3)] == [True] * 3
    assert not (cache_directory() / "PACS").exists()
