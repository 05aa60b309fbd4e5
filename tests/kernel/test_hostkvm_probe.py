"""What the probe says of kernels that lack something or do it wrong, with a machine that a test spoils."""

from __future__ import annotations

import os

import pytest

from vmm.errors import EngineError
from vmm.kernel import hostkvm_probe
from vmm.kernel.hostkvm_probe import Probe, ProbeStep, probe

EOI, SVR = 0xFEE0_00B0, 0xFEE0_00F0
ISR = 0x100


class Kvm:
    """/dev/kvm with every extension, but for those in `lacks`."""

    lacks = frozenset()

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def check_extension(self, number):
        return 0 if number in self.lacks else number + 1


class Vm:
    """A local APIC, an I/O APIC and 512 KiB, as the probe sees them. `spoiled` is what is wrong with them."""

    spoiled = ""

    def __init__(self, kvm):
        self.kvm = kvm
        self.ram = {}
        self.software_enabled = False
        self.low, self.high = [0x10000] * 24, [0x0500_0000] * 24  # masked; the destination is nobody
        self.lines = [False] * 24
        self.irr, self.isr = set(), set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def settle(self):
        if self.spoiled == "settle":
            raise EngineError("an irqfd's injection did not happen")

    def add_cpu(self):
        return self

    def irq_line(self, pin, level):
        self.lines[pin] = bool(level)
        self.deliver(pin)

    def deliver(self, pin):
        entry = self.low[pin]
        if self.lines[pin] and self.software_enabled and entry & 0x1C000 == 0x8000 and self.high[pin] == 0:
            self.low[pin] |= 0x4000
            self.irr.add(entry & 0xFF)

    def get_irqchip(self, chip):
        assert chip == 2
        entries = (high << 32 | low for low, high in zip(self.low, self.high, strict=True))
        return bytes(24) + b"".join(entry.to_bytes(8, "little") for entry in entries)

    def acknowledge(self):
        vector = max(self.irr)
        self.irr.remove(vector)
        self.isr.add(vector)
        return vector

    def get_lapic(self):
        page = bytearray(1024)
        for vector in self.isr:
            page[ISR + vector // 32 * 16 + vector % 32 // 8] |= 1 << vector % 8
        return page

    def eoi(self):
        vector = max(self.isr)
        self.isr.remove(vector)
        for pin, entry in enumerate(self.low):
            if entry & 0x40FF == 0x4000 | vector and self.spoiled != "eoi":
                self.low[pin] &= ~0x4000
                self.deliver(pin)


class Guest:
    def __init__(self, vm):
        self.vm = vm
        self.started = False

    def start(self, cpu):
        assert cpu is self.vm
        if self.vm.spoiled == "start":
            raise EngineError("CPU 0 left its guest with exit 8")
        self.started = True

    def call(self, cpu, operation, address=0, value=0):
        vm = self.vm
        assert self.started
        assert cpu is vm
        if operation == "wreg":
            pin, high = divmod(address - 0x10, 2)
            (vm.high if high else vm.low)[pin] = value
        elif operation == "read32":
            return vm.ram[address]
        elif operation == "popcnt":
            if vm.spoiled == "popcnt":
                raise EngineError("CPU 0 left its guest with exit 17, suberror 1")
            return value.bit_count() + (vm.spoiled == "popcnt result")
        elif (operation, address) == ("write32", SVR):
            vm.software_enabled = bool(value & 0x100)
        elif (operation, address) == ("write32", EOI):
            assert value == 0
            vm.eoi()
        else:
            assert operation == "write32"
            assert address + 4 <= 1 << 19
            vm.ram[address] = value + (vm.spoiled == "memory")
        return 0

    def taken(self, _cpu):
        if self.vm.spoiled == "nothing taken" or not self.vm.irr:
            return False
        self.vm.acknowledge()
        if self.vm.spoiled == "automatic eoi":
            self.vm.isr.clear()
        return True


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Gives the machine the fault that is asked for."""
    monkeypatch.setattr(hostkvm_probe, "HostKvm", Kvm)
    monkeypatch.setattr(hostkvm_probe, "HostVm", Vm)
    monkeypatch.setattr(hostkvm_probe, "MailboxGuest", Guest)
    monkeypatch.setattr(hostkvm_probe, "Path", lambda _: tmp_path / "kvm_pvm")
    return lambda fault: monkeypatch.setattr(Vm, "spoiled", fault)


def facts(found):
    return found.oracle, found.faithful_injection, found.emulated_ring0


def test_missing_device_is_a_reason_with_a_remedy(tmp_path):
    found = probe(str(tmp_path / "kvm"))
    assert facts(found) == (False, False, False)
    assert found.path == str(tmp_path / "kvm")
    assert found.reason.startswith("open: ")
    assert "No such file" in found.reason
    assert "modprobe" in found.reason
    assert [(step.name, step.ok) for step in found.steps] == [("open", False)]


def test_device_that_is_not_kvm_is_a_reason_without_a_remedy():
    found = probe(os.devnull)
    assert not found.oracle
    assert found.reason == f"open: {os.devnull} is not KVM: KVM_GET_API_VERSION: Inappropriate ioctl for device"


def test_missing_extensions_end_the_probe_and_are_named(machine, monkeypatch):
    machine("")
    monkeypatch.setattr(Kvm, "lacks", frozenset({82, 14}))
    found = probe()
    assert facts(found) == (False, False, False)
    assert found.reason == (
        "extensions: without KVM_CAP_IRQFD_RESAMPLE, KVM_CAP_MP_STATE. "
        "Use a kernel with CONFIG_KVM and an in-kernel irqchip for x86-64"
    )
    assert [(step.name, step.ok) for step in found.steps] == [("open", True), ("extensions", False)]


def test_probe_that_was_not_made_is_no_oracle():
    found = Probe("/dev/kvm")
    assert found.reason == "not probed"
    assert facts(found) == (False, False, False)


def test_reason_is_the_first_no():
    noes = [ProbeStep("run", False, "it does not", "Try"), ProbeStep("oracle", False, "")]
    assert Probe("/dev/kvm", [ProbeStep("open", True, "yes"), *noes]).reason == "run: it does not. Try"


def test_machine_without_fault_can_be_all(machine):
    machine("")
    found = probe("/dev/other")
    assert facts(found) == (True, True, False)
    assert found.reason == ""
    assert found.steps == [
        ProbeStep("open", True, "/dev/other, API version 12"),
        ProbeStep("extensions", True, "all 9 that the irqchip needs"),
        ProbeStep("run", True, "a VM with one CPU runs its guest"),
        ProbeStep("oracle", True, "a level interrupt goes from line to EOI as it should"),
        ProbeStep("faithful injection", True, "an interrupt stays in service until the guest's EOI"),
        ProbeStep("whole instruction set", True, "popcnt in ring 0 works"),
    ]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("start", "CPU 0 left its guest with exit 8"),
        ("memory", "the guest reads back something else than it wrote"),
    ],
)
def test_guest_that_does_not_run_ends_the_probe(machine, fault, words):
    machine(fault)
    found = probe()
    assert facts(found) == (False, False, False)
    assert found.reason == f"run: {words}"
    assert [step.name for step in found.steps] == ["open", "extensions", "run"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("settle", "oracle: an irqfd's injection did not happen"),
        ("eoi", "oracle: Remote IRR, vector, Remote IRR and ISR after the EOI are [True, 81, True, 0]. This"),
    ],
)
def test_irqchip_that_does_otherwise_is_no_oracle(machine, fault, reason):
    machine(fault)
    found = probe()
    assert facts(found) == (False, True, False)
    assert found.reason.startswith(reason)
    assert found.reason.endswith("irqchip is unusual") == (fault == "eoi")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nothing taken", "the guest took no interrupt in its window"),
        ("automatic eoi", "the host ends an interrupt (EOI) when it injects it, not when the guest does"),
    ],
)
def test_host_that_injects_otherwise_is_an_oracle_all_the_same(machine, fault, words):
    machine(fault)
    found = probe()
    assert facts(found) == (True, False, False)
    (step,) = [step for step in found.steps if not step.ok]
    assert (step.name, step.detail) == ("faithful injection", words)
    assert "local APIC and I/O APIC in user space" in step.hint


@pytest.mark.parametrize(
    ("fault", "pvm", "words", "hint"),
    [
        ("popcnt", False, "popcnt in ring 0: CPU 0 left its guest with exit 17", "The guest's kernel is interpreted"),
        ("popcnt", True, "popcnt in ring 0: CPU 0 left its guest with exit 17", "This is kvm_pvm"),
        ("popcnt result", True, "popcnt in ring 0 gives a wrong result", ""),
    ],
)
def test_host_that_interprets_the_guests_kernel_is_told(machine, tmp_path, fault, pvm, words, hint):
    machine(fault)
    if pvm:
        (tmp_path / "kvm_pvm").mkdir()
    found = probe()
    assert facts(found) == (True, True, True)
    (step,) = [step for step in found.steps if not step.ok]
    assert step.detail.startswith(words)
    assert step.hint.startswith(hint)
    assert bool(step.hint) == bool(hint)
