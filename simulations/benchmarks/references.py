"""``references="previous"`` beside the exact form: seconds a round of a real deployment, and accuracy on IconPACS.

The deployment is that of ``python -m fedhess.deploy local``: a SuperLink and four SuperNodes on this machine, where an
exchange costs the start of a process and Flower's polling, some seconds, whatever the link. Accuracy is that of the
main job, in-process: every target, three trials, settings of the recipe.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FORMS = ("current", "previous")
ROUNDS, TRIALS, TARGET = 4, 3, "sketch"


def references_rows(*, repeats: int) -> list[dict[str, Any]]:
    """Measure both forms.

    Args:
        repeats: Of the pair of deployments, at most 2, since one takes minutes.
    """
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(min(repeats, 2)):
            for form in FORMS:
                seconds[form] += _deploy(Path(folder) / f"{form}-{repeat}", form)
        accuracy = {form: _accuracy(Path(folder) / f"accuracy-{form}", form) for form in FORMS}
    exact, stale = (statistics.median(seconds[form]) for form in FORMS)
    time_row = {
        "what": f"HGP with previous references, a deployed round after the first, evaluation included, {TARGET} (s)",
        "ours": stale,
        "other": exact,
        "ratio": stale / exact,
        "target": "less than with current ones",
        "pass": stale < exact,
    }
    return [time_row, *(_accuracy_row(target, accuracy) for target in accuracy["current"])]


def _accuracy_row(target: str, accuracy: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    stale, exact = (accuracy[form][target]["mean"] for form in ("previous", "current"))
    spread = accuracy["current"][target]["standard_error"]
    return {
        "what": f"its accuracy on {target}, {TRIALS} trials, beside that with current references (%)",
        "ours": stale,
        "other": exact,
        "ratio": stale / exact,
        "target": f"no bar; standard error of the exact form {spread:.2g}",
        "pass": None,
    }


def _deploy(out: Path, form: str) -> list[float]:
    """Deploy a short run and return the seconds of each round after the first, evaluation included."""
    command = [sys.executable, "-m", "fedhess.deploy", "local", "--domains", "IconPACS", "--target", TARGET]
    command += ["--rounds", str(ROUNDS), "--run-config", f'references="{form}" evaluate-every=1', "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    lines = (out / "results" / TARGET / "0" / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    by_round = {row["round"]: float(row["seconds"]) for row in map(json.loads, lines)}
    return [by_round[number] for number in range(2, ROUNDS + 1)]


def _accuracy(out: Path, form: str) -> dict[str, dict[str, Any]]:
    """Run the main job and return mean and standard error of the accuracy (%) by target."""
    command = [sys.executable, "-m", "fedhess.simulate", "--domains", "IconPACS", "--strategy", "hgp"]
    command += ["--trials", str(TRIALS), "--references", form, "--out", str(out), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = summary["strategies"]["hgp"]["accuracy"]
    return found
