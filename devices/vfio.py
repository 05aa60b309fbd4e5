"""A VFIO device: what the host's vfio-pci driver offers to the process that was given a device.

    device.get_info() / get_region_info(index) / get_irq_info(index)
    device.region_read(index, offset, count) / region_write(index, offset, data)
    device.set_irqs(flags, index, start, count, data)         VFIO_DEVICE_SET_IRQS
    device.reset()                                            VFIO_DEVICE_RESET
    device.close()                                            last reference of the device's file

The host-side device is any `devices.pci.device.PciDevice` that was realized on a bus of the host. Its configuration
space is seen through VFIO's virtual one: BARs and INTERRUPT_LINE are remembered for the user and never reach the
device, INTx disable of COMMAND turns into mask and unmask, MSI and MSI-X are not in the capability list.

Errors are OSError with the kernel's errno.
Ref: include/uapi/linux/vfio.h, drivers/vfio/pci/vfio_pci_core.c, vfio_pci_config.c, vfio_pci_intrs.c
"""

from __future__ import annotations

import copy
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from construct import Bytes, Int32sl, Int32ul, Int64ul, Struct, this

from devices.pci import config as cfg
from devices.vfio_irqs import VfioIntx
from vmm.kernel.files import os_error

if TYPE_CHECKING:
    from devices.pci.device import Bar, PciDevice
    from vmm.kernel.files import DescriptorTable, EventfdCtx
    from vmm.order import Executor
    from vmm.trace import Trace

VFIO_PCI_BAR0_REGION_INDEX = 0
VFIO_PCI_BAR5_REGION_INDEX = 5
VFIO_PCI_ROM_REGION_INDEX = 6
VFIO_PCI_CONFIG_REGION_INDEX = 7
VFIO_PCI_VGA_REGION_INDEX = 8
VFIO_PCI_NUM_REGIONS = 9
VFIO_REGION_SHIFT = 40
"""A region's offset in the device's file is its index << 40."""

VFIO_PCI_INTX_IRQ_INDEX = 0
VFIO_PCI_MSI_IRQ_INDEX = 1
VFIO_PCI_MSIX_IRQ_INDEX = 2
VFIO_PCI_ERR_IRQ_INDEX = 3
VFIO_PCI_REQ_IRQ_INDEX = 4
VFIO_PCI_NUM_IRQS = 5

VFIO_DEVICE_FLAGS_RESET, VFIO_DEVICE_FLAGS_PCI = 1, 2
VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE = 1, 2
VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_NORESIZE = 1, 2, 4, 8

VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD = 1, 2, 4
VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_ACTION_TRIGGER = 8, 16, 32
DATA_TYPE_MASK = 7
ACTION_TYPE_MASK = 0x38

VfioIrqSet = Struct(
    "argsz" / Int32ul,
    "flags" / Int32ul,
    "index" / Int32ul,
    "start" / Int32ul,
    "count" / Int32ul,
    "data" / Bytes(this.argsz - 20),
)
"""`struct vfio_irq_set`; `data` holds `count` bytes (BOOL) or s32 descriptors (EVENTFD)."""
IRQ_SET_HEADER = 20

VfioDeviceInfo = Struct("argsz" / Int32ul, "flags" / Int32ul, "num_regions" / Int32ul, "num_irqs" / Int32ul)
VfioRegionInfo = Struct(
    "argsz" / Int32ul,
    "flags" / Int32ul,
    "index" / Int32ul,
    "cap_offset" / Int32ul,
    "size" / Int64ul,
    "offset" / Int64ul,
)
VfioIrqInfo = Struct("argsz" / Int32ul, "flags" / Int32ul, "index" / Int32ul, "count" / Int32ul)

