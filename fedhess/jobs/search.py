"""What a sweep searches: the range of each setting, by strategy, and the settings drawn from these ranges.

A sweep is a job in which each variant belongs to one strategy, and each drawn variant also to one trial. A drawn
setting depends on (seed, strategy, number) alone: adding strategies, draws or trials leaves the others unchanged.
Number 0 has the defaults.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from fedhess.alignment.loading import find_method, resolved_args
from fedhess.alignment.server_step import is_server_setting
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.cli.options import JobOptions
from fedhess.jobs.variants import VARIED, Variant, args_for, args_of, is_run_setting, overridden
from fedhess.settings.assignments import Scalar, parse_scalar
from fedhess.settings.ranges import (
    GIVEN,
    OF_STEPS,
    OURS,
    STEPS,
    Range,
    are_known,
    around,
    common_ranges,
    ranges_of,
)
from fedhess.settings.run_config import RunConfig

Kind = Literal["random", "grid", "optuna"]
Space = Mapping[str, Range]

KINDS: tuple[Kind, ...] = ("random", "grid", "optuna")
DRAWS = 20
MOST_DRAWS = 10_000
HALF_A_DECADE = 0.5
SERVER_ARGS = "server_optimizer_args"


@dataclass(frozen=True)
class Search:
    """What a sweep was asked for."""

    kind: Kind = "random"  # how settings are chosen
    draws: int = DRAWS  # settings for each strategy, target and trial, including the defaults; 0 for a grid
    grid: str = ""  # key=value,value,..., several keys for their product; NAME.key is for strategy NAME alone
    ranges: str = ""  # key=low:high[:log],... replaces known ranges, and adds ranges where none is known
    fixed: tuple[str, ...] = ()  # keys with a given value, which are not drawn: settings, and NAME.key of strategies
    # The spaces that are searched already, by strategy, in a sweep that continues or grows
    spaces: Mapping[str, Space] = field(default_factory=dict)

    @classmethod
    def read(cls, *, search: str | None, draws: int | None, grid: str, ranges: str) -> "Search":
        """Check the given options together."""
        search = search or ("grid" if grid else "random")
        kind = next((each for each in KINDS if each == search), None)
        if kind is None:
            raise UsageError(f"--search: unknown search {search!r}; {did_you_mean(search, KINDS)}")
        if (kind == "grid") != bool(grid):
            wanted = "--search grid needs --grid" if kind == "grid" else f"--grid does not go with --search {kind}"
            raise UsageError(f"{wanted}; give --grid alpha=1e-5,1e-4 alone, or --draws and --search random or optuna")
        if kind == "grid" and (draws is not None or ranges):
            raise UsageError(
                f"--grid does not go with {'--draws' if draws is not None else '--range'}: a grid runs its own values; "
                "leave one of them out"
            )
        if draws is not None and not 1 <= draws <= MOST_DRAWS:
            raise UsageError(f"--draws: expected 1 to {MOST_DRAWS}, got {draws}")
        return cls(kind, 0 if kind == "grid" else DRAWS if draws is None else draws, grid, ranges)


def read_search(
    given: Mapping[str, Any] | None, recorded: Mapping[str, Any] | None, options: JobOptions
) -> Search | None:
    """Read the options of a sweep; if it continues or grows, omitted options come from its record.

    Args:
        given: Options of :meth:`Search.read`; None if the command is not a sweep.
        recorded: Record of the job that is continued or added to.
        options: Options of the job.
    """
    if recorded is None:
        return None if given is None else Search.read(**given)
    option, there = options.continuing, recorded.get("search", {})
    if bool(there) != (given is not None):
        kind, command = ("a", "sweep") if there else ("no", "simulate")
        raise UsageError(f"{option}: the job in {options.out} is {kind} sweep; use fedhess {command} {option}")
    if given is None:
        return None
    draws, ranges = there["draws"], there["ranges"]
    if options.add:  # both may grow
        twice = parse_ranges(ranges).keys() & parse_ranges(given["ranges"] or "").keys()
        if twice:
            raise UsageError(
                f"--range: the sweep in {options.out} has a range of {sorted(twice)[0]!r}, which cannot change; "
                "leave it out, or begin another sweep"
            )
        draws, ranges = max(draws, given["draws"] or 0), ",".join(filter(None, [ranges, given["ranges"]]))
    kept = {"search": there["kind"], "draws": draws or None, "grid": there["grid"], "ranges": ranges}
    for key, value in given.items():
        if value and value != kept[key] and not (options.add and key == "ranges"):
            name = "range" if key == "ranges" else key
            raise UsageError(
                f"{option}: the sweep in {options.out} has --{name} {kept[key] or 'not given'}, got {value}; leave the "
                "option out"
            )
    asked = Search.read(**kept)
    return replace(asked, fixed=tuple(there["fixed"]), spaces=recorded_spaces(recorded))


@dataclass(frozen=True)
class Method:
    """What is known of a strategy before the search: its arguments and settings without variation."""

    name: str
    args: Mapping[str, Scalar]  # resolved
    config: RunConfig  # of one of its runs
    fixed: frozenset[str]  # keys that were given, and are not drawn
    benchmark: str


def parse_grid(text: str) -> dict[str, tuple[Scalar, ...]]:
    """Read ``"alpha=1e-5,1e-4,lr=0.1,0.2"``: a comma is followed by another value, or by another key.

    >>> parse_grid("alpha=1e-5,1e-4,lr=0.1,0.2")
    {'alpha': (1e-05, 0.0001), 'lr': (0.1, 0.2)}
    """
    found: dict[str, list[Scalar]] = {}
    for part in text.split(","):
        left, separator, right = part.rpartition("=")
        key, value = _key(left), parse_scalar(right.strip())
        if value == "" or bool(separator) != bool(key) or not (key or found):
            raise UsageError(f"--grid: expected key=value,value,..., got {part.strip()!r} in {text!r}")
        if key in found:
            raise UsageError(f"--grid: {key!r} is given twice; give all of its values after one {key}=")
        key = key or next(reversed(found))
        if value in found.setdefault(key, []):
            raise UsageError(f"--grid: {value!r} is twice among the values of {key!r}; give it once")
        found[key].append(value)
    return {key: tuple(values) for key, values in found.items()}


def parse_ranges(text: str) -> dict[str, Range]:
    """Read ``"alpha=1e-5:1e-3:log,lr=0.01:0.1"``.

    >>> parse_ranges("alpha=1e-5:1e-3:log")["alpha"].ends
    (1e-05, 0.001)
    """
    found: dict[str, Range] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        left, _, right = part.rpartition("=")
        key, ends = _key(left), [parse_scalar(end.strip()) for end in right.split(":")]
        scale = ends.pop() if len(ends) == 3 else ""
        numbers = [float(end) for end in ends if type(end) in (int, float)]
        if not key or len(ends) != 2 or numbers != ends or scale not in ("", "log"):
            raise UsageError(f"--range: expected key=low:high or key=low:high:log, got {part!r}")
        if numbers[0] >= numbers[1] or (scale and numbers[0] <= 0):
            raise UsageError(
                f"--range: expected low < high{', above 0 for a logarithm' if scale else ''}, got {part!r}"
            )
        if key in found:
            raise UsageError(f"--range: {key!r} is given twice; give it once")
        low, high = map(math.log10, numbers) if scale else numbers
        found[key] = Range(low, high, GIVEN, base=10.0 if scale else 0.0)
    return found


def _key(text: str) -> str:
    owner, dot, name = text.strip().rpartition(".")  # an owner is a strategy's name and keeps its dashes
    key = owner + dot + name.replace("-", "_")
    return key.replace("server-optimizer-args", "server_optimizer_args", 1)


# -- The space of a strategy -------------------------------------------------------------------------------------------


def known_space(method: Method) -> dict[str, Range]:
    """Return the known ranges of a strategy: the published ones where its defaults are those of the source.

    A published range belongs to the published default. If this job has another default (because its model has other
    settings, or the distances another scale), one decade to either side of it is searched. Ranges of step numbers scale
    with the length of a run.
    """
    total = method.config.rounds * method.config.local_steps
    space = _common(method)
    for key, published in ranges_of(method.name).items():
        default = method.args[key]
        if key.endswith(OF_STEPS):
            if default and not method.config.local_epochs:  # 0 switches a schedule off; epochs differ in steps
                space[key] = replace(published, scale=total / STEPS)
        elif default == published.default:
            space[key] = published
        elif isinstance(default, int | float) and default > 0:
            source = f"{OURS}; {published.describe()} ({published.source}) goes with {published.default:g}"
            space[key] = replace(around(float(default)), source=source)
    return {key: each for key, each in space.items() if key not in method.fixed}


def _common(method: Method) -> dict[str, Range]:
    """Return what every strategy draws: DomainBed's ranges if it trains as DomainBed does, else around the defaults."""
    config, own_server = method.config, find_method(method.name).is_flower
    published = common_ranges(method.benchmark)
    batch = {"batch_size": published.pop("batch_size")}
    one_step = (config.local_steps, config.local_epochs, config.lr) == (1, 0, 1.0)  # clients send their gradient
    space: dict[str, Range] = {}
    if one_step and config.server_optimizer == "Adam" and not own_server:
        space |= published
    else:
        if not one_step:
            space["lr"] = around(config.lr, decades=HALF_A_DECADE)
            if decay := published.get(f"{SERVER_ARGS}.weight_decay"):
                space["weight_decay"] = replace(decay, source=f"{decay.source}, there Adam's")
        if not own_server and (config.server_optimizer, config.server_lr) != ("SGD", 1.0):
            space["server_lr"] = around(config.server_lr, decades=HALF_A_DECADE)
    return space | (batch if config.batch_size else {})


