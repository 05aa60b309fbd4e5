"""Kernel modules: which others one needs, which devices it is for, and the tables that modprobe reads.

A kernel package has no modules.dep: depmod makes it at installation. Here it is made for the few modules that a guest
gets, from what each module says of itself in its .modinfo section.
Ref: Linux Documentation/kbuild/modules.rst, 5.3; modules.dep(5).
"""

from __future__ import annotations

import lzma
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst")
_MODINFO = re.compile(rb"(?<=\0)(depends|alias)=([^\0]*)(?=\0)")


class Module(NamedTuple):
    """A module. `path` is relative to lib/modules/RELEASE and ends in .ko; `content` is not compressed."""

    name: str
    path: str
    content: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def names(folder: Path) -> dict[str, Path]:
    """Every module below `folder` (lib/modules/RELEASE), by its name with underscores."""
    found = {}
    for path in sorted((folder / "kernel").rglob("*.ko*")):
        stem, dot, rest = path.name.partition(".")
        if dot + rest in _SUFFIXES:
            found[stem.replace("-", "_")] = path
    return found


def read(path: Path, folder: Path) -> Module:
    """Read one module. BootError for a compression that is not known."""
    content = path.read_bytes()
    relative = path.relative_to(folder).as_posix()
    if path.suffix == ".xz":
        content, relative = lzma.decompress(content), relative.removesuffix(".xz")
    elif path.suffix == ".zst":
        from vmm.boot.unpack import unpack

        content, relative = unpack(content, str(path)), relative.removesuffix(".zst")
    if not content.startswith(b"\x7fELF"):
        raise BootError("not a kernel module", str(path))
    depends: tuple[str, ...] = ()
    aliases = []
    for match in _MODINFO.finditer(content):
        text = match[2].decode("ascii", "replace")
        if match[1] == b"alias":
            aliases.append(text)
        else:
            depends = tuple(name.replace("-", "_") for name in text.split(",") if name)
    return Module(Path(relative).stem.replace("-", "_"), relative, content, depends, tuple(aliases))


def closure(folder: Path, wanted: Iterable[str]) -> list[Module]:
    """The modules of `wanted` that the kernel has (the rest may be built in), each behind those that it needs."""
    there = names(folder)
    chosen: dict[str, Module] = {}

    def take(name: str) -> None:
        if name in chosen or name not in there:
            return
        module = read(there[name], folder)
        for needed in module.depends:
            take(needed)
        chosen[name] = module

    for name in wanted:
        take(name.replace("-", "_"))
    return list(chosen.values())


def dependencies(modules: Iterable[Module]) -> str:
    """modules.dep: each module's file and all that must be loaded before it, from the last of the list to the first."""
    by_name = {module.name: module for module in modules}

    def needed(module: Module) -> list[str]:
        rows: list[str] = []
        for name in module.depends:
            if name in by_name:
                for path in (by_name[name].path, *needed(by_name[name])):
                    if path in rows:
                        rows.remove(path)  # behind whatever else needs it, too
                    rows.append(path)
        return rows

    return "".join(f"{module.path}: {' '.join(needed(module))}".rstrip() + "\n" for module in by_name.values())


def aliases(modules: Iterable[Module]) -> str:
    """modules.alias: which module a device asks for by the name the kernel gives it."""
    return "".join(f"alias {alias} {module.name}\n" for module in modules for alias in module.aliases)
