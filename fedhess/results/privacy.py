"""What the private source clients of a job have spent, from its rows."""

from collections.abc import Sequence

from fedhess.domains.benchmark import SOURCE
from fedhess.federation.protocol import SEED
from fedhess.federation.server.run_directory import Row


def spent_privacy(runs: Sequence[Sequence[Row]]) -> str:
    """Describe the epsilon by domain, the largest of its clients and over runs; "" where no run is private."""
    rows = [row for run in runs for row in run if row["role"] == SOURCE and "epsilon" in row]
    spent: dict[str, float] = {}
    for row in rows:
        spent[row["domain"]] = max(spent.get(row["domain"], 0.0), row["epsilon"])
    listed = ", ".join(f"{domain} {epsilon:.4g}" for domain, epsilon in spent.items())
    seeded = any(row["noise"] == SEED for row in rows)
    return listed + ("; noise from the run's seed, which protects nobody" if seeded else "")
