"""Runs as tasks of Ray and as jobs of Slurm end with the bits of runs in turn."""

import importlib.util
import logging
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome
from tests.jobs.workers.test_processes import assert_same

Command = Callable[..., Outcome]
JOB = ["--domains", "IconPACS", "--target", "sketch", "--strategy", "erm,hgp", "--trials", "1", "--rounds", "2"]
SLURM = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")

# Stand-ins for Slurm's commands: sbatch runs the batch file at once, sacct knows which of them go on.
SBATCH = """
import os, re, subprocess, sys
batch = sys.argv[-1]
text = open(batch).read()
open("submitted.txt", "a").write(text)
log = re.search("--error=(.*)", text).group(1).strip("'")
job = str(100 + len(re.findall("#!/bin/bash", open("submitted.txt").read())))
os.makedirs(os.path.dirname(log.replace("%j", job)), exist_ok=True)
command = re.search("^srun .*?--error \\\\S+ (.*)$", text, re.M).group(1).replace("%j", job)
environment = os.environ | {"SLURM_JOB_ID": job, "SUBMITIT_EXECUTOR": "slurm"}
with open(log.replace("%j", job), "w") as file:
    process = subprocess.Popen(["sh", "-c", "exec " + command], env=environment, stdout=file, stderr=file)
open(job + ".pid", "w").write(str(process.pid))
print("Submitted batch job " + job)
"""
SACCT = """
import os, sys
print("JobID|State|NodeList")
for job in sys.argv[sys.argv.index("-j") + 1 :: 2]:
    alive = os.path.exists("/proc/" + open(job + ".pid").read())
    print(job + "|" + ("RUNNING" if alive else "FAILED") + "|here")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray(command: Command) -> None:
    absent = command(*JOB, "--out", "absent", "--parallel", 2, "--ray-address", "localhost:1")
    assert absent.status == 2
    assert "--ray-address: no Ray cluster answers at localhost:1" in absent.err
    assert command(*JOB, "--out", "in-turn").status == 0
    on_ray = command(*JOB, "--out", "on-ray", "--parallel", 2, "--ray-address", "local")
    assert on_ray.status == 0, on_ray.err
    assert "runs side by side on Ray at local, 2 at once" in on_ray.out
    for strategy in ("erm", "hgp"):
        assert_same(Path("on-ray", strategy, "sketch/0"), Path("in-turn", strategy, "sketch/0"))


@SLURM
@pytest.mark.slow
def test_local_processes_of_submitit(command: Command) -> None:
    assert command(*JOB, "--out", "in-turn").status == 0
    tried = command(*JOB, "--out", "tried", "--parallel", 2, "--slurm", "--slurm-args", "cluster=local")
    assert tried.status == 0, tried.err
    assert not logging.getLogger("submitit").handlers, "logging of others is left alone"
    for strategy in ("erm", "hgp"):
        assert_same(Path("tried", strategy, "sketch/0"), Path("in-turn", strategy, "sketch/0"))


@SLURM
@pytest.mark.slow
def test_slurm_commands(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert command(*JOB, "--out", "in-turn").status == 0
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in {"sbatch": SBATCH, "sacct": SACCT, "srun": "", "scancel": ""}.items():
        program = programs / name
        program.write_text(f"#!{sys.executable}\n{code}", encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    args = "partition=gpu,gpus=1,time=90,exclusive=true"
    on_slurm = command(*JOB, "--out", "on-slurm", "--parallel", 2, "--slurm", "--slurm-args", args)
    assert on_slurm.status == 0, on_slurm.err
    submitted = Path("submitted.txt").read_text(encoding="utf-8")
    wanted = ("--partition=gpu", "--gpus=1", "--time=90", "--exclusive", "--cpus-per-task=1", "--job-name=fedhess")
    assert [submitted.count(f"#SBATCH {option}\n") for option in wanted] == [2] * len(wanted)
    for strategy in ("erm", "hgp"):
        assert_same(Path("on-slurm", strategy, "sketch/0"), Path("in-turn", strategy, "sketch/0"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--parallel", "0"], "--parallel: expected 1 to 1024 workers, got 0"),
        (["--gpus", "0"], "--gpus is for --parallel; leave it out, or add --parallel N"),
        (["--slurm"], "--slurm is for --parallel; leave it out, or add --parallel N"),
        (["--slurm-args", "time=1"], "--slurm-args is for --parallel; leave it out"),
        (["--ray-address", "x:1"], "--ray-address is for --engine ray and --parallel; leave it out"),
        (["--parallel", "2", "--engine", "ray"], "--engine ray: --parallel 2 lets whole runs go side by side"),
        (["--parallel", "2", "--gpus", "0"], "--gpus: expected GPUs of this machine separated by commas, got '0'"),
        (["--parallel", "2", "--cpus-per-client", "1"], "--cpus-per-client: it is for --engine ray"),
        (["--parallel", "2", "--slurm-args", "time=1"], "--slurm-args: it is for --slurm; leave it out"),
        (["--parallel", "2", "--slurm", "--ray-address", "x:1"], "--slurm, --ray-address: the runs are on one of them"),
        (["--parallel", "2", "--slurm", "--gpus", "0"], "--gpus: --slurm shares GPUs out itself; leave it out"),
        (["--parallel", "2", "--slurm"], "--slurm: there is no sbatch here; run the command where"),
        (["--parallel", "2", "--slurm", "--slurm-args", "time=1:00"], "--slurm-args: expected time as a whole number"),
        (
            ["--parallel", "2", "--slurm", "--slurm-args", "cluster=x"],
            "expected cluster=slurm or cluster=local",
        ),
        (
            ["--parallel", "2", "--slurm", "--slurm-args", "cluster=local", "--device", "cuda:1"],
            "--device cuda:1: Slurm chooses the GPU of each run; use --device cuda",
        ),
    ],
)
def test_options_that_exclude_each_other_are_named(command: Command, given: list[str], message: str) -> None:
    said = command("--domains", "Toy", "--strategy", "erm", "--rounds", "1", "--trials", "1", *given)
    assert said.status == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert not Path("runs").exists() or not list(Path("runs").rglob("config.json"))


@pytest.mark.parametrize(("module", "given"), [("ray", ["--ray-address", "local"]), ("submitit", ["--slurm"])])
def test_an_extra_that_is_missing_is_named(
    command: Command, monkeypatch: pytest.MonkeyPatch, module: str, given: list[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == module else find(name, *more))
    said = command("--domains", "Toy", "--parallel", "2", *given)
    assert said.status == 2
    assert f"pip install 'fedhess[{module.replace('submitit', 'slurm')}]'" in said.err


def test_a_directory_that_is_not_shared_is_named(tmp_path: Path) -> None:
    from fedhess.jobs.workers.worker import Task, work

    failure = work(Task(str(tmp_path / "job"), "east/0", {}, (), 1, str(tmp_path), ())).failure
    assert failure is not None
    assert "give --out a directory that all machines share" in failure
