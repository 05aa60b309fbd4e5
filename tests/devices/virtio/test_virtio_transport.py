"""The PCI transport, as a driver of either interface sees it, with the entropy device behind it."""

from __future__ import annotations

import pytest

from devices.pci import config as cfg
from devices.virtio import registers as r
from devices.virtio.input import VirtioMouse
from devices.virtio.pci import VirtioError, VirtioNotify
from devices.virtio.rng import VirtioRng
from support.virtio import BAR, BUFFERS, DEVFN, IO, IRQ, MSIX_BAR, RAM, VirtioBoard
from vmm.errors import ConfigError, PropertyError

BOTH = pytest.mark.parametrize("modern", [True, False], ids=["modern", "legacy"])


def rng(modern=True, trace=False, **values):
    return VirtioBoard(VirtioRng("r0", **values), modern, trace)


def fill(board, length=16):
    """One request for random bytes."""
    return board.rings[0].submit((BUFFERS, length, True))


def capabilities(board):
    """cfg_type -> the capability as declared."""
    found = {}
    for kind, at in board.device.config.capabilities():
        if kind == r.CAP_VENDOR:
            raw = bytes(board.config_read(DEVFN, at + 2 + i, 1) for i in range(18))
            entry = r.NotifyCapability.parse(raw)
            found[entry.cap.cfg_type] = entry
    return found


class TestIdentity:
    def test_transitional_function_has_revision_0_and_its_type_as_subsystem(self):
        board = rng()
        assert board.config_read(DEVFN, 0) == 0x1005_1AF4
        assert board.config_read(DEVFN, 8) & 0xFF == 0
        assert board.config_read(DEVFN, 0x2C) == 4 << 16 | 0x1AF4
        assert board.config_read(DEVFN, cfg.INTERRUPT_PIN, 1) == 1

    def test_modern_only_function_has_its_type_in_the_device_id(self):
        board = rng(**{"disable-legacy": "on"})
        assert board.config_read(DEVFN, 0) == 0x1044_1AF4
        assert board.config_read(DEVFN, 8) & 0xFF == 1
        assert board.config_read(DEVFN, 0x10) == 0
        assert not board.offered() & r.F_NOTIFY_ON_EMPTY

    def test_input_has_no_legacy_interface(self):
        board = VirtioBoard(VirtioMouse("m0"))
        assert board.config_read(DEVFN, 0) == 0x1052_1AF4
        assert [bar.index for bar in board.device.bars] == [4]

    def test_legacy_only_function_has_no_capabilities(self):
        board = rng(modern=False, **{"disable-modern": True})
        assert board.device.config.capabilities() == []
        assert board.offered() >> 32 == 0
        board.start()
        fill(board)
        assert board.rings[0].done() == [(0, 16)]

    def test_neither_interface_is_refused(self):
        with pytest.raises(ConfigError, match="neither modern nor legacy"):
            VirtioRng("r0", **{"disable-legacy": "on", "disable-modern": True})
        with pytest.raises(PropertyError, match="disable-legacy"):
            VirtioRng("r0", **{"disable-legacy": "maybe"})

    def test_capabilities_lead_to_the_areas_of_bar_4(self):
        found = capabilities(rng())
        places = {kind: (entry.cap.bar, entry.cap.offset, entry.cap.length) for kind, entry in found.items()}
        assert places == {
            r.CAP_COMMON: (4, 0x0000, 0x1000),
            r.CAP_ISR: (4, 0x1000, 0x1000),
            r.CAP_DEVICE: (4, 0x2000, 0x1000),
            r.CAP_NOTIFY: (4, 0x3000, 0x1000),
            r.CAP_PCI: (0, 0, 0),
        }
        assert found[r.CAP_NOTIFY].notify_off_multiplier == 4