def _whole(method: Method, key: str) -> bool:
    if key in RunConfig.model_fields:
        return RunConfig.model_fields[key].annotation is int
    parameter = find_method(method.name).parameters.get(key)
    return parameter is not None and parameter.annotation is int


def _applicable(key: str, method: Method, names: Sequence[str]) -> str | None:
    """Return a key without the name of its strategy; None if the key does not apply to ``method``."""
    owner = next((name for name in names if key.startswith(f"{name}.")), None)
    bare = key if owner is None else key.removeprefix(f"{owner}.")
    if owner not in (None, method.name) or (is_server_setting(bare) and find_method(method.name).is_flower):
        return None
    known = is_run_setting(bare) or bare in find_method(method.name).parameters
    return bare if known else None


def _own_of(given: Mapping[str, Any], method: Method, names: Sequence[str]) -> dict[str, Any]:
    """Keep the entries for a strategy, by bare keys; entries that name the strategy override entries for all."""
    ordered = sorted(given, key=lambda key: any(key.startswith(f"{name}.") for name in names))
    own = {_applicable(key, method, names): given[key] for key in ordered}
    return {key: value for key, value in own.items() if key is not None}


def check_keys(keys: Iterable[str], methods: Sequence[Method], *, option: str) -> None:
    """Check that each key of a grid or of given ranges applies to a strategy."""
    names = [method.name for method in methods]
    for key in keys:
        owner = next((name for name in names if key.startswith(f"{name}.")), None)
        bare = key if owner is None else key.removeprefix(f"{owner}.")
        if bare in RunConfig.model_fields and bare not in VARIED:
            raise UsageError(f"{option}: {key!r} must be the same in a whole job; expected {_known(methods)}")
        if all(_applicable(key, method, names) is None for method in methods):
            raise UsageError(f"{option}: {key!r} means nothing to {', '.join(names)}; expected {_known(methods)}")


