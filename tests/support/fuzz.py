"""Inputs for monitors, qtest and the command line: right ones made from their declarations, and damaged ones.

An input is right, damaged in its structure (a value of another type, a missing or foreign member), or damaged in its
bytes. Everything is made from one `random.Random`, so a seed is a run. No file outside the working directory is named.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.qmp.command import Alternate, Anything, Enum, Integer, Later, ListOf, Number, Scalar, Struct, Union

if TYPE_CHECKING:
    from random import Random
    from types import FrameType

ROOT = Path(__file__).parents[2]
NUMBERS = (0, 1, -1, 2, 7, 8, 29, 255, 256, 4096, 65535, 65536, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63)
NAMES = ("e0", "m0", "c0", "n0", "d0", "r0", "x", "", "9bad", "a b", "\u00e9", "edu", "pci.0", "/machine", "ioapic")
PATHS = ("/machine", "/machine/peripheral/e0", "/machine/i440fx", "ioapic", "/objects", "/", "", "nosuch", "e0")
TYPES = ("edu", "pci-testdev", "memory-backend-ram", "pvpanic", "nosuch", "device", "pc-testdev", "qemu64-x86_64-cpu")
POINTS = ("irqfd.assign", "nosuch", "irqfd.inject")
WORDS: dict[str, tuple[str, ...]] = {
    "driver": TYPES,
    "typename": TYPES,
    "implements": TYPES,
    "qom-type": TYPES,
    "path": PATHS,
    "property": ("type", "realized", "addr", "size", "nosuch"),
    "bus": ("pci.0", "isa.0", "nosuch"),
    "addr": ("1d", "1d.3", "zz", "3"),
    "node-name": ("n0", "n1", ""),
    "id": NAMES,
    "device": NAMES,
    "point": POINTS,
    "option": ("device", "boot-opts", "nosuch"),
}
SPICE = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"'",
    b"\\",
    b"\\u0000",
    b"\xff",
    b"\xfe",
    b"\x00",
    b",",
    b":",
    b"null",
    b"1e999",
    b"\n",
)
DANGEROUS = ("quit", "x-device-pull")
"""Commands that end the machine under test: sent seldom."""


class Maker:
    """Makes values of declared types."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def value(self, kind: Any, name: str = "", depth: int = 0) -> Any:
        """A value of a type; now and then of another."""
        random = self.random
        if random.random() < 0.03:
            return self.junk()
        if isinstance(kind, Later):
            kind = kind.type()
        if isinstance(kind, Scalar):
            if kind.python_type is bool:
                return random.random() < 0.5
            return random.choice(WORDS.get(name, NAMES))
        if isinstance(kind, Integer):
            return random.choice(NUMBERS) if random.random() < 0.5 else random.randrange(64)
        if isinstance(kind, Number | Anything):
            return self.junk()
        if isinstance(kind, Enum):
            return random.choice(kind.values)
        if isinstance(kind, ListOf):
            return [self.value(kind.element, name, depth + 1) for _ in range(random.randrange(3))]
        if isinstance(kind, Alternate):
            return self.value(kind.string if depth > 2 or random.random() < 0.5 else kind.mapping, name, depth + 1)
        if isinstance(kind, Union):
            tag = next(member.type for member in kind.base if member.name == kind.tag)
            chosen = self.value(tag, kind.tag)
            variant = kind.variants.get(chosen) if isinstance(chosen, str) else None
            members = (*kind.base, *(variant.members if variant else ()))
            return self.members(members, depth) | {kind.tag: chosen}
        assert isinstance(kind, Struct)
        return self.members(kind.members, depth)

    def members(self, members: Any, depth: int) -> dict[str, Any]:
        random = self.random
        made = {}
        for member in members:
            if random.random() < (0.3 if member.optional else 0.98):
                made[member.name] = self.value(member.type, member.name, depth + 1)
        if random.random() < 0.02:
            made[random.choice(NAMES)] = self.junk()
        return made

    def junk(self) -> Any:
        random = self.random
        return random.choice(
            (None, True, 0, -1, 1.5, 1 << 70, "", "on", [], {}, [[]], {"": None}, "x" * 300, random.choice(NUMBERS))
        )

    def damage(self, data: bytes) -> bytes:
        """Some bytes changed, lost, doubled or added."""
        random = self.random
        out = bytearray(data)
        for _ in range(random.randrange(1, 4)):
            place = random.randrange(len(out) + 1)
            how = random.randrange(5)
            if how == 0:
                out[place:place] = random.choice(SPICE)
            elif how == 1 and out:
                del out[place : place + random.randrange(1, 8)]
            elif how == 2 and place < len(out):
                out[place] = random.randrange(256)
            elif how == 3:
                out[place:place] = out[: random.randrange(16)]
            else:
                out[place:place] = random.randbytes(random.randrange(1, 8))
        # Files are only made here: a damaged name must not lead elsewhere.
        return bytes(out).replace(b"/", b"_")