class TestRegisters:
    def test_common_configuration_is_as_declared(self):
        board = rng().start()
        board.set_common(r.COMMON_QUEUE_SELECT, 0, 2)
        raw = b"".join(board.common(at, 1 if at in (20, 21) else 2).to_bytes(1 if at in (20, 21) else 2, "little")
                       for at in (16, 18, 20, 21, 22, 24, 26, 28, 30))  # fmt: skip
        words = b"".join(board.common(at).to_bytes(4, "little") for at in (0, 4, 8, 12))
        addresses = b"".join(board.common(at).to_bytes(4, "little") for at in range(32, 56, 4))
        common = r.CommonConfig.parse(words + raw + addresses)
        ring = board.rings[0]
        assert common.num_queues == 1
        assert common.device_status == 0xF
        assert common.queue_size == 8
        assert common.queue_enable == 1
        assert common.queue_notify_off == 0
        assert common.queue_msix_vector == common.config_msix_vector == r.NO_VECTOR
        assert (common.queue_desc, common.queue_driver, common.queue_device) == (ring.desc, ring.avail, ring.used)

    def test_legacy_header_is_as_declared(self):
        board = rng(modern=False).start()
        fill(board)
        header = r.LegacyHeader.parse(bytes(board.inb(IO + at) if at in (18, 19) else 0 for at in range(20)))
        assert header.device_status == 7
        assert header.isr_status == 1
        assert board.inl(IO + 8) == board.rings[0].desc // 4096
        assert board.inw(IO + 12) == 8

    @BOTH
    def test_queue_that_is_not_there_has_size_0_and_takes_nothing(self, modern):
        board = rng(modern).start()
        if modern:
            board.set_common(r.COMMON_QUEUE_SELECT, 7, 2)
            board.set_common(r.COMMON_QUEUE_DESC, 0x1000)
            board.set_common(r.COMMON_QUEUE_ENABLE, 1, 2)
            assert board.common(r.COMMON_QUEUE_SIZE, 2) == 0
            assert board.common(r.COMMON_QUEUE_DESC) == 0
            assert board.common(r.COMMON_QUEUE_VECTOR, 2) == r.NO_VECTOR
        else:
            board.outw(IO + r.LEGACY_QUEUE_SELECT, 7)
            board.outl(IO + r.LEGACY_QUEUE_ADDRESS, 1)
            assert board.inw(IO + r.LEGACY_QUEUE_SIZE) == 0
            assert board.inl(IO + r.LEGACY_QUEUE_ADDRESS) == 0
        board.notify_queue(7)
        fill(board)
        assert len(board.rings[0].done()) == 1

    def test_queue_size_can_be_made_smaller_by_powers_of_two_until_it_is_enabled(self):
        board = rng()
        board.negotiate()
        for size, shown in ((4, 4), (3, 4), (16, 4), (0, 4), (2, 2)):
            board.set_common(r.COMMON_QUEUE_SIZE, size, 2)
            assert board.common(r.COMMON_QUEUE_SIZE, 2) == shown
        board.set_common(r.COMMON_QUEUE_ENABLE, 1, 2)
        board.set_common(r.COMMON_QUEUE_SIZE, 8, 2)
        board.set_common(r.COMMON_QUEUE_DESC, 0x1234)
        assert board.common(r.COMMON_QUEUE_SIZE, 2) == 2
        assert board.common(r.COMMON_QUEUE_DESC) == 0

    def test_third_word_of_features_is_empty(self):
        board = rng()
        board.set_common(r.COMMON_DEVICE_FEATURE_SELECT, 2)
        board.set_common(r.COMMON_DRIVER_FEATURE_SELECT, 0xFFFF_FFFF)
        board.set_common(r.COMMON_DRIVER_FEATURE, 0xFFFF_FFFF)
        assert board.common(r.COMMON_DEVICE_FEATURE) == 0
        assert board.common(r.COMMON_DRIVER_FEATURE) == 0

    def test_features_that_were_not_offered_lose_features_ok(self):
        board = rng()
        board.status = r.STATUS_ACKNOWLEDGE | r.STATUS_DRIVER
        board.accept(board.offered() | 1)
        board.status = board.status | r.STATUS_FEATURES_OK
        assert board.status == r.STATUS_ACKNOWLEDGE | r.STATUS_DRIVER

    def test_features_cannot_change_once_they_are_ok(self):
        board = rng()
        board.negotiate(r.F_VERSION_1)
        board.accept(r.F_VERSION_1 | r.F_EVENT_IDX)
        board.set_common(r.COMMON_DRIVER_FEATURE_SELECT, 0)
        assert board.common(r.COMMON_DRIVER_FEATURE) == 0

    def test_window_in_configuration_space_reaches_the_bar(self):
        board = rng()
        at = next(at for kind, at in board.device.config.capabilities() if kind == r.CAP_VENDOR)
        assert board.config_read(DEVFN, at + 3, 1) == r.CAP_PCI

        def window(offset, length):
            board.config_write(DEVFN, at + r.PCI_CAP_BAR, r.MODERN_BAR, 1)
            board.config_write(DEVFN, at + r.PCI_CAP_OFFSET, offset)
            board.config_write(DEVFN, at + r.PCI_CAP_LENGTH, length)

        window(r.COMMON_STATUS, 1)
        board.config_write(DEVFN, at + r.PCI_CAP_DATA, r.STATUS_ACKNOWLEDGE, 1)
        assert board.status == r.STATUS_ACKNOWLEDGE
        assert board.config_read(DEVFN, at + r.PCI_CAP_DATA, 1) == r.STATUS_ACKNOWLEDGE
        for offset, length in ((r.MODERN_SIZE, 4), (2, 4), (0xFFFF_FFFC, 4), (0, 3), (0, 0), (0, 8)):
            window(offset, length)
            board.config_write(DEVFN, at + r.PCI_CAP_DATA, 0)
            board.config_read(DEVFN, at + r.PCI_CAP_DATA)
        board.config_write(DEVFN, at + r.PCI_CAP_BAR, 9, 1)
        board.config_read(DEVFN, at + r.PCI_CAP_DATA)
        assert board.status == r.STATUS_ACKNOWLEDGE


