"""Time as events and rows have it: microseconds since 1970."""

import datetime
import re

_RFC_3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_UTC = datetime.timezone.utc
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=_UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


def parse_time(text: str) -> int:
    """Reads an RFC 3339 time; ValueError where it is none. What is finer than a microsecond is cut off; a leap second
    counts as the one before."""
    found = _RFC_3339.fullmatch(text)
    if found is None:
        raise ValueError(f"`{text[:80]}` is not an RFC 3339 time such as 2013-01-01T08:15:00Z")
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = found.groups()
    try:
        at = datetime.datetime(
            int(year), int(month), int(day), int(hour), int(minute), min(int(second), 59), tzinfo=_UTC
        )
        if int(second) > 60 or int(hours or 0) > 23 or int(minutes or 0) > 59:
            raise ValueError
    except ValueError:
        raise ValueError(f"`{text[:80]}` is no time that there is") from None
    micros = (at - _EPOCH) // _MICROSECOND + int(((fraction or "") + "000000")[:6])
    offset = (int(hours or 0) * 60 + int(minutes or 0)) * 60_000_000
    return micros + offset if sign == "-" else micros - offset


def format_time(micros: int) -> str:
    """RFC 3339 in UTC, with as many digits of a second as it takes. OverflowError for times beyond the year 9999."""
    at = _EPOCH + datetime.timedelta(microseconds=micros)
    text = at.strftime("%Y-%m-%dT%H:%M:%S") if at.year > 999 else at.isoformat()[:19]
    fraction = f"{at.microsecond:06}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"


def to_micros(time: "int | str | datetime.datetime") -> int:
    """Microseconds since 1970 of what stands for a time: such a number, RFC 3339 text or a `datetime` with a zone."""
    if type(time) is int:
        return time
    if isinstance(time, str):
        return parse_time(time)
    if isinstance(time, datetime.datetime):
        if time.tzinfo is None:
            raise ValueError("a datetime without a zone is no time; give it tzinfo=timezone.utc")
        return (time - _EPOCH) // _MICROSECOND
    raise TypeError(f"a {type(time).__name__} is no time; microseconds since 1970, RFC 3339 text or a datetime are")