class Count:
    """What a run came to."""

    def __init__(self) -> None:
        self.inputs = 0
        self.past = 0
        """Inputs that were understood: a command was found, an option applied."""
        self.commands: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.arcs: set[tuple[str, int, int]] = set()

    def understood(self, command: str) -> None:
        self.past += 1
        self.commands[command] += 1

    def report(self, what: str) -> str:
        files = {arc[0] for arc in self.arcs}
        return (
            f"{what}: {self.inputs:,} inputs, {self.past / max(self.inputs, 1):.0%} past the parser, "
            f"{len(self.commands)} commands, {len(self.answers)} kinds of answer, "
            f"{len(self.arcs):,} branches in {len(files)} files (every 64th input)"
        )

    @contextlib.contextmanager
    def traced(self) -> Any:
        """Note which line led to which, in our own files."""
        arcs = self.arcs
        prefix = str(ROOT) + os.sep
        last: dict[int, int] = {}

        def local(frame: FrameType, event: str, _argument: Any) -> Any:
            if event == "line":
                key = id(frame)
                arcs.add((frame.f_code.co_filename, last.get(key, -1), frame.f_lineno))
                last[key] = frame.f_lineno
            elif event == "return":
                last.pop(id(frame), None)
            return local

        def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
            return local if frame.f_code.co_filename.startswith(prefix) else None

        before = sys.gettrace()
        sys.settrace(enter)
        try:
            yield
        finally:
            sys.settrace(before)


def resident_bytes() -> int:
    """Memory of this process, after the garbage is out."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def qmp_input(maker: Maker, commands: list[Any]) -> bytes:
    """A QMP message, in one of three states."""
    random = maker.random
    state = random.random()
    if state < 0.05:
        return random.randbytes(random.randrange(1, 60)).replace(b"/", b"_")
    command = random.choice(commands)
    if command.name in DANGEROUS and random.random() < 0.99:
        command = random.choice(commands)
    message: dict[str, Any] = {"exec-oob" if random.random() < 0.03 else "execute": command.name}
    if command.name in ("device_add", "object-add") or random.random() < 0.95:
        message["arguments"] = maker.value(command.args)
    if isinstance(message.get("arguments"), dict) and command.name == "device_add":
        message["arguments"] |= {random.choice(("addr", "x-image", "bogus", "memdev")): maker.junk()}
    if random.random() < 0.3:
        message["id"] = maker.junk()
    if random.random() < 0.03:
        message[random.choice(NAMES)] = maker.junk()
    data = json.dumps(message).encode()
    return maker.damage(data) if state < 0.35 else data


HMP_WORDS = ("help", "info", "pic", "status", "edu,id=e0", "e0", "/machine", "type", "?", "x" * 5000, "#", "a=b,,c", "")


def hmp_input(maker: Maker, commands: list[str]) -> bytes:
    random = maker.random
    parts = [random.choice(commands)] if random.random() < 0.8 else []
    parts += [random.choice((*HMP_WORDS, *NAMES)) for _ in range(random.randrange(4))]
    data = " ".join(parts).encode("utf-8", "replace")
    return (maker.damage(data) if random.random() < 0.3 else data) + b"\n"


QTEST_PLACES = (0, 0x70, 0x71, 0xCF8, 0xCFC, 0xAE00, 0xAE08, 0x1000, 0xFEC0_0000, 0xFEC0_0010, 0xFEE0_0030, 1 << 32)


def qtest_input(maker: Maker, commands: list[str]) -> bytes:
    random = maker.random
    name = random.choice(commands)
    if name.startswith("irq") or name == "set_irq_in":
        words = [
            name,
            random.choice(("ioapic", "/machine", "nosuch")),
            "unnamed-gpio-in",
            *map(str, (random.randrange(30), 1)),
        ]
    elif name.startswith("clock"):
        words = [name, str(random.randrange(100_000))]
    else:
        words = [name, hex(random.choice(QTEST_PLACES)), str(random.choice((1, 2, 4, 16, 255, *NUMBERS[:4])))]
        words.append(random.choice(("0x00", "0xff", "AAAA", "7", "0xzz")))
    words = words[: random.randrange(1, 6)] if random.random() < 0.1 else words
    data = " ".join(words).encode()
    return (maker.damage(data).replace(b"_", b"/") if random.random() < 0.25 else data) + b"\n"


LINE_VALUES = (
    "pc", "none", "help", "edu", "edu,id=e0", "{'driver':'edu'}", "512", "1G", "size=1M", "2,maxcpus=4", "tcg", "qtest",
    "order=c,once=a", "splash-time=5", "if=none,id=d0,file=x", "driver=null-co,node-name=n0", "socket,id=c0,path=s",
    "chardev=c0,mode=control", "stdio", "none", "base=utc", "memory-backend-ram,id=m0,size=1M", "edu.dma_mask=1",
    "reboot=shutdown", "pause", "name=opt/x,string=y", "guest", "enable=*,file=x", "exit-with-parent=on", "", ",,", "=",
    "a=b,a=c", "x" * 400, "\u00e9", "6f9619ff-8b86-d011-b42d-00cf4fc964ff",
)  # fmt: skip


def command_line(maker: Maker, options: list[str]) -> list[str]:
    """Some options with arguments, in one of the same states."""
    random = maker.random
    words: list[str] = []
    for _ in range(random.randrange(1, 4)):
        if random.random() < 0.95:
            words.append(random.choice(("-", "--")) + random.choice(options))
        value = random.choice(LINE_VALUES)
        if random.random() < 0.25:
            value = maker.damage(value.encode()).decode("utf-8", "surrogateescape")
        if random.random() < 0.9:
            words.append(value)
    return words
