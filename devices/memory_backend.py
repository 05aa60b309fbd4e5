"""memory-backend-ram: an object that is a piece of anonymous host memory.

    -object memory-backend-ram,id=m0,size=1M[,share=on]

The machine's own RAM is not made from one: it is for devices that take memory by name.
"""

from __future__ import annotations

import mmap
from typing import Any

from devices.device import Property
from vmm.errors import ConfigError, PropertyError


class MemoryBackendRam:
    """The object. `memory` has the bytes; `in_use` is the id of the device that has them mapped."""

    qom_type = "memory-backend-ram"
    properties = (
        Property("size", "size", 0, "bytes"),
        Property("share", "bool", False, "other processes may map it"),
    )

    def __init__(self, id: str, values: dict[str, Any]) -> None:
        self.id = id
        self.values = values
        self.in_use: str | None = None
        flags = mmap.MAP_ANONYMOUS | (mmap.MAP_SHARED if values["share"] else mmap.MAP_PRIVATE)
        try:
            self.memory = mmap.mmap(-1, values["size"], flags=flags)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot set up guest memory '{id}': Cannot allocate memory") from error

    @classmethod
    def create(cls, id: str, properties: dict[str, object], from_text: bool, board: Any) -> MemoryBackendRam:  # noqa: ARG003
        """PropertyError for an unknown property or a bad value, ConfigError if the host has not that much."""
        known = {p.name: p for p in cls.properties}
        values: dict[str, Any] = {p.name: p.default for p in cls.properties}
        for name, value in properties.items():
            if name not in known:
                raise PropertyError(f"Property '{cls.qom_type}.{name}' not found", cls.qom_type, name)
            values[name] = known[name].parse(cls.qom_type, value, from_text)
        if "size" not in properties:
            raise PropertyError("Parameter 'size' is missing", cls.qom_type, "size")
        if values["size"] == 0:
            raise PropertyError("can't create backend with size 0", cls.qom_type, "size")
        return cls(id, values)

    def close(self) -> None:
        """Give the memory back."""
        self.memory.close()
