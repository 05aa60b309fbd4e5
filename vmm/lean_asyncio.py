"""asyncio without TLS: `from vmm.lean_asyncio import asyncio`.

asyncio imports ssl whether or not anybody will use it, which takes as long as half of asyncio itself. Who imports
asyncio here, in a process that has it not yet, gets it without; a later `import ssl` works as ever.
"""

import sys

if "ssl" not in sys.modules and "asyncio" not in sys.modules:
    sys.modules["ssl"] = None  # type: ignore[assignment]  # what asyncio takes for a Python built without
    try:
        import asyncio
    finally:
        del sys.modules["ssl"]
else:
    import asyncio

__all__ = ("asyncio",)
