"""Reading what others have appended to channels of processes.

A channel that was made with `events` is an input stream: each of its entries is an event of the aggregate `channel`
with the type `channel.data`, `channel.end` or `channel.error`, and `ChannelEntry` is its payload.
"""

from binascii import a2b_base64

from .failure import Failure

_TYPES = ("data", "end", "error")
_EPOCH_MAX = (1 << 32) - 1


class ChannelEntry:
    """An entry as an event tells it: `event.payload_as(ChannelEntry)`."""

    __slots__ = (
        "process",
        "channel",
        "position",
        "epoch",
        "sequence",
        "in_reply_to",
        "sender",
        "executor",
        "entry_type",
        "payload",
        "text",
        "error",
    )

    def __init__(self, payload: dict):
        if not isinstance(payload, dict):
            raise TypeError(f"a {type(payload).__name__} is no entry")
        self.process: str = _member(payload, "process", _is_text)
        self.channel: str = _member(payload, "channel", _is_text)
        # Its place in the channel, from 1 on without holes.
        self.position: int = _member(payload, "position", _is_count)
        self.epoch: int = _member(payload, "epoch", lambda value: _is_count(value) and value <= _EPOCH_MAX)
        # Counted by its sender.
        self.sequence: int = _member(payload, "sequence", _is_count)
        self.in_reply_to: "int | None" = _optional(payload, "inreplyto", _is_count)
        self.sender: str = _member(payload, "senderid", _is_text)
        # Who executed the channel when this was appended; a plugin is `plugin:<name>`.
        self.executor: "str | None" = _optional(payload, "executorid", _is_text)
        # `data`, `end` or `error`.
        self.entry_type: str = _member(payload, "type", lambda value: value in _TYPES)
        # Base64; `bytes` has what it stands for.
        self.payload: "str | None" = _optional(payload, "payload", _is_text)
        # The payload, where it is text.
        self.text: "str | None" = _optional(payload, "text", _is_text)
        self.error: "str | None" = _optional(payload, "error", _is_text)

    def bytes(self) -> "bytes | None":
        """The payload; None where the entry has none."""
        if self.payload is None:
            return None
        try:
            return a2b_base64(self.payload)
        except ValueError:
            raise Failure.reject(f"the payload of entry {self.position} of `{self.channel}` is not base64") from None

    def __eq__(self, other) -> bool:
        if not isinstance(other, ChannelEntry):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __repr__(self) -> str:
        return f"<entry {self.position}: {self.entry_type} of {self.sender} in {self.process} {self.channel}>"


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_count(value) -> bool:
    return type(value) is int and value >= 0


def _member(payload: dict, name: str, fits):
    value = payload.get(name)
    if not fits(value):
        raise ValueError(f"`{name}` of an entry is {value!r}")
    return value


def _optional(payload: dict, name: str, fits):
    return None if payload.get(name) is None else _member(payload, name, fits)
