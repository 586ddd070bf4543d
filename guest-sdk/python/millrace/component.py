"""Where a component begins: imported before anything of the plugin, so that its `from time import time` finds what the
SDK put there. What is imported from here on is part of the component."""

import builtins
import gc
import sys

# Python looks for these when they are first needed, and then there are no files any more.
import _strptime
import encodings.ascii
import encodings.idna
import encodings.latin_1
import encodings.utf_16
import stringprep

from wit_world import exports

from . import ambient
from .instance import Instance
from .processor import exported


_grants = ()


def begin(grants: "tuple[str, ...]") -> None:
    """Before the plugin is imported. What its operator is asked for is left as it is."""
    global _grants
    _grants = grants
    if "clock" in grants:
        ambient.keep_clocks()
    else:
        ambient.install_clocks()
    if "random" not in grants:
        ambient.install_chance()
    ambient.install_output()


class _Late:
    """Looks for modules when all that there are were loaded."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        raise ModuleNotFoundError(
            f"`{name}` was not loaded when the component was built: import it at the top of a module", name=name
        )


def _open(file, *_, **__):
    raise PermissionError(f"{file!r} cannot be opened: a component has no files")


def handler() -> type:
    """After it: what the world wants to be exported."""
    instance = Instance(exported())
    if not _grants:
        # Whoever looked for files would fall without a word: there is nobody to ask for them.
        sys.meta_path[:] = [_Late]
        builtins.open = _open

    class Handler(exports.Handler):
        def describe(self):
            return instance.describe()

        def load(self, context, saved):
            instance.load(context, saved)

        def handle(self, arena, events):
            return instance.handle(arena, events)

        def flush(self, reason):
            return instance.flush(reason)

        def snapshot(self):
            return instance.snapshot()

    # What was made until now stays, and is not to be looked through for garbage again and again.
    gc.collect()
    gc.freeze()
    return Handler