HIDDEN_CAPABILITIES = (0x05, 0x11)
"""MSI and MSI-X: this VFIO delivers INTx only."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """`struct vfio_device_info`."""

    flags: int
    num_regions: int
    num_irqs: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """`struct vfio_region_info`; a region that is not there has size 0."""

    index: int
    flags: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """`struct vfio_irq_info`; an interrupt that is not there has count 0."""

    index: int
    flags: int
    count: int


class Pci23Intx:
    """INTx of a function with INTx disable and interrupt status (PCI 2.3): it shares its line with others."""

    __slots__ = ("device",)

    def __init__(self, device: PciDevice) -> None:
        self.device = device

    def pending(self) -> bool:
        """Interrupt Status."""
        return self.device.intx_level

    def mask(self) -> None:
        """Set INTx disable in the physical COMMAND."""
        self.device.config.data[cfg.COMMAND + 1] |= cfg.COMMAND_INTX_DISABLE >> 8
        self.device.update_intx()

    def unmask(self) -> None:
        """Clear it."""
        self.device.config.data[cfg.COMMAND + 1] &= ~(cfg.COMMAND_INTX_DISABLE >> 8)
        self.device.update_intx()

    def request(self, masked: bool) -> None:
        """pci_intx, then request_irq: a level that is high already is taken at once."""
        if masked:
            self.mask()
        else:
            self.unmask()

    def free(self) -> None:
        """free_irq; the device is kept quiet for who gets the line next."""
        self.mask()


class ExclusiveIntx:
    """INTx of an older function, masked at the interrupt controller of the host; the line is its own.

    The host counts its masks in `depth`; VFIO keeps that at 0 or 1. `level` is what the device drives.
    """

    __slots__ = ("depth", "handler", "level", "requested")

    def __init__(self) -> None:
        self.depth = 0
        self.level = False
        self.requested = False
        self.handler: VfioIntx | None = None

    def line_changed(self, level: bool) -> None:
        """What the host's interrupt wire is connected to."""
        self.level = level
        self._take()

    def _take(self) -> None:
        if self.level and self.requested and not self.depth and self.handler is not None:
            self.handler.handler()

    def pending(self) -> bool:
        """The level itself: there is no status bit that could be trusted."""
        return self.level

    def mask(self) -> None:
        """disable_irq_nosync; nothing while the interrupt is not requested."""
        if self.requested:
            self.depth += 1

    def unmask(self) -> None:
        """enable_irq: a level that is high now is taken now."""
        if self.requested:
            self.depth -= 1
            self._take()

    def request(self, masked: bool) -> None:
        """request_irq, with IRQF_NO_AUTOEN if `masked`."""
        self.requested = True
        self.depth = int(masked)
        self._take()

    def free(self) -> None:
        """free_irq"""
        self.requested = False


