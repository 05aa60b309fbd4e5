"""The operations of `vectors kvm-ioapic.json`, which the model and the real KVM both take: the wording of a recording.

The two sides differ in how a register is reached and how work is settled; what an operation means is here.
"""

from __future__ import annotations

import errno
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from devices.ioapic import IOAPIC_BASE, IOREDTBL, IOREGSEL, IOWIN, MASKED, PINS, IoApicState
from vmm.errors import ConfigError
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PIC_STATE_SIZE = 16
PIC_PORTS = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)
ACCESSES = {f"{kind}{bits}": bits // 8 for kind in "wr" for bits in (8, 16, 32, 64)}


class CpuSnapshot(NamedTuple):
    """One local APIC's IRR, ISR, TMR as 256-bit numbers, and whether an NMI is pending."""

    irr: int
    isr: int
    tmr: int
    nmi: bool


class Snapshot(NamedTuple):
    """What a recording shows of a VM. `pics`: [irr, isr, imr, last_irr] of both, if they are routed to."""

    ioapic: IoApicState
    cpus: tuple[CpuSnapshot, ...]
    pics: tuple[tuple[int, int, int, int], ...]

    def render(self) -> dict[str, Any]:
        """In the words of the file."""
        chip = self.ioapic
        state: dict[str, Any] = {
            "irr": f"{chip.irr:06x}",
            "redir": {str(pin): f"{entry:016x}" for pin, entry in enumerate(chip.redirtbl) if entry != MASKED},
            "sel": chip.ioregsel,
            "id": chip.id,
            "cpu": [_render_cpu(cpu) for cpu in self.cpus],
        }
        if self.pics:
            state["pic"] = [list(pic) for pic in self.pics]
        return state


def _render_cpu(cpu: CpuSnapshot) -> dict[str, Any]:
    rendered: dict[str, Any] = {"irr": _bits(cpu.irr), "isr": _bits(cpu.isr), "tmr": _bits(cpu.tmr)}
    if cpu.nmi:
        rendered["nmi"] = 1
    return rendered


def _bits(value: int) -> list[int]:
    found = []
    while value:
        low = value & -value
        found.append(low.bit_length() - 1)
        value ^= low
    return found


def _number(value: int | str) -> int:
    try:
        return value if isinstance(value, int) else int(value, 16)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{value!r} is no hexadecimal number") from error


def _pic_port(port: int) -> int:
    if port not in PIC_PORTS:
        raise ConfigError(f"port {port:#x} is not one of the PICs'")
    return port


class VmIoctls(Protocol):
    """What `vmm.kernel.kvm.Vm` and `vmm.kernel.hostkvm.HostVm` have in common."""

    def irqfd(self, fd: int, gsi: int, flags: int = 0, resamplefd: int = 0) -> None: ...
    def set_gsi_routing(self, routes: Sequence[Route], flags: int = 0) -> None: ...
    def irq_line(self, gsi: int, level: int) -> None: ...
    def irq_line_status(self, gsi: int, level: int) -> int: ...
    def signal_msi(self, address_lo: int, address_hi: int, data: int, flags: int = 0, devid: int = 0) -> int: ...
    def get_irqchip(self, chip: int) -> bytes: ...
    def set_irqchip(self, chip: int, data: bytes) -> None: ...


class EventFiles(Protocol):
    """Descriptors of eventfds: the model's table or the process' own."""

    def eventfd(self, count: int, flags: int, name: str, /) -> int: ...
    def write(self, fd: int, value: int, /) -> None: ...
    def read(self, fd: int, /) -> int: ...
    def dup(self, fd: int, /) -> int: ...
    def close(self, fd: int, /) -> None: ...


EFD_NONBLOCK = 0o4000


class KvmOps:
    """One VM, and the recording's operations as methods `op_<name>`."""

    vm: VmIoctls
    files: EventFiles
    default_routing: bool

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self.resamplefds: list[str] = []
        self.resampled: dict[str, int] = {}

    # What the sides do differently.

    def settle(self) -> None:
        """Let queued work happen."""
        raise NotImplementedError

    def snapshot(self) -> Snapshot:
        """What can be seen now."""
        raise NotImplementedError

    def access(self, write: bool, address: int, size: int, value: int = 0, cpu: int = 0) -> Any:
        """An access by CPU `cpu`'s guest; a dict if nobody in the kernel answers."""
        raise NotImplementedError

    def port(self, port: int, value: int | None = None) -> int:
        """CPU 0's guest reads a byte of a port of the PICs, or writes `value`."""
        raise NotImplementedError

    def inta(self, cpu: int) -> int:
        """Interrupt acknowledge with KVM_GET_LAPIC and KVM_SET_LAPIC: the vector, -1 for none."""
        raise NotImplementedError

    def close(self) -> None:
        """Close everything."""
        raise NotImplementedError

    # Running.

    def run(self, op: Sequence[Any]) -> Any:
        """Do one operation, let everything settle, return its value or `{"errno": NAME}`. ConfigError: unknown one."""
        method: Callable[..., Any] | None = getattr(self, f"op_{op[0]}", None)
        if method is None:
            raise ConfigError(f"there is no operation {op[0]!r} in recordings of KVM")
        try:
            value = method(*op[1:])
        except OSError as error:
            value = {"errno": errno.errorcode.get(error.errno or 0, str(error.errno))}
        except TypeError as error:
            try:
                inspect.signature(method).bind(*op[1:])
            except TypeError:
                raise ConfigError(f"operation {list(op)!r}: {error}") from error
            raise
        self.settle()
        self.resampled = {}
        for name in self.resamplefds:
            count = self._take(name)
            if count:
                self.resampled[name] = count
        return value

    def state(self) -> dict[str, Any]:
        """What the recording shows of the VM."""
        return self.snapshot().render()

    def identity_routing(self) -> None:
        """GSI n to pin n of the IOAPIC only: what recordings start with, unless they say `default_routing`."""
        self.vm.set_gsi_routing([Route.irqchip(n, KVM_IRQCHIP_IOAPIC, n) for n in range(PINS)])

    def _take(self, name: str) -> int:
        fd = self.fds.get(name)
        if fd is None:
            return 0
        try:
            return self.files.read(fd)
        except BlockingIOError:
            return 0

    def _fd(self, name: str | int) -> int:
        if isinstance(name, int):
            return name
        try:
            return self.fds[name]
        except KeyError:
            raise ConfigError(f"no eventfd {name!r} is open here") from None

    # Lines and registers.

    def op_line(self, gsi: int, level: int) -> None:
        self.vm.irq_line(gsi, level)

    def op_line_status(self, gsi: int, level: int) -> int:
        return self.vm.irq_line_status(gsi, level)

    def op_wreg(self, register: int, value: int) -> None:
        self.access(True, IOAPIC_BASE + IOREGSEL, 4, register)
        self.access(True, IOAPIC_BASE + IOWIN, 4, value)

    def op_reg(self, register: int) -> Any:
        self.access(True, IOAPIC_BASE + IOREGSEL, 4, register)
        return self.access(False, IOAPIC_BASE + IOWIN, 4)

    def op_redir_lo(self, pin: int, value: int) -> None:
        self.op_wreg(IOREDTBL + 2 * pin, value)

    def op_redir_hi(self, pin: int, value: int) -> None:
        self.op_wreg(IOREDTBL + 1 + 2 * pin, value)

    def op_redir(self, pin: int, entry: str) -> None:
        value = _number(entry)
        self.op_redir_hi(pin, value >> 32)
        # Either half may unmask, so signal a resamplefd; if that is a trigger in turn, its injection comes in between.
        self.settle()
        self.op_redir_lo(pin, value & 0xFFFF_FFFF)

    def op_mmio(self, access: str, address: int, value: int = 0) -> Any:
        if access not in ACCESSES:
            raise ConfigError(f"there is no access {access!r}; there are {', '.join(ACCESSES)}")
        answer = self.access(access[0] == "w", address, ACCESSES[access], value)
        return None if access[0] == "w" and not isinstance(answer, dict) else answer

    def op_set_ioapic(self, change: dict[str, Any]) -> None:
        state = IoApicState.parse(self.vm.get_irqchip(KVM_IRQCHIP_IOAPIC))
        entries = list(state.redirtbl)
        for pin, entry in change.get("redir", {}).items():
            entries[int(pin)] = _number(entry)
        irr = _number(change["irr"]) if "irr" in change else state.irr
        self.vm.set_irqchip(KVM_IRQCHIP_IOAPIC, state._replace(irr=irr, redirtbl=tuple(entries)).build())

    def op_in(self, port: int) -> int:
        return self.port(_pic_port(port))

    def op_out(self, port: int, value: int) -> None:
        self.port(_pic_port(port), value)

    def op_get_pic(self, chip: int) -> str:
        return self.vm.get_irqchip(chip).hex()

    def op_set_pic(self, chip: int, state: str) -> None:
        try:
            data = bytes.fromhex(state)
        except ValueError as error:
            raise ConfigError(f"{state!r} is no hexadecimal state of a PIC") from error
        if len(data) != PIC_STATE_SIZE:
            raise ConfigError(f"the state of a PIC is {PIC_STATE_SIZE} bytes, not {len(data)}")
        self.vm.set_irqchip(chip, data)

    # CPUs.

    def _lapic_write(self, cpu: int, register: int, value: int) -> None:
        raise NotImplementedError

    def op_inta(self, cpu: int = 0) -> int:
        return self.inta(cpu)

    def op_eoi(self, cpu: int = 0) -> None:
        self._lapic_write(cpu, 0xB0, 0)

    def op_tpr(self, cpu: int, value: int) -> None:
        self._lapic_write(cpu, 0x80, value)

    def op_svr(self, cpu: int, value: int) -> None:
        self._lapic_write(cpu, 0xF0, value)

    def op_msi(self, address: int, data: int) -> Any:
        status = self.vm.signal_msi(address & 0xFFFF_FFFF, address >> 32, data)
        # The ioctl's value is the status; libc takes -1 ("nobody") for an error, and EPERM is number 1.
        return {"errno": "EPERM"} if status < 0 else status

    # Routing and eventfds.

    def op_routing(self, routes: list[list[Any]]) -> None:
        self.vm.set_gsi_routing(
            [Route.irqchip(g, x, y) if k == "irqchip" else Route.msi(g, x, y) for g, k, x, y in routes]
        )

    def op_efd(self, name: str, count: int = 0) -> None:
        self.fds[name] = self.files.eventfd(count, EFD_NONBLOCK, name)

    def op_efd_write(self, name: str, value: int = 1) -> None:
        self.files.write(self._fd(name), value)

    def op_efd_read(self, name: str) -> int:
        return self.files.read(self._fd(name))

    def op_efd_close(self, name: str) -> None:
        self.files.close(self._fd(name))
        del self.fds[name]

    def op_efd_dup(self, old: str, new: str) -> None:
        self.fds[new] = self.files.dup(self._fd(old))

    def op_irqfd(self, name: str | int, gsi: int, flags: int = 0, resamplefd: str | int = 0) -> None:
        self.vm.irqfd(self._fd(name), gsi, flags, self._fd(resamplefd))
        if isinstance(resamplefd, str) and resamplefd not in self.resamplefds:
            self.resamplefds.append(resamplefd)

    def op_unassign(self, name: str | int, gsi: int, flags: int = 0, resamplefd: str | int = 0) -> None:
        self.vm.irqfd(self._fd(name), gsi, flags | KVM_IRQFD_FLAG_DEASSIGN, self._fd(resamplefd))
