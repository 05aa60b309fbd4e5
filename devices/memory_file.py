"""memory-backend-file: host memory that is a file, which other processes may map as well.

-object memory-backend-file,id=m0,size=1M,share=on,mem-path=/dev/shm/m0
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from pathlib import Path

from devices.device import Property
from devices.memory_backend import MemoryBackendRam
from vmm.errors import ConfigError, PropertyError


class MemoryBackendFile(MemoryBackendRam):
    """The object. A file that is not there is made, one that is too short grows; `share=off` leaves it as it is.

    In a directory it is a file without a name, which is gone with the last who has it.
    """

    qom_type = "memory-backend-file"
    properties = (
        Property("size", "size", 0, "bytes"),
        Property("share", "bool", False, "other processes may map it"),
        Property("mem-path", "str", None, "path of the file, or of a directory"),
        Property("readonly", "bool", False, "open the file for reading only"),
        Property("discard-data", "bool", False, "the content need not be kept"),
    )

    def _map(self) -> None:
        values = self.values
        path, size, readonly = values["mem-path"], values["size"], values["readonly"]
        if not path:
            raise PropertyError("mem-path property not set", self.qom_type, "mem-path")
        if readonly and values["share"]:
            raise ConfigError("memory that devices write cannot be mapped readonly=on,share=on")
        try:
            self.fd = self._open(path, readonly)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"can't open backing store {path} for guest RAM: {reason}") from error
        try:
            if os.fstat(self.fd).st_size < size:
                if readonly:
                    raise OSError(errno.EINVAL, f"it is shorter than {size} bytes")
                os.ftruncate(self.fd, size)
            flags = mmap.MAP_SHARED if values["share"] else mmap.MAP_PRIVATE
            self.memory = mmap.mmap(self.fd, size, flags=flags)
        except (OSError, OverflowError, ValueError) as error:
            os.close(self.fd)
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise ConfigError(f"unable to map backing store {path} for guest RAM: {reason}") from error

    @staticmethod
    def _open(path: str, readonly: bool) -> int:
        if Path(path).is_dir():
            with tempfile.TemporaryFile(dir=path) as file:
                return os.dup(file.fileno())
        how = os.O_RDONLY if readonly else os.O_RDWR | os.O_CREAT
        # Not blocking: a FIFO would, until somebody opens its other end.
        return os.open(path, how | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK, 0o644)

    def close(self) -> None:
        """Give memory and file back."""
        super().close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