def _known(methods: Sequence[Method]) -> str:
    own = dict.fromkeys(key for method in methods for key in find_method(method.name).parameters)
    return f"an argument of a strategy ({', '.join(own) or 'none here'}), server_optimizer_args.NAME, or one of " + (
        ", ".join(VARIED)
    )


def spaces_of(search: Search, methods: Sequence[Method]) -> dict[str, dict[str, Range]]:
    """Return the range, or for a grid the choices, of each searched setting, by strategy.

    Raises:
        UsageError: A range or a grid value applies to no strategy of the job, or a strategy has no range at all.
    """
    names = [method.name for method in methods]
    if search.kind == "grid":
        grid = parse_grid(search.grid)
        check_keys(grid, methods, option="--grid")
        own_grids = {method.name: _own_of(grid, method, names) for method in methods}
        for method in methods:
            for key in sorted(method.fixed & own_grids[method.name].keys()):
                raise UsageError(f"--grid: {key!r} of {method.name} is given a value of its own as well; leave one out")
        return {
            name: {key: Range(source="--grid", choices=values) for key, values in own.items()}
            for name, own in own_grids.items()
        }
    given = parse_ranges(search.ranges)
    check_keys(given, methods, option=GIVEN)
    spaces: dict[str, dict[str, Range]] = {}
    for method in methods:
        own = _own_of(given, method, names)
        own = {key: replace(each, whole=_whole(method, key)) for key, each in own.items()}
        for key, each in own.items():
            if each.whole and key in RunConfig.model_fields and each.ends[0] < 1:
                raise UsageError(f"{GIVEN}: expected a low end of at least 1 for {key}, got {key}={each.describe()}")
        _require_ranges(method, own)
        before = search.spaces.get(method.name)
        if before is not None and any(before.get(key) != each for key, each in own.items()):
            raise UsageError(
                f"{GIVEN}: what {method.name} draws from is recorded and stays; name the strategy that is added, as in "
                f"NAME.{next(iter(own))}=..."
            )
        spaces[method.name] = {**known_space(method), **own} if before is None else dict(before)
    return spaces


