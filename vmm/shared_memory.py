"""Memory that several processes have, behind a descriptor: guest RAM, and parts of a BAR.

A file that another process made may be cut off under a mapping, and touching it then ends a process with SIGBUS. So a
file is mapped only if it is sealed against shrinking, which what is made here always is, and read and written with
pread(2) and pwrite(2) otherwise.
Ref: memfd_create(2), fcntl(2), F_ADD_SEALS
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from typing import TYPE_CHECKING

from vmm.errors import ConfigError
from vmm.memory import IoRegion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

F_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW = 1, 2, 4


def memfd(name: str, size: int, seal: bool = True) -> int:
    """A new memfd, which with `seal` keeps its size. ConfigError if the host has not that much."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, size)
            if seal:
                fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)
        except BaseException:
            os.close(fd)
            raise
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot set up shared memory '{name}': {error}") from error
    return fd


class SharedBytes:
    """`size` bytes from `offset` of a file on. `fd` stays the caller's, and open as long as this.

    OSError EINVAL if it is no file or ends before; EACCES if it cannot be read, or written although `writable`.
    """

    __slots__ = ("_fd", "_offset", "size", "view")

    def __init__(self, fd: int, offset: int, size: int, writable: bool = True, map_it: bool = True) -> None:
        self._fd = fd
        self._offset = offset
        self.size = size
        self.view: mmap.mmap | None = None
        """The mapping, if there may be one."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or offset + size > status.st_size:
            raise OSError(errno.EINVAL, "the descriptor is no file, or ends before the range")
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == os.O_WRONLY or (writable and mode != os.O_RDWR):
            raise OSError(errno.EACCES, "the descriptor does not allow what is wanted")
        if map_it and is_sealed(fd) and not offset % mmap.ALLOCATIONGRANULARITY:
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            self.view = mmap.mmap(fd, size, mmap.MAP_SHARED, protection, offset=offset)

    def read(self, at: int, count: int) -> bytes:
        """Bytes `at` the start and on, inside; all ones where the file has been cut off."""
        if self.view is not None:
            return self.view[at : at + count]
        try:
            data = os.pread(self._fd, count, self._offset + at)
        except OSError:
            data = b""
        return data + b"\xff" * (count - len(data))

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Store; what lies where the file has been cut off is lost."""
        if self.view is not None:
            self.view[at : at + len(data)] = bytes(data)
            return
        with contextlib.suppress(OSError):
            # pwrite would make a file longer that was cut off.
            room = os.fstat(self._fd).st_size - self._offset - at
            if room > 0:
                os.pwrite(self._fd, data[:room], self._offset + at)

    def close(self) -> None:
        """Unmap. A second close does nothing."""
        if self.view is not None:
            self.view.close()
            self.view = None


def is_sealed(fd: int) -> bool:
    """Whether a file can never become shorter."""
    try:
        return bool(fcntl.fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK)
    except OSError:  # a file that cannot be sealed
        return False


class SharedRegion(IoRegion):
    """A region whose `areas` (offset, size) are memory in a file; other accesses go to `read` and `write`.

    Without `fd` it is a memfd of its own; else `fd` is taken over, and the region begins at `file_offset` in it. `fd`
    and `file_offset` are what another process needs to map the areas. `close` gives all of it back. OSError as
    `SharedBytes`; then `fd` stays the caller's.
    """

    __slots__ = ("_parts", "areas", "fd", "file_offset")

    def __init__(
        self,
        name: str,
        size: int,
        areas: Sequence[tuple[int, int]] | None = None,
        read: Callable[[int, int], int] | None = None,
        write: Callable[[int, int, int], None] | None = None,
        fd: int = -1,
        file_offset: int = 0,
    ) -> None:
        self.areas = tuple(areas) if areas is not None else ((0, size),)
        for offset, length in self.areas:
            if offset < 0 or length <= 0 or offset + length > size or (offset | length) % mmap.PAGESIZE:
                raise ConfigError(f"{name}: {offset:#x}+{length:#x} is not made of pages of {size:#x} bytes")
        self.file_offset = file_offset
        self.fd = memfd(name, file_offset + size) if fd < 0 else fd
        self._parts: list[tuple[int, int, SharedBytes]] = []
        try:
            for offset, length in self.areas:
                self._parts.append((offset, offset + length, SharedBytes(self.fd, file_offset + offset, length)))
        except BaseException:
            self._close_parts()
            if fd < 0:
                os.close(self.fd)
            raise
        other_read = read or (lambda _offset, size: (1 << 8 * size) - 1)
        other_write = write or (lambda _offset, _size, _value: None)

        def read_any(offset: int, size: int) -> int:
            for start, end, part in self._parts:
                if start <= offset and offset + size <= end:
                    return int.from_bytes(part.read(offset - start, size), "little")
            return other_read(offset, size)

        def write_any(offset: int, size: int, value: int) -> None:
            for start, end, part in self._parts:
                if start <= offset and offset + size <= end:
                    part.write(offset - start, value.to_bytes(size, "little"))
                    return
            other_write(offset, size, value)

        super().__init__(name, size, read_any, write_any)

    def _close_parts(self) -> None:
        while self._parts:
            self._parts.pop()[2].close()

    def close(self) -> None:
        """Unmap and close the descriptor. A second close does nothing."""
        if self.fd >= 0:
            self._close_parts()
            os.close(self.fd)
            self.fd = -1
