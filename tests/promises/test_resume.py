"""A run that is killed and resumed ends with the bytes of a run that was not."""

import errno
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from crashes import ASSASSIN

from fedhess.base.errors import UsageError
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs.directory import amend_config, job_directory
from fedhess.results import results as results_module
from fedhess.results.results import open_results
from tests.conftest import TOY, TOY_OF_FLOWER, Outcome, Start

Command = Callable[..., Outcome]

HGP_ADAM = ["--strategy", "hgp", "--server-optimizer", "Adam", "--server-lr", "0.01"]
SELECTED_EARLIER = ["--strategy", "erm", "--server-optimizer", "SGD", "--lr", "0.3", "--checkpoint-every", "3"]
SELDOM = [*HGP_ADAM, "--checkpoint-every", "9"]
FED_ADAM = ["--strategy", "flwr.serverapp.strategy:FedAdam"]
FED_AVG_M = ["--strategy", "flwr.serverapp.strategy:FedAvgM", "--strategy-args", "server_momentum=0.9"]
SWA = ["--average", "swa", "--average-args", "start=0", "--strategy", "fedadam"]
SWAD = [*HGP_ADAM, "--average", "swad", "--average-args", "n_converge=1,n_tolerance=1,tolerance_ratio=0"]
EMA = [*HGP_ADAM, "--average", "ema", "--evaluate-every", "2", "--lr-schedule", "cosine", "--warmup-rounds", "1"]
EMA += ["--server-lr-schedule", "step", "--lr-drop-after", "0.5"]

PRIVATE = ["--strategy", "hgp", "--dp-epsilon", "50", "--dp-delta", "1e-5", "--dp-clip", "update=0.1,statistics=1"]
PRIVATE_EXAMPLES = [*PRIVATE, "--dp-unit", "example", "--references", "previous"]


def toy(method: list[str]) -> list[str]:
    return [*(TOY if "--server-optimizer" in method else TOY_OF_FLOWER), *method]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Spare the toy's tiny steps the threads' waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def results(job: Path) -> list[dict[str, object]]:
    """Read every row without what was measured of the process: its time, and models sent again after a restart."""
    lines = (job / "east/0/rounds.jsonl").read_text(encoding="utf-8").splitlines()
    measured = ("seconds", "bytes_down", "sent")
    return [{key: value for key, value in json.loads(line).items() if key not in measured} for line in lines]


def assert_same(job: Path, reference: Path) -> None:
    weights, expected = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.safetensors")}
        for folder in (job, reference)
    )
    assert len(expected) >= 3, "the checkpoints that are kept and the selected round's model"
    assert weights == expected
    assert results(job) == results(reference)
    assert [path.name for path in job.rglob("*") if path.name.startswith(".")] == [".lock"]


@pytest.mark.parametrize(
    ("method", "rounds", "every"),
    [
        pytest.param(HGP_ADAM, 2, 1, marks=pytest.mark.slow),
        (FED_ADAM, 2, 17),
        (SELDOM, 2, 17),
        (SWAD, 2, 19),
        (SELECTED_EARLIER, 5, 23),
        *(pytest.param(method, 2, 3, marks=pytest.mark.slow) for method in (FED_ADAM, FED_AVG_M, SWA, SWAD, EMA)),
        pytest.param(SELDOM, 2, 5, marks=pytest.mark.slow),
        *(pytest.param(method, 3, 5, marks=pytest.mark.slow) for method in (PRIVATE, PRIVATE_EXAMPLES)),
        pytest.param(SELECTED_EARLIER, 5, 3, marks=pytest.mark.slow),
    ],
)
def test_killed_anywhere_resumes_to_the_same_bytes(
    method: list[str], rounds: int, every: int, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_module, "write_report", lambda job, summary: [])  # it is made anew from the rows
    arguments = [*toy(method), "--rounds", rounds, "--out"]
    reference = Path("reference").resolve()
    assert command(*arguments, reference).status == 0
    if method == SELECTED_EARLIER:
        names = [file.name for file in reference.rglob("selected/*")]
        assert max(names) == "round-000004.safetensors", "after rounds 1 and 2, and between two checkpoints"
    accesses = 0
    while True:
        accesses += every
        job = Path(f"job{accesses}").resolve()
        killed = ASSASSIN.attempt(lambda at=job: command(*arguments, at), below=job, strike=accesses)
        outcome = command(*arguments, job, *(["--resume"] if job.exists() else []))
        assert outcome.status == 0, outcome.err
        assert_same(job, reference)
        if not killed:
            break
    assert accesses > 15, "every round touches the disk several times"


