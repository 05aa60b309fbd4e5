"""Guest memory as a test program reaches it: RAM, the local APIC's page as nobody's, and everything memory-mapped.

A CPU's own accesses go through its engine; a test has no CPU. So the local APIC page has no owner: its registers read
as all ones and ignore writes, and what is left of the window are message-signalled interrupts, which are delivered.
Addresses where nobody answers read as 0. Ref: vectors qemu-qmp-transcript.jsonl, sessions lapic-qtest, qtest-protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.memory import ALL_ONES

if TYPE_CHECKING:
    from collections.abc import Callable

    from machine.machine import Machine

APIC_BASE, APIC_END = 0xFEE0_0000, 0xFEF0_0000
"""The local APICs' window: register page, then messages. Ref: Intel SDM vol. 3, 11.11.1."""
APIC_ACCESS = 4
"""Its registers take 32-bit accesses; narrower ones read as 0 and are ignored."""


class GuestSpace:
    """Guest-physical memory of a machine."""

    __slots__ = ("_below", "_memory", "_mmio", "_msi", "_view")

    def __init__(self, machine: Machine) -> None:
        self._memory = machine.memory
        self._view = machine.memory.view
        self._below = machine.memory.below
        self._mmio = machine.mmio
        bus = getattr(machine, "apic_bus", None)
        self._msi: Callable[[int, int], int] | None = None if bus is None else bus.msi_from_cpu_side

    def _ram_at(self, address: int) -> int:
        """How many bytes of RAM there are from `address` on, in one piece."""
        return next((base + size - address for base, size in self._memory.ranges() if 0 <= address - base < size), 0)

    def load(self, address: int, size: int) -> int:
        """One access of 1, 2, 4 or 8 bytes."""
        if address + size <= self._below:
            return int.from_bytes(self._view[address : address + size], "little")
        if self._ram_at(address):
            return int.from_bytes(self.read(address, size), "little")
        if self._msi is not None and APIC_BASE <= address < APIC_END:
            return ALL_ONES[size] if size >= APIC_ACCESS else 0
        if self._answers(address, size):
            return self._mmio.read(address, size)
        return 0

    def store(self, address: int, size: int, value: int) -> None:
        """One access of 1, 2, 4 or 8 bytes; what is too wide of `value` is cut off."""
        value &= ALL_ONES[size]
        if self._ram_at(address):
            self.write(address, value.to_bytes(size, "little"))
        elif self._msi is not None and APIC_BASE <= address < APIC_END:
            for offset in range(0, size - APIC_ACCESS + 1, APIC_ACCESS):
                self._msi(address + offset, value >> 8 * offset & 0xFFFF_FFFF)
        else:
            self._mmio.write(address, size, value)

    def _answers(self, address: int, size: int) -> bool:
        find = self._mmio.find
        return find(address) is not None or (size > 1 and any(find(address + i) for i in range(1, size)))

    def read(self, address: int, length: int) -> bytes:
        """Bytes in address order: whole from RAM, elsewhere by accesses as wide as alignment and region allow."""
        end = address + length
        if self._memory.locate(address, length) >= 0:
            return self._memory.read(address, length)
        data = bytearray()
        while address < end:
            if piece := min(self._ram_at(address), end - address):
                data += self._memory.read(address, piece)
            elif hole := self._hole(address, end):
                piece = hole
                data += bytes(hole)
            else:
                piece = self._width(address, end - address)
                data += self.load(address, piece).to_bytes(piece, "little")
            address += piece
        return bytes(data)

    def write(self, address: int, data: bytes | bytearray) -> None:
        """As `read`, the other way."""
        end = address + len(data)
        if self._memory.locate(address, len(data)) >= 0:
            self._memory.write(address, data)
            return
        start = address
        while address < end:
            at = address - start
            if piece := min(self._ram_at(address), end - address):
                self._memory.write(address, data[at : at + piece])
            elif hole := self._hole(address, end):
                piece = hole
            else:
                piece = self._width(address, end - address)
                self.store(address, piece, int.from_bytes(data[at : at + piece], "little"))
            address += piece

    def fill(self, address: int, length: int, value: int) -> None:
        """`length` bytes of `value`, a piece at a time: the length may be that of all memory."""
        chunk = bytes([value & 0xFF]) * min(length, 1 << 20)
        while length > 0:
            piece = min(length, len(chunk))
            self.write(address, chunk[:piece])
            address += piece
            length -= piece

    def _hole(self, address: int, end: int) -> int:
        """How many bytes from `address` on nobody answers, up to `end`."""
        if self._mmio.find(address) is not None or (self._msi is not None and APIC_BASE <= address < APIC_END):
            return 0
        starts = [m.base for m in self._mmio.mappings() if address < m.base < end]
        if self._msi is not None and address < APIC_BASE < end:
            starts.append(APIC_BASE)
        starts += [base for base, _ in self._memory.ranges() if address < base < end]
        return min(starts, default=end) - address

    def _width(self, address: int, left: int) -> int:
        mapping = self._mmio.find(address)
        widest = APIC_ACCESS if mapping is None else mapping.region.max_access
        aligned = address & -address or widest
        return 1 << min(widest, left, aligned).bit_length() - 1
