"""What Python programs take for granted and a component has not: clocks, chance, standard output.

Promises: in a call, every clock of `time` and `datetime` answers the `at` of the event at hand (in `flush` the latest
that was handled, and before the first one there is none: try again; in `load` 1970), in UTC; `random`, `os.urandom`, `uuid` and `secrets` give what follows
from the event's position, so that nothing secret is to be made of them; what is printed goes to the plugin's log. So
the same events give the same rows. Outside of a call, and in a plugin that was granted clocks or chance, they answer
as ever. Sleeping is refused: the host waits for each call.
"""

import datetime as _datetime
import os as _os
import random as _random
import sys as _sys
import time as _time

from . import log
from .failure import Failure
from .limits import LINE_CHARS_MAX

_real = {name: getattr(_time, name) for name in dir(_time)}
_RealDate, _RealDateTime = _datetime.date, _datetime.datetime
_UTC = _datetime.timezone.utc

# Of the running call; none outside of one. There is one at a time, and in a component it never ends.
_effects = None
_running = False
_in_flush = False
# Whether clocks are the machine's own, as the grant `clock` has it.
_own_clocks = False


def begin(effects, in_flush=False) -> None:
    """A call begins. `effects` knows the time."""
    global _effects, _running, _in_flush
    _effects, _running, _in_flush = effects, True, in_flush
    if in_flush:
        # Chance begins anew in each: what came of those before depends on when the instance began.
        _chance._event = None


def has_clock() -> bool:
    """Whether this plugin's clocks are the machine's: it was built with the grant `clock`. In tests they never are."""
    return _own_clocks


def end() -> None:
    """For tests, which go on outside of calls."""
    global _effects, _running
    _effects, _running = None, False


def micros() -> int:
    """What time it is in a call."""
    now = _effects.now if _effects is not None else None
    if now is None and _in_flush:
        raise Failure.retry("no event was handled since the start, so there is no time")
    return now or 0


def _clock(name: str, units_per_micro) -> None:
    real = _real[name]

    def clock():
        return units_per_micro(micros()) if _running else real()

    clock.__name__ = name
    setattr(_time, name, clock)


def _calendar(name: str) -> None:
    """These take a time, and now where there is none."""
    real, at = _real[name], 1 if name == "strftime" else 0

    def of_time(*arguments):
        if _running and (len(arguments) <= at or arguments[at] is None):
            seconds = micros() // 1_000_000
            now = _real["gmtime"](seconds) if name in ("strftime", "asctime") else seconds
            arguments = (*arguments[:at], now)
        return real(*arguments)

    of_time.__name__ = name
    setattr(_time, name, of_time)


def _sleep(seconds):
    if _running:
        raise RuntimeError("a processor does not sleep: the host waits for each call; keep what is due for `flush`")
    _real["sleep"](seconds)


def keep_clocks() -> None:
    global _own_clocks
    _own_clocks = True


def install_clocks() -> None:
    for name in ("time", "monotonic", "perf_counter", "process_time"):
        _clock(name, lambda micros: micros / 1_000_000)
        _clock(f"{name}_ns", lambda micros: micros * 1_000)
    for name in ("gmtime", "localtime", "ctime", "asctime", "strftime"):
        _calendar(name)
    _time.sleep = _sleep
    _datetime.date, _datetime.datetime = _Date, _DateTime


class _Kind(type):
    """What C code makes is of the real classes and has to count, too."""

    def __instancecheck__(cls, value):
        return isinstance(value, cls._real) if "_real" in vars(cls) else super().__instancecheck__(value)

    def __subclasscheck__(cls, other):
        return issubclass(other, cls._real) if "_real" in vars(cls) else super().__subclasscheck__(other)


class _Date(_RealDate, metaclass=_Kind):
    _real = _RealDate

    @classmethod
    def today(cls):
        return _now(_RealDateTime).date() if _running else _RealDate.today()


class _DateTime(_RealDateTime, metaclass=_Kind):
    _real = _RealDateTime

    @classmethod
    def now(cls, tz=None):
        if not _running:
            return _RealDateTime.now(tz)
        return _now(cls) if tz is None else _now(cls).replace(tzinfo=_UTC).astimezone(tz)

    @classmethod
    def utcnow(cls):
        return _now(cls) if _running else _RealDateTime.now(_UTC).replace(tzinfo=None)

    @classmethod
    def today(cls):
        return cls.now()


def _now(kind):
    return kind(1970, 1, 1) + _datetime.timedelta(microseconds=micros())


for _kind, _name in ((_Date, "date"), (_DateTime, "datetime")):
    _kind.__module__, _kind.__name__, _kind.__qualname__ = "datetime", _name, _name


class _Chance(_random.Random):
    """Begins anew with each event that asks for it."""

    _event = None

    def _at_hand(self):
        record = _effects._event._record if _effects is not None else None
        if _running and (self._event is None or record is not self._event[0]):
            self._event = (record,)
            self.seed(record[0] if record is not None else _latest())

    def random(self):
        self._at_hand()
        return super().random()

    def getrandbits(self, bits):
        self._at_hand()
        return super().getrandbits(bits)


def _latest() -> int:
    return (_effects.now or 0) if _effects is not None else 0


class _Seeded(_random.Random):
    """`random.Random()` without a seed takes one from the event; with one it is what it always was."""

    def __init__(self, seed=None):
        super().__init__(_chance.getrandbits(64) if seed is None and _running else seed)

    def seed(self, a=None, version=2):
        super().seed(_chance.getrandbits(64) if a is None and _running else a, version)


_chance = _Chance(0)


def install_chance() -> None:
    real = _os.urandom

    def urandom(size):
        return _chance.randbytes(size) if _running else real(size)

    _os.urandom = _random._urandom = urandom
    for name in _random.__all__:
        if name not in ("Random", "SystemRandom"):
            setattr(_random, name, getattr(_chance, name))
    _random._inst, _random.Random = _chance, _Seeded


class Lines:
    """A text stream whose lines go to the log."""

    encoding, errors, newlines, closed = "utf-8", "replace", None, False

    def __init__(self, write, outside):
        self._write, self._outside, self._line = write, outside, ""

    def write(self, text: str) -> int:
        if not _running:
            return self._outside.write(text)
        *lines, self._line = (self._line + text).split("\n")
        if len(self._line) > LINE_CHARS_MAX:
            lines.append(self._line)
            self._line = ""
        for line in lines:
            if line.strip():
                self._write(line[:LINE_CHARS_MAX])
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if _running and self._line.strip():
            line, self._line = self._line, ""
            self._write(line)
        elif not _running:
            self._outside.flush()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def fileno(self) -> int:
        raise OSError("what is printed goes to the log, which is no file")


def fall_silent() -> None:
    """After the last words of an instance, which say more than what the interpreter writes on its way out."""
    if isinstance(_sys.stderr, Lines):
        _sys.stderr._write = lambda line: None


def install_output() -> None:
    _sys.stdout = Lines(log.info, _sys.stdout)
    _sys.stderr = Lines(log.warn, _sys.stderr)
