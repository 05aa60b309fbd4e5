"""UNIX sockets that listen: made without taking anybody else's, private from the first moment, and removed at the end.

A path whose socket nobody listens on any more is taken over; one that somebody listens on, or that is no socket, is
not. A leading `@` means the abstract name space, which has no files.
"""

from __future__ import annotations

import os
import socket
import stat

from vmm.errors import InUse


class UnixListener:
    """A listening UNIX socket and its file, of mode 0600.

    Raises InUse if somebody has the path, OSError if the host refuses.
    """

    __slots__ = ("_inode", "_path", "socket")

    def __init__(self, path: str, backlog: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._inode: tuple[int, int] | None = None
        # The process may change its directory before it removes the file.
        self._path = path if path.startswith("@") else os.path.abspath(path)  # noqa: PTH100  (pathlib takes long)
        try:
            if path.startswith("@"):
                self.socket.bind("\0" + path[1:])
            else:
                _clear_stale(path)
                # The file that bind makes takes this mode: there is no moment at which others may connect.
                os.fchmod(self.socket.fileno(), 0o600)
                self.socket.bind(path)
                made = os.stat(path)  # noqa: PTH116
                self._inode = (made.st_dev, made.st_ino)
            self.socket.listen(backlog)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening, and remove the file, but not another's that has taken its path. May be repeated."""
        self.socket.close()
        inode, self._inode = self._inode, None
        if inode is None:
            return
        try:
            there = os.lstat(self._path)
            if (there.st_dev, there.st_ino) == inode:
                os.unlink(self._path)  # noqa: PTH108
        except OSError:
            pass  # Gone already, or its directory is: what we wanted.


def _clear_stale(path: str) -> None:
    """Remove a socket's file that nobody listens on any more. Raises InUse if somebody does, or it is no socket."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InUse(f"Failed to listen on unix:{path}: the file is there and is no socket; choose another path", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # Somebody listens, and is busy.
    raise InUse(f"Failed to listen on unix:{path}: another process listens there; stop it or choose another path", path)