class TestInterrupts:
    @BOTH
    def test_pin_is_high_until_isr_status_is_read(self, modern):
        board = rng(modern).start()
        assert not board.irq
        fill(board)
        assert board.irq
        assert board.isr == r.ISR_QUEUE
        assert not board.irq
        assert board.isr == 0

    def test_change_of_configuration_sets_both_bits_and_the_generation(self):
        board = rng().start()
        before = board.common(r.COMMON_GENERATION, 1)
        board.device.config_interrupt()
        assert board.irq
        assert board.isr == r.ISR_QUEUE | r.ISR_CONFIG
        assert board.common(r.COMMON_GENERATION, 1) == before + 1

    def test_change_of_configuration_before_driver_ok_is_silent(self):
        board = rng()
        board.negotiate()
        board.device.config_interrupt()
        assert not board.irq

    @BOTH
    def test_driver_that_wants_no_interrupt_gets_none(self, modern):
        board = rng(modern).start(r.F_VERSION_1 if modern else 0)
        board.memory.write(board.rings[0].avail, b"\x01\x00")
        fill(board)
        assert len(board.rings[0].done()) == 1
        assert not board.irq

    def test_legacy_driver_hears_of_an_empty_ring_though_it_wants_no_interrupt(self):
        board = rng(modern=False).start(r.F_NOTIFY_ON_EMPTY)
        board.memory.write(board.rings[0].avail, b"\x01\x00")
        fill(board)
        assert board.irq

    def test_used_event_says_of_which_chain_to_tell(self):
        board = rng().start()
        ring = board.rings[0]
        board.memory.write(ring.avail + 4 + 2 * ring.size, (2).to_bytes(2, "little"))
        seen = []
        for _ in range(5):
            fill(board)
            seen.append(board.irq)
            board.isr  # noqa: B018 (reading lets go of the pin)
        # The first, as nothing was told before; then that of used index 2, which makes it 3.
        assert seen == [True, False, True, False, False]

    def test_avail_event_follows_what_was_taken(self):
        board = rng().start()
        ring = board.rings[0]
        for count in range(1, 20):
            fill(board)
            event = int.from_bytes(board.memory.read(ring.used + 4 + 8 * ring.size, 2), "little")
            assert event == count

    def test_reset_by_the_driver_lets_go_of_the_pin(self):
        board = rng().start()
        fill(board)
        assert board.irq
        board.status = 0
        assert not board.irq
        assert board.status == 0
        assert board.isr == 0

    def test_reset_of_the_machine_and_unplug_with_the_pin_high_let_go(self):
        board = rng().start()
        fill(board)
        board.reset()
        assert not board.irq
        board.route(IRQ, IRQ, IRQ, IRQ)
        board.firmware()
        board.start()
        fill(board)
        assert board.irq
        board.device.unrealize()
        assert not board.irq
        assert board.ledger.difference(board.before) == ([], [])

    def test_intx_disable_keeps_it_off_the_wire(self):
        board = rng().start()
        board.config_write(DEVFN, 4, 0x407, 2)
        fill(board)
        assert not board.irq
        assert board.config_read(DEVFN, 6, 2) & 8
        board.config_write(DEVFN, 4, 7, 2)
        assert board.irq


