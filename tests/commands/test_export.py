"""``fedhess export``, ``predict`` and ``load``: what a run recorded is what its model predicts elsewhere."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from image_trees import write_tree
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import fedhess
from fedhess.__main__ import cli
from fedhess.base.errors import UsageError
from fedhess.domains import BENCHMARKS
from fedhess.domains.images import release
from fedhess.federation.client import memory
from fedhess.federation.client.evaluation import BATCH_SIZE, predictions
from fedhess.jobs.reopening import open_runs
from fedhess.models.prepared import local_domain
from fedhess.results import export as export_module
from fedhess.results import files as result_files
from fedhess.results.models import RunModel, find_model, find_models
from tests.conftest import Outcome

Command = Callable[..., Outcome]

REPOSITORY = Path(__file__).resolve().parents[2]
TOY_RUN: dict[str, Any] = {
    "domains": "Toy", "local_steps": 1, "batch_size": 8, "l2": 0, "trials": 1, "evaluate_every": 1,
    "server_optimizer": "SGD", "server_lr": 1, "strategy": "erm",
}  # fmt: skip
# Another process: no test, no strategy, no Flower; it reads folders and files alone.
ELSEWHERE = """
import json, sys
import numpy as np, torch, fedhess

answers = {}
for folder, files in json.loads(sys.argv[1]).items():
    model = fedhess.load(folder)
    assert not model.training
    if isinstance(files, list):
        inputs = torch.stack([model.transform(file) for file in files])
    else:
        inputs = torch.from_numpy(np.load(files))
    with torch.inference_mode():
        parts = [model.probabilities(part) for part in torch.split(inputs, 50)]
    answers[folder] = torch.cat(parts).tolist()
loaded = [name for name in sys.modules if name.partition(".")[0] == "flwr" or name.startswith("fedhess.strategies")]
print(json.dumps({"answers": answers, "loaded": loaded}))
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(result_files, "draw_rounds", lambda *_, **__: [])
    memory.MEMORY.clear()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished job of two strategies on the toy, in which an early round is selected; read only."""
    job = tmp_path_factory.mktemp("trained") / "job"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
        patch.setattr(result_files, "draw_rounds", lambda *_, **__: [])
        memory.MEMORY.clear()
        fedhess.run(**TOY_RUN | {"strategy": "erm,hgp", "rounds": 8, "lr": 1.5}, domains_args="holdout=0.25", out=job)
        yield job


def called(*arguments: object) -> Outcome:
    """Run ``fedhess COMMAND``; a mistake of the user is status 2 with its message."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if isinstance(result.exception, UsageError):
        return Outcome(2, result.stdout, str(result.exception))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def evaluated(job: Path, which: str = "selected") -> tuple[list[int], Tensor, float]:
    """What the run's evaluation predicts for every example of its first target, the logits, the recorded accuracy."""
    found = find_model(open_runs(job), which)
    config, network = found.run.config, found.load()
    target = config.targets[0]
    data = local_domain(config, domain=target, role="target")
    with torch.no_grad():
        parts = data.batches(torch.split(data.evaluate_indices, BATCH_SIZE))
        logits = torch.cat([network(inputs) for inputs, _ in parts])
    predicted: list[int] = predictions(logits).tolist()
    rows = found.run.directory.rows()
    (row,) = [row for row in rows if (row["round"], row["domain"]) == (found.server_round, target)]
    hits = sum(int(a == b) for a, b in zip(predicted, data.data.labels.tolist(), strict=True))
    assert hits / len(predicted) == row["accuracy"]
    return predicted, logits, row["accuracy"]


def assert_same(probabilities: list[list[float]], job: Path) -> float:
    """Compare with the run's own evaluation, one by one; return its accuracy."""
    predicted, logits, accuracy = evaluated(job)
    found = torch.tensor(probabilities)
    assert found.argmax(1).tolist() == predicted
    expected = torch.cat([-logits, logits], 1).sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-5)
    return accuracy


