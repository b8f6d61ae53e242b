"""Checks of settings in combination."""

from collections.abc import Sequence

from fedhess.base.errors import UsageError
from fedhess.settings.optimizers import check_optimizer
from fedhess.settings.run_config import RunConfig


def check_combinations(configs: Sequence[RunConfig]) -> None:
    """Check settings in combination, as far as that needs neither the model's weights nor data."""
    first = configs[0]
    fewest = min(configs, key=lambda config: config.source_clients)
    names = f" ({', '.join(fewest.sources)})" if first.partition == "domain" else ""
    if first.quorum > fewest.source_clients:
        raise UsageError(
            f"--quorum: expected at most {fewest.source_clients}, the number of source clients{names}, got "
            f"{first.quorum}"
        )
    if first.quorum > first.clients_per_round > 0:
        raise UsageError(
            f"--quorum: expected at most {first.clients_per_round}, the clients drawn a round (--clients-per-round), "
            f"got {first.quorum}"
        )
    if first.device == "mps" and first.dtype == "float64":
        raise UsageError("--dtype float64: Apple's GPU has no float64; use --device cpu or --dtype float32")
    for config in configs:  # variants may differ in these settings
        if config.client_optimizer == "Adam" and config.momentum:
            raise UsageError(
                f"--momentum {config.momentum:g}: it is SGD's, and --client-optimizer is Adam; give --momentum 0"
            )
        _check_means(config)
        check_optimizer(config.server_optimizer, lr=config.server_lr, args=config.server_optimizer_args)


def _check_means(config: RunConfig) -> None:
    """Check that robust means get so many clients and domains that the hostile can be a minority."""
    if config.reference_mean != "mean" and len(config.sources) < 3:
        raise UsageError(
            f"--reference-mean {config.reference_mean}: expected at least 3 source domains, of which one may be "
            f"hostile, got {', '.join(config.sources)}; give --reference-mean mean"
        )
    asked, hostile = config.clients_per_round or config.source_clients, config.hostile_clients
    least = 2 * (hostile if config.update_mean in ("trimmed", "krum", "multikrum") else 1) + 1
    if config.update_mean != "mean" and asked < least:
        raise UsageError(
            f"--update-mean {config.update_mean}: expected at least {least} clients in a round, so that the hostile "
            f"are a minority (--hostile-clients {hostile}), got {asked}; give more clients or another mean"
        )
