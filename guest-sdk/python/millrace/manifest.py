"""What a processor says of itself, and its tables."""

from difflib import get_close_matches

from .cells import Column
from .failure import Failure
from .limits import ROW_BYTES_MAX
from .world import types as _types

# The most rows one query may ask for, where a table does not say.
_WINDOW_ROWS_DEFAULT = 1_000


class Table:
    """A table that a processor writes: its columns by their names."""

    def __init__(self, name: str, columns: "dict[str, Column]", versioned=False, window_rows_max=_WINDOW_ROWS_DEFAULT):
        """In a versioned table a put or delete with a version not above the stored one is left out as stale."""
        self.name = name
        self.columns = dict(columns)
        self.versioned = versioned
        self.window_rows_max = window_rows_max
        self._writers = [(column_name, column.writer()) for column_name, column in self.columns.items()]

    def cells(self, row) -> bytes:
        """The row's cells in the order of the columns. A row that does not fit the declaration is fatal; a value that
        its column cannot hold is rejected."""
        try:
            cells = b"".join([write(row[name]) for name, write in self._writers])
            if len(row) == len(self._writers) and len(cells) <= ROW_BYTES_MAX:
                return cells
        except (KeyError, TypeError, ValueError):
            # Slowly, to fill in what may be left out and to name what is wrong.
            pass
        return self._cells(row)

    def _cells(self, row) -> bytes:
        if unknown := [name for name in row if name not in self.columns]:
            raise Failure.fatal(f"table `{self.name}` has no column `{unknown[0]}`{_meant(unknown[0], self.columns)}")
        cells = bytearray()
        for name, write in self._writers:
            column = self.columns[name]
            value = row.get(name)
            if name not in row and not column.can_be_null:
                raise Failure.fatal(f"a row of table `{self.name}` has no `{name}`, which is not nullable")
            if value is None and not column.can_be_null and column.type != "json":
                raise Failure.reject(f"`{name}` of table `{self.name}` is null, and the column is not nullable")
            try:
                cells += write(value)
            except TypeError:
                what = f"column `{name}` of table `{self.name}` is {column.type}"
                raise Failure.fatal(f"{what} and cannot hold a {type(value).__name__}") from None
            except ValueError as error:
                raise Failure.reject(f"`{name}` of table `{self.name}` {error}") from None
        if len(cells) > ROW_BYTES_MAX:
            raise Failure.reject(
                f"a row of table `{self.name}` has {len(cells)} bytes; row_bytes_max is {ROW_BYTES_MAX}"
            )
        return bytes(cells)

    def to_wire(self):
        columns = [
            _types.Column(
                name, _types.ColumnType[column.type.upper()], column.can_be_null, column.can_filter, column.can_sort
            )
            for name, column in self.columns.items()
        ]
        return _types.Table(self.name, columns, self.versioned, self.window_rows_max)


class PayloadField:
    """An ordering key: events with the same value of a top-level member of the payload stay in order."""

    def __init__(self, member: str):
        self.member = member


class ChangeField:
    """One stream of changes for each value of a top-level member of the payload. Only text that is not empty counts."""

    def __init__(self, member: str, name: str):
        self.member = member
        self.name = name


def payload_field(member: str) -> PayloadField:
    """For `ordering_key`."""
    return PayloadField(member)


def change_field(member: str, name: "str | None" = None) -> ChangeField:
    """For `changes`; `name` is what subscribers call it, where that is not what the payload does."""
    return ChangeField(member, name or member)


_DEFAULTS = dict(
    name=None,
    version=None,
    summary="",
    state_content_type=None,
    ordering_key="aggregate",
    types=(),
    aggregates=(),
    tables=(),
    grants=(),
    flush_interval_ms=None,
    changes={},
)


def to_wire(manifest: dict):
    """The manifest as it crosses. ValueError, with the member's name, where it is none."""
    for member in manifest:
        if member not in _DEFAULTS:
            raise ValueError(f"a manifest has no `{member}`{_meant(member, _DEFAULTS)}")
    whole = {**_DEFAULTS, **manifest}
    for member in ("name", "version"):
        if not isinstance(whole[member], str):
            raise ValueError(f"the manifest has no `{member}`")
    for member in ("types", "aggregates", "tables", "grants"):
        if not isinstance(whole[member], (list, tuple)):
            raise ValueError(f"`{member}` of the manifest is a {type(whole[member]).__name__} and not a list")
    return _types.Manifest(
        name=whole["name"],
        version=whole["version"],
        summary=whole["summary"],
        state_content_type=whole["state_content_type"],
        ordering_key=_ordering_key(whole["ordering_key"]),
        subscription=_types.Subscription(list(whole["types"]), list(whole["aggregates"])),
        tables=[table.to_wire() for table in whole["tables"]],
        grants=list(whole["grants"]),
        flush_interval_ms=whole["flush_interval_ms"],
        changes=[
            _types.ChangeScopes(aggregate, [_scope(scope) for scope in scopes])
            for aggregate, scopes in whole["changes"].items()
        ],
    )


def _ordering_key(key):
    if isinstance(key, PayloadField):
        return _types.OrderingKey_PayloadField(key.member)
    if key == "aggregate":
        return _types.OrderingKey_Aggregate()
    if key == "single":
        return _types.OrderingKey_Single()
    raise ValueError(f"the ordering key is {key!r}; it may be 'aggregate', 'single' or payload_field('member')")


def _scope(scope):
    if isinstance(scope, ChangeField):
        return _types.ChangeScope_Field(_types.ChangeField(scope.name, scope.member))
    if scope == "id":
        return _types.ChangeScope_Id()
    if scope == "tenant":
        return _types.ChangeScope_Tenant()
    raise ValueError(f"a scope of changes is {scope!r}; it may be 'id', 'tenant' or change_field('member')")


def _meant(name: str, known) -> str:
    near = get_close_matches(name, known, 1)
    return f"; did you mean `{near[0]}`?" if near else ""