def elsewhere(inputs: dict[Path, list[str] | str]) -> dict[str, list[list[float]]]:
    """Compute probabilities in a process of its own; a file holds tensors, a list names images."""
    given = json.dumps({str(folder): files for folder, files in inputs.items()})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, given], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["loaded"] == []
    answers: dict[str, list[list[float]]] = said["answers"]
    return answers


@pytest.mark.parametrize("icons", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_model_predicts_elsewhere_what_the_run_recorded(icons: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "SIDE", 32)
    tree = write_tree(Path("tree"), ["east", "north", "west"], {"cat": 6, "dog": 6})
    images = {"domains": f"folder:{tree.resolve()}", "target": "west", "batch_size": 4, "evaluate_every": 1}
    data_set = ("IconPACS", "sketch") if icons else (f"folder:{tree.resolve()}", "west")
    jobs = {
        # Clients train on embeddings, the export takes images.
        "embedded": dict(zip(("domains", "target"), data_set, strict=True))
        | {"model": "lite0-features", "rounds": 3, "evaluate_every": 1, "lr": 0.5, "batch_size": 4},
        # Every layer is trained; images come from files, JPEG and PNG, that are resized.
        "tuned": images | {"model": "lite0", "rounds": 2, "lr": 0.01, "pretrained": False, "local_steps": 1},
        # One logit, tensors.
        "logistic": TOY_RUN | {"domains_args": "classes=1,holdout=0.25", "rounds": 3, "lr": 0.1},
    }
    if not icons:
        del jobs["tuned"]
    inputs: dict[Path, list[str] | str] = {}
    for name, options in jobs.items():
        fedhess.run(**{"strategy": "erm", "trials": 1, **options}, out=name)
        folder = Path(name, "exported").resolve()
        assert called("export", name, "--out", folder, "--quiet").out == f"{folder}\n"
        (run,) = open_runs(Path(name)).runs
        data = local_domain(run.config, domain=run.config.targets[0], role="target").data
        inputs[folder] = f"{folder}.npy"
        if name == "embedded" and icons:
            data = fedhess.domains.open_benchmark("IconPACS").load("sketch")
        elif name != "logistic":
            inputs[folder] = sorted(map(str, (tree / "west").rglob("pic_*")))
            assert len(data) == 12
            continue
        np.save(f"{folder}.npy", data.inputs(torch.arange(len(data))).numpy())
    answers = elsewhere(inputs)
    for name, folder in zip(jobs, inputs, strict=True):
        accuracy = assert_same(answers[str(folder)], Path(name))
        scores = json.loads((folder / "config.json").read_text())["scores"]
        assert [each["accuracy"] for each in scores if each["role"] == "target"] == [accuracy]


@pytest.mark.slow
def test_colored_mnist_is_predicted_as_recorded() -> None:
    root = REPOSITORY / ".data"
    if not (root / "MNIST" / "raw").exists():
        pytest.skip("the MNIST files are not in place: python tools/fetch_mnist.py .data")
    settings: dict[str, Any] = {"rounds": 20, "evaluate_every": 5, "trials": 1, "strategy": "erm"}
    fedhess.run(domains="ColoredMNIST", data_dir=root, domains_args="per_domain=2000", **settings, out="job")
    folder = Path("exported").resolve()
    assert called("export", "job", "--out", folder).status == 0
    (run,) = open_runs(Path("job")).runs
    data = local_domain(run.config, domain=run.config.targets[0], role="target").data
    np.save("inputs.npy", data.inputs(torch.arange(len(data))).numpy())
    assert_same(elsewhere({folder: "inputs.npy"})[str(folder)], Path("job"))


# -- Which round -------------------------------------------------------------------------------------------------------


def exported_round(job: Path, out: str, *options: object) -> int:
    outcome = called("export", job, "--strategy", "erm", "--out", out, "--quiet", *options)
    assert outcome.status == 0, outcome.err
    number: int = json.loads(Path(out, "config.json").read_text())["run"]["round"]
    return number


def weights(out: str) -> dict[str, Tensor]:
    return load_file(Path(out, "model.safetensors"))


def test_selected_round_is_exported_unless_the_last_is_asked_for(trained: Path) -> None:
    recorded = json.loads((trained / "summary.json").read_text())
    (reported,) = recorded["strategies"]["erm"]["selected_rounds"]["east"]
    assert exported_round(trained, "selected") == reported < 8
    assert exported_round(trained, "last", "--round", "last") == 8
    assert weights("selected").keys() == weights("last").keys()
    assert not torch.equal(weights("selected")["head.weight"], weights("last")["head.weight"])
    model = fedhess.open(trained).model("erm", round="last")
    assert torch.equal(model.head.weight, fedhess.load("last").network.head.weight)


def test_job_without_kept_models_exports_the_last_round_when_asked(trained: Path) -> None:
    shutil.copytree(trained, "older", ignore=shutil.ignore_patterns("selected"))
    refused = called("export", "older", "--strategy", "erm", "--out", "out")
    assert refused.status == 2
    assert "the run kept the model of round 8 (--round last) alone, as earlier versions did" in refused.err
    assert not Path("out").exists()
    assert "before models of selected rounds were kept" in called("export", "older/erm", "--round", "source").err
    assert exported_round(Path("older"), "out", "--round", "last") == 8


@pytest.mark.slow
def test_cross_validation_exports_what_is_there_and_names_what_was_selected() -> None:
    options = TOY_RUN | {"rounds": 6, "lr": 1.5, "selection": "lodo"}
    fedhess.run(**options, domains_args="holdout=0.25,free=true", target="east,west", out="job")
    job = open_runs(Path("job"))
    selected, by_sources = find_models(job), find_models(job, "source")
    assert len(selected) == len(by_sources) == 2
    refused = 0
    for model, other in zip(selected, by_sources, strict=True):
        assert model.chosen_by == "leave-one-domain-out cross-validation"
        assert other.server_round == other.run.directory.selected_round()
        if model.server_round in (other.server_round, 6):
            model.load()
            continue
        refused += 1
        outcome = called("export", model.run.directory.path)
        assert outcome.status == 2
        assert f"round {model.server_round} is selected by leave-one-domain-out cross-validation" in outcome.err
        assert f"(--round last) and of round {other.server_round} (--round source:" in outcome.err
        assert called("export", model.run.directory.path, "--round", "source", "--quiet").status == 0
    assert refused > 0, "else nothing is shown"


def test_averaged_models_are_exported_as_they_were_evaluated() -> None:
    options = TOY_RUN | {"rounds": 5, "lr": 1.5, "average": "swa"}
    fedhess.run(**options, domains_args="holdout=0.25", out="job")
    run = find_model(open_runs(Path("job")), "last").run
    checkpoint = run.directory.load_checkpoint()
    assert checkpoint is not None
    assert not torch.equal(checkpoint.evaluated()["head.weight"], checkpoint.tensors["model/head.weight"])
    for which in ("selected", "last"):
        evaluated(Path("job"), which)
        assert called("export", "job", "--round", which, "--out", which).status == 0
    assert torch.equal(weights("last")["head.weight"], checkpoint.evaluated()["head.weight"])


def test_selected_setting_is_exported() -> None:
    options = TOY_RUN | {"rounds": 2, "variants": "lr=0.0001; lr=0.3"}
    fedhess.run(**options, domains_args="holdout=0.25", out="job")
    found: RunModel = find_model(open_runs(Path("job")))
    assert (found.run.variant, found.run.config.lr) == (1, 0.3)
    assert called("export", "job", "--out", "out").status == 0
    assert json.loads(Path("out/config.json").read_text())["run"]["settings"]["lr"] == 0.3


# -- The folder --------------------------------------------------------------------------------------------------------


def test_run_of_another_device_is_exported_here(trained: Path) -> None:
    shutil.copytree(trained, "job")
    config = json.loads(Path("job/config.json").read_text())
    config["settings"]["device"] = "cuda:7"
    Path("job/config.json").write_text(json.dumps(config))
    exported_round(Path("job"), "out")
    exported_round(trained, "here")
    assert torch.equal(weights("out")["head.weight"], weights("here")["head.weight"])
    assert json.loads(Path("out/config.json").read_text())["run"]["settings"]["device"] == "cuda:7"


def test_card_has_data_protocol_and_scores(trained: Path) -> None:
    exported_round(trained, "out")
    card = Path("out/README.md").read_text()
    rows = open_runs(trained / "erm").outer_runs[0].directory.rows()
    number = json.loads(Path("out/config.json").read_text())["run"]["round"]
    for row in rows:
        if row["round"] == number:
            assert f"| {row['domain']} " in card
            assert f"{100 * row['accuracy']:.1f}" in card
    assert "# mlp, erm: Toy without east" in card
    assert "target, never trained on" in card
    assert f"After round {number} of 8, chosen by source validation." in card
    assert "8 rounds x 1 local steps" in card
    assert "class 0, class 1, class 2, class 3" in card
    assert "north 48" in card
    shutil.copytree(trained, "job")
    config = json.loads(Path("job/config.json").read_text())
    config["dataset"] |= {"stand_in_for": "Real", "title": "Toy (stand-in for Real)"}
    Path("job/config.json").write_text(json.dumps(config))
    exported_round(Path("job"), "stand-in")
    card = Path("stand-in/README.md").read_text()
    assert "# mlp, erm: Toy (stand-in for Real) without east" in card
    assert "> Toy stands in for Real" in card


def test_network_of_the_users_own_code_is_built_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("its_net.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes):\n"
        "    return nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    fedhess.run(**TOY_RUN | {"model": "its_net:net", "rounds": 2}, domains_args="holdout=0.25", out="job")
    assert called("export", "job", "--out", "out").status == 0
    inputs, kept = torch.randn(3, 12), fedhess.open("job").model()
    assert torch.equal(fedhess.load("out")(inputs), kept(inputs))
    assert "`its_net:net`, is not in the folder: install it too" in Path("out/README.md").read_text()


def test_onnx_computes_the_same(trained: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    exported_round(trained, "out", "--onnx")
    model, session = fedhess.load("out"), runtime.InferenceSession("out/model.onnx")
    for size in (1, 7):
        inputs = torch.randn(size, 12)
        (logits,) = session.run(None, {"inputs": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(inputs).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_onnx_that_differs_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export_module, "ONNX_TOLERANCE", -1.0)
    outcome = called("export", trained, "--strategy", "erm", "--out", "out", "--onnx")
    assert outcome.status == 2
    assert "--onnx: logits of ONNX Runtime differ from torch's by up to" in outcome.err


def test_missing_extra_is_named(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    outcome = called("export", trained, "--strategy", "erm", "--out", "out", "--onnx")
    assert (outcome.status, Path("out").exists()) == (2, False)
    assert "pip install 'fedhess[onnx]'" in outcome.err


@pytest.mark.slow
def test_the_page_does_what_it_says() -> None:
    page = (REPOSITORY / "docs" / "use-a-model.md").read_text()
    commands = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert commands is not None
    assert code is not None
    Path("photos").mkdir()
    for name, number in (("dog", 0), ("house", 300)):
        pixels = fedhess.domains.open_benchmark("IconPACS").load("photo").inputs(torch.tensor([number]))[0]
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(f"photos/{name}.png")
    said = ""
    for line in commands[1].splitlines():
        few = ["--rounds", "3", "--quiet"] if " simulate " in line else []
        outcome = called(*shlex.split(line)[1:], *few)
        assert outcome.status == 0, (line, outcome.err)
        said = outcome.out
    names: dict[str, Any] = {}
    exec(code[1], names)
    best = [line.split("|")[2].strip() for line in said.splitlines()[2::2]]
    assert [names["model"].classes[number] for number in names["probabilities"].argmax(1)] == best
    folder = fedhess.open("runs/first").export("again", strategy="hgp")
    assert (folder / "model.safetensors").read_bytes() == Path("my-model/model.safetensors").read_bytes()


# -- Mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected strategy, target and seed of one run of JOB, got several: erm, east, 0; hgp, east, 0"),
        (["--strategy", "irm"], "expected strategy, target and seed of a run of JOB: erm, east, 0; hgp, east, 0"),
        (
            ["--strategy", "erm", "--round", "best"],
            "--round: unknown 'best'; did you mean 'last'? known: last, selected, source",
        ),
        (["--strategy", "erm", "--out", "full"], "and full holds mine; name another"),
        (["--strategy", "erm", "--out", "full/mine"], "expected a folder, and full/mine is a file"),
    ],
)
def test_mistakes_of_an_export_are_named(trained: Path, arguments: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/mine").touch()
    outcome = called("export", trained, *arguments)
    assert outcome.status == 2
    assert message.replace("JOB", str(trained)) in outcome.err


def test_unfinished_run_is_not_exported(trained: Path) -> None:
    shutil.copytree(trained, "job")
    index = Path("job/erm/east/0/checkpoint/checkpoint.json")
    index.write_text(json.dumps(json.loads(index.read_text()) | {"round": 2}))
    outcome = called("export", "job/erm")
    assert outcome.status == 2
    assert "is at round 2 of 8" in outcome.err


def test_mistakes_of_loading_are_named(trained: Path) -> None:
    with pytest.raises(UsageError, match=r"is no exported model: it has no config.json; make one with: fedhess export"):
        fedhess.load("nowhere")
    with pytest.raises(UsageError, match="holds a job, no exported model; make one with: fedhess export"):
        fedhess.load(trained)
    exported_round(trained, "out")
    file = Path("out/config.json")
    config = json.loads(file.read_text())
    for change, message in (
        ({"fedhess_export": 2}, "fedhess_export: Input should be 1"),
        ({"model": "mlpp"}, "unknown model 'mlpp'"),
        ({"outputs": 5}, r"damaged or of another version .*classes: expected 5 for 5 outputs, got 4"),
        ({"classes": ["a", "b", "c"]}, "classes: expected 4 for 4 outputs, got 3"),
        ({"outputs": 5, "classes": [*"abcde"]}, "model.safetensors is damaged or of another network than 'mlp'"),
    ):
        file.write_text(json.dumps(config | change))
        with pytest.raises(UsageError, match=message):
            fedhess.load("out")
    file.write_text(json.dumps(config))
    Path("out/model.safetensors").write_bytes(b"short")
    with pytest.raises(UsageError, match="is damaged or of another network"):
        fedhess.load("out")


def test_predict_wants_a_model_of_images(trained: Path) -> None:
    exported_round(trained, "out")
    refused = called("predict", "out", "x").err
    assert "out takes tensors of 12, not image files; use it from Python: fedhess.load" in refused
    assert "--top: expected at least 1, got 0" in called("predict", "out", "x", "--top", 0).err


def test_what_a_strategy_trains_beside_the_network_is_not_exported() -> None:
    fedhess.run(**TOY_RUN | {"strategy": "fedsr", "rounds": 1, "lr": 0.1}, out="job")
    assert called("export", "job", "--out", "exported").status == 0
    assert "auxiliary.scale" in find_model(open_runs(Path("job"))).run.directory.load_selected()
    assert not [name for name in load_file("exported/model.safetensors") if name.startswith("auxiliary")]
    evaluated(Path("job"))
