"""TerraIncognita: camera traps at four places (Beery et al. 2018, "Recognition in Terra Incognita").

The four places and ten classes of DomainBed, in folders as its download script makes them. Releases hold 24,330 or
24,788 images, so no count is expected. The images as first published, one folder and a file of annotations, are not
read: they have no folders by place.
"""

from fedhess.domains.benchmark import Benchmark
from fedhess.domains.images.layout import Layout
from fedhess.domains.images.release import Release, open_release
from fedhess.domains.opening import Opening

RELEASE = Release(
    layout=Layout(
        benchmark="TerraIncognita",
        nestings=((), ("terra_incognita",)),
        domains={f"location_{place}": (f"L{place}", f"loc_{place}", place) for place in ("100", "38", "43", "46")},
        classes=(
            *("bird", "bobcat", "cat", "coyote", "dog"),
            *("empty", "opossum", "rabbit", "raccoon", "squirrel"),
        ),
    ),
    source="Beery et al. 2018; DomainBed's download script fetches it",
)


def open_terra_incognita(opening: Opening) -> Benchmark:
    """Open TerraIncognita from a local folder; see `open_release`."""
    return open_release(RELEASE, opening)
