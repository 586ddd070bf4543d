"""What the host offers. In a component it is what the tools made of the world; elsewhere `plain` stands in."""

try:
    from componentize_py_types import Err
    from wit_world.imports import config, log, state, types
except ModuleNotFoundError as missing:
    if missing.name not in ("componentize_py_types", "wit_world"):
        raise
    from .plain import Err, config, log, state, types

__all__ = ["Err", "config", "log", "state", "types"]
