"""Write Millrace processors in Python.

A processor is a class with `handle`, marked with `@export`. `millrace plugin build` makes a component of it;
`millrace.testing.Driver` runs it as plain Python.

    from millrace import Processor, Table, export, int_, text

    ORDERS = Table("orders", {"customer": text().filterable(), "cents": int_().sortable()}, versioned=True)

    @export
    class Orders(Processor):
        manifest = dict(name="orders", version="0.1.0", types=["order.*"], tables=[ORDERS])

        def handle(self, event, out):
            order = event.json()
            out.put(ORDERS, event.agg_id, event.version, order)

Promises: an event is borrowed from its batch, and what nobody asks for costs nothing; whole numbers keep all their
digits; the effects of an event that failed are dropped, those of the events before it are kept.

Deliberately absent: a clock, chance, files, sockets and threads. Inside a call, `time`, `datetime` and `random` answer
by the event at hand, so that a replay gives the same rows; `print` goes to the plugin's log. What a plugin imports is
loaded when the component is built: write every `import` at the top of a module.
"""

from .failure import Failure, Refused
from .cells import Column, bool_, bytes_, float_, int_, json_, text, timestamp
from .manifest import ChangeField, PayloadField, Table, change_field, payload_field
from .event import Event
from .channel import ChannelEntry
from .effects import Effects
from .state import Context, Saved
from .ambient import has_clock
from .times import format_time, parse_time, to_micros
from .processor import Processor, export
from . import config, log

__all__ = [
    "ChangeField",
    "ChannelEntry",
    "Column",
    "Context",
    "Effects",
    "Event",
    "Failure",
    "PayloadField",
    "Processor",
    "Refused",
    "Saved",
    "Table",
    "bool_",
    "bytes_",
    "change_field",
    "config",
    "export",
    "float_",
    "format_time",
    "has_clock",
    "int_",
    "json_",
    "log",
    "parse_time",
    "payload_field",
    "text",
    "timestamp",
    "to_micros",
]
