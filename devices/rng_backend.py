"""Where random bytes come from: the objects rng-builtin and rng-random.

    -object rng-builtin,id=r0
    -object rng-random,id=r1,filename=/dev/hwrng

A device names one (`virtio-rng-pci,rng=r0`), and it is that device's until it is unplugged.
"""

from __future__ import annotations

import os
from typing import Any

from devices.device import Property
from vmm.errors import ConfigError, PropertyError


class RngBuiltin:
    """The host's own random numbers. `in_use` is the id of the device that has it."""

    qom_type = "rng-builtin"
    properties: tuple[Property, ...] = ()

    def __init__(self, id: str, values: dict[str, Any]) -> None:
        self.id = id
        self.values = values
        self.in_use: str | None = None

    @classmethod
    def create(cls, id: str, properties: dict[str, object], from_text: bool, board: Any) -> RngBuiltin:  # noqa: ARG003
        """PropertyError for an unknown property or a bad value, ConfigError if there is no such source."""
        known = {p.name: p for p in cls.properties}
        values: dict[str, Any] = {p.name: p.default for p in cls.properties}
        for name, value in properties.items():
            if name not in known:
                raise PropertyError(f"Property '{cls.qom_type}.{name}' not found", cls.qom_type, name)
            values[name] = known[name].parse(cls.qom_type, value, from_text)
        return cls(id, values)

    def random(self, length: int) -> bytes:
        """Up to `length` bytes; none if there are none now."""
        return os.urandom(length)

    def close(self) -> None:
        """Give back what it holds."""


class RngRandom(RngBuiltin):
    """A file of random bytes: a character device of the host, as a rule."""

    qom_type = "rng-random"
    properties = (Property("filename", "str", "/dev/urandom", "where the bytes come from"),)

    def __init__(self, id: str, values: dict[str, Any]) -> None:
        super().__init__(id, values)
        path = values["filename"]
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"Could not open '{path}': {reason}") from error

    def random(self, length: int) -> bytes:
        """What the file gives without waiting; nothing once it failed or ended."""
        try:
            return os.read(self._fd, length) if self._fd >= 0 else b""
        except OSError:
            return b""

    def close(self) -> None:
        """Close the file. A second close does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
