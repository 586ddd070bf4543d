"""Tests of a plugin's logic with `python -m unittest`, without WebAssembly.

`Driver` does what the host does: it keeps rows under the version gate, emitted events, appended entries, keyed state
and snapshots. It also looks after the rules that an author can break: it raises an AssertionError, with a sentence,
when a failing event has changed the state, when `snapshot` answers two different things, or when what was loaded gives
another snapshot.
"""

from .driver import Appended, Driver, Failed, Message, batch_equals_singles
from .events import TestEvent, event, read_events
from .rows import Row

__all__ = [
    "Appended",
    "Driver",
    "Failed",
    "Message",
    "Row",
    "TestEvent",
    "batch_equals_singles",
    "event",
    "read_events",
]
