"""ioctl(2) on a VM's descriptor: requests by number, arguments as the bytes of the kernel's structures.

    vm.ioctl(KVM_IRQFD, KvmIrqfd.build({"fd": e, "gsi": 5, "flags": 0, "resamplefd": 0}))

The kernel copies what the request's number says and looks at what it knows: bytes beyond the structure are not read,
padding is not looked at. Too few bytes is EFAULT, as at the end of mapped memory; what the structure asks for fails as
the call of that name does (`Vm.irqfd`, ...). A request that fails changes nothing.

Ref: Documentation/virt/kvm/api.rst, 4.25, 4.52, 4.70, 4.75; [PATCH v5 2/4] kvm: KVM_EOIFD, an eventfd for EOIs
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from vmm.kernel.eoifd import KvmEoifd
from vmm.kernel.files import os_error
from vmm.kernel.gsi import KVM_MAX_IRQ_ROUTES, KvmIrqLevel, Route
from vmm.kernel.irqfd import KvmIrqfd

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kernel.kvm import Vm

KVM_IRQ_LINE: Final = 0x4008_AE61
KVM_IRQ_LINE_STATUS: Final = 0xC008_AE67
KVM_SET_GSI_ROUTING: Final = 0x4008_AE6A
KVM_IRQFD: Final = 0x4020_AE76
KVM_SIGNAL_MSI: Final = 0x4020_AEA5
KVM_EOIFD: Final = 0x4020_AEA8
"""As posted. (_IOW(KVMIO, 0xa8, struct kvm_eoifd))"""


def ioctl(vm: Vm, request: int, data: bytes) -> tuple[int, bytes]:
    """What the call returns, and the bytes as it leaves them. OSError ENOTTY for a request that is not known."""
    handler = _REQUESTS.get(request)
    if handler is None:
        raise os_error(errno.ENOTTY, f"ioctl {request:#x}")
    size = request >> 16 & 0x3FFF
    if len(data) < size:
        raise os_error(errno.EFAULT, f"ioctl {request:#x}: {len(data)} bytes, {size} are read")
    return handler(vm, data)


def _words(data: bytes, count: int) -> list[int]:
    return [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(count)]


def _irqfd(vm: Vm, data: bytes) -> tuple[int, bytes]:
    fd, gsi, flags, resamplefd = _words(data, 4)
    vm.irqfd(fd, gsi, flags, resamplefd)
    return 0, data


def _eoifd(vm: Vm, data: bytes) -> tuple[int, bytes]:
    fd, flags, irqfd = _words(data, 3)
    vm.eoifd(fd, flags, irqfd)
    return 0, data


def _irq_line(vm: Vm, data: bytes) -> tuple[int, bytes]:
    irq, level = _words(data, 2)
    vm.irq_line(irq, level)
    return 0, data


def _irq_line_status(vm: Vm, data: bytes) -> tuple[int, bytes]:
    irq, level = _words(data, 2)
    status = vm.irq_line_status(irq, level)
    return 0, (status & 0xFFFF_FFFF).to_bytes(4, "little") + data[4:]


def _signal_msi(vm: Vm, data: bytes) -> tuple[int, bytes]:
    low, high, message, flags, devid = _words(data, 5)
    return vm.signal_msi(low, high, message, flags, devid), data


def _set_gsi_routing(vm: Vm, data: bytes) -> tuple[int, bytes]:
    count, flags = _words(data, 2)
    if count > KVM_MAX_IRQ_ROUTES:
        raise os_error(errno.EINVAL, f"KVM_SET_GSI_ROUTING: {count} routes, {KVM_MAX_IRQ_ROUTES} are possible")
    if flags:
        raise os_error(errno.EINVAL, f"KVM_SET_GSI_ROUTING flags {flags:#x}")
    size = ROUTE_SIZE
    if len(data) < 8 + count * size:
        raise os_error(errno.EFAULT, f"KVM_SET_GSI_ROUTING: {count} routes in {len(data)} bytes")
    vm.set_gsi_routing([_route(data[8 + i * size : 8 + (i + 1) * size]) for i in range(count)])
    return 0, data


def _route(data: bytes) -> Route:
    return Route.parse(data[:12] + bytes(4) + data[16:])  # padding is not looked at


ROUTE_SIZE: Final = 48
"""sizeof(struct kvm_irq_routing_entry)"""
SIZES: Final = {KVM_IRQFD: KvmIrqfd.sizeof(), KVM_EOIFD: KvmEoifd.sizeof(), KVM_IRQ_LINE: KvmIrqLevel.sizeof()}
"""What the declarations say; the same as the numbers do."""

_REQUESTS: Final[dict[int, Callable[[Vm, bytes], tuple[int, bytes]]]] = {
    KVM_IRQFD: _irqfd,
    KVM_EOIFD: _eoifd,
    KVM_IRQ_LINE: _irq_line,
    KVM_IRQ_LINE_STATUS: _irq_line_status,
    KVM_SIGNAL_MSI: _signal_msi,
    KVM_SET_GSI_ROUTING: _set_gsi_routing,
}
