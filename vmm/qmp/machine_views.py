"""What people ask of a machine's insides: `info qtree`, `qom-tree`, `mtree`, `lapic`, `registers`, memory and ports.

Looking changes nothing, but for `i`, which reads a port as the guest would.

Ref: vectors qemu-qmp-transcript.jsonl, session `pc`, section `hmp`, for the layout.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from devices import lapic_registers as r
from machine import qom
from machine.pc import PcMachine
from vmm.errors import QmpError
from vmm.qmp.target import set_bits
from vmm.qtest.space import GuestSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.device import Device
    from devices.lapic import LocalApic
    from machine.machine import Machine
    from machine.qom import Node
    from vmm.cpu.engine import Registers
    from vmm.memory import AddressSpace

    View = Callable[[Machine, str], str]

_SIZES = {"b": 1, "h": 2, "w": 4, "g": 8}
_WIDTHS = {("x", 1): 2, ("x", 2): 4, ("x", 4): 8, ("x", 8): 16, ("o", 1): 3, ("o", 2): 6, ("o", 4): 11, ("o", 8): 22}
MOST_UNITS = 1 << 16
"""What one `x` or `xp` shows at most."""

# --- trees -------------------------------------------------------------------------------------------------------


def _human(size: int) -> str:
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def _property(kind: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        if kind == "size":
            return f"{value} ({_human(value)})"
        return f"{value} (0x{value:x})" if kind.startswith("uint") else str(value)
    return '""' if value is None else f'"{value}"'


def _device(device: Device, indent: str) -> Iterator[str]:
    yield f'{indent}dev: {device.driver}, id "{device.id or ""}"'
    for prop in device.properties:
        value = device.values.get(prop.name)
        if prop.type_name == "int32" or prop.name == "addr":
            devfn = getattr(device, "devfn", None)
            text = f"{devfn >> 3:02x}.{devfn & 7:x}" if devfn is not None else _property(prop.type_name, value)
        else:
            text = _property(prop.type_name, value)
        yield f"{indent}  {prop.name} = {text}"


def _qtree(machine: Machine, _argument: str) -> str:
    every = [*machine.unattached, *machine.peripherals.values(), *machine.anonymous.values()]
    lines = ["bus: main-system-bus", "  type System"]
    for device in every:
        if device.bus_type == "System":
            lines += _device(device, "  ")
            if isinstance(machine, PcMachine) and device is machine.pci_host:
                lines += _pci_bus(machine, every, "    ")
    return "\n".join(lines) + "\n"


def _pci_bus(machine: PcMachine, every: list[Device], indent: str) -> Iterator[str]:
    yield from (f"{indent}bus: pci.0", f"{indent}  type PCI")
    for device in machine.pci.all_devices():
        yield from _device(device, f"{indent}  ")
        if device is machine.piix3:
            yield from (f"{indent}    bus: isa.0", f"{indent}      type ISA")
            for isa in every:
                if isa.bus_type == "ISA":
                    yield from _device(isa, f"{indent}      ")


def _qom_tree(machine: Machine, argument: str) -> str:
    path = argument.strip() or "/machine"
    node = qom.resolve(machine, path)
    return "\n".join(_qom_lines(node, path, 0)) + "\n"


def _qom_lines(node: Node, name: str, depth: int) -> Iterator[str]:
    yield f"{'  ' * depth}{name} ({node.type})"
    for child in sorted(node.children):
        yield from _qom_lines(node.children[child], f"/{child}", depth + 1)


def _mtree(machine: Machine, argument: str) -> str:
    flat = "-f" in argument.split()
    lines: list[str] = []
    for number, (space, title, root) in enumerate(((machine.mmio, "memory", "system"), (machine.ports, "I/O", "io"))):
        if flat:
            lines += [f"FlatView #{number}", f' AS "{title}", root: {root}', f" Root memory region: {root}"]
        else:
            lines += [f"address-space: {title}", f"  0000000000000000-{space.size - 1:016x} (prio 0, i/o): {root}"]
        rows = [(base, base + size, 0, "ram", "pc.ram") for base, size in _ram(machine) if root == "system"]
        rows += _regions(space)
        indent = "  " if flat else "    "
        lines += [
            f"{indent}{base:016x}-{end - 1:016x} (prio {p}, {kind}): {name}"
            for base, end, p, kind, name in sorted(rows)
        ]
        lines.append("")
    return "\n".join(lines)


def _ram(machine: Machine) -> list[tuple[int, int]]:
    if not isinstance(machine, PcMachine):
        return []
    return [(base, size) for base, size in machine.memory.ranges() if size]


def _regions(space: AddressSpace) -> list[tuple[int, int, int, str, str]]:
    return [(m.base, m.end, m.priority, "i/o", m.region.name) for m in space.mappings()]


# --- CPUs --------------------------------------------------------------------------------------------------------


def _registers(machine: Machine, argument: str) -> str:
    if not isinstance(machine, PcMachine):
        return ""
    every = "-a" in argument.split()
    processors = machine.processors.all if every else machine.processors.all[:1]
    return "".join(f"\nCPU#{n}\n{_register_text(p.vcpu.registers(), p.vcpu.halted)}" for n, p in enumerate(processors))


def _register_text(regs: Registers, halted: bool) -> str:
    long = bool(regs.efer & 1 << 10)
    names = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")
    order = (0, 3, 1, 2, 6, 7, 5, 4)
    flags = "".join(
        letter if regs.rflags >> bit & 1 else "-"
        for letter, bit in (("D", 10), ("O", 11), ("S", 7), ("Z", 6), ("A", 4), ("P", 2), ("C", 0))
    )
    segments = regs.segments
    cs = segments.get("cs")
    level = (cs.selector & 3) if cs is not None and regs.cr0 & 1 else 0
    state = f"[{flags}] CPL={level} II=0 A20=1 SMM=0 HLT={int(halted)}"
    width, letter = (16, "R") if long else (8, "E")
    mask = (1 << 4 * width) - 1
    cells = [f"{letter}{names[n]}={regs.gpr[n] & mask:0{width}x}" for n in order]
    if long:
        cells += [f"R{n:<2}={regs.gpr[n]:016x}" for n in range(8, 16)]
    lines = [" ".join(cells[n : n + 4]) for n in range(0, len(cells), 4)]
    lines.append(f"{letter}IP={regs.rip & mask:0{width}x} {letter}FL={regs.rflags & 0xFFFFFFFF:08x} {state}")
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr"):
        segment = segments.get(name)
        if segment is not None:
            start = f"{name.upper():<3}={segment.selector:04x} {segment.base & mask:0{width}x}"
            lines.append(f"{start} {segment.limit:08x} {segment.flags << 8 & 0xFFFFFF00:08x}")
    for name, table in (("GDT", regs.gdt), ("IDT", regs.idt)):
        if table is not None:
            lines.append(f"{name}=     {table[0] & mask:0{width}x} {table[1]:08x}")
    controls = (("CR0", regs.cr0, 8), ("CR2", regs.cr2, width), ("CR3", regs.cr3, width), ("CR4", regs.cr4, 8))
    lines.append(" ".join(f"{name}={value:0{digits}x}" for name, value, digits in controls))
    lines.append(f"EFER={regs.efer:016x}")
    return "\n".join(lines) + "\n"


_LVTS = (
    ("LVT0", r.LVT_LINT0),
    ("LVT1", r.LVT_LINT1),
    ("LVTPC", r.LVT_PERFORMANCE),
    ("LVTERR", r.LVT_ERROR),
    ("LVTTHMR", r.LVT_THERMAL),
    ("LVTT", r.LVT_TIMER),
)
_MODES = ("Fixed", "LowPri", "SMI", "...", "NMI", "INIT", "SIPI", "ExtINT")
_TIMER_MODES = ("one-shot", "periodic", "tsc-deadline", "")
_SHORTHANDS = ("no-shorthand", "self", "all-self", "all")


def _lapic(machine: Machine, argument: str) -> str:
    if not isinstance(machine, PcMachine):
        return "No local APIC\n"
    wanted = argument.strip() or "0"
    for processor in machine.processors.all:
        if str(processor.lapic.apic_id) == wanted:
            return _lapic_text(processor.lapic)
    return "No local APIC\n"


def _lapic_text(lapic: LocalApic) -> str:
    def read(register: int) -> int:
        return lapic.read(register) or 0

    lines = [f"dumping local APIC state for CPU {lapic.index} ", ""]
    for name, register in _LVTS:
        entry = lapic.lvt[register]
        lines.append(
            f"{name}\t 0x{entry:08x} {'active-lo' if entry & r.LVT_POLARITY else 'active-hi'} "
            f"{'level' if entry & r.LVT_LEVEL else 'edge ':<5} {'masked' if entry & r.LVT_MASKED else '':<6} "
            f"{'pending' if entry & r.LVT_STATUS else '':<7} "
            f"{_TIMER_MODES[entry >> 17 & 3] if register == r.LVT_TIMER else '':<12} "
            f"{_MODES[entry >> 8 & 7]:<6} (vec {entry & 0xFF})"
        )
    divide = lapic.timer.divide
    shift = ((divide & 3) | (divide >> 1 & 4)) + 1 & 7
    lines.append(
        f"Timer\t DCR=0x{divide:x} (divide by {1 << shift}) initial_count = {read(r.INITIAL_COUNT)} "
        f"current_count = {read(r.CURRENT_COUNT)}"
    )
    svr, icr = lapic.svr, lapic.icr
    lines.append(
        f"SPIV\t 0x{svr:08x} APIC {'enabled' if svr & r.SVR_ENABLED else 'disabled'}, "
        f"focus={'on' if svr & r.SVR_FOCUS_DISABLED else 'off'}, spurious vec {svr & 0xFF}"
    )
    lines.append(
        f"ICR\t 0x{icr & 0xFFFFFFFF:08x} {'logical' if icr & 1 << 11 else 'physical'} "
        f"{'level' if icr & 1 << 15 else 'edge'} {'assert' if icr & 1 << 14 else 'de-assert'} "
        f"{_SHORTHANDS[icr >> 18 & 3]}"
    )
    lines.append(f"ICR2\t 0x{icr >> 32:08x} cpu {icr >> 56} (APIC ID)")
    lines.append(f"ESR\t 0x{lapic.esr:08x}")
    for name, bits in (("ISR", lapic.isr), ("IRR", lapic.irr)):
        vectors = "".join(f" {vector}{'(level)' if lapic.tmr >> vector & 1 else ''}" for vector in set_bits(bits))
        lines.append(f"{name}\t{vectors or ' (none)'}")
    lines += [
        "",
        f"APR 0x00 TPR 0x{lapic.tpr:02x} DFR 0x{lapic.dfr >> 28:02x} LDR 0x{lapic.ldr >> 24:02x} PPR 0x{lapic.ppr:02x}",
    ]
    return "\n".join(lines) + "\n"


# --- memory and ports --------------------------------------------------------------------------------------------


def _format(argument: str, count: int = 1, letter: str = "x", size: int = 4) -> tuple[int, str, int, str]:
    """Count, format and unit of `/NFU`, and what follows."""
    found = re.match(r"/(\d*)([a-z]*)\s*(.*)", argument.strip(), re.DOTALL)
    if found is None:
        return count, letter, size, argument.strip()
    if found[1]:
        count = int(found[1])
    for each in found[2]:
        if each in _SIZES:
            size = _SIZES[each]
        elif each in "xduoc":
            letter = each
            if each == "c" and not _SIZES.keys() & set(found[2]):
                size = 1
        else:
            raise QmpError(f"invalid char in format: '{each}'")
    if count > MOST_UNITS:
        raise QmpError(f"no more than {MOST_UNITS} units at a time")
    return count, letter, size, found[3]


def number(text: str) -> int:
    """A number or a sum of them, as the monitor's commands take addresses."""
    tokens = re.findall(r"\s*(0[xX][0-9a-fA-F]+|\d+|[-+*&|^~()]|\S)", text)
    position = 0

    def take() -> str:
        nonlocal position
        position += 1
        return tokens[position - 1] if position <= len(tokens) else ""

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def atom(depth: int) -> int:
        token = take()
        if token == "(" and depth < 32:
            value = total(depth + 1)
            if take() != ")":
                raise QmpError("')' expected")
            return value
        if token in ("-", "+", "~") and depth < 32:
            value = atom(depth + 1)
            return {"-": -value, "+": value, "~": ~value}[token]
        try:
            return int(token, 0)
        except ValueError:
            raise QmpError(
                f"invalid char '{token}' in expression" if token else "unexpected end of expression"
            ) from None

    def product(depth: int) -> int:
        value = atom(depth)
        while peek() in ("*", "&", "|", "^") and peek():
            operator, right = take(), atom(depth)
            value = {"*": value * right, "&": value & right, "|": value | right, "^": value ^ right}[operator]
        return value & (1 << 64) - 1

    def total(depth: int) -> int:
        value = product(depth)
        while peek() in ("+", "-") and peek():
            value = value + product(depth) if take() == "+" else value - product(depth)
        return value & (1 << 64) - 1

    result = total(0)
    if peek():
        raise QmpError(f"invalid char '{peek()}' in expression")
    return result