class TestMessages:
    """MSI-X, where it is asked for. The messages go to RAM here."""

    def start(self):
        board = rng(vectors=2)
        board.negotiate()
        board.make_queues()
        self.enable(board, 0x8000)
        for vector in (0, 1):
            for at, value in ((0, BUFFERS + 0x1000 + 16 * vector), (4, 0), (8, 0xCAFE + vector), (12, 0)):
                board.write(MSIX_BAR + 16 * vector + at, value)
        board.set_common(r.COMMON_CONFIG_VECTOR, 0, 2)
        board.set_common(r.COMMON_QUEUE_SELECT, 0, 2)
        board.set_common(r.COMMON_QUEUE_VECTOR, 1, 2)
        board.status = board.status | r.STATUS_DRIVER_OK
        return board

    def enable(self, board, control):
        at = board.device.config.find_capability(0x11)
        board.config_write(DEVFN, at + 2, control, 2)

    def message(self, board, vector):
        return int.from_bytes(board.memory.read(BUFFERS + 0x1000 + 16 * vector, 4), "little")

    def test_there_is_none_unless_asked_for(self):
        assert rng().device.config.find_capability(0x11) is None

    def test_queue_and_configuration_have_a_vector_each_and_the_pin_stays_low(self):
        board = self.start()
        fill(board)
        assert (self.message(board, 0), self.message(board, 1)) == (0, 0xCAFF)
        board.device.config_interrupt()
        assert self.message(board, 0) == 0xCAFE
        assert not board.irq

    def test_masked_vector_is_sent_when_it_is_unmasked(self):
        board = self.start()
        board.write(MSIX_BAR + 16 + 12, 1)
        fill(board)
        assert self.message(board, 1) == 0
        assert board.read(MSIX_BAR + 0x800) == 2
        board.write(MSIX_BAR + 16 + 12, 0)
        assert self.message(board, 1) == 0xCAFF
        assert board.read(MSIX_BAR + 0x800) == 0

    def test_vector_that_is_not_there_is_refused(self):
        board = self.start()
        board.set_common(r.COMMON_CONFIG_VECTOR, 2, 2)
        assert board.common(r.COMMON_CONFIG_VECTOR, 2) == r.NO_VECTOR

    def test_pin_takes_over_when_messages_are_disabled(self):
        board = self.start()
        fill(board)
        self.enable(board, 0)
        assert board.irq
        self.enable(board, 0x8000)
        assert not board.irq

    def test_legacy_configuration_moves_behind_the_vectors(self):
        board = VirtioBoard(VirtioRng("r0", vectors=2), modern=False)
        board.negotiate()
        assert board.inw(IO + r.LEGACY_CONFIG_VECTOR) == 0  # the device's own, which is empty
        self.enable(board, 0x8000)
        board.outw(IO + r.LEGACY_CONFIG_VECTOR, 1)
        assert board.inw(IO + r.LEGACY_CONFIG_VECTOR) == 1

    def test_too_many_vectors_are_refused(self):
        with pytest.raises(PropertyError, match="at most 128"):
            rng(vectors=129)


