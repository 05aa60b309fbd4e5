"""A search that is interrupted and goes on: what came of each shard is a file in a directory.

Nothing of a state is kept but its mark, its parent and who acted, so a file is about 21 bytes a state, and is as good
in any process, of any number, as long as the code and the scenario are the same: the states of the level in hand are
made again from the ways to them, and the marks of all of them are compared.

    00000.shard, 00001.shard, ...   marshalled: a sum of what is explored, and a shard (see `Checkpoint.add`)

Each is written under another name first, so an interrupted write leaves nothing half. A search has one directory, and a
directory one search at a time: its process holds a lock on the file `lock`.
"""

from __future__ import annotations

import fcntl
import marshal
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from vmm.errors import UsageError
from vmm.explore.alone import Spoilt

if TYPE_CHECKING:
    from vmm.explore.search import Search

SUFFIX = ".shard"
EXPLORED: Final = ("vmm/kernel", "vmm/explore", "vmm/order.py", "devices")


class Checkpoint:
    """`what` is explored (a text that tells scenarios apart), and the directory, which is made if there is none."""

    def __init__(self, directory: str | Path, what: str) -> None:
        self.path = Path(directory)
        self.key = blake2b(what.encode(), digest_size=16).digest()
        self.count = 0
        """Files so far."""
        self._lock: IO[bytes] | None = None

    def resume(self, search: Search) -> None:
        """Bring a search that has not begun to where the files end, and write down from now on what comes of it.

        One with goals begins anew: they are asked of all states and steps at once, which are not kept. UsageError if
        the files are of something else, cannot be read or written, or if somebody else is at it.
        """
        if search.graph is not None:
            return
        try:
            self._take()
            self._read(search)
        except OSError as error:
            raise _cannot(error, self.path) from error
        search.checkpoint = self

    def _take(self) -> None:
        """Nobody else may write there until this process ends, or forgets this object."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("wb")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self.path}: another search is at it; wait, or take another directory") from None

    def _read(self, search: Search) -> None:
        depth, stop, end = 0, 0, 1
        while (path := self._file(self.count)).exists():
            try:
                shard = marshal.loads(path.read_bytes())
                key, depth, start, stop, end, transitions, ends, parents, actors, marks, spoilt = shard
            except (ValueError, EOFError, TypeError):
                raise UsageError(f"{path} is no part of a search; remove the directory to begin anew") from None
            if key != self.key or start > len(search.parents):
                raise UsageError(f"{path} is of another search; give each a directory of its own")
            search.transitions, search.ends = transitions, ends
            search.parents.frombytes(parents)
            search.actors += actors
            search.seen.update(marks)
            search.spoilt = Spoilt(*spoilt) if spoilt else None
            self.count += 1
        if self.count:
            self._stand(search, depth, stop, end)

    def _stand(self, search: Search, depth: int, stop: int, end: int) -> None:
        known = len(search.parents)
        if stop == end:  # the level was over
            depth, end = depth + 1, known
        try:
            level = search.stand(range(stop, end))
        except Exception as error:
            raise UsageError(f"{self.path}: its steps lead elsewhere now: {error}") from error
        if len(search.seen) != known or not all(node.mark in search.seen for node in level):
            raise UsageError(f"{self.path}: its steps lead elsewhere now; the scenario or the code is not what it was")
        search.depth, search.level, search.base, search.end = depth, level, stop, end
        search.pending = range(end, known)

    def add(self, search: Search, states: range, marks: list[int]) -> None:
        """The steps of some states have been taken, and states with these marks, which are the last, are new."""
        first = len(search.parents) - len(marks)
        shard = (
            self.key,
            search.depth,
            states.start,
            states.stop,
            search.end,
            search.transitions,
            search.ends,
            search.parents[first:].tobytes(),
            bytes(search.actors[first:]),
            marks,
            tuple(search.spoilt or ()),
        )
        path = self._file(self.count)
        half = path.with_suffix(".half")
        try:
            half.write_bytes(marshal.dumps(shard))
            half.replace(path)
        except OSError as error:
            raise _cannot(error, half) from error
        self.count += 1

    def _file(self, number: int) -> Path:
        return self.path / f"{number:05}{SUFFIX}"


def _cannot(error: OSError, path: Path) -> UsageError:
    return UsageError(f"--checkpoint {error.filename or path}: {error.strerror}")


def digest(scenario: Path | None = None) -> str:
    """A sum of the explored code and of a scenario's file: what was found of one is nothing for another."""
    root = Path(__file__).parents[2]
    files = sorted(
        file for part in EXPLORED for file in ((root / part).rglob("*.py") if (root / part).is_dir() else [root / part])
    )
    made = blake2b(digest_size=8)
    for file in [*files, *([scenario] if scenario is not None else [])]:
        made.update(file.read_bytes())
    return made.hexdigest()
