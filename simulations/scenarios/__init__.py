"""Run jobs, record their rows, and show them beside published results: what the scenario commands share."""
