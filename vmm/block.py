"""Disk images: a plain file, read and written in place.

What was written is in the host's page cache, so it survives the end of this process whatever way it comes; what was
flushed (`flush`, fdatasync(2)) survives the end of the host as well.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import ConfigError, InUse

if TYPE_CHECKING:
    from collections.abc import Sequence

_IOV_MAX = 1024
"""Buffers of one preadv(2) or pwritev(2)."""
_ZEROES = bytes(64 * 1024)
_KEEP_SIZE_PUNCH_HOLE = 0x03
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of fallocate(2)."""
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class FileImage:
    """An image in a file, locked while it is open: one writer, or any number of readers.

    `size` is in bytes. `read` and `write` raise OSError when the host fails, or when the file became shorter.
    """

    __slots__ = ("_fd", "path", "readonly", "size")

    def __init__(self, path: str, readonly: bool = False, sector_size: int = 512) -> None:
        """Open it. ConfigError if it cannot be opened or is no disk; InUse if another device or process has it."""
        self.path = path
        self.readonly = readonly
        try:
            # Not blocking: a FIFO would, until somebody opens its other end.
            flags = os.O_CLOEXEC | os.O_NONBLOCK
            self._fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | flags)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"Could not open '{path}': {reason}") from error
        try:
            self.size = self._check(sector_size)
        except BaseException:
            os.close(self._fd)
            raise

    def _check(self, sector_size: int) -> int:
        path = self.path
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ConfigError(f"image '{path}' is neither a file nor a block device")
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if self.readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            what = "read" if self.readonly else "write"
            raise InUse(
                f"Failed to get '{what}' lock on '{path}': another device or process has the image", holder=path
            ) from error
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if not size:
            raise ConfigError(f"image '{path}' is empty; make it as large as the disk: truncate -s 64M '{path}'")
        if size % sector_size:
            raise ConfigError(
                f"image '{path}' of {size} bytes does not end with a sector of {sector_size} bytes; "
                f"round it up: truncate -s %{sector_size} '{path}'"
            )
        return size

    def read(self, offset: int, buffers: Sequence[memoryview | bytearray]) -> None:
        """Fill the buffers, one after the other, with what is at `offset` and on."""
        left: list[memoryview | bytearray] = list(buffers)
        while left:
            done = os.preadv(self._fd, left[:_IOV_MAX], offset)
            if not done:
                raise OSError(errno.EIO, f"{self.path} ends at {offset:#x}")
            offset += done
            _advance(left, done)

    def write(self, offset: int, buffers: Sequence[bytes | memoryview | bytearray]) -> None:
        """Store the buffers, one after the other, at `offset` and on."""
        left: list[bytes | memoryview | bytearray] = list(buffers)
        while left:
            done = os.pwritev(self._fd, left[:_IOV_MAX], offset)
            offset += done
            _advance(left, done)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Let `length` bytes from `offset` on read as zeroes: a hole where the file system has holes."""
        if not _fallocate(self._fd, _KEEP_SIZE_PUNCH_HOLE, offset, length):
            return
        if (error := ctypes.get_errno()) not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
            raise OSError(error, os.strerror(error), self.path)
        while length:
            piece = min(length, len(_ZEROES) * _IOV_MAX)
            whole, rest = divmod(piece, len(_ZEROES))
            self.write(offset, [_ZEROES] * whole + [_ZEROES[:rest]] * bool(rest))
            offset += piece
            length -= piece

    def resize(self, size: int) -> None:
        """Make the file longer or shorter. OSError if the host could not; a block device has the size it has."""
        os.ftruncate(self._fd, size)
        self.size = size

    def flush(self) -> None:
        """Wait until everything written is on the medium. OSError if the host could not do it."""
        if not self.readonly:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Let the file go; a second close does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __repr__(self) -> str:
        return f"<FileImage {Path(self.path).name} {self.size}>"


def _advance(buffers: list[memoryview | bytearray] | list[bytes | memoryview | bytearray], done: int) -> None:
    """Take `done` bytes off the front."""
    while buffers and done >= len(buffers[0]):
        done -= len(buffers[0])
        del buffers[0]
    if done:
        buffers[0] = memoryview(buffers[0])[done:]
