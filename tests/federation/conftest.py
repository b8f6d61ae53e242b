from federations import toy_benchmark, toy_run

__all__ = ["toy_benchmark", "toy_run"]