class TestQueue:
    @BOTH
    def test_buffers_in_order_in_a_table_and_indirect(self, modern):
        board = rng(modern).start()
        ring = board.rings[0]
        first = ring.submit((BUFFERS, 3, True), (BUFFERS + 0x100, 5, True))
        second = ring.submit((BUFFERS, 7, True), (BUFFERS + 0x100, 9, True), indirect=BUFFERS + 0x800)
        assert ring.done() == [(first, 8), (second, 16)]

    def test_indices_wrap_around(self):
        board = rng().start()
        ring, queue = board.rings[0], board.device.queues[0]
        queue.last_avail = queue.used_index = ring.added = ring.seen = 0xFFFC
        for address in (ring.avail + 2, ring.used + 2):
            board.memory.write(address, b"\xfc\xff")
        for _ in range(3):
            heads = [ring.chain((BUFFERS, 1, True)) for _ in range(8)]
            for head in heads:
                ring.offer(head)
            ring.kick()
            assert [head for head, _ in ring.done()] == heads
        assert ring.added == queue.used_index == 20

    def test_nothing_is_taken_before_driver_ok(self):
        board = rng()
        board.negotiate()
        board.make_queues()
        fill(board)
        assert board.rings[0].done() == []
        board.status = board.status | r.STATUS_DRIVER_OK
        assert board.rings[0].done() == [(0, 16)]

    def test_legacy_driver_may_use_a_queue_before_it_says_so(self):
        board = rng(modern=False)
        board.negotiate()
        board.make_queues()
        fill(board)
        assert board.rings[0].done() == [(0, 16)]

    def test_legacy_driver_ok_makes_it_bus_master(self):
        board = rng(modern=False)
        board.config_write(DEVFN, 4, 3, 2)
        board.start()
        assert board.config_read(DEVFN, 4, 2) == 7
        fill(board)
        assert board.rings[0].done() == [(0, 16)]

    def test_large_batch_is_served_over_several_turns(self):
        board = rng().start()
        board.device._budgeted = True  # as under a clock that moves by itself
        ring = board.rings[0]
        size = 60_000
        for _ in range(8):
            ring.offer(ring.chain((BUFFERS, size, True)))
        board.device.handle = _expensive(board.device.handle)
        ring.kick()
        at_once = len(ring.done())
        assert 0 < at_once < 8
        board.clock.step(0)
        assert len(ring.done()) == 8 - at_once

    def test_property_switches_off_indirect_descriptors_and_event_indices(self):
        board = rng(indirect_desc=False, event_idx=False, any_layout=False, notify_on_empty=False)
        assert board.offered() == r.F_VERSION_1


def _expensive(handle):
    def counted(queue):
        cost = handle(queue)
        return None if cost is None else 1 << 19

    return counted


