"""The world as plain Python: the shapes that the tools generate from it, and a host to ask."""

from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any, Optional

from .limits import SCAN_BYTES_MAX, SCAN_ENTRIES_MAX


class Err(Exception):
    """How a function of the world that answers a result says no."""

    def __init__(self, value):
        super().__init__(value)
        self.value = value


class Level(Enum):
    DEBUG = 0
    INFO = 1
    WARN = 2
    ERROR = 3


class ColumnType(Enum):
    BOOL = 0
    INT = 1
    FLOAT = 2
    TEXT = 3
    BYTES = 4
    JSON = 5
    TIMESTAMP = 6


class FailureKind(Enum):
    RETRY = 0
    REJECT = 1
    FATAL = 2


class FlushReason(Enum):
    TICK = 0
    SHUTDOWN = 1
    SWAP = 2


@dataclass
class Context:
    tenant: str
    lane: int
    lanes: int


@dataclass
class SavedState:
    content_type: str
    state: bytes


@dataclass
class Effects:
    arena: bytes
    records: bytes


@dataclass
class Failure:
    index: int
    kind: FailureKind
    message: str


@dataclass
class Outcome:
    handled: int
    effects: Effects
    failure: Optional[Failure]


@dataclass
class Column:
    name: str
    type: ColumnType
    nullable: bool
    filterable: bool
    sortable: bool


@dataclass
class Table:
    name: str
    columns: list
    versioned: bool
    window_rows_max: int


@dataclass
class Subscription:
    types: list
    aggregates: list


@dataclass
class OrderingKey_Aggregate:
    pass


@dataclass
class OrderingKey_PayloadField:
    value: str


@dataclass
class OrderingKey_Single:
    pass


@dataclass
class ChangeField:
    name: str
    member: str


@dataclass
class ChangeScope_Id:
    pass


@dataclass
class ChangeScope_Tenant:
    pass


@dataclass
class ChangeScope_Field:
    value: ChangeField


@dataclass
class ChangeScopes:
    aggregate: str
    scopes: list


@dataclass
class Manifest:
    name: str
    version: str
    summary: str
    state_content_type: Optional[str]
    ordering_key: Any
    subscription: Subscription
    tables: list
    grants: list
    flush_interval_ms: Optional[int]
    changes: list


@dataclass
class EntryValue:
    value: bytes
    expires_at: int


@dataclass
class Entry:
    key: bytes
    value: bytes
    expires_at: int


@dataclass
class Page:
    entries: list
    more: bool


@dataclass
class Host:
    """What an instance may ask for: settings, keyed state, a log. State is key to value and expiry, 0 for never."""

    config: dict = field(default_factory=dict)
    state: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)


# The host of the running call. There is one at a time.
_hosts: "list[Host]" = []


def enter(host: Host) -> None:
    _hosts.append(host)


def leave() -> None:
    _hosts.pop()


def _host() -> Host:
    if not _hosts:
        raise RuntimeError(
            "outside of a call there is no host: settings, state and the log are for `load` and `handle`"
        )
    return _hosts[-1]


def _get(key: bytes):
    found = _host().state.get(key)
    return None if found is None else EntryValue(*found)


def _scan(prefix: bytes, after, limit: int) -> Page:
    state, page, size = _host().state, Page([], False), 0
    for key in sorted(state):
        if not key.startswith(prefix) or after is not None and key <= after:
            continue
        value, expires_at = state[key]
        following = size + len(key) + len(value)
        if len(page.entries) >= min(limit, SCAN_ENTRIES_MAX) or page.entries and following > SCAN_BYTES_MAX:
            page.more = True
            break
        size = following
        page.entries.append(Entry(key, value, expires_at))
    return page


def _write(level: Level, message: str) -> None:
    # Outside of a call there is nobody to tell.
    if _hosts:
        _hosts[-1].messages.append((level.name.lower(), message))


config = SimpleNamespace(get=lambda name: _host().config.get(name))
state = SimpleNamespace(get=_get, scan=_scan, Entry=Entry, EntryValue=EntryValue, Page=Page)
log = SimpleNamespace(Level=Level, write=_write)
types = SimpleNamespace(
    **{
        shape.__name__: shape
        for shape in (
            ChangeField,
            ChangeScope_Field,
            ChangeScope_Id,
            ChangeScope_Tenant,
            ChangeScopes,
            Column,
            ColumnType,
            Context,
            Effects,
            Failure,
            FailureKind,
            FlushReason,
            Manifest,
            OrderingKey_Aggregate,
            OrderingKey_PayloadField,
            OrderingKey_Single,
            Outcome,
            SavedState,
            Subscription,
            Table,
        )
    }
)
