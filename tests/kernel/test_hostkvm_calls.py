"""What the real KVM's side asks of the kernel, byte by byte, and what stays open. No KVM is needed: ioctl is ours."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import EngineError, EngineRefused
from vmm.kernel import hostkvm
from vmm.kernel import hostkvm_abi as abi
from vmm.kernel.gsi import Route, default_routing
from vmm.kernel.hostkvm import CANARY, HostCpu, HostKvm, HostVm, pinned

RUN_SIZE = 3 * 4096


class Kernel:
    """ioctl(2): notes what it is asked; answers as KVM does, unless a test says otherwise."""

    def __init__(self):
        self.calls = []
        self.answers = {
            abi.KVM_GET_API_VERSION: lambda _: 12,
            abi.KVM_GET_VCPU_MMAP_SIZE: lambda _: RUN_SIZE,
            abi.KVM_CHECK_EXTENSION: lambda number: number * 2,
            abi.KVM_CREATE_VM: lambda _: os.open(os.devnull, os.O_RDWR),
            abi.KVM_CREATE_VCPU: self.create_vcpu,
        }

    @staticmethod
    def create_vcpu(_):
        fd = os.memfd_create("vcpu")
        os.truncate(fd, RUN_SIZE)
        return fd

    def ioctl(self, _fd, request, argument=0):
        self.calls.append((request, argument if isinstance(argument, int) else bytes(argument)))
        answer = self.answers.get(request)
        return answer(argument) if answer else 0

    def asked(self, request):
        return [argument for asked, argument in self.calls if asked == request]

    def refuse(self, request, number):
        def refused(_):
            raise OSError(number, os.strerror(number))

        self.answers[request] = refused


def descriptors():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def kernel(monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    return kernel


@pytest.fixture
def kvm(kernel):  # noqa: ARG001
    with HostKvm(os.devnull) as kvm:
        yield kvm


@pytest.fixture
def vm(kvm):
    with HostVm(kvm) as vm:
        yield vm


# The device.


def test_device_that_is_not_kvm_is_closed_again(kernel):
    kernel.refuse(abi.KVM_GET_API_VERSION, errno.ENOTTY)
    before = descriptors()
    with pytest.raises(EngineRefused, match="null is not KVM: KVM_GET_API_VERSION: Inappropriate ioctl"):
        HostKvm(os.devnull)
    assert descriptors() == before


def test_closing_the_device_again_closes_nobody_elses_descriptor(kernel):  # noqa: ARG001
    before = descriptors()
    with HostKvm(os.devnull) as kvm:
        assert descriptors() != before
    assert descriptors() == before
    other = os.open(os.devnull, os.O_RDONLY)  # the number is free again
    kvm.close()
    os.fstat(other)
    os.close(other)
    assert descriptors() == before


def test_remedy_is_only_given_for_what_has_one():
    assert "modprobe" in hostkvm._open_remedy(errno.ENXIO)
    assert hostkvm._open_remedy(errno.EIO) == ""
    assert hostkvm._open_remedy(None) == ""


def test_extension_is_the_devices_answer(kvm, vm):
    assert (kvm.check_extension(32), vm.check_extension(33)) == (64, 66)


# A VM's making and end.


def test_vm_is_made_with_its_memory_at_zero_and_an_irqchip(kernel, kvm):
    kernel.calls.clear()
    with HostVm(kvm) as vm:
        assert [request for request, _ in kernel.calls] == [
            abi.KVM_CREATE_VM,
            abi.KVM_SET_USER_MEMORY_REGION,
            abi.KVM_CREATE_IRQCHIP,
        ]
        assert kernel.asked(abi.KVM_CREATE_VM) == [0]
        slot, flags, start, size, where = struct.unpack("<IIQQQ", kernel.asked(abi.KVM_SET_USER_MEMORY_REGION)[0])
        assert (slot, flags, start, size) == (0, 0, 0, 1 << 20)
        vm.memory[5:9] = b"here"
        assert ctypes.string_at(where + 5, 4) == b"here"
        assert len(vm.memory) == 1 << 20


@pytest.mark.parametrize(
    ("irqchip", "enabled"), [("split", [struct.pack("<II4Q64x", 121, 0, 24, 0, 0, 0)]), ("none", [])]
)
def test_vm_without_the_full_irqchip_is_made_as_asked(kernel, kvm, irqchip, enabled):
    with HostVm(kvm, irqchip, 4096):
        assert kernel.asked(abi.KVM_ENABLE_CAP) == enabled
        assert kernel.asked(abi.KVM_CREATE_IRQCHIP) == []


@pytest.mark.parametrize(
    ("request_", "irqchip"),
    [
        (abi.KVM_CREATE_VM, "full"),
        (abi.KVM_SET_USER_MEMORY_REGION, "full"),
        (abi.KVM_CREATE_IRQCHIP, "full"),
        (abi.KVM_ENABLE_CAP, "split"),
    ],
)
def test_refused_vm_says_so_and_leaves_nothing_open(kernel, kvm, request_, irqchip):
    kernel.refuse(request_, errno.ENOMEM)
    before = descriptors()
    with pytest.raises(EngineRefused, match="null: no VM: Cannot allocate memory"):
        HostVm(kvm, irqchip)
    assert descriptors() == before


@pytest.mark.parametrize("why", ["refused", "cannot be mapped"])
def test_refused_cpu_says_which_and_is_none_of_the_vms(kernel, vm, why):
    vm.add_cpu()
    if why == "refused":
        kernel.refuse(abi.KVM_CREATE_VCPU, errno.ENODEV)
    else:
        kernel.answers[abi.KVM_CREATE_VCPU] = lambda _: os.open(os.devnull, os.O_RDONLY)
    before = descriptors()
    with pytest.raises(EngineRefused, match="null: no virtual CPU 1: "):
        vm.add_cpu()
    assert descriptors() == before
    assert len(vm.cpus) == 1


def test_closed_vm_leaves_nothing_open_and_closing_again_is_fine(kernel, kvm):
    before = descriptors()
    with HostVm(kvm) as vm:
        cpus = [vm.add_cpu(), vm.add_cpu()]
        kernel.answers[abi.KVM_GET_IRQCHIP] = pulse((0, 0x80))
        vm.settle()
        assert [cpu.index for cpu in cpus] == kernel.asked(abi.KVM_CREATE_VCPU) == [0, 1]
        assert len(descriptors()) > len(before) + 3
    assert descriptors() == before
    assert vm.memory.closed
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]  # the numbers are free again
    vm.close()
    for cpu in cpus:
        cpu.close()
    for other in others:
        os.fstat(other)
        os.close(other)


@pytest.mark.parametrize("owner", ["kvm", "vm", "cpu", "canary"])
def test_descriptor_0_is_closed_like_any_other(kernel, owner):
    """A process without standard input gets it."""
    kernel.answers[abi.KVM_GET_IRQCHIP] = pulse((0, 0x80))
    kept = os.dup(0)
    try:
        for step in ("kvm", "vm", "cpu", "canary"):
            if step == owner:
                os.close(0)
            if step == "kvm":
                kvm = HostKvm(os.devnull)
            elif step == "vm":
                vm = HostVm(kvm)
            elif step == "cpu":
                vm.add_cpu()
            else:
                vm.settle()
        before = descriptors()
        assert "0" in before
        vm.settle()
        assert descriptors() == before
        vm.close()
        kvm.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)


# A VM's ioctls.


def test_irqfd_is_asked_for_as_the_kernel_reads_it(kernel, vm):
    vm.irqfd(5, 10)
    vm.irqfd(6, 11, 2, 7)
    vm.irqfd(-1, 12, 2, -1)
    assert kernel.asked(abi.KVM_IRQFD) == [
        struct.pack("<4I16x", 5, 10, 0, 0),
        struct.pack("<4I16x", 6, 11, 2, 7),
        struct.pack("<4I16x", 0xFFFF_FFFF, 12, 2, 0xFFFF_FFFF),
    ]


def test_lines_status_is_signed(kernel, vm):
    def ignored(line):
        line.irq = 0xFFFF_FFFF

    kernel.answers[abi.KVM_IRQ_LINE_STATUS] = ignored
    assert vm.irq_line_status(9, 1) == -1
    vm.irq_line(8, 1)
    vm.gsi_target(7)(False)
    assert kernel.asked(abi.KVM_IRQ_LINE_STATUS) == [struct.pack("<II", 9, 1)]
    assert kernel.asked(abi.KVM_IRQ_LINE) == [struct.pack("<II", 8, 1), struct.pack("<II", 7, 0)]


def test_message_is_asked_for_as_the_kernel_reads_it(kernel, vm):
    kernel.answers[abi.KVM_SIGNAL_MSI] = lambda _: 1
    assert vm.signal_msi(0xFEE0_0000, 1, 0x51) == 1
    kernel.refuse(abi.KVM_SIGNAL_MSI, errno.EPERM)
    assert vm.signal_msi(0xFEE0_0000, 1, 0x51, 1, 9) == -1
    assert kernel.asked(abi.KVM_SIGNAL_MSI) == [
        struct.pack("<5I12x", 0xFEE0_0000, 1, 0x51, 0, 0),
        struct.pack("<5I12x", 0xFEE0_0000, 1, 0x51, 1, 9),
    ]


@pytest.mark.parametrize(("irqchip", "added"), [("full", [CANARY]), ("split", []), ("none", [])])
def test_canary_is_in_the_table_where_the_kernel_has_a_pic(kernel, kvm, irqchip, added):
    routes = [Route.irqchip(3, 2, 4), Route.msi(5, 0x1_FEE0_0000, 0x61)]
    with HostVm(kvm, irqchip) as vm:
        vm.set_gsi_routing(routes)
    table = kernel.asked(abi.KVM_SET_GSI_ROUTING)[0]
    assert struct.unpack_from("<II", table) == (2 + len(added), 0)
    entries = b"".join(route.build() for route in [*routes, *added])
    assert table[8:].ljust(2000, b"\0") == entries.ljust(2000, b"\0")


@pytest.mark.parametrize(("chip", "size"), [(0, 16), (1, 16), (2, 216)])
def test_chips_state_is_as_long_as_the_kernel_defines_it(kernel, vm, chip, size):
    def fill(state):
        ctypes.memmove(state.chip, bytes(range(1, 217)), 216)

    kernel.answers[abi.KVM_GET_IRQCHIP] = fill
    assert vm.get_irqchip(chip) == bytes(range(1, size + 1))
    assert kernel.asked(abi.KVM_GET_IRQCHIP) == [struct.pack("<I516x", chip)]


@pytest.mark.parametrize("size", [16, 216, 512, 600])
def test_chip_is_set_from_as_many_bytes_as_it_has(kernel, vm, size):
    data = bytes(n % 251 for n in range(size))
    vm.set_irqchip(2, data)
    assert kernel.asked(abi.KVM_SET_IRQCHIP) == [struct.pack("<II", 2, 0) + data[:512].ljust(512, b"\0")]


# Order.


def pulse(*states):
    """KVM_GET_IRQCHIP of the PIC: last_irr and irr, one pair after the other; the last pair stays."""
    left = list(states)

    def answer(state):
        state.chip[0], state.chip[1] = left.pop(0) if len(left) > 1 else left[0]

    return answer


def test_settling_waits_for_the_end_of_the_canarys_pulse_and_wipes_its_trace(kernel, vm):
    events = []
    show = pulse((0, 0x04), (0x80, 0x84), (0, 0x84))

    def irqfd(asked):
        events.append(("irqfd", asked.gsi, asked.flags))
        if not asked.flags:
            events.append(("readable when assigned", int(readable(asked.fd))))
            canary.append(asked.fd)

    def get(state):
        if readable(canary[0]):
            os.eventfd_read(canary[0])
            events.append(("written",))
        events.append(("look",))
        show(state)

    canary = []
    kernel.answers |= {abi.KVM_IRQFD: irqfd, abi.KVM_GET_IRQCHIP: get}
    vm.settle()
    (route,) = [entry for entry in entries(kernel.asked(abi.KVM_SET_GSI_ROUTING)[0]) if entry[0] == CANARY.gsi]
    assert route == (CANARY.gsi, 1, 0, 0, 0, 7)  # pin 7 of the first PIC
    assert events == [
        ("irqfd", CANARY.gsi, 0),
        ("readable when assigned", 0),
        ("irqfd", CANARY.gsi + 1, 1),  # matches nothing, waits for the tear-downs
        ("written",),
        ("look",),
        ("look",),
        ("look",),
    ]
    assert kernel.asked(abi.KVM_SET_IRQCHIP) == [struct.pack("<II2B510x", 0, 0, 0, 0x04)]
    kernel.calls.clear()
    events.clear()
    vm.settle()
    assert events[:2] == [("irqfd", CANARY.gsi + 1, 1), ("written",)]
    assert not kernel.asked(abi.KVM_SET_GSI_ROUTING)


def readable(fd):
    return bool(select.select([fd], [], [], 0)[0])


def entries(table):
    count = struct.unpack_from("<I", table)[0]
    return [struct.unpack_from("<6I", table, 8 + 48 * n) for n in range(count)]


def test_settling_routes_only_where_nobody_has(kernel, kvm):
    kernel.answers[abi.KVM_GET_IRQCHIP] = pulse((0, 0x80))
    with HostVm(kvm) as vm:
        vm.set_gsi_routing([Route.irqchip(3, 2, 4)])
        vm.settle()
    assert len(kernel.asked(abi.KVM_SET_GSI_ROUTING)) == 1
    with HostVm(kvm) as vm:
        vm.settle()
    assert len(kernel.asked(abi.KVM_SET_GSI_ROUTING)) == 2
    assert len(entries(kernel.asked(abi.KVM_SET_GSI_ROUTING)[1])) == len(default_routing()) + 1


def test_settling_lets_the_kernels_worker_have_the_processor(kernel, vm, monkeypatch):
    yielded = []
    monkeypatch.setattr(os, "sched_yield", lambda: yielded.append(1))
    monkeypatch.setattr(hostkvm, "SETTLE_SECONDS", 5.0)

    def get(state):
        state.chip[1] = 0x80 if len(yielded) > 3 else 0

    kernel.answers[abi.KVM_GET_IRQCHIP] = get
    vm.settle()
    assert kernel.asked(abi.KVM_SET_IRQCHIP)


def test_kernel_that_never_injects_is_an_error(kernel, vm, monkeypatch):
    monkeypatch.setattr(hostkvm, "SETTLE_SECONDS", 0.01)
    kernel.answers[abi.KVM_GET_IRQCHIP] = pulse((0x80, 0x80))
    with pytest.raises(EngineError, match="null: an irqfd's injection did not happen"):
        vm.settle()


@pytest.mark.parametrize("only_one", [False, True])
def test_pinned_thread_gets_its_own_cpus_back(only_one):
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)} if only_one else range(os.cpu_count() or 1))
    mine = os.sched_getaffinity(0)
    try:
        with pinned():
            assert len(os.sched_getaffinity(0)) == 1
            assert os.sched_getaffinity(0) <= mine
        assert os.sched_getaffinity(0) == mine
    finally:
        os.sched_setaffinity(0, before)


# A CPU.


def test_run_goes_on_after_a_signal_and_returns_the_reason(vm, monkeypatch):
    cpu = vm.add_cpu()
    asked = []

    def interrupted_once(fd, request, argument):
        asked.append((fd, request, argument))
        cpu.run_area.exit_reason = 6
        ctypes.set_errno(errno.EINTR)
        return -1 if len(asked) == 1 else 0

    monkeypatch.setattr(hostkvm, "_ioctl", interrupted_once)
    assert cpu.run() == 6
    assert asked == [(cpu.fd, abi.KVM_RUN, 0)] * 2


def test_run_that_the_kernel_refuses_is_an_error_with_its_words(vm):
    cpu = vm.add_cpu()  # a file, to which ioctl(2) itself says no
    with pytest.raises(EngineError, match="KVM_RUN of CPU 0: Inappropriate ioctl for device"):
        cpu.run()


def test_register_page_is_1024_bytes_both_ways(kernel, vm):
    cpu = vm.add_cpu()
    page = bytes(n % 251 for n in range(1024))

    def fill(into):
        into[:] = page

    kernel.answers[abi.KVM_GET_LAPIC] = fill
    assert cpu.get_lapic() == page
    cpu.set_lapic(bytearray(page))
    assert kernel.asked(abi.KVM_GET_LAPIC) == [bytes(1024)]
    assert kernel.asked(abi.KVM_SET_LAPIC) == [page]


def test_nmi_is_pending_when_the_kernel_says_so(kernel, vm):
    def fill(events):
        ctypes.memset(ctypes.addressof(events) + 13, 1, 1)

    cpu = vm.add_cpu()
    assert cpu.nmi_pending() is False
    kernel.answers[abi.KVM_GET_VCPU_EVENTS] = fill
    assert cpu.nmi_pending() is True


def test_long_mode_is_what_the_processor_wants_and_leaves_the_rest(kernel, vm):
    cpu = vm.add_cpu()
    kernel.answers[abi.KVM_GET_SREGS] = lambda sregs: ctypes.memset(ctypes.addressof(sregs), 0xA5, 312) and 0
    cpu.set_long_mode(0x10000, 0x38000, 0x40000, 0x12000, 0x11000)
    expected = bytearray(b"\xa5" * 312)
    for n in range(6):  # cs, ds, es, fs, gs, ss: flat, ring 0; type, present, dpl, db, s, l, g, avl, unusable
        selector, kind, db, long = (8, 11, 0, 1) if n == 0 else (16, 3, 1, 0)
        bits = (kind, 1, 0, db, 1, long, 1, 0xA5, 0)
        struct.pack_into("<QIH9B", expected, 24 * n, 0, 0xFFFF_FFFF, selector, *bits)
    struct.pack_into("<QH", expected, 192, 0x11000, 3 * 8 - 1)  # GDTR
    struct.pack_into("<QH", expected, 208, 0x12000, 256 * 16 - 1)  # IDTR
    struct.pack_into("<Q", expected, 224, 1 << 31 | 1 << 4 | 1)  # CR0: PG, ET, PE
    struct.pack_into("<2Q", expected, 240, 0x40000, 1 << 5)  # CR3; CR4: PAE
    struct.pack_into("<Q", expected, 264, 1 << 10 | 1 << 8)  # EFER: LMA, LME
    assert kernel.asked(abi.KVM_SET_SREGS) == [expected]
    assert kernel.asked(abi.KVM_SET_REGS) == [struct.pack("<18Q", *[0] * 6, 0x38000, *[0] * 9, 0x10000, 2)]
    assert kernel.asked(abi.KVM_SET_MP_STATE) == [struct.pack("<i", 0)]


class PageCpu(HostCpu):
    """A CPU that is its register page."""

    def __init__(self, page):
        self.page = page

    def get_lapic(self):
        return bytearray(self.page)

    def set_lapic(self, page):
        self.page = page


def register_page(irr, isr, priority):
    page = bytearray(1024)
    page[0x80] = priority
    for start, vectors in ((0x100, isr), (0x200, irr)):
        for vector in vectors:
            page[start + vector // 32 * 16 + vector % 32 // 8] |= 1 << vector % 8
    return page


VECTORS = st.sets(st.integers(0, 255), max_size=6)


@given(VECTORS, VECTORS, st.integers(0, 255))
def test_acknowledged_is_the_highest_vector_above_the_priority(irr, isr, priority):
    cpu = PageCpu(register_page(irr, isr, priority))
    classes = [vector >> 4 for vector in isr]
    best = max(irr, default=-1)
    taken = best >> 4 > max(priority >> 4, *classes, 0)
    assert cpu.acknowledge() == (best if taken else -1)
    after = (irr - {best}, isr | {best}) if taken else (irr, isr)
    assert cpu.page == register_page(*after, priority)