class TestBroken:
    def check_broken(self, board, reason):
        assert board.status & r.STATUS_NEEDS_RESET
        assert board.irq
        assert board.isr & r.ISR_CONFIG
        assert [e.reason for e in board.recording.of(VirtioError)] == [reason]
        board.rings[0].offer(0)
        board.rings[0].kick()
        assert board.rings[0].done() == []

    def check_recovers(self, board):
        board.start()
        assert board.status == 0xF
        fill(board)
        assert len(board.rings[0].done()) == 1

    @pytest.mark.parametrize(
        ("break_it", "reason"),
        [
            (lambda ring: ring.offer(8), "queue 0: guest says that descriptor 8 is available"),
            (
                lambda ring: (ring.describe(0, BUFFERS, 4, r.DESC_F_WRITE | r.DESC_F_NEXT, 0), ring.offer(0)),
                "queue 0: chain 0 is too long, or loops",
            ),
            (
                lambda ring: (ring.describe(0, BUFFERS, 4, r.DESC_F_WRITE | r.DESC_F_NEXT, 9), ring.offer(0)),
                "queue 0: chain 0 goes on at 9 of 8",
            ),
            (
                lambda ring: (ring.describe(0, RAM - 4, 5, r.DESC_F_WRITE), ring.offer(0)),
                "queue 0: buffer 0xffffc+0x5 is not in memory",
            ),
            (
                lambda ring: (ring.describe(0, (1 << 64) - 1, 0xFFFF_FFFF, r.DESC_F_WRITE), ring.offer(0)),
                "queue 0: buffer 0xffffffffffffffff+0xffffffff is not in memory",
            ),
            (
                lambda ring: (ring.describe(0, BUFFERS, 0, r.DESC_F_WRITE), ring.offer(0)),
                "queue 0: a buffer of no bytes in chain 0",
            ),
            (
                lambda ring: ring.offer(ring.chain((BUFFERS, 4, True), (BUFFERS, 4, False))),
                "queue 0: chain 0 has a readable buffer behind a writable one",
            ),
            (
                lambda ring: (ring.describe(0, BUFFERS, 17, r.DESC_F_INDIRECT), ring.offer(0)),
                "queue 0: an indirect table of 17 bytes, flags 0x4",
            ),
            (
                lambda ring: (ring.describe(0, RAM, 16, r.DESC_F_INDIRECT), ring.offer(0)),
                "queue 0: an indirect descriptor at 0x100000 is not in memory",
            ),
            (
                lambda ring: (
                    ring.board.memory.write(
                        BUFFERS,
                        r.Descriptor.build({"address": BUFFERS, "length": 16, "flags": r.DESC_F_INDIRECT, "next": 0}),
                    ),
                    ring.describe(0, BUFFERS, 16, r.DESC_F_INDIRECT),
                    ring.offer(0),
                ),
                "queue 0: an indirect table in chain 0 beyond its head",
            ),
            (
                lambda ring: ring.board.memory.write(ring.avail + 2, b"\xff\xff"),
                "queue 0: guest moved the available index by 65535, past its size",
            ),
        ],
        ids=lambda value: value[9:40].replace(" ", "-") if isinstance(value, str) else "",
    )
    def test_broken_queue_stops_the_device_until_it_is_reset(self, break_it, reason):
        board = rng(trace=True).start()
        break_it(board.rings[0])
        board.rings[0].kick()
        self.check_broken(board, reason)
        self.check_recovers(board)

    def test_ring_outside_memory(self):
        board = rng(trace=True)
        board.negotiate()
        for register in (r.COMMON_QUEUE_DESC, r.COMMON_QUEUE_DRIVER, r.COMMON_QUEUE_DEVICE):
            board.set_common(register + 4, 0xFFFF_FFFF)
        board.set_common(r.COMMON_QUEUE_ENABLE, 1, 2)
        board.status = board.status | r.STATUS_DRIVER_OK
        board.notify_queue(0)
        assert board.status & r.STATUS_NEEDS_RESET
        self.check_recovers(board)

    def test_bus_mastering_switched_off_breaks_it(self):
        board = rng(trace=True).start()
        board.config_write(DEVFN, 4, 3, 2)
        fill(board)
        assert board.status & r.STATUS_NEEDS_RESET
        board.config_write(DEVFN, 4, 7, 2)
        self.check_recovers(board)

    def test_legacy_driver_is_not_told_but_the_device_stops(self):
        board = VirtioBoard(VirtioRng("r0"), modern=False, trace=True).start()
        board.rings[0].offer(99)
        board.rings[0].kick()
        assert board.status == 7
        assert not board.irq
        assert len(board.recording.of(VirtioError)) == 1
        board.start()
        fill(board)
        assert len(board.rings[0].done()) == 1


def test_trace_says_why_the_pin_rose():
    board = rng(trace=True).start()
    fill(board)
    assert [(e.device, e.isr, e.vector) for e in board.recording.of(VirtioNotify)] == [("r0", 1, 0xFFFF)]


def test_notify_register_counts_by_its_place_not_by_its_value():
    board = rng().start()
    ring = board.rings[0]
    ring.offer(ring.chain((BUFFERS, 4, True)))
    board.write(BAR + r.AREA_NOTIFY, 77, 2)
    assert len(ring.done()) == 1