def _require_ranges(method: Method, own: Space) -> None:
    """Check that a strategy without known ranges has a range or a value for one of its numeric arguments, if any."""
    if are_known(method.name):
        return
    numbers = {key: float(value) for key, value in method.args.items() if type(value) in (int, float)}
    if numbers and not numbers.keys() & (own.keys() | method.fixed):
        key, value = next(iter(numbers.items()))
        text = around(value).describe() if value > 0 else "0:1"
        listed = ", ".join(f"{key}={value:.4g}" for key, value in numbers.items())
        raise UsageError(
            f"--strategy: no ranges are known for {method.name!r}, whose arguments are {listed}; give them, as in "
            f"--range {method.name}.{key}={text}, or a value that it keeps with --strategy-args"
        )


# -- The settings that are run -----------------------------------------------------------------------------------------


def plan_search(
    search: Search,
    given: Mapping[str, Scalar],
    overrides: Mapping[str, Any],
    config: RunConfig,
    defaults: Mapping[str, Mapping[str, Scalar]],
    *,
    benchmark: str,
    seeds: Sequence[int],
) -> tuple[dict[str, dict[str, Scalar]], list[dict[str, Any]], dict[str, Any]]:
    """Draw every setting of a sweep; for Optuna only the first, because the others depend on results.

    Returns:
        A sweep's part of a job's record: the arguments that all runs of a strategy share, by strategy, the variants,
        and what was searched.
    """
    names = list(defaults)
    of_server = (f"{SERVER_ARGS}.{key}" for key in overrides.get(SERVER_ARGS, ()))
    of_strategies = (f"{name}.{key}" for name in names for key in args_of(name, names, given))
    fixed = {*search.fixed, *overrides, *of_server, *of_strategies}
    for key in [key for key in fixed if "." not in key and key not in RunConfig.model_fields]:
        fixed.remove(key)  # from an earlier version: it was given to the strategies recorded then
        fixed |= {f"{name}.{key}" for name in search.spaces}
    methods = [
        Method(
            name,
            args_for(name, names, given, defaults[name]),
            config,
            frozenset(key.removeprefix(f"{name}.") for key in fixed),
            benchmark,
        )
        for name in names
    ]
    spaces, first_args = spaces_of(search, methods), {method.name: method.args for method in methods}
    variants: list[dict[str, Any]] = []
    for method in methods:
        if search.kind == "optuna" and method.name not in search.spaces:
            _require_ends(method, spaces[method.name])
        for number, seed, drawn in _settings_of(search, spaces[method.name], seeds):
            own = {f"{method.name}.{key}": value for key, value in drawn.items() if not is_run_setting(key)}
            args = args_for(method.name, names, given, defaults[method.name], own)
            variants.append(variant_of(method.name, number, drawn, args, seed=seed))
    drawn_args = [(name, args) for variant in variants for name, args in variant["arguments"].items()]
    differ = {(name, key) for name, args in drawn_args for key in args if args[key] != first_args[name].get(key)}
    shared = {
        name: {k: v for k, v in args.items() if k not in spaces[name] and (name, k) not in differ}
        for name, args in first_args.items()
    }
    described = {name: {key: asdict(each) for key, each in space.items()} for name, space in spaces.items()}
    return shared, variants, {**asdict(search), "fixed": list(search.fixed) or sorted(fixed), "spaces": described}


