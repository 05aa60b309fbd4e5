"""Entropy, input and balloon devices."""

from __future__ import annotations

import os
import struct

import pytest

from devices.rng_backend import RngBuiltin, RngRandom
from devices.virtio import balloon as vb
from devices.virtio import input as vi
from devices.virtio import registers as r
from devices.virtio.balloon import VirtioBalloon, VirtioBalloonToTarget
from devices.virtio.input import InputConfig, InputEvent, VirtioKeyboard, VirtioMouse, VirtioTablet
from devices.virtio.rng import LARGEST, VirtioRng
from support.virtio import BUFFERS, DEVFN, RAM, VirtioBoard
from vmm.errors import ConfigError, InUse, PropertyError


class TestRng:
    def board(self, source=None, **values):
        def objects(board):
            if source is not None:
                board.objects["s0"] = source
                values["rng"] = "s0"

        device = VirtioRng("r0", **values)
        return VirtioBoard(device, before=lambda board: (objects(board), device.values.update(values))).start()

    def test_bytes_are_the_source_s(self, tmp_path):
        path = tmp_path / "random"
        path.write_bytes(bytes(range(256)))
        board = self.board(RngRandom("s0", {"filename": str(path)}))
        ring = board.rings[0]
        ring.submit((BUFFERS, 10, True))
        ring.submit((BUFFERS + 10, 20, True))
        assert board.memory.read(BUFFERS, 30) == bytes(range(30))

    def test_large_buffer_gets_as_much_as_one_turn_allows(self):
        board = self.board()
        board.rings[0].submit((BUFFERS, LARGEST + 1, True))
        assert board.rings[0].done() == [(0, LARGEST)]

    def test_source_that_has_nothing_is_asked_again(self, tmp_path):
        path = tmp_path / "fifo"
        os.mkfifo(path)
        source = RngRandom("s0", {"filename": str(path)})
        board = self.board(source)
        ring = board.rings[0]
        ring.submit((BUFFERS, 4, True))
        assert ring.done() == []
        with path.open("wb") as writer:
            writer.write(b"ABCD")
        board.clock.step(10_000_000)
        assert ring.done() == [(0, 4)]
        assert board.memory.read(BUFFERS, 4) == b"ABCD"
        source.close()

    def test_quota_holds_for_a_period(self):
        board = self.board(**{"max-bytes": 10, "period": 1000})
        ring = board.rings[0]
        for _ in range(3):
            ring.submit((BUFFERS, 8, True))
        assert ring.done() == [(0, 8), (1, 2)]
        board.clock.step(999_000_000)
        assert ring.done() == []
        board.clock.step(1_000_000)
        assert ring.done() == [(2, 8)]

    def test_reset_while_waiting_starts_over(self):
        board = self.board(**{"max-bytes": 1, "period": 1000})
        for _ in range(2):
            board.rings[0].submit((BUFFERS, 1, True))
        board.start()
        board.rings[0].submit((BUFFERS, 1, True))
        assert board.rings[0].done() == [(0, 1)]
        board.clock.step(5_000_000_000)
        assert board.rings[0].done() == []

    def test_source_has_one_user_and_is_free_after_unplug(self):
        source = RngBuiltin("s0", {})
        board = self.board(source)
        assert source.in_use == "r0"
        with pytest.raises(InUse, match="in use by r0"):
            board.plug(VirtioRng("r1", rng="s0", addr=6 << 3))
        board.device.unrealize()
        assert source.in_use is None
        assert board.ledger.difference(board.before) == ([], [])

    def test_wrong_properties_are_refused(self, tmp_path):
        board = self.board()
        board.objects["other"] = VirtioMouse("m")
        board.objects["other"].qom_type = "some-type"
        with pytest.raises(PropertyError, match="'s9' not found"):
            board.plug(VirtioRng("r1", rng="s9", addr=6 << 3))
        with pytest.raises(PropertyError, match="expected: rng-backend"):
            board.plug(VirtioRng("r1", rng="other", addr=6 << 3))
        with pytest.raises(PropertyError, match="positive"):
            VirtioRng("r1", period=0)
        with pytest.raises(PropertyError, match="less than 2"):
            VirtioRng("r1", **{"max-bytes": 1 << 63})
        with pytest.raises(ConfigError, match=r"Could not open .*No such file"):
            RngRandom("s1", {"filename": str(tmp_path / "none")})
        with pytest.raises(PropertyError, match=r"'rng-builtin\.foo' not found"):
            RngBuiltin.create("s1", {"foo": 1}, False, None)


