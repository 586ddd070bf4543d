"""Messages for the operator. The host bounds their size and rate, and puts the plugin, tenant and lane beside them."""

from .world import log as _log

_DEBUG, _INFO, _WARN, _ERROR = _log.Level.DEBUG, _log.Level.INFO, _log.Level.WARN, _log.Level.ERROR


def _write(level, message) -> None:
    # Text may hold halves of characters, which the host would not take.
    _log.write(level, str(message).encode("utf-8", "replace").decode())


def debug(message) -> None:
    """For who looks closely."""
    _write(_DEBUG, message)


def info(message) -> None:
    """A change of state."""
    _write(_INFO, message)


def warn(message) -> None:
    """Something was wrong, and was coped with."""
    _write(_WARN, message)


def error(message) -> None:
    """Somebody should act. In a call that falls it is also what the dead letter says."""
    _write(_ERROR, message)
