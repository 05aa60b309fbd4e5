"""Modules that a start need not wait for: import this first, and asyncio from here.

asyncio imports ssl whether or not anybody will use it; a process that imports asyncio here gets it without (a later
`import ssl` works as ever). A few others of Python's own are imported when something of theirs is used: construct, for
one, imports the debugger.
"""

import importlib
import sys
from types import ModuleType
from typing import Any, Final

_SELDOM: Final = ("bz2", "lzma", "pdb", "pickle")
"""Imported by what we import, hardly ever used by what we do."""


class _Later(ModuleType):
    """Stands for a module until one of its names is looked up. (importlib's LazyLoader loads at the next import.)"""

    def __getattr__(self, attribute: str) -> Any:
        name = self.__name__
        if sys.modules.get(name) is self:
            del sys.modules[name]
        module = importlib.import_module(name)
        self.__dict__.update(module.__dict__)
        return getattr(module, attribute)


for _name in _SELDOM:
    if _name not in sys.modules:
        sys.modules[_name] = _Later(_name)

if "ssl" not in sys.modules and "asyncio" not in sys.modules:
    sys.modules["ssl"] = None  # type: ignore[assignment]  # what asyncio takes for a Python built without
    try:
        import asyncio
    finally:
        del sys.modules["ssl"]
else:
    import asyncio

__all__ = ("asyncio",)
