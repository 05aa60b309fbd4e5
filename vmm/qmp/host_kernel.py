"""The host kernel's side of a machine, for a monitor that takes each step of an irqfd's life by hand.

What an operation of the kernel refuses becomes a QmpError whose description begins with the errno's name:
`EBUSY: Device or resource busy: ...`. Descriptors are numbers of the machine's own table.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any

from devices import vfio
from vmm.errors import ConfigError, QmpError
from vmm.kernel.eoifd import (
    KVM_EOIFD_FLAG_DEASSIGN,
    KVM_EOIFD_FLAG_LEVEL_IRQFD,
    KVM_IRQFD_FLAG_LEVEL,
    EoiIrqfds,
    LevelIrqfd,
)
from vmm.kernel.files import EFD_NONBLOCK, EFD_SEMAPHORE, EventFile, os_error
from vmm.kernel.hold import POINTS, Holder, Operation, Progress, why_not
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.vfio import VfioDevice
    from devices.vfio_host import VfioHostDevice
    from vmm.kernel.files import DescriptorTable, EventfdCtx
    from vmm.kernel.kvm import Vm
    from vmm.order import Executor, OrderError

ACTIONS = {
    "mask": vfio.VFIO_IRQ_SET_ACTION_MASK,
    "unmask": vfio.VFIO_IRQ_SET_ACTION_UNMASK,
    "trigger": vfio.VFIO_IRQ_SET_ACTION_TRIGGER,
}
INDEXES = {"intx": vfio.VFIO_PCI_INTX_IRQ_INDEX, "req": vfio.VFIO_PCI_REQ_IRQ_INDEX}

_NAMES = {"EDEADLOCK": "EDEADLK", "EWOULDBLOCK": "EAGAIN"}
"""Of two names for one number the manual's."""