def _shown(value: int, letter: str, size: int) -> str:
    if letter == "c":
        return repr(chr(value & 0xFF)) if 0x20 <= value & 0xFF < 0x7F else f"'\\x{value & 0xFF:02x}'"
    if letter == "d":
        bits = 8 * size
        return str(value - (1 << bits) if value >> bits - 1 else value)
    if letter == "u":
        return str(value)
    return f"{'0x' if letter == 'x' else '0'}{value:0{_WIDTHS[letter, size]}{letter}}"


def _memory(machine: Machine, argument: str, digits: int) -> str:
    count, letter, size, rest = _format(argument)
    address = number(rest)
    space = GuestSpace(machine)
    per_line = max(1, 16 // size if letter != "c" else 16)
    lines = []
    for start in range(0, count, per_line):
        at = address + start * size
        units = range(min(per_line, count - start))
        cells = [
            _shown(int.from_bytes(space.read((at + n * size) & (1 << 64) - 1, size), "little"), letter, size)
            for n in units
        ]
        lines.append(f"{at & (1 << 64) - 1:0{digits}x}: {' '.join(cells)}\n")
    return "".join(lines)


def _virtual(machine: Machine, argument: str) -> str:
    if isinstance(machine, PcMachine) and machine.processors.all[0].vcpu.registers().cr0 >> 31:
        raise QmpError("the CPU has paging on; xp shows physical memory")
    return _memory(machine, argument, 16)


def _port_in(machine: Machine, argument: str) -> str:
    _count, _letter, size, rest = _format(argument, size=1)
    port = number(rest) & 0xFFFF
    if size > 4:
        raise QmpError("a port has 1, 2 or 4 bytes")
    return f"port{ {1: 'b', 2: 'w', 4: 'l'}[size] }[0x{port:04x}] = 0x{machine.ports.read(port, size):0{2 * size}x}\n"


def _port_out(machine: Machine, argument: str) -> str:
    _count, _letter, size, rest = _format(argument, size=1)
    port, _, value = rest.partition(" ")
    if size > 4:
        raise QmpError("a port has 1, 2 or 4 bytes")
    if not value.strip():
        raise QmpError("integer expected")
    machine.ports.write(number(port) & 0xFFFF, size, number(value) & (1 << 8 * size) - 1)
    return ""


VIEWS: dict[str, View] = {
    "qtree": _qtree,
    "qom-tree": _qom_tree,
    "mtree": _mtree,
    "registers": _registers,
    "lapic": _lapic,
    "x": _virtual,
    "xp": lambda machine, argument: _memory(machine, argument, 8),
    "i": _port_in,
    "o": _port_out,
}
