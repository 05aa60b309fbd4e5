"""`-daemonize`, and giving up rights with `-run-with chroot=,user=`.

Ref: daemon(7); QEMU os-posix.c: what the parent reports, and when descriptors 0 to 2 go to /dev/null.
"""

from __future__ import annotations

import contextlib
import os

from vmm.errors import ConfigError, UsageError


class Daemon:
    """The child's side of a fork whose parent waits until the machine is made, or could not be."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """The machine is there: let the parent go, and let go of the terminal."""
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        if null > 2:
            os.close(null)
        os.write(self._pipe, b"\0")
        os.close(self._pipe)


def daemonize() -> Daemon:
    """Return in the child. The parent ends here: status 0 once the child is `ready`, 1 if it ended before."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        _exit(0 if os.read(reading, 1) == b"\0" else 1)
    os.close(reading)
    os.setsid()
    if os.fork():
        # Not a session's leader: it can never get a terminal again.
        _exit(0)
    os.umask(0o027)
    return Daemon(writing)


def _exit(status: int) -> None:
    os._exit(status)


def give_up_rights(chroot: str | None, user: str | None) -> None:
    """`-run-with`: what was opened stays open. ConfigError if it cannot be done."""
    ids = None if user is None else _user(user)
    if chroot is not None:
        _import_all()
        try:
            os.chroot(chroot)
            os.chdir("/")
        except OSError as error:
            raise ConfigError(f"-run-with chroot={chroot}: {error.strerror}") from error
    if ids is not None:
        uid, gid, groups = ids
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
        except OSError as error:
            raise ConfigError(f"-run-with user={user}: {error.strerror}") from error


def _import_all() -> None:
    """Import now what is imported when it is first used: later there are no files to import it from."""
    import importlib
    import pkgutil

    import devices
    import machine
    import vmm

    apart = ("vmm.cli.", "vmm.explore", "vmm.dispute", "vmm.pytest_plugin", "vmm.vectors", "vmm.qmp.document")
    for package in (devices, machine, vmm):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith(apart):
                with contextlib.suppress(ImportError):  # a device whose library is not here
                    importlib.import_module(module.name)


def _user(text: str) -> tuple[int, int, list[int]]:
    import pwd

    uid, colon, gid = text.partition(":")
    if colon:
        if not (uid.isdecimal() and gid.isdecimal()):
            raise UsageError(f'User "{text}" is not a name, and not UID:GID')
        return int(uid), int(gid), [int(gid)]
    try:
        found = pwd.getpwnam(text)
    except KeyError:
        raise UsageError(f'User "{text}" doesn\'t exist') from None
    return found.pw_uid, found.pw_gid, os.getgrouplist(text, found.pw_gid)
