"""One instance and its batches: what stands between the exported functions and the processor."""

from . import ambient, log
from . import manifest as _manifest
from .cells import to_bytes
from .effects import Effects
from .event import RECORD, Event
from .failure import Failure, Refused, cut
from .limits import TOLD_BYTES_MAX
from .state import Context, Saved
from .world import Err, types as _types

_iter_unpack = RECORD.iter_unpack
_WORD_BYTES = 8
_EVENT_WORDS = RECORD.size // _WORD_BYTES
_NOTHING = _types.Effects(b"", b"")
_SDK = __name__.rpartition(".")[0] + "."


class Instance:
    """What a component exports, function by function."""

    def __init__(self, processor: type):
        self._class = processor
        self._processor = None
        # An `at` is only looked for where somebody may ask for it.
        from .processor import Processor

        self._flushes = getattr(processor, "flush", None) is not Processor.flush

    def describe(self):
        ambient.begin(None)
        try:
            return _manifest.to_wire(self._class.manifest)
        except BaseException as error:
            tell(error)
            raise

    def load(self, context, saved) -> None:
        ambient.begin(None)
        event = Event()
        event._record = None
        try:
            manifest = self._class.manifest
            self._event, self._effects = event, Effects(manifest.get("tables", ()), event)
            ambient.begin(self._effects)
            self._processor = self._class()
            self._processor.load(
                Context(context.tenant, context.lane, context.lanes),
                None if saved is None else Saved(saved.content_type, saved.state),
            )
        except Refused as refused:
            raise Err(cut(str(refused))) from None
        except BaseException as error:
            tell(error)
            raise

    def handle(self, arena: bytes, events: bytes):
        """Handles events in order until one fails. What that one asked for is dropped."""
        event, effects, handle = self._event, self._effects, self._processor.handle
        ambient.begin(effects)
        event._arena = arena
        event._text = str(arena, "ascii") if arena.isascii() else None
        failure = None
        try:
            # This loop is all that an event costs beside its handler.
            for effects._index, event._record in enumerate(_iter_unpack(events)):
                handle(event, effects)
            handled = len(events) // RECORD.size
        except Failure as failed:
            effects._drop_event()
            handled = effects._index
            failure = _failure(handled, failed)
        except BaseException as error:
            tell(error, event)
            raise
        if self._flushes and handled:
            latest = max(memoryview(events).cast("q")[2 : handled * _EVENT_WORDS : _EVENT_WORDS])
            effects._latest = latest if effects._latest is None else max(effects._latest, latest)
        # The arena is not kept longer than its batch.
        event._record, event._arena, event._text = None, b"", ""
        effects._index = 0
        if not effects._records and not effects._written:
            return _types.Outcome(handled, _NOTHING, failure)
        return _types.Outcome(handled, _types.Effects(*effects._finish()), failure)

    def flush(self, reason):
        """Time-driven work. A failure drops its effects."""
        effects = self._effects
        ambient.begin(effects, in_flush=True)
        effects.state._forgotten = (None, 0)
        try:
            self._processor.flush(reason.name.lower(), effects)
        except Failure as failed:
            effects._finish()
            raise Err(_failure(0, failed)) from None
        except BaseException as error:
            tell(error)
            raise
        return _types.Effects(*effects._finish())

    def snapshot(self) -> bytes:
        ambient.begin(self._effects)
        try:
            return to_bytes("what `snapshot` answered", self._processor.snapshot())
        except BaseException as error:
            tell(error)
            raise


def _failure(index: int, failed: Failure):
    return _types.Failure(index, _types.FailureKind[failed.kind.upper()], cut(failed.message))


def tell(error: BaseException, event=None) -> None:
    """Writes an exception that nobody caught to the log, as the last words of this instance: what it was and, from the
    innermost on, where. By itself, since the usual ways to print a traceback look for the source, and there are no
    files."""
    places, others = [], []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        place = f"{_short(code.co_filename)}:{step.tb_lineno} in {code.co_name}"
        ours = str(step.tb_frame.f_globals.get("__name__", "")).startswith(_SDK)
        (others if ours else places).append(place)
        step = step.tb_next
    at = "" if event is None or event._record is None else f" at {event!r}"
    where = ", ".join(reversed(places or others))
    log.error(f"{type(error).__name__}: {_begin(_said(error))} ({_begin(where)}){at}")
    ambient.fall_silent()


def _begin(text: str) -> str:
    """The beginning of a text: what it begins with says most."""
    kept = cut(text, TOLD_BYTES_MAX)
    return text if len(kept) == len(text) else f"{kept}…"


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return "an exception that cannot be told: looking at it raises another one"


def _short(path: str) -> str:
    """A path as the plugin's author knows it: in a component, each folder of modules is mounted under a number."""
    parts = path.split("/")
    if len(parts) > 2 and parts[1].isdigit():
        return "/".join(parts[2:])
    return parts[-1]
