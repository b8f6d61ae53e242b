"""The curve of accuracy against epsilon: what is recorded is what the table shows, and every job can be private."""

from toy import toy_config

from fedhess.alignment.privacy import check_privacy
from fedhess.simulations.privacy import COMPARISON, configurations, render
from fedhess.simulations.scenarios.outputs import RESULTS
from fedhess.simulations.scenarios.records import load_record


def test_the_recorded_table_is_that_of_the_recorded_rows() -> None:
    record = load_record(RESULTS / "privacy.json", quick=False)
    assert (RESULTS / "privacy.md").read_text(encoding="utf-8") == render(COMPARISON, record) + "\n"


def test_every_job_has_the_bounds_that_its_strategy_needs() -> None:
    private = [job for job in configurations() if "dp_epsilon" in job.overrides]
    assert len(private) == 30
    for job in private:
        budget = {key: value for key, value in job.overrides.items() if key.startswith("dp_")}
        check_privacy([toy_config(strategy=job.strategy, **budget)])
