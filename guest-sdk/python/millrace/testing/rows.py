"""Rows, read back from their cells."""

import json
from struct import unpack_from

from ..cells import BYTES, FLOAT, INT, JSON, TEXT, TIMESTAMP


class Row(dict):
    """Columns by their names, in the table's order. Times are microseconds since 1970."""

    version = 0

    def __repr__(self) -> str:
        return f"{super().__repr__()} (version {self.version})"


def read(table, version: int, cells: bytes) -> Row:
    row = Row()
    row.version = version
    at = 0
    for column in table.columns:
        row[column.name], at = _cell(cells, at)
    assert at == len(cells), "the cells are those of the table's columns"
    return row


def _cell(cells: bytes, at: int):
    tag = cells[at]
    if tag < INT:
        return (None, False, True)[tag], at + 1
    if tag in (INT, TIMESTAMP):
        return unpack_from("<q", cells, at + 1)[0], at + 9
    if tag == FLOAT:
        return unpack_from("<d", cells, at + 1)[0], at + 9
    end = at + 5 + unpack_from("<I", cells, at + 1)[0]
    part = cells[at + 5 : end]
    if tag == BYTES:
        return part, end
    return (json.loads(part) if tag == JSON else part.decode()) if tag in (TEXT, JSON) else None, end
