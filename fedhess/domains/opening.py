"""What a benchmark is opened with, and its options read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.domains.benchmark import OptionValue
from fedhess.domains.domain import Notify, keep_silent

DATA_VARIABLE = "FEDHESS_DATA"  # names the folder with data where none is given
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
    notify: Notify = field(default=keep_silent, repr=False, compare=False)

    def read_options(self, **defaults: OptionValue) -> dict[str, OptionValue]:
        """Fill in the options that were not given, and convert those given as text to their default's type.

        Args:
            **defaults: Every option of the benchmark.

        Returns:
            A value for each option.

        Raises:
            UsageError: An unknown option, or a value of another type.
        """
        for name in self.options:
            if name not in defaults:
                raise UsageError(f"{self.benchmark} has no option {name!r}; {did_you_mean(name, defaults)}")
        return {name: self._converted(name, default) for name, default in defaults.items()}

    def settled(self, **defaults: OptionValue) -> tuple["Opening", dict[str, OptionValue]]:
        """Read the options of a benchmark that has ``data_dir`` among them, and perhaps ``per_domain``.

        Args:
            **defaults: Every other option of the benchmark.

        Returns:
            The opening with the data folder, and where it is an option ``skip_bad_images``, that the options name; and
            a value for each option.

        Raises:
            UsageError: As `read_options`; or ``per_domain``, a number of examples, is negative.
        """
        options = self.read_options(**defaults, data_dir=str(self.data_dir or ""))
        given = str(options["data_dir"])
        if int(options.get("per_domain", 0)) < 0:
            raise UsageError(f"{self.benchmark}: per_domain must be 0 (all) or more, got {options['per_domain']}")
        skip = bool(options.get("skip_bad_images", self.skip_bad_images))
        try:
            folder = Path(given).expanduser() if given else None
        except RuntimeError as error:
            raise UsageError(f"{self.benchmark}: data_dir {given}: {error}; give the whole path") from error
        return replace(self, data_dir=folder, skip_bad_images=skip), options

    def _converted(self, name: str, default: OptionValue) -> OptionValue:
        given = self.options.get(name, default)
        wanted = type(default)
        if type(given) is wanted:
            return given
        try:
            if wanted is bool:
                return wanted(TRUTHS[str(given).lower()])
            if not isinstance(given, bool):
                return wanted(given)
        except (KeyError, ValueError):
            pass
        raise UsageError(
            f"{self.benchmark}: option {name!r} must be {wanted.__name__} (default {default!r}), got {given!r}"
        )
