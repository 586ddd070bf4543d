"""Columns, and one cell: a byte of tag and its value. The world's `types.wit` has the list of tags."""

import math
from json import JSONEncoder
from struct import Struct

from .failure import Failure
from .limits import INT_MAX, INT_MIN
from .times import to_micros

NULL, _FALSE, _TRUE = b"\0", b"\1", b"\2"
INT, FLOAT, TEXT, BYTES, JSON, TIMESTAMP = 3, 4, 5, 6, 7, 8
_pack_int = Struct("<Bq").pack
_pack_float = Struct("<Bd").pack
_pack_length = Struct("<BI").pack
# Up to here every whole number is a float, too.
_FLOAT_INT_MAX = 1 << 53

_json_text = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_json(value) -> bytes:
    """A value as JSON without spaces. ValueError where it holds what JSON has not, TypeError where it is no data."""
    try:
        return _json_text(value).encode()
    except UnicodeEncodeError:
        raise ValueError("text with half a character in it is no UTF-8") from None


def to_bytes(what: str, value) -> bytes:
    """Text as UTF-8, bytes as they are. Nothing else: of a whole number `bytes` would make as many zeros."""
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise Failure.reject(f"{what} has half a character in it, which is no UTF-8") from None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise Failure.fatal(f"{what} is a {type(value).__name__}, which is neither text nor bytes")


# A writer answers a cell. ValueError says that this value is bad (the event is rejected), TypeError that no such value
# fits the column (the plugin is wrong).


def _write_bool(value) -> bytes:
    if value is True:
        return _TRUE
    if value is False:
        return _FALSE
    raise TypeError


def _write_int(value) -> bytes:
    if type(value) is not int:
        raise TypeError
    if INT_MIN <= value <= INT_MAX:
        return _pack_int(INT, value)
    raise ValueError(f"is {value}, which a signed 64-bit number does not hold")


def _write_float(value) -> bytes:
    if type(value) is int:
        if abs(value) > _FLOAT_INT_MAX:
            raise ValueError(f"is {value}, which a float does not hold exactly")
    elif not isinstance(value, float):
        raise TypeError
    elif not math.isfinite(value):
        raise ValueError(f"is {value}, which is not finite")
    return _pack_float(FLOAT, value)


def _write_text(value) -> bytes:
    if not isinstance(value, str):
        raise TypeError
    try:
        written = value.encode()
    except UnicodeEncodeError:
        raise ValueError("has half a character in it, which is no UTF-8") from None
    return _pack_length(TEXT, len(written)) + written


def _write_bytes(value) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError
    written = bytes(value)
    return _pack_length(BYTES, len(written)) + written


def _write_json(value) -> bytes:
    try:
        written = bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else to_json(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be written: {error}") from None
    return _pack_length(JSON, len(written)) + written


def _write_timestamp(value) -> bytes:
    if type(value) is not int:
        try:
            value = to_micros(value)
        except ValueError as error:
            raise ValueError(f"cannot be read as a time: {error}") from None
    if INT_MIN <= value <= INT_MAX:
        return _pack_int(TIMESTAMP, value)
    raise ValueError(f"is {value} microseconds, which a signed 64-bit number does not hold")


def _or_null(write):
    def write_or_null(value) -> bytes:
        return NULL if value is None else write(value)

    return write_or_null


_WRITERS = {
    "bool": _write_bool,
    "int": _write_int,
    "float": _write_float,
    "text": _write_text,
    "bytes": _write_bytes,
    "json": _write_json,
    "timestamp": _write_timestamp,
}


class Column:
    """A column of a table. Cannot be null, filtered or sorted by unless it says so."""

    __slots__ = ("type", "can_be_null", "can_filter", "can_sort")

    def __init__(self, type: str, can_be_null=False, can_filter=False, can_sort=False):
        self.type = type
        self.can_be_null = can_be_null
        self.can_filter = can_filter
        self.can_sort = can_sort

    def nullable(self) -> "Column":
        """May be null: `None`, or a member that a row does not have."""
        return Column(self.type, True, self.can_filter, self.can_sort)

    def filterable(self) -> "Column":
        """May stand in `where`."""
        return Column(self.type, self.can_be_null, True, self.can_sort)

    def sortable(self) -> "Column":
        """May stand in `order`; gets an index."""
        return Column(self.type, self.can_be_null, self.can_filter, True)

    def writer(self):
        write = _WRITERS[self.type]
        return _or_null(write) if self.can_be_null else write


def bool_() -> Column:
    """True or false."""
    return Column("bool")


def int_() -> Column:
    """A whole number of 64 bits, signed."""
    return Column("int")


def float_() -> Column:
    """A number of 64 bits, finite."""
    return Column("float")


def text() -> Column:
    """A `str`."""
    return Column("text")


def bytes_() -> Column:
    """What is made of bytes."""
    return Column("bytes")


def json_() -> Column:
    """Anything that JSON has; what is made of bytes is taken for JSON text as it is."""
    return Column("json")


def timestamp() -> Column:
    """Microseconds since 1970, RFC 3339 text, or a `datetime` with a zone."""
    return Column("timestamp")
