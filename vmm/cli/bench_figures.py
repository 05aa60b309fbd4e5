"""What `vintx bench` measures, and how: one `Group` for all figures that the same run gives."""

from __future__ import annotations

import functools
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import guest_images
from vmm.cli import bench_explore, bench_irqchip, bench_linux, bench_points, bench_qmp, bench_vfio_user
from vmm.cli.process import GuestLost

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 120
BOARD = ("-M", "pc", "-accel", "tcg", "-nodefaults", "-display", "none")
DEBUG_EXIT = ("-device", "isa-debug-exit,iobase=0xf4,iosize=0x4")
INTX_ROUNDS = 20_000
EXITS = 20_000
SNAPSHOTS = 5_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. `unit`: "ms" (of a start) and "us" (µs) are better small, "/s" and "x" are better big. `aim`: what we
    want to reach."""

    name: str
    what: str
    unit: str
    aim: float | None = None

    def cost(self, value: float) -> float:
        """A value as something that is better small."""
        return 1 / value if self.unit in ("/s", "x") else value


@dataclass(frozen=True, slots=True)
class Subject:
    """A program with QEMU's command line that is measured."""

    name: str
    program: str
    ours: bool = False

    def version(self) -> str:
        """Its `-version`, first line."""
        text = subprocess.run([self.program, "-version"], capture_output=True, text=True, check=True).stdout
        return text.splitlines()[0]

    def console(self, image: str, append: str, *options: str) -> str:
        """Run a guest image to its end; what it said. GuestLost if it fails or does not come to an end."""
        command = [self.program, *BOARD, "-serial", "stdio", *DEBUG_EXIT, *options]
        command += ["-kernel", str(guest_images.path(image)), "-append", append]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE_S
            )
        except subprocess.TimeoutExpired as error:
            said = (error.output or b"").decode("utf-8", "replace")
            raise GuestLost(f"{self.name}: {image} is not done after {PATIENCE_S} s", said) from error
        if done.returncode != guest_images.EXIT_PASSED << 1 | 1:
            raise GuestLost(f"{self.name}: {image} ended with status {done.returncode}", done.stdout + done.stderr)
        return done.stdout

    def until_output(self, *options: str) -> float:
        """Milliseconds from exec to the first byte on standard output. The process is ended then."""
        began = time.perf_counter()
        with subprocess.Popen(
            [self.program, *BOARD, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first = process.stdout.read(1)
            ms = (time.perf_counter() - began) * 1e3
            process.send_signal(signal.SIGKILL)
            if not first:
                raise GuestLost(f"{self.name} ended without a word", process.stderr.read().decode("utf-8", "replace"))
        return ms


@dataclass(frozen=True, slots=True)
class Group:
    """Figures of one run. `measure(subject)` gives their values by name; `comparable`: QEMU can be asked as well."""

    title: str
    figures: tuple[Figure, ...]
    measure: Callable[[Subject], dict[str, float]]
    comparable: bool = True


@functools.cache
def tsc_hz() -> float:
    """Cycles of the host's time stamp counter in a second, which both machines show their guests."""
    from vmm.cpu.unicorn.library import load

    return load().tsc_hz()


# --- starts -----------------------------------------------------------------------------------------------------------


def greeting(subject: Subject) -> dict[str, float]:
    """A monitor on standard output, and a board with nothing to boot."""
    return {"greeting": subject.until_output("-qmp", "stdio")}


def first_output(subject: Subject, name: str = "first-output", memory: str = "64") -> dict[str, float]:
    """From exec to the guest's first character."""
    image = ("-kernel", str(guest_images.path("intx_loop")))
    return {name: subject.until_output("-m", memory, "-serial", "stdio", *image)}


def machine(_: Subject) -> dict[str, float]:
    """One more machine in a process that has made one before."""
    from machine.machine import Machine, MachineConfig

    began = time.perf_counter()
    vm = Machine.create("pc", MachineConfig(ram_size=64 << 20, kernel=str(guest_images.path("intx_loop"))))
    vm.start()
    vm.close()
    return {"machine": (time.perf_counter() - began) * 1e3}


# --- guests -----------------------------------------------------------------------------------------------------------


def level(name: str, *options: str) -> Callable[[Subject], dict[str, float]]:
    """Level interrupts a second: raise, handler, acknowledge, EOI, one after the other."""

    def measure(subject: Subject) -> dict[str, float]:
        text = subject.console("intx_loop", f"n={INTX_ROUNDS} burst", *options)
        match = guest_images.INTX_LOOP_BURST.search(text)
        if match is None:
            raise GuestLost(f"{subject.name}: intx_loop did not say how long it took", text)
        return {name: INTX_ROUNDS * tsc_hz() / int(match["cycles"])}

    return measure


def exits(subject: Subject) -> dict[str, float]:
    """Microseconds an exit, of each kind. A halt counts from when its timer was due."""
    text = subject.console("exits", f"n={EXITS}", "-device", "edu", "-device", "pc-testdev")
    found = {
        m["kind"]: int(m["cycles"]) / int(m["count"]) / tsc_hz() * 1e6 for m in guest_images.EXITS_TIMED.finditer(text)
    }
    if "halt" in found:
        found["halt"] -= guest_images.EXITS_HALT_NS / 1e3
    return found


# --- the kernel's side, without a guest -------------------------------------------------------------------------------


class _NoCpu:
    """A CPU that never runs."""

    def interrupt_changed(self) -> None: ...
    def nmi(self) -> None: ...
    def smi(self) -> None: ...
    def init(self) -> None: ...
    def sipi(self, vector: int) -> None: ...


def explorer(_: Subject) -> dict[str, float]:
    """What the explorer does at each step: read the whole state of a VM with an irqfd and its resampler."""
    from devices.apic_bus import ApicBus
    from devices.ioapic_kvm import KvmIoApic
    from devices.lapic import LocalApic
    from vmm.explore.heap import Arena
    from vmm.kernel.files import EFD_NONBLOCK, DescriptorTable
    from vmm.kernel.irqfd import KVM_IRQFD_FLAG_RESAMPLE
    from vmm.kernel.kvm import Vm
    from vmm.order import Executor
    from vmm.trace import Trace

    files, trace = DescriptorTable(), Trace()
    vm, bus = Vm(files, Executor(), trace), ApicBus(trace)
    lapic = LocalApic(0, _NoCpu(), bus, None, trace)
    ioapic = KvmIoApic(bus, None, trace)
    vm.connect(ioapic=ioapic, bus=bus)
    trigger, resample = (files.eventfd(0, EFD_NONBLOCK) for _ in range(2))
    vm.irqfd(trigger, 10, KVM_IRQFD_FLAG_RESAMPLE, resample)
    arena = Arena(vm, bus, ioapic, lapic)
    arena.take()
    began = time.perf_counter()
    for _round in range(SNAPSHOTS):
        arena.take()
    return {"snapshot": (time.perf_counter() - began) / SNAPSHOTS * 1e6}


def vfio_user(_: Subject) -> dict[str, float]:
    """Accesses and interrupts of a served device, beside libvfio-user's C sample."""
    return bench_vfio_user.measure()


def irqchip(_: Subject) -> dict[str, float]:
    """Operations of the irqchip, on the model and on this machine's KVM."""
    return bench_irqchip.measure(stretches=3)


def exploring(_: Subject) -> dict[str, float]:
    """The explorer, alone and beside spin."""
    return bench_explore.measure()


def points(_: Subject) -> dict[str, float]:
    """What the explorer costs where nobody explores."""
    return bench_points.measure()


# --- all of it --------------------------------------------------------------------------------------------------------

EDU = ("-device", "edu")
VFIO = ("-object", "vfio-host-device,id=h0,driver=edu", "-device")
KINDS = (
    ("port-out", "OUT to a port of nobody", 0.4),
    ("port-in", "IN from it", 0.4),
    ("lapic-write", "write of the local APIC", 0.4),
    ("lapic-read", "read of the local APIC", 0.4),
    ("ioapic-write", "write of the IOAPIC", 0.4),
    ("ioapic-read", "read of the IOAPIC", 0.4),
    ("edu-write", "write of edu", 0.4),
    ("edu-read", "read of edu", 0.4),
    ("self-ipi", "self-IPI round trip", 8.7),
    ("edge", "IOAPIC edge round trip", 10.0),
    ("halt", "HLT: wake-up after its timer", None),
)

GROUPS = (
    Group("greeting", (Figure("greeting", "exec to QMP greeting", "ms", 40.0),), greeting),
    Group(
        "first reply",
        (Figure("first-reply", "exec to the reply of a machine that is made", "ms"),),
        bench_qmp.first_reply,
    ),
    Group("monitor", (Figure("qmp", "QMP commands, one at a time", "/s", 5000.0),), bench_qmp.qmp_rate),
    Group(
        "qtest",
        (
            Figure("qtest-in", "qtest inb, one at a time", "/s", 40_000.0),
            Figure("qtest-out", "qtest outb, one at a time", "/s", 49_000.0),
            Figure("qtest-pipelined", "qtest writel of the IOAPIC, 200 at a time", "/s", 195_000.0),
        ),
        bench_qmp.qtest_rates,
    ),
    Group("plug", (Figure("plug-cycle", "device_add, device_del and eject of edu", "/s"),), bench_qmp.plug_rate),
    Group("first output", (Figure("first-output", "exec to first guest output, -m 64", "ms"),), first_output),
    Group(
        "first output with more memory",
        (Figure("first-output-2G", "the same, -m 2G", "ms"),),
        functools.partial(first_output, name="first-output-2G", memory="2G"),
    ),
    Group(
        "machine",
        (Figure("machine", "one more machine in a process", "ms"),),
        machine,
        comparable=False,
    ),
    Group("level interrupts", (Figure("level-edu", "level interrupts of edu", "/s"),), level("level-edu", *EDU)),
    Group(
        "level interrupts, irqfd",
        (Figure("level-irqfd", "the same, vfio-pci with irqfd", "/s"),),
        level("level-irqfd", *VFIO, "vfio-pci,x-host-object=h0"),
        comparable=False,
    ),
    Group(
        "level interrupts, user space",
        (Figure("level-user", "the same, x-no-kvm-intx=on", "/s"),),
        level("level-user", *VFIO, "vfio-pci,x-host-object=h0,x-no-kvm-intx=on"),
        comparable=False,
    ),
    Group("Linux", tuple(Figure(*row) for row in bench_linux.ROWS[:2]), bench_linux.boot),
    Group("Linux at work", tuple(Figure(*row) for row in bench_linux.ROWS[2:5]), bench_linux.work),
    Group("Linux' hot-plug", tuple(Figure(*row) for row in bench_linux.ROWS[5:]), bench_linux.hotplug),
    Group("exits", tuple(Figure(name, what, "us", aim) for name, what, aim in KINDS), exits),
    Group(
        "explorer",
        (Figure("snapshot", "snapshot of a VM with an irqfd", "us"),),
        explorer,
        comparable=False,
    ),
    Group("points", tuple(Figure(*row) for row in bench_points.ROWS), points, comparable=False),
    Group("exploring", tuple(Figure(*row) for row in bench_explore.ROWS), exploring, comparable=False),
    Group("vfio-user", tuple(Figure(*row) for row in bench_vfio_user.ROWS), vfio_user, comparable=False),
    Group("irqchip", tuple(Figure(*row) for row in bench_irqchip.ROWS), irqchip, comparable=False),
)
