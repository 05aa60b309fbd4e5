"""Archives in cpio's "newc" form, which Linux unpacks as its first root file system.

Ref: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MAGIC: Final = b"070701"
TRAILER: Final = "TRAILER!!!"
ALIGNMENT: Final = 4


class Archive:
    """An archive that grows entry by entry; `finish` gives its bytes. Directories above an entry are made as needed.

    Owner and group are root, times are zero: the same entries give the same bytes.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0
        self._names: set[str] = set()

    def directory(self, name: str, permissions: int = 0o755) -> None:
        """A directory; nothing if it is there already."""
        name = name.strip("/")
        if name and name not in self._names:
            self._above(name)
            self._entry(name, stat.S_IFDIR | permissions)

    def file(self, name: str, content: bytes, permissions: int = 0o644) -> None:
        """A plain file."""
        self._above(name)
        self._entry(name, stat.S_IFREG | permissions, content)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._above(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, permissions: int = 0o600) -> None:
        """A device node."""
        self._above(name)
        self._entry(name, stat.S_IFCHR | permissions, b"", (major, minor))

    def finish(self) -> bytes:
        """The archive with its trailer. Several of them may follow each other in one initrd; later files win."""
        end = Archive()
        end._entry(TRAILER, 0)
        return bytes(self._data + end._data)

    def _above(self, name: str) -> None:
        folder = name.strip("/").rpartition("/")[0]
        if folder:
            self.directory(folder)

    def _entry(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        name = name.strip("/")
        self._names.add(name)
        self._inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(path), 0)
        self._append((MAGIC + b"".join(b"%08X" % field for field in fields), path))
        self._append((content,))

    def _append(self, parts: Iterable[bytes]) -> None:
        for part in parts:
            self._data += part
        self._data += bytes(-len(self._data) % ALIGNMENT)
