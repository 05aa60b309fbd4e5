"""The numbers that users of the interface and guests pass: those of linux/kvm.h, linux/eventfd.h and the 82093AA."""

from __future__ import annotations

import pytest
from construct import StreamError

from devices import ioapic
from vmm.kernel import eoifd, files, gsi, hostkvm_abi, ioctl, irqfd, kvm

NUMBERS = {
    eoifd: {
        "KVM_IRQFD_FLAG_LEVEL": 2,
        "KVM_EOIFD_FLAG_DEASSIGN": 1,
        "KVM_EOIFD_FLAG_LEVEL_IRQFD": 2,
        "KVM_CAP_IRQFD_LEVEL": 81,
        "KVM_CAP_EOIFD": 82,
        "KVM_CAP_EOIFD_LEVEL_IRQFD": 83,
    },
    files: {
        "U64_MAX": 0xFFFFFFFFFFFFFFFF,
        "POLLIN": 1,
        "POLLOUT": 4,
        "POLLERR": 8,
        "POLLHUP": 16,
        "EFD_SEMAPHORE": 1,
        "EFD_NONBLOCK": 0x800,
        "EFD_CLOEXEC": 0x80000,
    },
    gsi: {
        "KVM_USERSPACE_IRQ_SOURCE_ID": 0,
        "KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID": 1,
        "KVM_PIT_IRQ_SOURCE_ID": 2,
        "SOURCE_IDS": 64,
        "KVM_IRQCHIP_PIC_MASTER": 0,
        "KVM_IRQCHIP_PIC_SLAVE": 1,
        "KVM_IRQCHIP_IOAPIC": 2,
        "KVM_IRQ_ROUTING_IRQCHIP": 1,
        "KVM_IRQ_ROUTING_MSI": 2,
        "KVM_MSI_VALID_DEVID": 1,
        "KVM_MAX_IRQ_ROUTES": 0x1000,
        "IOAPIC_PINS": 24,
        "PIC_PINS": 8,
    },
    hostkvm_abi: {
        "KVM_API_VERSION": 12,
        "PAGE": 4096,
        "KVM_EXIT_IO": 2,
        "KVM_EXIT_MMIO": 6,
        "KVM_EXIT_INTERNAL_ERROR": 17,
        "KVM_CAP_USER_MEMORY": 3,
        "KVM_CAP_MP_STATE": 14,
        "KVM_CAP_VCPU_EVENTS": 41,
        "KVM_CAP_X86_SMM": 117,
        "KVM_CAP_SPLIT_IRQCHIP": 121,
        "KVM_MP_STATE_RUNNABLE": 0,
        "KVM_GET_API_VERSION": 0xAE00,
        "KVM_CREATE_VM": 0xAE01,
        "KVM_CHECK_EXTENSION": 0xAE03,
        "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
        "KVM_CREATE_VCPU": 0xAE41,
        "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
        "KVM_CREATE_IRQCHIP": 0xAE60,
        "KVM_IRQ_LINE": 0x4008AE61,
        "KVM_GET_IRQCHIP": 0xC208AE62,
        "KVM_SET_IRQCHIP": 0x8208AE63,
        "KVM_IRQ_LINE_STATUS": 0xC008AE67,
        "KVM_SET_GSI_ROUTING": 0x4008AE6A,
        "KVM_IRQFD": 0x4020AE76,
        "KVM_RUN": 0xAE80,
        "KVM_SET_REGS": 0x4090AE82,
        "KVM_GET_SREGS": 0x8138AE83,
        "KVM_SET_SREGS": 0x4138AE84,
        "KVM_GET_LAPIC": 0x8400AE8E,
        "KVM_SET_LAPIC": 0x4400AE8F,
        "KVM_SET_MP_STATE": 0x4004AE99,
        "KVM_GET_VCPU_EVENTS": 0x8040AE9F,
        "KVM_ENABLE_CAP": 0x4068AEA3,
        "KVM_SIGNAL_MSI": 0x4020AEA5,
    },
    ioctl: {
        "KVM_IRQ_LINE": 0x4008AE61,
        "KVM_IRQ_LINE_STATUS": 0xC008AE67,
        "KVM_SET_GSI_ROUTING": 0x4008AE6A,
        "KVM_IRQFD": 0x4020AE76,
        "KVM_SIGNAL_MSI": 0x4020AEA5,
        "KVM_EOIFD": 0x4020AEA8,
        "ROUTE_SIZE": 48,
    },
    irqfd: {
        "KVM_IRQFD_FLAG_DEASSIGN": 1,
        "KVM_IRQFD_FLAG_RESAMPLE": 2,
    },
    kvm: {
        "KVM_CAP_IRQCHIP": 0,
        "KVM_CAP_IRQ_ROUTING": 25,
        "KVM_CAP_IRQ_INJECT_STATUS": 26,
        "KVM_CAP_IRQFD": 32,
        "KVM_CAP_SIGNAL_MSI": 77,
        "KVM_CAP_IRQFD_RESAMPLE": 82,
        "KVM_CAP_SPLIT_IRQCHIP": 121,
    },
    ioapic: {
        "PINS": 24,
        "IOAPIC_BASE": 0xFEC00000,
        "IOREGSEL": 0,
        "IOWIN": 16,
        "EOI": 64,
        "IOAPICID": 0,
        "IOAPICVER": 1,
        "IOAPICARB": 2,
        "IOREDTBL": 16,
        "VECTOR": 255,
        "DELIVERY_MODE_SHIFT": 8,
        "LOGICAL": 0x800,
        "DELIVERY_STATUS": 0x1000,
        "ACTIVE_LOW": 0x2000,
        "REMOTE_IRR": 0x4000,
        "LEVEL": 0x8000,
        "MASKED": 0x10000,
        "READ_ONLY": 0x5000,
        "DESTINATION_SHIFT": 56,
        "FIXED": 0,
        "LOWEST_PRIORITY": 1,
        "SMI": 2,
        "RESERVED_3": 3,
        "NMI": 4,
        "INIT": 5,
        "STARTUP": 6,
        "EXTINT": 7,
        "MAX_SUCCESSIVE_EOIS": 0x2710,
        "EOI_DELAY_NS": 0x989680,
        "SOURCE_USERSPACE": 0,
        "SOURCE_RESAMPLE": 1,
    },
}


@pytest.mark.parametrize("module", NUMBERS, ids=lambda module: module.__name__)
def test_numbers_are_those_of_the_interface(module):
    assert {name: getattr(module, name) for name in NUMBERS[module]} == NUMBERS[module]


@pytest.mark.parametrize(("structure", "size"), [(irqfd.KvmIrqfd, 32), (eoifd.KvmEoifd, 32), (gsi.KvmIrqLevel, 8)])
def test_structures_have_the_sizes_of_the_interface(structure, size):
    assert structure.sizeof() == size


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_entry_of_the_routing_table_has_48_bytes_whatever_its_kind(kind):
    entry = bytes([5, 0, 0, 0, kind, 0, 0, 0, *bytes(40)])
    assert gsi.KvmIrqRoutingEntry.build(gsi.KvmIrqRoutingEntry.parse(entry)) == entry
    with pytest.raises(StreamError):
        gsi.KvmIrqRoutingEntry.parse(entry[:-1])
