"""KVM's ioctl numbers and structures for x86-64, as ctypes sees them. Sizes are asserted: a wrong one would be silent.

Ref: Documentation/virt/kvm/api.rst, include/uapi/linux/kvm.h
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64

KVM_API_VERSION = 12
PAGE = 4096

KVM_EXIT_IO = 2
KVM_EXIT_MMIO = 6
KVM_EXIT_INTERNAL_ERROR = 17

KVM_CAP_USER_MEMORY = 3
KVM_CAP_MP_STATE = 14
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_X86_SMM = 117
KVM_CAP_SPLIT_IRQCHIP = 121

KVM_MP_STATE_RUNNABLE = 0


class MemoryRegion(ctypes.Structure):
    """`struct kvm_userspace_memory_region`."""

    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    ]


class IrqLevel(ctypes.Structure):
    """`struct kvm_irq_level`; KVM_IRQ_LINE_STATUS overwrites `irq` with its status, a signed number."""

    _fields_ = [("irq", c_uint32), ("level", c_uint32)]


class Irqfd(ctypes.Structure):
    """`struct kvm_irqfd`."""

    _fields_ = [
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    ]


class Irqchip(ctypes.Structure):
    """`struct kvm_irqchip`; `chip` is a union of `kvm_pic_state` and `kvm_ioapic_state`."""

    _fields_ = [("chip_id", c_uint32), ("pad", c_uint32), ("chip", c_uint8 * 512)]


class Lapic(ctypes.Structure):
    """`struct kvm_lapic_state`: the register page, 16 bytes a register."""

    _fields_ = [("regs", c_uint8 * 1024)]


class Segment(ctypes.Structure):
    """`struct kvm_segment`."""

    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *((name, c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")),
    ]


class DescriptorTable(ctypes.Structure):
    """`struct kvm_dtable`."""

    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class Sregs(ctypes.Structure):
    """`struct kvm_sregs`."""

    _fields_ = [
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", DescriptorTable),
        ("idt", DescriptorTable),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    ]


class Regs(ctypes.Structure):
    """`struct kvm_regs`."""

    _fields_ = [
        (name, c_uint64)
        for name in [
            "rax",
            "rbx",
            "rcx",
            "rdx",
            "rsi",
            "rdi",
            "rsp",
            "rbp",
            "r8",
            "r9",
            "r10",
            "r11",
            "r12",
            "r13",
            "r14",
            "r15",
            "rip",
            "rflags",
        ]
    ]


class Msi(ctypes.Structure):
    """`struct kvm_msi`."""

    _fields_ = [
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("flags", c_uint32),
        ("devid", c_uint32),
        ("pad", c_uint8 * 12),
    ]


class VcpuEvents(ctypes.Structure):
    """`struct kvm_vcpu_events`."""

    _fields_ = [
        ("exception", c_uint8 * 8),
        ("interrupt", c_uint8 * 4),
        ("nmi_injected", c_uint8),
        ("nmi_pending", c_uint8),
        ("nmi_masked", c_uint8),
        ("nmi_pad", c_uint8),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("rest", c_uint8 * 40),
    ]


class EnableCap(ctypes.Structure):
    """`struct kvm_enable_cap`."""

    _fields_ = [("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64)]


class Run(ctypes.Structure):
    """The head of `struct kvm_run`, with its union's `io` and `mmio` side by side: use the one of `exit_reason`."""

    class Union(ctypes.Union):
        """What an exit brings."""

        class Io(ctypes.Structure):
            """KVM_EXIT_IO."""

            _fields_ = [
                ("direction", c_uint8),
                ("size", c_uint8),
                ("port", c_uint16),
                ("count", c_uint32),
                ("data_offset", c_uint64),
            ]

        class Mmio(ctypes.Structure):
            """KVM_EXIT_MMIO."""

            _fields_ = [("phys_addr", c_uint64), ("data", c_uint8 * 8), ("len", c_uint32), ("is_write", c_uint8)]

        _fields_ = [("io", Io), ("mmio", Mmio), ("suberror", c_uint32), ("padding", c_uint8 * 256)]

    _anonymous_ = ("u",)
    _fields_ = [
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("u", Union),
    ]


SIZES: dict[type[ctypes.Structure], int] = {
    MemoryRegion: 32,
    IrqLevel: 8,
    Irqfd: 32,
    Irqchip: 520,
    Lapic: 1024,
    Segment: 24,
    DescriptorTable: 16,
    Sregs: 312,
    Regs: 144,
    Msi: 32,
    VcpuEvents: 64,
    EnableCap: 104,
}
for _type, _size in SIZES.items():
    assert ctypes.sizeof(_type) == _size, (_type, ctypes.sizeof(_type), _size)
assert (Run.exit_reason.offset, Run.u.offset, Run.Union.Mmio.len.offset, ctypes.sizeof(Run)) == (8, 32, 16, 288)

_NONE, _WRITE, _READ = 0, 1, 2
_Payload = type[ctypes.Structure] | type[c_int32] | int | None


def _ioctl(direction: int, number: int, payload: _Payload = None) -> int:
    """Ref: asm-generic/ioctl.h; KVM's type is 0xAE."""
    size = 0 if payload is None else payload if isinstance(payload, int) else ctypes.sizeof(payload)
    return direction << 30 | size << 16 | 0xAE << 8 | number


KVM_GET_API_VERSION = _ioctl(_NONE, 0x00)
KVM_CREATE_VM = _ioctl(_NONE, 0x01)
KVM_CHECK_EXTENSION = _ioctl(_NONE, 0x03)
KVM_GET_VCPU_MMAP_SIZE = _ioctl(_NONE, 0x04)
KVM_CREATE_VCPU = _ioctl(_NONE, 0x41)
KVM_SET_USER_MEMORY_REGION = _ioctl(_WRITE, 0x46, MemoryRegion)
KVM_CREATE_IRQCHIP = _ioctl(_NONE, 0x60)
KVM_IRQ_LINE = _ioctl(_WRITE, 0x61, IrqLevel)
KVM_GET_IRQCHIP = _ioctl(_READ | _WRITE, 0x62, Irqchip)
KVM_SET_IRQCHIP = _ioctl(_READ, 0x63, Irqchip)
KVM_IRQ_LINE_STATUS = _ioctl(_READ | _WRITE, 0x67, IrqLevel)
KVM_SET_GSI_ROUTING = _ioctl(_WRITE, 0x6A, 8)
KVM_IRQFD = _ioctl(_WRITE, 0x76, Irqfd)
KVM_RUN = _ioctl(_NONE, 0x80)
KVM_SET_REGS = _ioctl(_WRITE, 0x82, Regs)
KVM_GET_SREGS = _ioctl(_READ, 0x83, Sregs)
KVM_SET_SREGS = _ioctl(_WRITE, 0x84, Sregs)
KVM_GET_LAPIC = _ioctl(_READ, 0x8E, Lapic)
KVM_SET_LAPIC = _ioctl(_WRITE, 0x8F, Lapic)
KVM_SET_MP_STATE = _ioctl(_WRITE, 0x99, c_int32)
KVM_GET_VCPU_EVENTS = _ioctl(_READ, 0x9F, VcpuEvents)
KVM_ENABLE_CAP = _ioctl(_WRITE, 0xA3, EnableCap)
KVM_SIGNAL_MSI = _ioctl(_WRITE, 0xA5, Msi)