@pytest.mark.slow
def test_real_processes_survive_sigkill(start: Start, command: Command, tmp_path: Path) -> None:
    moments = random.Random(0)
    commands = {
        name: [*toy(method), "--rounds", "120", "--quiet", "--out", tmp_path / name]
        for name, method in (("hgp", HGP_ADAM), ("fedadam", FED_ADAM))
    }
    processes = {name: start(arguments) for name, arguments in commands.items()}
    targets = {name: moments.randrange(1, 100) for name in processes}
    while targets:
        for name, target in list(targets.items()):
            assert processes[name].poll() is None, processes[name].communicate()
            index = tmp_path / name / "east/0/checkpoint/checkpoint.json"
            if not index.exists() or json.loads(index.read_text(encoding="utf-8"))["round"] < target:
                continue
            time.sleep(moments.uniform(0, 0.03))
            processes[name].kill()
            assert processes[name].wait() < 0, "it was killed, not done"
            processes[name] = start([*commands[name], "--resume"])
            del targets[name]
    for name, process in processes.items():
        assert command(*commands[name][:-1], tmp_path / f"{name}-undisturbed").status == 0
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert_same(tmp_path / name, tmp_path / f"{name}-undisturbed")


def test_finished_job_is_only_reported_again(command: Command) -> None:
    first = command(*TOY, "--strategy", "erm", "--out", "job", "--quiet")
    weights = max(Path("job").rglob("checkpoint/*.safetensors"))
    before = (weights.stat().st_mtime_ns, weights.read_bytes())
    again = command(*TOY, "--strategy", "erm", "--out", "job", "--quiet", "--resume")
    assert (again.status, again.out) == (0, first.out)
    assert (weights.stat().st_mtime_ns, weights.read_bytes()) == before


def test_resuming_with_other_settings_lists_what_differs(command: Command) -> None:
    command(*TOY, "--strategy", "hgp", "--out", "job")
    before = {path: path.read_bytes() for path in Path("job").rglob("*") if path.is_file()}
    other = ["--lr", "0.2", "--strategy-args", "alpha=0.5", "--seed", "3", "--domains-args", "holdout=0.5"]
    outcome = command(*TOY, "--strategy", "hgp", *other, "--out", "job", "--resume")
    assert outcome.status == 2
    assert [line.strip() for line in outcome.err.splitlines()[1:]] == [
        "dataset.options.holdout: 0.25 there, 0.5 now",
        "seeds: [0] there, [3] now",
        "settings.lr: 0.1 there, 0.2 now",
        "strategies.hgp.alpha: 0.003 there, 0.5 now",
    ]
    assert {path: path.read_bytes() for path in Path("job").rglob("*") if path.is_file()} == before


def test_deadlines_may_change_on_resume(command: Command) -> None:
    command(*TOY, "--strategy", "erm", "--out", "job")
    assert command(*TOY, "--strategy", "erm", "--deadline", 9, "--out", "job", "--resume").status == 0


def test_resuming_elsewhere_says_that_bits_may_differ(command: Command) -> None:
    command(*TOY, "--strategy", "erm", "--out", "job")
    config = json.loads(Path("job/config.json").read_text())
    config["environment"]["torch_threads"] = 77
    Path("job/config.json").write_text(json.dumps(config))
    outcome = command(*TOY, "--strategy", "erm", "--out", "job", "--resume")
    assert outcome.status == 0
    assert "bits may differ: torch_threads: 77 there" in " ".join(outcome.out.split())


def test_job_that_was_killed_before_it_wrote_anything_begins(command: Command) -> None:
    Path("job").mkdir()
    Path("job/.config.json.new").write_text("{")
    assert command(*TOY, "--strategy", "erm", "--out", "job", "--resume").status == 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("east/0/checkpoint/checkpoint.json", "{}"),
        ("east/0/checkpoint/checkpoint.json", '{"round": 2, "file": "gone", "rounds_jsonl_bytes": 1}'),
        ("east/0/checkpoint/round-000003.safetensors", "no tensors"),
        ("east/0/rounds.jsonl", "short\n"),
    ],
)
def test_damaged_file_is_named(file: str, content: str, command: Command) -> None:
    command(*TOY, "--strategy", "erm", "--out", "job")
    Path("job", file).write_text(content)
    outcome = command(*TOY, "--strategy", "erm", "--out", "job", "--resume")
    assert outcome.status == 2
    named = "round-" if "round-" in file else Path(file).name
    assert f"{named}" in outcome.err or "gone" in outcome.err
    assert "is damaged" in outcome.err
    assert "Traceback" not in outcome.err