class HostKernel:
    """One machine's. `objects`: the machine's, where vfio-host-device objects are. `wake`: its loop may have to act."""

    def __init__(
        self,
        vm: Vm,
        files: DescriptorTable,
        executor: Executor,
        objects: dict[str, Any],
        wake: Callable[[], None],
    ) -> None:
        self.vm = vm
        self.files = files
        self.executor = executor
        self.objects = objects
        self.wake = wake
        self.holder = Holder(executor, self._busy)
        self.ours: set[int] = set()
        """Descriptors that were opened here, so that closing one takes nothing from the machine itself."""

    def _busy(self) -> str:
        irqfds, gsis = self.vm.irqfds, self.vm.gsis
        for lock in (irqfds.lock, irqfds.resampler_lock, gsis.lock):
            if not lock.is_free():
                return lock.name
        return gsis.irq_srcu.name if gsis.irq_srcu.readers else ""

    # Doing.

    def _run(self, name: str, function: Callable[[], object]) -> dict[str, Any]:
        op = self.holder.run(name, function)
        self.wake()
        return self._reply(op)

    def _reply(self, op: Operation) -> dict[str, Any]:
        if op.error is not None:
            raise QmpError(describe(op.error))
        reply: dict[str, Any] = {}
        if isinstance(op.result, dict):
            reply.update(op.result)
        if op.state is not Progress.DONE:
            reply.update(self._where(op))
        if op.passed:
            reply["not-held"] = list(op.passed)
        return reply

    @staticmethod
    def _where(op: Operation) -> dict[str, Any]:
        return {"operation": op.number, "command": op.name, "state": op.state.value, "point": op.point}

    # Eventfds.

    def eventfd_open(self, count: int, semaphore: bool, nonblock: bool, name: str) -> dict[str, Any]:
        """A new eventfd: {"fd": N}."""
        flags = semaphore * EFD_SEMAPHORE | nonblock * EFD_NONBLOCK

        def act() -> dict[str, Any]:
            return {"fd": self._own(self.files.eventfd(count, flags, name))}

        return self._run("x-eventfd-open", act)

    def eventfd_dup(self, fd: int) -> dict[str, Any]:
        """Another descriptor: {"fd": N}."""

        def act() -> dict[str, Any]:
            self._ctx(fd)
            return {"fd": self._own(self.files.dup(fd))}

        return self._run("x-eventfd-dup", act)

    def _own(self, fd: int) -> int:
        self.ours.add(fd)
        return fd

    def _ctx(self, fd: int) -> EventfdCtx:
        file = self.files.file(fd)
        if not isinstance(file, EventFile):
            raise os_error(errno.EINVAL, f"descriptor {fd} ({file.name}) is not an eventfd")
        return file.ctx

    def eventfd_close(self, fd: int) -> dict[str, Any]:
        """Close one that was opened here; QmpError for one of the machine's own."""

        def act() -> None:
            self._ctx(fd)
            if fd not in self.ours:
                raise os_error(
                    errno.EPERM, f"descriptor {fd} is the machine's; only those of x-eventfd-open are closed"
                )
            self.ours.discard(fd)
            self.files.close(fd)

        return self._run("x-eventfd-close", act)

    def eventfd_signal(self, fd: int, value: int) -> dict[str, Any]:
        """Write `value` to it."""
        return self._run("x-eventfd-signal", partial(self.files.write, fd, value))

    def eventfd_read(self, fd: int) -> dict[str, Any]:
        """Read it: {"count": N}."""
        return self._run("x-eventfd-read", lambda: {"count": self.files.read(fd)})

    # irqfd, eoifd

    def irqfd_assign(self, fd: int, gsi: int, level: bool, resamplefd: int | None) -> dict[str, Any]:
        """KVM_IRQFD. `level` and `resamplefd` are the two interfaces for a level interrupt."""
        if level and resamplefd is not None:
            raise QmpError(
                "Parameters 'level' and 'resamplefd' exclude each other: the interface has the one or the other"
            )
        eoifd = isinstance(self.vm.irqfds, EoiIrqfds)
        # The bit is the same, and means the flag of the kernel at hand; ask for the other one, and it is unknown there.
        if level and not eoifd:
            raise QmpError(f"EINVAL: there is no KVM_IRQFD_FLAG_LEVEL in era {self.vm.era.name}; give 'resamplefd'")
        if resamplefd is not None and eoifd:
            raise QmpError(f"EINVAL: there is no KVM_IRQFD_FLAG_RESAMPLE in era {self.vm.era.name}; give 'level'")
        flags = KVM_IRQFD_FLAG_LEVEL if level else 0 if resamplefd is None else KVM_IRQFD_FLAG_RESAMPLE
        return self._run("x-irqfd-assign", partial(self.vm.irqfd, fd, gsi, flags, resamplefd or 0))

    def irqfd_deassign(self, fd: int, gsi: int) -> dict[str, Any]:
        """KVM_IRQFD with KVM_IRQFD_FLAG_DEASSIGN."""
        return self._run("x-irqfd-deassign", partial(self.vm.irqfd, fd, gsi, KVM_IRQFD_FLAG_DEASSIGN))

    def eoifd_assign(self, fd: int, irqfd: int) -> dict[str, Any]:
        """KVM_EOIFD."""
        return self._run("x-eoifd-assign", partial(self.vm.eoifd, fd, KVM_EOIFD_FLAG_LEVEL_IRQFD, irqfd))

    def eoifd_deassign(self, fd: int, irqfd: int) -> dict[str, Any]:
        """KVM_EOIFD with KVM_EOIFD_FLAG_DEASSIGN."""
        flags = KVM_EOIFD_FLAG_LEVEL_IRQFD | KVM_EOIFD_FLAG_DEASSIGN
        return self._run("x-eoifd-deassign", partial(self.vm.eoifd, fd, flags, irqfd))

    def query(self) -> dict[str, Any]:
        """Irqfds, eoifds, source ids in use, eventfds with a descriptor. Looking changes nothing."""
        fds: dict[int, list[int]] = {}
        eventfds = []
        for fd, file in enumerate(self.files.files):
            if isinstance(file, EventFile):
                fds.setdefault(id(file.ctx), []).append(fd)
                eventfds.append({"fd": fd, "name": file.name, "count": file.ctx.count, "ours": fd in self.ours})
        irqfds = [
            {
                "fds": fds.get(id(item.ctx), []),
                "gsi": item.gsi,
                "level": isinstance(item, LevelIrqfd) and item.level,
                "resamplefds": [] if item.resamplefd is None else fds.get(id(item.resamplefd), []),
                "source": item.source.source if isinstance(item, LevelIrqfd) and item.source else None,
            }
            for item in self.vm.irqfds.items
        ]
        eoifds = []
        if isinstance(self.vm.irqfds, EoiIrqfds):
            eoifds = [
                {
                    "fds": fds.get(id(item.ctx), []),
                    "irqfds": fds.get(id(item.level_irqfd), []),
                    "source": item.source.source if item.source else None,
                }
                for item in self.vm.irqfds.eoifds
            ]
        used = self.vm.gsis.sources.used
        sources = [source for source in range(used.bit_length()) if used >> source & 1]
        return {"irqfds": irqfds, "eoifds": eoifds, "sources": sources, "eventfds": eventfds}

    # VFIO

    def vfio_set_irqs(
        self, id: str, index: str, action: str, start: int, count: int, data: int | None, fd: int | None
    ) -> dict[str, Any]:
        """VFIO_DEVICE_SET_IRQS of a vfio-host-device object, which is opened if nobody has it.

        `data`: the bool of DATA_BOOL; `fd`: the descriptor of DATA_EVENTFD, -1 to take it away; neither: DATA_NONE.
        """
        if data is not None and fd is not None:
            raise QmpError("Parameters 'data' and 'fd' exclude each other: a request has one type of data")
        handle = self._vfio(id)
        flags, payload = ACTIONS[action] | vfio.VFIO_IRQ_SET_DATA_NONE, b""
        if data is not None:
            flags, payload = ACTIONS[action] | vfio.VFIO_IRQ_SET_DATA_BOOL, bytes([data & 0xFF])
        elif fd is not None:
            payload = fd.to_bytes(4, "little", signed=True)
            flags = ACTIONS[action] | vfio.VFIO_IRQ_SET_DATA_EVENTFD
        act = partial(handle.set_irqs, flags, INDEXES[index], start, count, payload)
        return self._run("x-vfio-set-irqs", act)

    def _vfio(self, id: str) -> VfioDevice:
        host: VfioHostDevice | None = self.objects.get(id)
        if host is None or getattr(host, "qom_type", "") != "vfio-host-device":
            raise ConfigError(f"there is no vfio-host-device object '{id}'; object-add makes one")
        return host.open_by_hand(self.files, self.executor, self.vm.trace)

    # Points.

    def hold(self, point: str) -> None:
        """Stop each operation that reaches `point`. ConfigError if that cannot be, and why."""
        self.holder.hold(point)

    def release(self, point: str) -> list[dict[str, Any]]:
        """Let them go on; what each came to."""
        moved = self.holder.release(point)
        self.wake()
        return [self._outcome(op) for op in moved]

    def _outcome(self, op: Operation) -> dict[str, Any]:
        outcome = self._where(op)
        if op.error is not None:
            outcome["error"] = describe(op.error)
        elif isinstance(op.result, dict):
            outcome["return"] = op.result
        return outcome

    def points(self) -> list[dict[str, Any]]:
        """Each point: what it mirrors, whether it can be held, is, and who stopped there."""
        stopped: dict[str, list[dict[str, Any]]] = {}
        for op in self.holder.stopped:
            stopped.setdefault(op.point, []).append(self._where(op))
        rows = []
        for name, mirrors in sorted(POINTS.items()):
            row: dict[str, Any] = {"name": name, "mirrors": mirrors, "held": name in self.holder.armed}
            reason = why_not(name)
            if reason:
                row["why-not"] = reason
            row["operations"] = stopped.pop(name, [])
            rows.append(row)
        return rows


def describe(error: OSError | OrderError) -> str:
    """`EBUSY: Device or resource busy: ...`; a broken rule of order is told as it is."""
    if isinstance(error, OSError):
        name = errno.errorcode.get(error.errno or 0, "EIO")
        return f"{_NAMES.get(name, name)}: {error.strerror}"
    return f"rule of order broken: {error}"
