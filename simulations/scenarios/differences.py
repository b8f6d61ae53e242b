"""What the strategies of a table have in common, and what each has of its own: arguments, settings, server, selection.

Both are read from the recorded rows: their settings, and the protocol line that ``jobs.description`` made.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedhess.alignment.loading import find_method, known_strategies
from fedhess.alignment.server_step import describe_server, is_server_setting
from fedhess.jobs.variants import VARIED
from fedhess.simulations.scenarios.records import Line

BEYOND = ("strategy_args", "variants", "selection", "data")  # keys of a line's settings that are none of the run's


def shared_protocol(lines: Sequence[Line]) -> str:
    """Return what most lines of a table have in common: the protocol, and the rule of selection."""
    return ", selection ".join(filter(None, _usual_parts(lines)))


def own_particulars(lines: Sequence[Line]) -> list[str]:
    """List each strategy that has arguments, or differs from the others in a setting, its server or its selection.

    Returns:
        Items of a list, as ``irm: weight=0.1, anneal_steps=0``.
    """
    head, rule = _usual_parts(lines)
    keys = dict.fromkeys(key for line in lines for key in line.settings if key not in BEYOND)
    usual = {key: json.loads(_commonest(json.dumps(line.settings.get(key)) for line in lines)) for key in keys}
    listed: list[str] = []
    for line in lines:
        own_head, own_rule, args = _parts(line)
        differing = [*_overrides(line, usual), *_server(line, head)]
        differing += [own_head] if own_head not in ("", head) and not differing else []
        differing += [f"selection {own_rule}"] if own_rule not in ("", rule) else []
        if args or differing:
            listed.append(f"{line.label}: {'; '.join(filter(None, [args, *differing]))}")
    if len(listed) < len(lines):
        listed.append("others: their own defaults" if listed else "every strategy: its own defaults")
    return listed


def _parts(line: Line) -> tuple[str, str, str]:
    """Split a line's protocol into what the run was, its rule of selection, and the strategy's arguments."""
    head, _, rest = line.protocol.partition(", seeds ")
    if not rest:  # every seed stopped
        return "", "", ", ".join(f"{key}={value}" for key, value in line.settings.get("strategy_args", {}).items())
    rule, *own = rest.partition(", selection ")[2].split("; ")
    return head, rule, "; ".join(text.removeprefix(f"{line.strategy} ") for text in own)


def _usual_parts(lines: Sequence[Line]) -> tuple[str, str]:
    heads, rules, _ = zip(*map(_parts, lines), strict=True)
    return _commonest(heads), _commonest(rules)


def _commonest(texts: Iterable[str]) -> str:
    counted = Counter(filter(None, texts))
    return counted.most_common(1)[0][0] if counted else ""


def _overrides(line: Line, usual: Mapping[str, Any]) -> list[str]:
    without_effect = set(filter(is_server_setting, usual)) if _is_plain(line.strategy) else set()
    without_effect |= set(VARIED) if "variants" in line.settings else set()  # they are those of the first variant
    differing = [key for key in usual if line.settings.get(key) != usual[key] and key not in without_effect]
    return [f"{key}={_short(line.settings.get(key))} instead of {_short(usual[key])}" for key in differing]


def _server(line: Line, head: str) -> list[str]:
    """Describe what steps in a plain Flower strategy's place of the server, where the table's protocol does not."""
    if not _is_plain(line.strategy):
        return []
    server = f"server {describe_server('', {line.strategy: line.settings.get('strategy_args', {})})}"
    return [] if server in head else [server]


def _is_plain(strategy: str) -> bool:
    return strategy in known_strategies() and find_method(strategy).is_flower


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
