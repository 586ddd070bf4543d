"""Why an event could not be handled, and what the host should do about it."""

from .limits import FAILURE_MESSAGE_BYTES_MAX

_KINDS = ("retry", "reject", "fatal")


class Failure(Exception):
    """An event could not be handled. Raise one of `Failure.retry`, `Failure.reject` and `Failure.fatal`.

    Any other exception ends the instance: the host starts another, hands the events over one by one, and the one at
    fault becomes a dead letter that names the exception and its line.
    """

    def __init__(self, kind: str, message: object):
        if kind not in _KINDS:
            raise ValueError(f"{kind!r} is no kind of failure; there are: {', '.join(_KINDS)}")
        # Many hand over the exception that they caught.
        text = str(message)
        super().__init__(text)
        self.kind = kind
        self.message = text

    @classmethod
    def retry(cls, message: object) -> "Failure":
        """Transient: the host tries again later."""
        return cls("retry", message)

    @classmethod
    def reject(cls, message: object) -> "Failure":
        """The event itself is bad: it becomes a dead letter, and work goes on after it."""
        return cls("reject", message)

    @classmethod
    def fatal(cls, message: object) -> "Failure":
        """The processor cannot go on: the host stops it."""
        return cls("fatal", message)

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Refused(Exception):
    """Raise it in `load` to leave the running version in charge; its text is what the operator reads."""


def cut(message: str, most: int = FAILURE_MESSAGE_BYTES_MAX) -> str:
    """The beginning of a message that fits the bound, as text that can be written as UTF-8."""
    # A character takes a byte at least: a long message is not encoded whole.
    written = message[:most].encode("utf-8", "replace")[:most]
    return written.decode("utf-8", "ignore")
