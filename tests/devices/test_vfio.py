"""VFIO's calls, used as a monitor uses them: information, regions, interrupts, errors."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import vfio
from devices.edu import Edu
from devices.pci import config as cfg
from devices.pci.device import PciDevice
from tests.support.vfio_board import IRQ_ACK, IRQ_RAISE, VfioBoard
from vmm.memory import IoRegion

if TYPE_CHECKING:
    from devices.vfio import VfioDevice

NONE, BOOL, EVENTFD = vfio.VFIO_IRQ_SET_DATA_NONE, vfio.VFIO_IRQ_SET_DATA_BOOL, vfio.VFIO_IRQ_SET_DATA_EVENTFD
MASK, UNMASK = vfio.VFIO_IRQ_SET_ACTION_MASK, vfio.VFIO_IRQ_SET_ACTION_UNMASK
TRIGGER = vfio.VFIO_IRQ_SET_ACTION_TRIGGER
INTX, REQ = vfio.VFIO_PCI_INTX_IRQ_INDEX, vfio.VFIO_PCI_REQ_IRQ_INDEX
CONFIG = vfio.VFIO_PCI_CONFIG_REGION_INDEX


class Owner:
    """A process that has a device: its VFIO handle, descriptors, and eyes for the trigger."""

    def __init__(self, pci_2_3: bool = True) -> None:
        self.board = VfioBoard()
        self.host = self.board.host(**{"x-pci-2-3": pci_2_3})
        self.files = self.board.files
        self.vfio: VfioDevice = self.host.open("test", self.files, self.board.executor, self.board.trace)
        self.trigger = self.board.rig.efd()

    @property
    def edu(self) -> Edu:
        device = self.host.device
        assert isinstance(device, Edu)
        return device

    def enable(self) -> None:
        self.vfio.set_irq_eventfd(INTX, TRIGGER, self.trigger)

    def attach_unmask(self) -> int:
        fd = self.board.rig.efd()
        self.vfio.set_irq_eventfd(INTX, UNMASK, fd)
        return fd

    def mask(self) -> None:
        self.vfio.set_irqs(NONE | MASK, INTX, 0, 1)

    def unmask(self) -> None:
        self.vfio.set_irqs(NONE | UNMASK, INTX, 0, 1)

    def disable(self) -> None:
        self.vfio.set_irqs(NONE | TRIGGER, INTX, 0, 0)

    def events(self) -> int:
        self.board.rig.drain()
        return self.board.rig.count(self.trigger)


@pytest.fixture(params=[True, False], ids=["pci-2.3", "exclusive"])
def owner(request) -> Owner:
    return Owner(request.param)


def refused(number: int):
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


# Information


def test_info_names_regions_and_interrupts(owner):
    assert owner.vfio.get_info() == vfio.DeviceInfo(3, 9, 5)
    bar = owner.vfio.get_region_info(0)
    assert (bar.size, bar.flags, bar.offset) == (1 << 20, 3, 0)
    assert owner.vfio.get_region_info(1).size == 0
    config = owner.vfio.get_region_info(CONFIG)
    assert (config.size, config.offset) == (256, 7 << 40)
    intx = owner.vfio.get_irq_info(INTX)
    assert (intx.count, intx.flags) == (1, 7)
    others = [owner.vfio.get_irq_info(index) for index in (1, 2, REQ)]
    assert [(info.count, info.flags) for info in others] == [(0, 9), (0, 9), (1, 9)]
    for call, index in (("get_region_info", 9), ("get_region_info", -1), ("get_irq_info", 3), ("get_irq_info", 5)):
        with refused(errno.EINVAL):
            getattr(owner.vfio, call)(index)


# Regions


def test_regions_are_read_and_written_in_bytes_of_any_length(owner):
    assert owner.vfio.region_read(0, 0, 4) == bytes.fromhex("ed000001")
    owner.vfio.region_write(0, 4, (0x55).to_bytes(4, "little"))
    assert owner.vfio.region_read(0, 4, 4) == (~0x55 & 0xFFFFFFFF).to_bytes(4, "little")
    header = owner.vfio.region_read(CONFIG, 0, 64)
    assert header[:4] == bytes.fromhex("3412e811")
    assert owner.vfio.region_read(CONFIG, 1, 7) == header[1:8]


def test_access_outside_a_region_is_einval_and_to_a_disabled_bar_eio(owner):
    for index, offset, count in ((0, 1 << 20, 1), (0, (1 << 20) - 2, 4), (1, 0, 1), (CONFIG, 255, 2), (0, -4, 4)):
        with refused(errno.EINVAL):
            owner.vfio.region_read(index, offset, count)
        with refused(errno.EINVAL):
            owner.vfio.region_write(index, offset, bytes(count))
    owner.vfio.config_write(cfg.COMMAND, 2, 0)
    with refused(errno.EIO):
        owner.vfio.region_read(0, 0, 4)
    assert owner.vfio.bar_read(0, 0, 4) == 0xFFFFFFFF


def test_interrupt_line_is_remembered_and_does_not_reach_the_device(owner):
    owner.vfio.config_write(cfg.INTERRUPT_LINE, 1, 11)
    assert owner.vfio.config_read(cfg.INTERRUPT_LINE, 1) == 11
    assert owner.edu.config.get(cfg.INTERRUPT_LINE, 1) == 0


def test_msi_is_not_in_the_capability_list():
    class WithMsi(Edu):
        driver = "with-msi"

        def make_config(self):
            config = super().make_config()
            config.add_capability(0x10, bytes(10))
            config.add_capability(0x05, bytes(8), b"\xff" * 8)
            config.add_capability(0x01, bytes(6))
            config.add_capability(0x11, bytes(10))
            return config

    board = VfioBoard()
    board.device_class = lambda _driver: WithMsi
    host = board.host()
    device = host.open("test", board.files, board.executor, board.trace)
    found, offset = [], device.config_read(cfg.CAPABILITY_LIST, 1)
    while offset:
        found.append(device.config_read(offset, 1))
        offset = device.config_read(offset + 1, 1)
    assert found == [0x01, 0x10]
    assert device.config_read(cfg.STATUS, 2) & cfg.STATUS_CAPABILITIES


def test_device_without_a_pin_has_no_intx():
    class Quiet(PciDevice):
        driver = "quiet"

        def realize(self, board):
            super().realize(board)
            self.register_bar(0, IoRegion("quiet", 16, lambda _o, _s: 0, lambda _o, _s, _v: None))

    board = VfioBoard()
    board.device_class = lambda _driver: Quiet
    host = board.host()
    device = host.open("test", board.files, board.executor, board.trace)
    assert device.get_irq_info(INTX).count == 0
    with refused(errno.EINVAL):
        device.set_irq_eventfd(INTX, TRIGGER, board.rig.efd())
    host.release()
    plugged = board.plug()
    assert plugged.mode == "NONE"
    plugged.unrealize()


# VFIO_DEVICE_SET_IRQS


@pytest.mark.parametrize(
    ("flags", "index", "start", "count", "data", "number"),
    [
        (NONE | TRIGGER, 5, 0, 1, b"", errno.EINVAL),
        (NONE | TRIGGER, 1, 0, 1, b"", errno.EINVAL),
        (NONE | TRIGGER, INTX, 1, 1, b"", errno.EINVAL),
        (NONE | TRIGGER, INTX, 0, 2, b"", errno.EINVAL),
        (NONE | TRIGGER | 64, INTX, 0, 1, b"", errno.EINVAL),
        (TRIGGER, INTX, 0, 1, b"", errno.EINVAL),
        (NONE | BOOL | TRIGGER, INTX, 0, 1, b"\1", errno.EINVAL),
        (BOOL | TRIGGER, INTX, 0, 1, b"", errno.EINVAL),
        (EVENTFD | TRIGGER, INTX, 0, 1, b"\1\0", errno.EINVAL),
        (EVENTFD | TRIGGER, INTX, 0, 0, b"", errno.EINVAL),
        (NONE, INTX, 0, 1, b"", errno.ENOTTY),
        (NONE | MASK | UNMASK, INTX, 0, 1, b"", errno.ENOTTY),
        (EVENTFD | MASK, INTX, 0, 1, b"\0\0\0\0", errno.ENOTTY),
        (EVENTFD | TRIGGER, INTX, 0, 1, b"\x63\0\0\0", errno.EBADF),
        (EVENTFD | TRIGGER, INTX, 0, 1, b"\0\0\0\0", errno.EINVAL),
        (EVENTFD | UNMASK, INTX, 0, 1, b"\x63\0\0\0", errno.EBADF),
        (NONE | MASK, REQ, 0, 1, b"", errno.ENOTTY),
    ],
)
def test_set_irqs_that_makes_no_sense_is_refused_and_changes_nothing(flags, index, start, count, data, number):
    owner = Owner()
    owner.enable()
    with refused(number):
        owner.vfio.set_irqs(flags, index, start, count, data)
    owner.edu.raise_irq(1)
    assert owner.events() == 1


@pytest.mark.parametrize("flags", [NONE | MASK, NONE | UNMASK, BOOL | TRIGGER])
def test_intx_action_before_it_is_enabled_is_einval(owner, flags):
    with refused(errno.EINVAL):
        owner.vfio.set_irqs(flags, INTX, 0, 1, b"\1")


def test_set_irqs_takes_the_kernels_structure(owner):
    data = vfio.VfioIrqSet.build(
        {
            "argsz": 24,
            "flags": EVENTFD | TRIGGER,
            "index": INTX,
            "start": 0,
            "count": 1,
            "data": owner.trigger.to_bytes(4, "little"),
        }
    )
    owner.vfio.set_irqs_ioctl(data)
    owner.edu.raise_irq(1)
    assert owner.events() == 1
    for bad in (b"", data[:16], data[:20], b"\x04" + data[1:]):
        with refused(errno.EINVAL):
            owner.vfio.set_irqs_ioctl(bad)


# INTx


def test_interrupt_masks_itself_and_comes_again_only_after_unmask(owner):
    owner.enable()
    owner.edu.raise_irq(1)
    owner.edu.raise_irq(2)
    assert owner.events() == 1
    owner.edu.lower(3)
    owner.edu.raise_irq(4)
    assert owner.events() == 0
    owner.unmask()
    assert owner.events() == 1
    owner.edu.lower(4)
    owner.unmask()
    assert owner.events() == 0


def test_unmask_with_the_line_low_lets_the_next_interrupt_through(owner):
    owner.enable()
    owner.edu.raise_irq(1)
    owner.edu.lower(1)
    assert owner.events() == 1
    owner.unmask()
    owner.unmask()
    owner.edu.raise_irq(1)
    assert owner.events() == 1


def test_line_that_is_high_at_enable_is_signalled_at_once(owner):
    owner.edu.raise_irq(1)
    assert owner.events() == 0
    owner.enable()
    assert owner.events() == 1
    owner.unmask()
    assert owner.events() == 1


def test_mask_twice_is_once(owner):
    owner.enable()
    owner.mask()
    owner.mask()
    owner.edu.raise_irq(1)
    assert owner.events() == 0
    owner.unmask()
    assert owner.events() == 1


def test_unmask_eventfd_unmasks_or_signals_again(owner):
    owner.enable()
    unmask = owner.attach_unmask()
    owner.edu.raise_irq(1)
    assert owner.events() == 1
    owner.files.write(unmask)
    assert owner.events() == 1
    owner.edu.lower(1)
    owner.files.write(unmask)
    assert owner.events() == 0
    owner.edu.raise_irq(1)
    assert owner.events() == 1
    assert owner.files.domain.refused == 0
    assert owner.board.rig.count(unmask) == 0


def test_unmask_eventfd_with_a_count_unmasks_at_once(owner):
    owner.enable()
    owner.edu.raise_irq(1)
    assert owner.events() == 1
    owner.vfio.set_irq_eventfd(INTX, UNMASK, owner.board.rig.efd(1))
    assert owner.events() == 1


def test_second_unmask_eventfd_is_ebusy_until_the_first_is_detached_or_closed(owner):
    owner.enable()
    first = owner.attach_unmask()
    refs = [owner.files.file(owner.trigger).ctx.refs]
    with refused(errno.EBUSY):
        owner.attach_unmask()
    owner.files.close(first)
    owner.board.rig.drain()
    owner.attach_unmask()
    owner.vfio.set_irq_eventfd(INTX, UNMASK, -1)
    owner.attach_unmask()
    assert refs == [owner.files.file(owner.trigger).ctx.refs]


def test_virtual_intx_disable_vetoes_signal_and_unmask(owner):
    owner.enable()
    unmask = owner.attach_unmask()
    owner.vfio.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY | cfg.COMMAND_INTX_DISABLE)
    owner.edu.raise_irq(1)
    owner.files.write(unmask)
    owner.unmask()
    owner.vfio.set_irqs(NONE | TRIGGER, INTX, 0, 1)
    assert owner.events() == 0
    owner.vfio.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
    assert owner.events() == 1


def test_enable_with_intx_disabled_starts_masked_and_one_unmask_is_enough(owner):
    owner.vfio.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY | cfg.COMMAND_INTX_DISABLE)
    owner.edu.raise_irq(1)
    owner.enable()
    assert owner.events() == 0
    owner.vfio.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
    assert owner.events() == 1


def test_exchanged_trigger_gets_the_next_event_and_the_old_is_let_go(owner):
    owner.enable()
    old = owner.trigger
    owner.trigger = owner.board.rig.efd()
    owner.enable()
    owner.edu.raise_irq(1)
    assert owner.events() == 1
    assert owner.files.file(old).ctx.refs == 1
    owner.vfio.set_irq_eventfd(INTX, TRIGGER, -1)
    owner.edu.lower(1)
    owner.unmask()
    owner.edu.raise_irq(1)
    assert owner.events() == 0
    assert owner.files.file(owner.trigger).ctx.refs == 1


def test_trigger_none_and_bool_loop_back(owner):
    owner.enable()
    for kind, data, events in ((NONE, b"", 1), (BOOL, b"\1", 1), (BOOL, b"\0", 0), (BOOL, b"\2", 1)):
        owner.vfio.set_irqs(kind | TRIGGER, INTX, 0, 1, data)
        assert owner.events() == events


def test_disable_silences_and_gives_every_reference_back(owner):
    owner.enable()
    unmask = owner.attach_unmask()
    owner.edu.raise_irq(1)
    assert owner.events() == 1
    owner.disable()
    owner.files.write(unmask)
    owner.edu.lower(1)
    owner.edu.raise_irq(1)
    assert owner.events() == 0
    assert [owner.files.file(fd).ctx.refs for fd in (owner.trigger, unmask)] == [1, 1]
    owner.enable()
    assert owner.events() == 1


def test_close_of_the_device_resets_it_and_a_new_owner_starts_clean(owner):
    owner.enable()
    owner.edu.raise_irq(1)
    owner.vfio.config_write(cfg.COMMAND, 2, cfg.COMMAND_INTX_DISABLE)
    owner.host.release()
    owner.host.release()
    assert owner.edu.irq_status == 0
    assert owner.files.file(owner.trigger).ctx.refs == 1
    owner.board.rig.count(owner.trigger)
    owner.vfio = owner.host.open("next", owner.files, owner.board.executor, owner.board.trace)
    owner.enable()
    owner.edu.raise_irq(1)
    assert owner.events() == 1


def test_reset_lowers_the_line_and_keeps_decoding(owner):
    owner.enable()
    owner.edu.raise_irq(1)
    assert owner.events() == 1
    owner.vfio.reset()
    owner.unmask()
    assert owner.events() == 0
    assert owner.vfio.region_read(0, 0, 4) == bytes.fromhex("ed000001")
    owner.edu.raise_irq(1)
    assert owner.events() == 1


def test_request_to_give_the_device_back_is_signalled(owner):
    fd = owner.board.rig.efd()
    assert not owner.vfio.request_release()
    owner.vfio.set_irq_eventfd(REQ, TRIGGER, fd)
    assert owner.vfio.request_release()
    assert owner.board.rig.count(fd) == 1
    owner.vfio.set_irqs(NONE | TRIGGER, REQ, 0, 0)
    assert not owner.vfio.request_release()
    assert owner.files.file(fd).ctx.refs == 1


ACTS = ["raise", "lower", "mask", "unmask", "unmask-fd", "disable-intx", "enable-intx", "take", "off", "on"]


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.lists(st.sampled_from(ACTS), max_size=40))
def test_whatever_happens_depth_is_the_mask_and_a_high_line_is_never_forgotten(pci_2_3, acts):
    owner = Owner(pci_2_3)
    owner.enable()
    unmask = owner.attach_unmask()
    intx = owner.vfio.intx
    on = True
    for act in acts:
        if act == "raise":
            owner.edu.write(IRQ_RAISE, 4, 1)
        elif act == "lower":
            owner.edu.write(IRQ_ACK, 4, 1)
        elif act == "disable-intx":
            owner.vfio.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY | cfg.COMMAND_INTX_DISABLE)
        elif act == "enable-intx":
            owner.vfio.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
        elif act == "unmask-fd":
            owner.files.write(unmask)
        elif act == "take":
            owner.events()
        elif act == "off" and on:
            owner.disable()
            on = False
        elif act == "on" and not on:
            owner.enable()
            owner.vfio.set_irq_eventfd(INTX, UNMASK, unmask)
            on = True
        elif act in ("mask", "unmask") and on:
            getattr(owner, act)()
        owner.board.rig.drain()
        if on:
            if pci_2_3:
                masked = bool(owner.edu.config.get(cfg.COMMAND, 2) & cfg.COMMAND_INTX_DISABLE)
            else:
                masked = bool(intx.hardware.depth)
                assert intx.hardware.depth in (0, 1)
            assert masked == intx.ctx.masked
            assert intx.ctx.masked or not intx.virq_disabled
    owner.events()
    owner.vfio.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
    if not on:
        owner.enable()
    owner.unmask()
    assert (owner.events() > 0) == bool(owner.edu.irq_status)