class VfioDevice:
    """One device in the hands of a process. `device` must be realized; it is this object's until `close`.

    `pci_2_3`: use the function's own INTx disable, else mask at the host's interrupt controller.
    """

    def __init__(
        self,
        device: PciDevice,
        files: DescriptorTable,
        executor: Executor,
        trace: Trace,
        pci_2_3: bool = True,
    ) -> None:
        self.device = device
        self.files = files
        self.name = device.id or device.driver
        if pci_2_3:
            self.intx = VfioIntx(self.name, Pci23Intx(device), files, executor, trace)
        else:
            exclusive = ExclusiveIntx()
            self.intx = VfioIntx(self.name, exclusive, files, executor, trace)
            exclusive.handler = self.intx
        self.req_trigger: EventfdCtx | None = None
        self.virtual = self._virtual_config()
        self._enable()

    def line_changed(self, level: bool) -> None:
        """The target that the host's interrupt wire of this device is connected to."""
        hardware = self.intx.hardware
        if isinstance(hardware, ExclusiveIntx):
            hardware.line_changed(level)
        else:
            self.intx.line_changed(level)

    def _enable(self) -> None:
        """The host driver enables memory and I/O; INTx stays quiet until it is asked for. (vfio_pci_core_enable)"""
        self.intx.hardware.mask()
        data = self.device.config.data
        data[cfg.COMMAND] |= cfg.COMMAND_IO | cfg.COMMAND_MEMORY

    def close(self) -> None:
        """The device's file is released: interrupts off, device reset. Closing twice is fine.

        (vfio_pci_core_disable) Flushes what may still be on its way, so nothing of this device happens afterwards.
        """
        with self.intx.igate:
            self.intx.disable()
            if self.req_trigger is not None:
                self.req_trigger.put()
                self.req_trigger = None
        self.intx.virq_disabled = False
        self.device.reset()
        self.intx.hardware.mask()

    # What there is.

    def get_info(self) -> DeviceInfo:
        """VFIO_DEVICE_GET_INFO."""
        flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET
        return DeviceInfo(flags, VFIO_PCI_NUM_REGIONS, VFIO_PCI_NUM_IRQS)

    def get_region_info(self, index: int) -> RegionInfo:
        """VFIO_DEVICE_GET_REGION_INFO. OSError EINVAL for an index there is not."""
        if not 0 <= index < VFIO_PCI_NUM_REGIONS:
            raise os_error(errno.EINVAL, f"{self.name}: region {index}")
        size = flags = 0
        if index == VFIO_PCI_CONFIG_REGION_INDEX:
            size = cfg.CONFIG_SIZE
        else:
            bar = self.bar(index)
            if bar is not None:
                size = bar.region.size
        if size:
            flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE
        return RegionInfo(index, flags, size, index << VFIO_REGION_SHIFT)

    def get_irq_info(self, index: int) -> IrqInfo:
        """VFIO_DEVICE_GET_IRQ_INFO. OSError EINVAL for an index there is not."""
        if index not in (
            VFIO_PCI_INTX_IRQ_INDEX,
            VFIO_PCI_MSI_IRQ_INDEX,
            VFIO_PCI_MSIX_IRQ_INDEX,
            VFIO_PCI_REQ_IRQ_INDEX,
        ):
            # The error interrupt is for PCI Express functions.
            raise os_error(errno.EINVAL, f"{self.name}: irq index {index}")
        flags = VFIO_IRQ_INFO_EVENTFD
        if index == VFIO_PCI_INTX_IRQ_INDEX:
            flags |= VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED
        else:
            flags |= VFIO_IRQ_INFO_NORESIZE
        return IrqInfo(index, flags, self._irq_count(index))

    def _irq_count(self, index: int) -> int:
        if index == VFIO_PCI_INTX_IRQ_INDEX:
            return int(bool(self.device.interrupt_pin))
        return int(index == VFIO_PCI_REQ_IRQ_INDEX)

    def bar(self, index: int) -> Bar | None:
        """The device's base address register of that index."""
        for bar in self.device.bars:
            if bar.index == index:
                return bar
        return None

    # Regions.

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """pread(2) in a region. OSError EINVAL outside it, EIO while the guest has turned its decoding off."""
        self._check_access(index, offset, count)
        out = bytearray()
        while count:
            size = _piece(offset, count)
            if index == VFIO_PCI_CONFIG_REGION_INDEX:
                value = self.config_read(offset, size)
            else:
                value = self.bar_read(index, offset, size)
            out += value.to_bytes(size, "little")
            offset += size
            count -= size
        return bytes(out)

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """pwrite(2) in a region. OSError as `region_read`."""
        self._check_access(index, offset, len(data))
        at = 0
        while at < len(data):
            size = _piece(offset + at, len(data) - at)
            value = int.from_bytes(data[at : at + size], "little")
            if index == VFIO_PCI_CONFIG_REGION_INDEX:
                self.config_write(offset + at, size, value)
            else:
                self.bar_write(index, offset + at, size, value)
            at += size

    def _check_access(self, index: int, offset: int, count: int) -> None:
        size = self.get_region_info(index).size
        if offset < 0 or count < 0 or offset + count > size:
            raise os_error(errno.EINVAL, f"{self.name}: region {index} has {size:#x} bytes, not {offset:#x}+{count:#x}")
        bar = self.bar(index)
        if bar is not None and not self._decodes(bar):
            raise os_error(errno.EIO, f"{self.name}: BAR{index} is not decoded: COMMAND has it disabled")

    def _decodes(self, bar: Bar) -> bool:
        need = cfg.COMMAND_IO if bar.io else cfg.COMMAND_MEMORY
        return bool(self.device.config.data[cfg.COMMAND] & need)

    def bar_read(self, index: int, offset: int, size: int) -> int:
        """One access of 1, 2, 4 or 8 bytes inside a BAR; all ones while its decoding is off."""
        bar = self.bar(index)
        if bar is None or not self._decodes(bar):
            return (1 << 8 * size) - 1
        region = bar.region
        if size > region.max_access:
            half = size // 2
            return self.bar_read(index, offset, half) | self.bar_read(index, offset + half, half) << 8 * half
        if size < region.min_access:
            return (1 << 8 * size) - 1
        return region.read(offset, size)

    def bar_write(self, index: int, offset: int, size: int, value: int) -> None:
        """One access of 1, 2, 4 or 8 bytes inside a BAR; lost while its decoding is off."""
        bar = self.bar(index)
        if bar is None or not self._decodes(bar):
            return
        region = bar.region
        if size > region.max_access:
            half = size // 2
            self.bar_write(index, offset, half, value & ((1 << 8 * half) - 1))
            self.bar_write(index, offset + half, half, value >> 8 * half)
        elif size >= region.min_access:
            region.write(offset, size, value)

    # Configuration space.

    def _virtual_config(self) -> cfg.ConfigSpace:
        """VFIO's copy: what it remembers for the user. BARs are sized here, hidden capabilities are skipped over."""
        physical = self.device.config
        virtual = copy.deepcopy(physical)
        self._own = {*range(cfg.BASE_ADDRESS_0, cfg.BASE_ADDRESS_END), cfg.INTERRUPT_LINE, cfg.CAPABILITY_LIST}
        previous = cfg.CAPABILITY_LIST
        for cap_id, offset in physical.capabilities():
            if cap_id in HIDDEN_CAPABILITIES:
                virtual.data[previous] = physical.data[offset + 1]
                self._own.add(previous)
            else:
                previous = offset + 1
        return virtual

    def config_read(self, offset: int, size: int) -> int:
        """A read of 1, 2 or 4 bytes inside one dword: what the device says, but for what VFIO keeps."""
        data = bytearray(self.device.config_read(offset, size).to_bytes(size, "little"))
        for i, at in enumerate(range(offset, offset + size)):
            if at in self._own:
                data[i] = self.virtual.data[at]
            elif at == cfg.COMMAND + 1:
                data[i] &= ~(cfg.COMMAND_INTX_DISABLE >> 8)
                if self.intx.virq_disabled:
                    data[i] |= cfg.COMMAND_INTX_DISABLE >> 8
            elif at == cfg.STATUS and not self.virtual.data[cfg.CAPABILITY_LIST]:
                data[i] &= ~cfg.STATUS_CAPABILITIES
        return int.from_bytes(data, "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A write of 1, 2 or 4 bytes inside one dword. It reaches the device whole unless VFIO keeps part of it."""
        self.virtual.write(offset, size, value)
        end = offset + size
        if offset < cfg.STATUS and end > cfg.COMMAND:
            self._write_command(offset, size, value)
        theirs = [at for at in range(offset, end) if at not in self._own and at not in (cfg.COMMAND, cfg.COMMAND + 1)]
        if len(theirs) == size:
            self.device.config_write(offset, size, value)
            return
        for at in theirs:
            self.device.config_write(at, 1, value >> 8 * (at - offset) & 0xFF)

    def _write_command(self, offset: int, size: int, value: int) -> None:
        """Everything but INTx disable goes to the device, whose own INTx disable is VFIO's mask."""
        physical = self.device.config.get(cfg.COMMAND, 2)
        command = physical & ~cfg.COMMAND_INTX_DISABLE | self.intx.virq_disabled * cfg.COMMAND_INTX_DISABLE
        for i in range(size):
            shift = 8 * (offset + i - cfg.COMMAND)
            if shift in (0, 8):
                command = command & ~(0xFF << shift) | (value >> 8 * i & 0xFF) << shift
        masked = physical & cfg.COMMAND_INTX_DISABLE
        self.device.config_write(cfg.COMMAND, 2, command & ~cfg.COMMAND_INTX_DISABLE | masked)
        self.intx.set_virq_disabled(bool(command & cfg.COMMAND_INTX_DISABLE))

    # Interrupts.

    def set_irqs(self, flags: int, index: int, start: int, count: int, data: bytes = b"") -> None:
        """VFIO_DEVICE_SET_IRQS: `data` holds `count` bytes or s32 descriptors, as `flags` say.

        OSError EINVAL for what makes no sense, ENOTTY for what there is no such action of, EBADF, EBUSY.
        (vfio_set_irqs_validate_and_prepare, vfio_pci_set_irqs_ioctl)
        """
        kind = flags & DATA_TYPE_MASK
        action = flags & ACTION_TYPE_MASK
        if (
            flags & ~(DATA_TYPE_MASK | ACTION_TYPE_MASK)
            or count < 0
            or not 0 <= start < self._irq_count(index)
            or start + count > self._irq_count(index)
        ):
            raise os_error(errno.EINVAL, f"{self.name}: irq {index} {start}+{count} flags {flags:#x}")
        size = {VFIO_IRQ_SET_DATA_NONE: 0, VFIO_IRQ_SET_DATA_BOOL: 1, VFIO_IRQ_SET_DATA_EVENTFD: 4}.get(kind)
        if size is None or len(data) < size * count or (size and not count):
            raise os_error(errno.EINVAL, f"{self.name}: irq flags {flags:#x} with {len(data)} bytes for {count}")
        value = None
        if kind == VFIO_IRQ_SET_DATA_BOOL:
            value = data[0]
        elif kind == VFIO_IRQ_SET_DATA_EVENTFD:
            value = int(Int32sl.parse(data))
        with self.intx.igate:
            if index == VFIO_PCI_REQ_IRQ_INDEX:
                self._set_req(action, kind, count, value)
            elif action == VFIO_IRQ_SET_ACTION_MASK:
                self._set_intx_mask(kind, count, value)
            elif action == VFIO_IRQ_SET_ACTION_UNMASK:
                self._set_intx_unmask(kind, count, value)
            elif action == VFIO_IRQ_SET_ACTION_TRIGGER:
                self._set_intx_trigger(kind, count, value)
            else:
                raise os_error(errno.ENOTTY, f"{self.name}: irq action {action:#x}")

    def set_irqs_ioctl(self, data: bytes) -> None:
        """The same with the bytes of `struct vfio_irq_set`. OSError EINVAL if they are too few."""
        if len(data) < IRQ_SET_HEADER or not IRQ_SET_HEADER <= int.from_bytes(data[:4], "little") <= len(data):
            raise os_error(errno.EINVAL, f"{self.name}: struct vfio_irq_set of {len(data)} bytes")
        request = VfioIrqSet.parse(data)
        self.set_irqs(request.flags, request.index, request.start, request.count, request.data)

    def set_irq_eventfd(self, index: int, action: int, fd: int) -> None:
        """Attach the eventfd at `fd` to one action of one interrupt; -1 detaches."""
        self.set_irqs(VFIO_IRQ_SET_DATA_EVENTFD | action, index, 0, 1, Int32sl.build(fd))

    def _set_intx_mask(self, kind: int, count: int, value: int | None) -> None:
        intx = self.intx
        if intx.ctx is None or count != 1:
            raise os_error(errno.EINVAL, f"{self.name}: INTx is not enabled")
        if kind == VFIO_IRQ_SET_DATA_EVENTFD:
            raise os_error(errno.ENOTTY, f"{self.name}: a mask eventfd is not implemented by VFIO")
        if value != 0:
            intx.mask()

    def _set_intx_unmask(self, kind: int, count: int, value: int | None) -> None:
        intx = self.intx
        if intx.ctx is None or count != 1:
            raise os_error(errno.EINVAL, f"{self.name}: INTx is not enabled")
        if kind != VFIO_IRQ_SET_DATA_EVENTFD:
            if value != 0:
                intx.unmask()
        elif value is not None and value >= 0:
            intx.enable_virqfd(value)
        else:
            intx.disable_virqfd(intx.ctx)

    def _set_intx_trigger(self, kind: int, count: int, value: int | None) -> None:
        intx = self.intx
        if intx.ctx is not None and not count and kind == VFIO_IRQ_SET_DATA_NONE:
            intx.disable()
            return
        if count != 1:
            raise os_error(errno.EINVAL, f"{self.name}: INTx has one interrupt, not {count}")
        if kind == VFIO_IRQ_SET_DATA_EVENTFD:
            trigger = self.files.ctx_fdget(value) if value is not None and value >= 0 else None
            if intx.ctx is not None:
                intx.set_trigger(trigger)
            else:
                intx.enable(trigger)
            return
        if intx.ctx is None:
            raise os_error(errno.EINVAL, f"{self.name}: INTx is not enabled")
        if value != 0:
            intx.send(intx.ctx)  # loopback

    def _set_req(self, action: int, kind: int, count: int, value: int | None) -> None:
        """The request that the user gives the device back. (vfio_pci_set_req_trigger)"""
        if action != VFIO_IRQ_SET_ACTION_TRIGGER:
            raise os_error(errno.ENOTTY, f"{self.name}: irq action {action:#x}")
        if kind == VFIO_IRQ_SET_DATA_EVENTFD:
            new = self.files.ctx_fdget(value) if value is not None and value >= 0 else None
            old, self.req_trigger = self.req_trigger, new
            if old is not None:
                old.put()
        elif kind == VFIO_IRQ_SET_DATA_NONE and not count:
            if self.req_trigger is not None:
                self.req_trigger.put()
                self.req_trigger = None
        elif value != 0:
            self.request_release()

    def request_release(self) -> bool:
        """The host wants the device back: tell the user. False if it did not ask to be told. (vfio_pci_core_request)"""
        if self.req_trigger is None:
            return False
        self.req_trigger.signal()
        return True

    # Reset.

    def reset(self) -> None:
        """VFIO_DEVICE_RESET: the device's power-on state; decoding, bus mastering and the mask stay as they were."""
        command = self.device.config.get(cfg.COMMAND, 2)
        self.device.reset()
        self.device.config_write(cfg.COMMAND, 2, command)


def _piece(offset: int, count: int) -> int:
    """The widest naturally aligned access, at most 4 bytes."""
    if count >= 4 and not offset & 3:
        return 4
    return 2 if count >= 2 and not offset & 1 else 1
