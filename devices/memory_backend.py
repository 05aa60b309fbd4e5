"""Memory backends: objects that are a piece of host memory.

    -object memory-backend-ram,id=m0,size=1M[,share=on]
    -object memory-backend-memfd,id=m0,size=256M[,share=on] -machine pc,memory-backend=m0 -m 256M

A device takes one by name, and so does the machine for its RAM. What is in a memfd and shared can be given to another
process, which then reaches it without asking: that is how a device in another process does DMA at full speed.
"""

from __future__ import annotations

import mmap
import os
from typing import Any, ClassVar

from devices.device import Property
from vmm.errors import ConfigError, PropertyError
from vmm.shared_memory import memfd


class MemoryBackendRam:
    """The object. `memory` has the bytes; `in_use` is the id of the device that has them mapped.

    `fd`, if not -1, is a file that has the bytes.
    """

    qom_type = "memory-backend-ram"
    properties: ClassVar[tuple[Property, ...]] = (
        Property("size", "size", 0, "bytes"),
        Property("share", "bool", False, "other processes may map it"),
    )

    def __init__(self, id: str, values: dict[str, Any]) -> None:
        self.id = id
        self.values = values
        self.in_use: str | None = None
        self.fd = -1
        self._map()

    def _map(self) -> None:
        values = self.values
        flags = mmap.MAP_ANONYMOUS | (mmap.MAP_SHARED if values["share"] else mmap.MAP_PRIVATE)
        try:
            self.memory = mmap.mmap(-1, values["size"], flags=flags)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot set up guest memory '{self.id}': Cannot allocate memory") from error

    @property
    def shared_fd(self) -> int:
        """The file through which other processes may reach the bytes; -1 if they may not."""
        return self.fd if self.values["share"] else -1

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


class MemoryBackendMemfd(MemoryBackendRam):
    """As `MemoryBackendRam`, in a memfd. It is sealed: nobody who has it can cut it off under the others."""

    qom_type = "memory-backend-memfd"
    properties = (
        Property("size", "size", 0, "bytes"),
        Property("share", "bool", True, "other processes may map it"),
        Property("seal", "bool", True, "keep the size as it is"),
    )

    def _map(self) -> None:
        size = self.values["size"]
        if size % mmap.PAGESIZE:
            raise ConfigError(f"backend memory size must be multiple of {mmap.PAGESIZE:#x}")
        self.fd = memfd(self.id, size, self.values["seal"])
        try:
            self.memory = mmap.mmap(self.fd, size, mmap.MAP_SHARED if self.values["share"] else mmap.MAP_PRIVATE)
        except (OSError, OverflowError) as error:
            os.close(self.fd)
            raise ConfigError(f"cannot set up guest memory '{self.id}': Cannot allocate memory") from error

    def close(self) -> None:
        """Give memory and file back."""
        super().close()
        os.close(self.fd)
