"""What is done once per domain before the runs of a job, so that its clients find the result in the cache."""

from fedhess.domains import Benchmark
from fedhess.domains.images.pixels import require_room
from fedhess.jobs.progress import Progress
from fedhess.models import keeps_images, prepare_inputs
from fedhess.settings.run_config import RunConfig


def prepare_domains(benchmark: Benchmark, config: RunConfig, progress: Progress) -> None:
    """Do what is done once per domain before training; the clients find the result in the cache.

    Raises:
        UsageError: There is no room for it.
    """
    domains = [benchmark.load(domain) for domain in benchmark.domains]
    keeps = keeps_images(config.model, images=config.images)
    if keeps:
        require_room(domains, limit_gb=config.image_cache_gb, notify=progress.note)
    for data in domains:
        prepare_inputs(
            config.model,
            data,
            device=config.device_here,
            images=config.images,
            image_cache_gb=config.image_cache_gb,
            notify=progress.tick,
        )