def test_second_process_is_kept_out(command: Command) -> None:
    command(*TOY, "--strategy", "erm", "--out", "job")
    description = json.loads(Path("job/config.json").read_text())
    del description["environment"]
    with job_directory(Path("job"), description, resume=True):
        outcome = command(*TOY, "--strategy", "erm", "--out", "job", "--resume")
    assert outcome.status == 2
    assert "another process runs the job in job; wait for it, or stop it" in outcome.err
    with job_directory(Path("job"), description, resume=True):
        amend_config(Path("job"), {"selection": "lodo"})  # config.json is written anew, and the lock holds
        outcome = command(*TOY, "--strategy", "erm", "--out", "job", "--resume", "--selection", "source")
    assert "another process runs the job in job" in outcome.err
    with job_directory(Path("new"), description, resume=False):
        outcome = command(*TOY, "--strategy", "erm", "--out", "new", "--resume")
    assert "another process runs the job in new" in outcome.err
    amend_config(Path("job"), {"selection": "source"})
    assert command(*TOY, "--strategy", "erm", "--out", "job", "--resume").status == 0


def test_full_disk_keeps_the_last_round(command: Command) -> None:
    command(*TOY, *HGP_ADAM, "--out", "reference")
    # Adam's moments make every checkpoint but the first three times as large as the model: there the disk ends.
    limit = max(Path("reference").rglob("checkpoint/*.safetensors")).stat().st_size * 2 // 3
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        outcome = command(*TOY, *HGP_ADAM, "--quiet", "--out", "job")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (outcome.status, outcome.out) == (1, ""), outcome.err
    assert "cannot write to job/east/0: File too large; free space or fix the permissions" in outcome.err
    assert "completed rounds are kept: continue with --resume --out job" in outcome.err
    assert json.loads(Path("job/east/0/checkpoint/checkpoint.json").read_text())["round"] == 0
    assert command(*TOY, *HGP_ADAM, "--out", "job", "--resume").status == 0
    assert_same(Path("job"), Path("reference"))


def test_poisoned_round_is_undone(command: Command) -> None:
    selects_round_2 = ["--strategy-args", "alpha=0.1,beta=0.3,estimate=batch"]
    arguments = [*TOY, *HGP_ADAM, *selects_round_2, "--rounds", "4", "--track", "tensorboard", "--out", "job"]
    assert command(*arguments).status == 0
    shutil.copytree("job", "reference")
    run = RunDirectory(Path("job/east/0"))
    assert run.kept_rounds() == [2, 3, 4]
    poisoned = run.load_checkpoint()
    assert poisoned is not None
    rows = run.rounds_file.read_text(encoding="utf-8").replace('"round": 4, "domain"', '"round": 4, "poisoned"')
    for tensor in poisoned.tensors.values():
        tensor.add_(1000.0)
    run.save_checkpoint(poisoned)
    run.rounds_file.write_text(rows, encoding="utf-8")
    outcome = command("--out", "job", "--resume-from", 2, "--track", "")
    assert outcome.status == 0, outcome.err
    assert_same(Path("job"), Path("reference"))
    (entry,) = json.loads(Path("job/config.json").read_text())["additions"]
    assert entry["from_round"] == {"east/0": 2}
    assert not (run.path / "tracking.json").exists(), "trackers begin a run again"


def test_round_without_a_checkpoint_is_refused(command: Command) -> None:
    command(*TOY, "--strategy", "erm", "--rounds", "5", "--out", "job")
    before = {path: path.read_bytes() for path in Path("job").rglob("*") if path.is_file()}
    kept = RunDirectory(Path("job/east/0")).kept_rounds()
    outcome = command("--out", "job", "--resume-from", 1)
    assert outcome.status == 2
    listed = ", ".join(map(str, kept))
    assert f"--resume-from 1: job/east/0 keeps the checkpoints of rounds {listed}; choose one of them" in outcome.err
    later = command("--out", "job", "--resume-from", 99)
    assert later.status == 2
    assert "--resume-from 99: no run of the job in job has come that far, the last is at round 5" in later.err
    assert {path: path.read_bytes() for path in Path("job").rglob("*") if path.is_file()} == before


def test_finished_job_without_its_rows_is_an_error(command: Command) -> None:
    command(*TOY, "--strategy", "erm", "--out", "job")
    Path("job/east/0/rounds.jsonl").unlink()
    outcome = command("--out", "job", "--resume")
    assert outcome.status == 2
    assert "job/east/0/rounds.jsonl is damaged" in outcome.err
    with pytest.raises(UsageError, match=r"rounds.jsonl is damaged"):
        _ = open_results("job").summary


def test_disk_that_has_become_read_only_is_called_that(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command(*TOY, "--strategy", "erm", "--out", "job")
    opened = os.open

    def read_only(path: str, flags: int, *more: Any, **named: Any) -> int:
        if str(path).endswith(".lock"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", read_only)
    outcome = command("--out", "job", "--resume")
    assert outcome.status == 2
    assert "cannot write to job: Read-only file system; choose another directory" in outcome.err
    assert "delete" not in outcome.err
