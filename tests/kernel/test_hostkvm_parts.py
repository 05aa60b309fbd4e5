"""What of the real KVM's side needs no KVM: probing without one, structures, the mailbox guest's binary."""

import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import EngineRefused
from vmm.kernel import hostkvm, hostkvm_abi, hostkvm_guest
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.hostkvm import HostKvm
from vmm.kernel.hostkvm_probe import Probe, probe

U32 = st.integers(0, 2**32 - 1)


def test_missing_device_is_a_reason_with_a_remedy(tmp_path):
    found = probe(str(tmp_path / "kvm"))
    assert not found.oracle
    assert "No such file" in found.reason
    assert "modprobe" in found.reason
    assert [step.name for step in found.steps] == ["open"]


def test_device_that_is_not_kvm_is_a_reason():
    found = probe(os.devnull)
    assert not found.oracle
    assert f"{os.devnull} is not KVM" in found.reason


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


def test_missing_extension_ends_the_probe(monkeypatch):
    class Old:
        path = "/dev/kvm"

        def __init__(self, _path):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def check_extension(self, number):
            return int(number != 82)

    monkeypatch.setattr("vmm.kernel.hostkvm_probe.HostKvm", Old)
    found = probe()
    assert not found.oracle
    assert "KVM_CAP_IRQFD_RESAMPLE" in found.reason
    assert len(found.steps) == 2


def test_probe_that_was_not_made_is_no_oracle():
    assert Probe("/dev/kvm").reason == "not probed"


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
    ("name", "number"),
    [
        ("KVM_RUN", 0xAE80),
        ("KVM_IRQFD", 0x4020AE76),
        ("KVM_IRQ_LINE_STATUS", 0xC008AE67),
        ("KVM_GET_IRQCHIP", 0xC208AE62),
        ("KVM_SET_LAPIC", 0x4400AE8F),
        ("KVM_ENABLE_CAP", 0x4068AEA3),
        ("KVM_SET_GSI_ROUTING", 0x4008AE6A),
    ],
)
def test_ioctl_numbers_are_the_kernels(name, number):
    assert getattr(hostkvm_abi, name) == number


def test_every_operation_of_the_guest_begins_where_its_table_says():
    image = hostkvm_guest._image()
    count = len(hostkvm_guest.OPERATIONS)
    table = struct.unpack_from(f"<{count}Q", image, 0x80)
    starts = dict(zip(hostkvm_guest.OPERATIONS, (image[address - 0x10000 :][:2] for address in table), strict=True))
    assert starts == {
        "ready": b"\xe6\x10",  # out 0x10, al
        "write8": b"\x88\x0e",
        "write16": b"\x66\x89",
        "write32": b"\x89\x0e",
        "write64": b"\x48\x89",
        "read8": b"\x0f\xb6",
        "read16": b"\x0f\xb7",
        "read32": b"\x8b\x06",
        "read64": b"\x48\x8b",
        "wreg": b"\xbb\x00",  # mov ebx, 0xfec00000
        "window": b"\xfb\xf3",  # sti; pause
        "popcnt": b"\xf3\x48",
        "in8": b"\x89\xf2",  # mov edx, esi
        "out8": b"\x89\xf2",
    }


def test_guests_gates_lead_to_the_handler_and_the_nmis_to_the_return():
    image = hostkvm_guest._image()

    def handler(vector):
        low, selector, _, kind, middle, _, _ = struct.unpack_from("<HHBBHII", image, 0x2000 + 16 * vector)
        assert (selector, kind) == (8, 0x8E)
        return image[(low | middle << 16) - 0x10000 :][:2]

    assert handler(0x51) == handler(255) == b"\xe6\x11"  # out 0x11, al
    assert handler(2) == b"\x48\xcf"  # iretq


@given(st.integers(0, 2**256 - 1))
def test_bits_of_a_register_page_are_read_in_order(value):
    page = bytearray(1024)
    for n in range(8):
        struct.pack_into("<I", page, 0x200 + 16 * n, value >> 32 * n & 0xFFFF_FFFF)
    assert hostkvm.lapic_bits(page, hostkvm.LAPIC_IRR) == value
    assert hostkvm.lapic_bits(page, hostkvm.LAPIC_ISR) == 0


def test_ioapic_is_asked_for_with_the_size_of_its_state():
    assert hostkvm.CHIP_SIZES[KVM_IRQCHIP_IOAPIC] == 24 + 24 * 8
