"""What of the real KVM's side needs no KVM: opening without one, structures, registers."""

import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import EngineRefused
from vmm.kernel import hostkvm
from vmm.kernel import hostkvm_abi as abi
from vmm.kernel.gsi import Route
from vmm.kernel.hostkvm import HostKvm

U32 = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "group kvm"), (errno.EPERM, "--device"), (errno.ENODEV, "firmware"), (errno.EBUSY, "hypervisor")],
)
def test_refused_device_names_the_way_out(monkeypatch, number, remedy):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hostkvm.os, "open", refuse)
    with pytest.raises(EngineRefused, match=remedy) as refused:
        HostKvm("/dev/kvm")
    assert refused.value.engine == "kvm"


def test_other_api_version_is_refused_and_nothing_stays_open(monkeypatch):
    opened = os.open(os.devnull, os.O_RDWR)
    monkeypatch.setattr(hostkvm.os, "open", lambda *_: opened)
    monkeypatch.setattr(hostkvm.fcntl, "ioctl", lambda *_: 11)
    with pytest.raises(EngineRefused, match="API version 11, known is 12"):
        HostKvm()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened)


@given(
    st.lists(
        st.one_of(st.builds(Route.irqchip, U32, U32, U32), st.builds(Route.msi, U32, st.integers(0, 2**64 - 1), U32))
    )
)
def test_packed_routes_are_what_the_declaration_builds(routes):
    packed = hostkvm._routing(routes, 0)
    assert packed[:8] == struct.pack("<II", len(routes), 0)
    assert packed[8:].rstrip(b"\0") == b"".join(r.build() for r in routes).rstrip(b"\0")
    assert len(packed) > 1024  # a shorter one would be copied to a buffer of the interpreter's


@pytest.mark.parametrize(
    ("structure", "offsets"),
    [
        (abi.MemoryRegion, {"guest_phys_addr": 8, "memory_size": 16, "userspace_addr": 24}),
        (abi.Irqfd, {"gsi": 4, "flags": 8, "resamplefd": 12}),
        (abi.Irqchip, {"chip": 8}),
        (abi.Segment, {"selector": 12, "type": 14, "present": 15, "dpl": 16, "db": 17, "s": 18, "l": 19, "g": 20}),
        (abi.Segment, {"unusable": 22}),
        (abi.Sregs, {"ss": 120, "gdt": 192, "idt": 208, "cr0": 224, "cr3": 240, "cr4": 248, "efer": 264}),
        (abi.Regs, {"rsp": 48, "rip": 128, "rflags": 136}),
        (abi.Msi, {"data": 8, "flags": 12, "devid": 16}),
        (abi.VcpuEvents, {"nmi_pending": 13}),
        (abi.EnableCap, {"args": 8}),
        (abi.Run, {"exit_reason": 8, "u": 32}),
        (abi.Run.Union.Io, {"direction": 0, "size": 1, "port": 2, "data_offset": 8}),
        (abi.Run.Union.Mmio, {"data": 8, "len": 16, "is_write": 20}),
    ],
)
def test_fields_are_where_the_kernel_has_them(structure, offsets):
    assert {name: getattr(structure, name).offset for name in offsets} == offsets


def test_register_arrays_are_where_the_processor_has_them():
    names = ("LAPIC_TPR", "LAPIC_ISR", "LAPIC_TMR", "LAPIC_IRR")
    assert [getattr(hostkvm, name) for name in names] == [0x80, 0x100, 0x180, 0x200]


@given(st.integers(0, 2**256 - 1))
def test_bits_of_a_register_page_are_read_in_order(value):
    page = bytearray(1024)
    for n in range(8):
        struct.pack_into("<I", page, 0x200 + 16 * n, value >> 32 * n & 0xFFFF_FFFF)
    assert hostkvm.lapic_bits(page, hostkvm.LAPIC_IRR) == value
    assert hostkvm.lapic_bits(page, hostkvm.LAPIC_ISR) == 0