class TestInput:
    def item(self, board, select, subselect=0):
        board.set_own(0, select, 1)
        board.set_own(1, subselect, 1)
        raw = bytes(board.own(at, 1) for at in range(InputConfig.sizeof()))
        config = InputConfig.parse(raw)
        assert (config.select, config.subselect) == (select, subselect)
        assert not any(config.data[config.size :])
        return config.data[: config.size]

    @pytest.mark.parametrize(
        ("cls", "name", "types"),
        [
            (VirtioKeyboard, b"QEMU Virtio Keyboard", {vi.EV_KEY, vi.EV_REP, vi.EV_LED}),
            (VirtioMouse, b"QEMU Virtio Mouse", {vi.EV_KEY, vi.EV_REL}),
            (VirtioTablet, b"QEMU Virtio Tablet", {vi.EV_KEY, vi.EV_REL, vi.EV_ABS}),
        ],
    )
    def test_configuration_tells_what_it_is(self, cls, name, types):
        board = VirtioBoard(cls("i0", serial="s1")).start()
        assert self.item(board, vi.CFG_ID_NAME) == name
        assert self.item(board, vi.CFG_ID_SERIAL) == b"s1"
        ids = vi.DeviceIds.parse(self.item(board, vi.CFG_ID_DEVIDS))
        assert (ids.bus, ids.vendor, ids.product) == (6, 0x0627, cls.product_id)
        assert {kind for kind in range(32) if self.item(board, vi.CFG_EV_BITS, kind)} == types
        for kind, codes in cls.events.items():
            bits = int.from_bytes(self.item(board, vi.CFG_EV_BITS, kind), "little")
            assert {n for n in range(bits.bit_length()) if bits >> n & 1} == set(codes)
        has_x = bool(self.item(board, vi.CFG_ABS_INFO, vi.ABS_X))
        assert has_x == (vi.EV_ABS in types)
        assert self.item(board, 77) == self.item(board, vi.CFG_ID_NAME, 1) == self.item(board, vi.CFG_PROP_BITS) == b""

    def test_events_arrive_with_a_report_behind_them(self):
        board = VirtioBoard(VirtioMouse("i0")).start()
        ring = board.rings[0]
        for n in range(4):
            ring.submit((BUFFERS + 8 * n, 8, True))
        board.device.send((vi.EV_REL, vi.REL_X, -3), (vi.EV_REL, vi.REL_Y, 4))
        events = [InputEvent.parse(board.memory.read(BUFFERS + 8 * n, 8)) for n in range(3)]
        assert [(e.type, e.code, e.value) for e in events] == [(2, 0, -3), (2, 1, 4), (0, 0, 0)]
        assert len(ring.done()) == 3
        assert board.irq

    def test_events_wait_for_buffers_but_not_without_end(self):
        board = VirtioBoard(VirtioKeyboard("i0"))
        board.device.send((vi.EV_KEY, 30, 1))
        board.start()
        for _ in range(2000):
            board.device.send((vi.EV_KEY, 30, 1))
        assert len(board.device._pending) <= vi.KEPT_EVENTS
        board.rings[0].submit((BUFFERS, 8, True))
        assert InputEvent.parse(board.memory.read(BUFFERS, 8)).code == 30

    def test_leds_are_kept(self):
        board = VirtioBoard(VirtioKeyboard("i0")).start()
        for kind, code, value in ((vi.EV_LED, 1, 1), (vi.EV_LED, 9, 1), (vi.EV_KEY, 1, 1)):
            board.memory.write(BUFFERS, InputEvent.build({"type": kind, "code": code, "value": value}))
            board.rings[1].submit((BUFFERS, 8, False))
        board.rings[1].submit((BUFFERS, 3, False))
        assert board.device.leds == {1: 1}
        assert len(board.rings[1].done()) == 4

    def test_event_buffer_that_is_too_small_breaks_the_device(self):
        board = VirtioBoard(VirtioMouse("i0")).start()
        board.rings[0].submit((BUFFERS, 7, True))
        board.device.send((vi.EV_REL, 0, 1))
        assert board.status & r.STATUS_NEEDS_RESET

    def test_class_says_what_kind_of_input(self):
        classes = [
            VirtioBoard(cls("i")).config_read(DEVFN, 0x0A, 2) for cls in (VirtioKeyboard, VirtioMouse, VirtioTablet)
        ]
        assert classes == [0x0900, 0x0902, 0x0980]


class TestBalloon:
    def board(self, **values):
        emitted = []
        board = VirtioBoard(
            VirtioBalloon("b0", **values), trace=True, emit=lambda name, data: emitted.append((name, data))
        ).start()
        board.emitted = emitted
        return board

    def give(self, board, queue, *pages):
        raw = struct.pack(f"<{len(pages)}I", *pages)
        board.memory.write(BUFFERS, raw)
        board.rings[queue].submit((BUFFERS, len(raw), False))

    def test_target_is_told_and_actual_follows_the_driver(self):
        board = self.board()
        board.device.set_target(RAM // 2)
        assert board.isr & r.ISR_CONFIG
        assert board.own(0, 4) == RAM // 2 // 4096
        board.set_own(4, 100, 4)
        assert board.device.actual == RAM - 100 * 4096
        assert board.emitted == [("BALLOON_CHANGE", {"actual": RAM - 100 * 4096})]
        assert [e.target for e in board.recording.of(VirtioBalloonToTarget)] == [RAM // 2]

    def test_page_that_is_given_reads_as_zeroes(self):
        board = self.board()
        for page in (0x90, 0x91, 0x92):
            board.memory.write(page * 4096, b"data")
        self.give(board, vb.INFLATE, 0x91, 0xFFFF_FFFF)
        assert [board.memory.read(page * 4096, 4) for page in (0x90, 0x91, 0x92)] == [b"data", bytes(4), b"data"]
        assert board.rings[vb.INFLATE].done() == [(0, 0)]
        self.give(board, vb.DEFLATE, 0x91)
        assert board.rings[vb.DEFLATE].done() == [(0, 0)]

    def test_statistics_are_shown_and_asked_for_again(self):
        board = self.board()
        names = board.device.qom_values()["guest-stats"][1]["stats"]
        assert len(names) == 16
        assert set(names.values()) == {vb.NO_STAT}
        board.memory.write(BUFFERS, b"".join(vb.StatEntry.build({"tag": t, "value": v}) for t, v in ((4, 99), (77, 1))))
        board.rings[vb.STATS].submit((BUFFERS, 20, False))
        assert board.rings[vb.STATS].done() == []
        assert board.device.qom_values()["guest-stats"][1]["stats"]["stat-free-memory"] == 99
        board.device.poll_stats()
        assert board.rings[vb.STATS].done() == [(0, 0)]
        board.device.poll_stats()
        assert board.rings[vb.STATS].done() == []

    def test_reset_gives_all_pages_back(self):
        board = self.board()
        board.set_own(4, 5, 4)
        board.status = 0
        assert board.device.actual == RAM