def _require_ends(method: Method, space: Space) -> None:
    """Check that the ends of each range are valid values: Optuna's suggestions are known only during the sweep."""
    for key, each in space.items():
        for end in each.choices or each.ends:
            value = int(max(end, 1.0) if each.base else end) if each.whole else end
            try:
                if is_run_setting(key):
                    RunConfig.checked(overridden(method.config.model_dump(), {key: value}, method.name))
                else:
                    resolved_args(method.name, {**method.args, key: value})
            except UsageError as error:
                raise UsageError(f"{GIVEN}: {method.name}'s {key}={each.describe()} has {value}: {error}") from error


def _settings_of(
    search: Search, space: Space, seeds: Sequence[int]
) -> Iterable[tuple[int, int | None, dict[str, Scalar]]]:
    """Yield the number, trial (None for all trials) and values of each setting of a strategy."""
    if search.kind == "grid":
        for number, values in enumerate(itertools.product(*(each.choices for each in space.values()))):
            yield number, None, dict(zip(space, values, strict=True))
        return
    yield 0, None, {}
    for seed in seeds if search.kind == "random" and space else ():
        drawn: list[dict[str, Scalar]] = []
        for number in range(1, search.draws):
            drawn.append({key: each.draw(key, number=number, trial=seed) for key, each in space.items()})
            if drawn[-1] not in drawn[:-1]:  # with few choices, a setting may repeat
                yield number, seed, drawn[-1]


def variant_of(
    strategy: str,
    number: int,
    settings: Variant,
    args: Mapping[str, Scalar],
    *,
    seed: int | None = None,
    target: str | None = None,
) -> dict[str, Any]:
    """Make a variant of one strategy, limited to one trial and one target if these are given."""
    made = {"settings": dict(settings), "strategies": [strategy], "arguments": {strategy: dict(args)}, "number": number}
    return made | ({} if seed is None else {"seeds": [seed]}) | ({} if target is None else {"targets": [target]})


def recorded_spaces(record: Mapping[str, Any]) -> dict[str, dict[str, Range]]:
    """Return the ranges of a recorded sweep by strategy; empty for other jobs."""
    return {
        name: {key: Range(**{**each, "choices": tuple(each["choices"])}) for key, each in space.items()}
        for name, space in record.get("search", {}).get("spaces", {}).items()
    }
