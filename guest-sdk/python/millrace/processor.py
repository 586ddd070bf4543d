"""What a plugin implements."""

import inspect

from . import manifest as _manifest

_exported = None


class Processor:
    """A processor. An instance belongs to one task: one tenant, one lane. Its functions are called one at a time.

    `manifest` is a dict: `name` (lower-case letters, digits and `-`), `version` (a semantic one), `summary`,
    `state_content_type` (of a processor with state: what `snapshot` writes; another layout gets another name),
    `ordering_key` (`"aggregate"`, `"single"` or `payload_field("member")`), `types` and `aggregates` (those it gets; a
    trailing `*` stands for any ending; all, where it is not said), `tables`, `grants` (`clock`, `random`, `env`,
    `http`, `read_dir`, `channels`), `flush_interval_ms`, and `changes` (aggregate to a list of `"id"`, `"tenant"` and
    `change_field("member")`).
    """

    manifest: dict = {}

    def load(self, context, saved) -> None:
        """Begins work. `saved` is what this task last committed; None where no version has saved a state yet. Raise
        `Refused` to leave the running version in charge."""

    def handle(self, event, out) -> None:
        """Handles one event. Raise a `Failure` where it cannot be handled; what this instance keeps must then be as it
        was before the call."""
        raise NotImplementedError

    def flush(self, reason: str, out) -> None:
        """Work driven by time: at the interval that the manifest names (`tick`), at a stop (`shutdown`) and before
        another version takes over (`swap`)."""

    def snapshot(self) -> bytes:
        """The state to restart from, bytes or text. Two calls in a row must answer the same. Sets have another order
        in each build of a component: sort what comes from one."""
        return b""


def export(processor: type) -> type:
    """Makes a class the component's processor. Once in a plugin."""
    global _exported
    _manifest.to_wire(processor.manifest)
    for name in ("load", "handle", "flush", "snapshot"):
        method = getattr(processor, name, None)
        if not callable(method):
            raise TypeError(f"{processor.__name__} has no `{name}`; a processor is a subclass of millrace.Processor")
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            raise TypeError(f"`{name}` of {processor.__name__} is async; the host waits for each call, so it cannot be")
        if inspect.isgeneratorfunction(method):
            raise TypeError(f"`{name}` of {processor.__name__} has a `yield` in it: called, it would do nothing")
    if processor.handle is Processor.handle:
        raise TypeError(f"{processor.__name__} has no `handle` of its own")
    has_state = processor.manifest.get("state_content_type") is not None
    if has_state and processor.snapshot is Processor.snapshot:
        raise TypeError(f"{processor.__name__} declares `state_content_type` and has no `snapshot` of its own")
    _exported = processor
    return processor


def exported() -> type:
    """The class that was exported."""
    if _exported is None:
        raise RuntimeError("no class of the plugin's entry is marked with @millrace.export")
    return _exported
