"""The smallest guest that is of use: it does what a mailbox says, with interrupts disabled, and exits after each act.

    guest = MailboxGuest(vm)
    cpu = vm.add_cpu()
    guest.start(cpu)
    guest.call(cpu, "write32", 0xFEC00000, 0x10)
    guest.call(cpu, "read32", 0xFEC00010)

One KVM_RUN is one act: an MMIO access of any width, a port, a register of the I/O APIC, an interrupt window. So
a test or a recording decides when which CPU runs guest code. The CPUs share the mailbox; one at a time runs.

The code, of which `_CODE` is the binary (GNU as, `.intel_syntax noprefix`, `.code64`, at 0x10000):

            MB = 0x20000                    # operation, address, value, result: 8 bytes each
     00     ready:  out 0x10, al            # tell the VMM; it fills the mailbox and runs us again
     02             mov eax, [MB]
     09             mov esi, [MB + 8]
     10             mov rcx, [MB + 16]
     18             jmp [rax * 8 + table]
     1f     write8: mov [rsi], cl
     21             jmp ready
     23     write16: mov [rsi], cx
     26             jmp ready
     28     write32: mov [rsi], ecx
     2a             jmp ready
     2c     write64: mov [rsi], rcx
     2f             jmp ready
     31     read8:  movzx eax, byte ptr [rsi]
     34             jmp answer
     36     read16: movzx eax, word ptr [rsi]
     39             jmp answer
     3b     read32: mov eax, [rsi]
     3d             jmp answer
     3f     read64: mov rax, [rsi]
     42     answer: mov [MB + 24], rax
     4a             jmp ready
     4c     wreg:   mov ebx, 0xfec00000     # an I/O APIC register: esi is IOREGSEL, ecx goes to IOWIN
     51             mov [rbx], esi
     53             mov [rbx + 16], ecx
     56             jmp ready
     58     window: sti                     # rcx: how long interrupts may come
     59     1:      pause
     5b             dec ecx
     5d             jnz 1b
     5f             cli
     60             jmp ready
     62     popcnt: popcnt rax, rcx         # an instruction that an incomplete emulator lacks
     67             jmp answer
     69     in8:    mov edx, esi
     6b             in al, dx
     6c             movzx eax, al
     6f             jmp answer
     71     out8:   mov edx, esi
     73             mov eax, ecx
     75             out dx, al
     76             jmp ready
     78     taken:  out 0x11, al            # every vector's handler; no EOI
     7a     return: iretq                   # the NMI's
     80     table:  .quad ready, write8, write16, write32, write64, read8, read16, read32, read64, wreg, window, popcnt,
                          in8, out8
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import EngineError
from vmm.kernel import hostkvm_abi as abi

if TYPE_CHECKING:
    from vmm.kernel.hostkvm import HostCpu, HostVm

_CODE = bytes.fromhex(
    "e6108b042500000200"  # ready
    "8b342508000200"
    "488b0c2510000200"
    "ff24c580000100"
    "880eebdd"  # write8
    "66890eebd8"  # write16
    "890eebd4"  # write32
    "48890eebcf"  # write64
    "0fb606eb0c"  # read8
    "0fb706eb07"  # read16
    "8b06eb03"  # read32
    "488b06"  # read64
    "4889042518000200ebb4"  # answer
    "bb0000c0fe8933894b10eba8"  # wreg
    "fbf390ffc975fafaeb9e"  # window
    "f3480fb8c1ebd9"  # popcnt
    "89f2ec0fb6c0ebd1"  # in8
    "89f289c8eeeb88"  # out8
    "e611"  # taken
    "48cf"  # return
)
_OFFSETS = {
    "ready": 0x00,
    "write8": 0x1F,
    "write16": 0x23,
    "write32": 0x28,
    "write64": 0x2C,
    "read8": 0x31,
    "read16": 0x36,
    "read32": 0x3B,
    "read64": 0x3F,
    "wreg": 0x4C,
    "window": 0x58,
    "popcnt": 0x62,
    "in8": 0x69,
    "out8": 0x71,
}
OPERATIONS = {name: number for number, name in enumerate(_OFFSETS)}
READY_PORT, TAKEN_PORT = 0x10, 0x11

_BASE = 0x10000
_TAKEN, _RETURN, _TABLE = _BASE + 0x78, _BASE + 0x7A, _BASE + 0x80
_GDT, _IDT = 0x11000, 0x12000
_MAILBOX = 0x20000
_STACK_TOP, _STACK_SIZE = 0x38000, 0x1000
_PML4, _PDPT, _DIRECTORIES = 0x40000, 0x41000, 0x42000
_CALL = struct.Struct("<4Q")
_NMI = 2


class UserMmio(NamedTuple):
    """The access left KVM: nothing in the kernel answers at that address."""

    write: bool
    address: int
    size: int


class UserPort(NamedTuple):
    """The port access left KVM: nothing in the kernel answers there."""

    write: bool
    port: int
    size: int


@functools.cache
def _image() -> bytes:
    """Memory from `_BASE`: code, descriptor tables, and page tables that map 4 GiB onto itself in pages of 2 MiB."""
    image = bytearray(_DIRECTORIES + 4 * abi.PAGE - _BASE)

    def put(address: int, data: bytes) -> None:
        image[address - _BASE : address - _BASE + len(data)] = data

    put(_BASE, _CODE)
    put(_TABLE, b"".join(struct.pack("<Q", _BASE + offset) for offset in _OFFSETS.values()))
    put(_GDT, struct.pack("<3Q", 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF))
    for vector in range(256):
        handler = _RETURN if vector == _NMI else _TAKEN
        put(_IDT + 16 * vector, struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16, 0, 0))
    put(_PML4, struct.pack("<Q", _PDPT | 7))
    put(_PDPT, struct.pack("<4Q", *(_DIRECTORIES + abi.PAGE * n | 7 for n in range(4))))
    put(_DIRECTORIES, struct.pack("<2048Q", *(n << 21 | 0x87 for n in range(2048))))
    return bytes(image)


class MailboxGuest:
    """The guest in a VM's memory, which must be 512 KiB or more. At most eight CPUs run it."""

    def __init__(self, vm: HostVm) -> None:
        self.memory = vm.memory
        image = _image()
        self.memory[_BASE : _BASE + len(image)] = image

    def start(self, cpu: HostCpu) -> None:
        """Begin, up to the first `ready`."""
        cpu.set_long_mode(_BASE, _STACK_TOP - _STACK_SIZE * cpu.index, _PML4, _IDT, _GDT)
        self._until_port(cpu)

    def call(self, cpu: HostCpu, operation: str, address: int = 0, value: int = 0) -> int | UserMmio | UserPort:
        """One act of `OPERATIONS`; the value read, or the access that nobody in the kernel answered (reads give 0).

        EngineError if the guest cannot go on.
        """
        _CALL.pack_into(self.memory, _MAILBOX, OPERATIONS[operation], address, value, 0)
        left = self._until_port(cpu)
        if left is not None:
            return left
        result: int = _CALL.unpack_from(self.memory, _MAILBOX)[3]
        return result

    def taken(self, cpu: HostCpu, turns: int = 4096) -> bool:
        """Let interrupts come for `turns` of a loop: has one? The CPU is then in its handler, before any EOI, and takes
        no other `call`."""
        _CALL.pack_into(self.memory, _MAILBOX, OPERATIONS["window"], 0, turns, 0)
        self._until_port(cpu)
        assert cpu.run_area is not None
        return bool(cpu.run_area.io.port == TAKEN_PORT)

    @staticmethod
    def _until_port(cpu: HostCpu) -> UserMmio | UserPort | None:
        left: UserMmio | UserPort | None = None
        while True:
            reason = cpu.run()
            area = cpu.run_area
            assert area is not None
            if reason == abi.KVM_EXIT_IO:
                io = area.io
                if io.port in (READY_PORT, TAKEN_PORT):
                    return left
                left = left or UserPort(bool(io.direction), io.port, io.size)
                ctypes.memset(ctypes.addressof(area) + io.data_offset, 0, io.size)
                continue
            if reason == abi.KVM_EXIT_MMIO:
                mmio = area.mmio
                left = left or UserMmio(bool(mmio.is_write), mmio.phys_addr, mmio.len)
                mmio.data[:] = bytes(8)
                continue
            detail = f", suberror {area.suberror}" if reason == abi.KVM_EXIT_INTERNAL_ERROR else ""
            raise EngineError(f"CPU {cpu.index} left its guest with exit {reason}{detail}")
