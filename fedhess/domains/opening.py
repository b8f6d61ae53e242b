"""The arguments that a benchmark is opened with; its options are read and checked here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.files import cache_directory
from fedhess.domains.benchmark import OptionValue
from fedhess.domains.domain import Notify, keep_silent

DATA_VARIABLE = "FEDHESS_DATA"  # names the default data folder
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Opening:
    """The arguments of `fedhess.domains.open_benchmark`, which explains them."""

    benchmark: str
    data_dir: Path | None = None
    require_real: bool = False
    skip_bad_images: bool = False
    seed: int = 0
    cache_dir: Path | None = None
    held: tuple[str, ...] | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    name: str = ""  # as the user wrote it, where ``benchmark`` stands for many
    notify: Notify = field(default=keep_silent, repr=False, compare=False)

    def places(self, cached: str = "") -> list[Path]:
        """List where data is looked for: ``data_dir`` alone if given, else ``$FEDHESS_DATA`` and the cache.

        Args:
            cached: The data's folder in the cache.
        """
        if self.data_dir is not None:
            return [self.data_dir]
        named = [Path(os.environ[DATA_VARIABLE]).expanduser()] if os.environ.get(DATA_VARIABLE) else []
        return [*named, cache_directory(self.cache_dir) / cached]

    def read_options(self, **defaults: OptionValue) -> dict[str, OptionValue]:
        """Return a value for every option of the benchmark, converted to the type of its default."""
        for name in self.options:
            if name not in defaults:
                raise UsageError(f"{self.benchmark} has no option {name!r}; {did_you_mean(name, defaults)}")
        return {name: self._converted(name, default) for name, default in defaults.items()}

    def settled(self, **defaults: OptionValue) -> tuple["Opening", dict[str, OptionValue]]:
        """Read the options of a benchmark that has the option ``data_dir``, and perhaps ``per_domain``.

        Returns:
            The opening, with ``data_dir`` and (if it is an option) ``skip_bad_images`` taken from the options; and a
            value for each option.
        """
        options = self.read_options(**defaults, data_dir=str(self.data_dir or ""))
        if int(options.get("per_domain", 0)) < 0:
            raise UsageError(f"{self.benchmark}: per_domain must be 0 (all) or more, got {options['per_domain']}")
        given = str(options["data_dir"])
        folder = Path(os.path.expanduser(given)) if given else None
        skip = bool(options.get("skip_bad_images", self.skip_bad_images))
        return replace(self, data_dir=folder, skip_bad_images=skip), options

    def _converted(self, name: str, default: OptionValue) -> OptionValue:
        given, wanted = self.options.get(name, default), type(default)
        if type(given) is wanted:
            return given
        try:
            if wanted is bool:
                return TRUTHS[str(given).lower()]
            cut_off = wanted is int and isinstance(given, float) and not given.is_integer()
            if not isinstance(given, bool) and not cut_off:
                return wanted(given)
        except (KeyError, ValueError):
            pass
        raise UsageError(
            f"{self.benchmark}: option {name!r} must be {wanted.__name__} (default {default!r}), got {given!r}"
        )
