"""Settings that the operator gave this plugin."""

import re

from .failure import Refused
from .world import config as _config

_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)", re.ASCII)
_UNITS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


def get(name: str, default: "str | None" = None) -> "str | None":
    """The setting's value; `default` where it is not set."""
    value = _config.get(name)
    return default if value is None else value


def whole(name: str, default: int) -> int:
    """A whole number. Raises a refusal that names the setting and its value, and so do the others."""
    value = _config.get(name)
    if value is None:
        return default
    if not re.fullmatch(r"-?\d{1,19}", value, re.ASCII):
        raise Refused(f"setting `{name}` is `{value}`, which is not a whole number")
    return int(value)


def flag(name: str, default: bool) -> bool:
    """`true` or `false`."""
    value = _config.get(name)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise Refused(f"setting `{name}` is `{value}`; it may be `true` or `false`")
    return value == "true"


def one_of(name: str, values: "tuple[str, ...]") -> str:
    """One of these words; the first where it is not set."""
    value = _config.get(name)
    if value is None:
        return values[0]
    if value not in values:
        raise Refused(f"setting `{name}` is `{value}`; it may be `{'`, `'.join(values)}`")
    return value


def duration(name: str, default: str) -> int:
    """A time such as `500ms`, `30s`, `5m`, `2h` or `1d`, in microseconds."""
    value = _config.get(name)
    found = _DURATION.fullmatch(default if value is None else value)
    if found is None:
        raise Refused(f"setting `{name}` is `{value}`, which is no time such as 500ms, 30s, 5m, 2h or 1d")
    return int(found[1]) * _UNITS[found[2]]
