"""The IB700 watchdog, and what its end leads to."""

from __future__ import annotations

import pytest

from devices.ib700 import PORT_DISABLE, PORT_ENABLE, SECONDS, Ib700, Ib700Expired, Ib700Start, Ib700Stop
from machine import MachineConfig
from support.board import FakeBoard
from support.qtest_link import LocalLink
from vmm.errors import PropertyError

SECOND = 1_000_000_000


class Board(FakeBoard):
    def __init__(self):
        super().__init__(trace=True)
        self.expired = 0
        self.watchdog = Ib700()
        self.watchdog.realize(self)

    def watchdog_expired(self):
        self.expired += 1


class TestTimer:
    @pytest.mark.parametrize("value", range(16))
    def test_low_four_bits_choose_the_time(self, value):
        board = Board()
        board.outb(PORT_ENABLE, value | 0xF0)
        board.clock.step(SECONDS[value] * SECOND - 1 if SECONDS[value] else 0)
        assert board.expired == (SECONDS[value] == 0)
        board.clock.step(1)
        assert board.expired == 1
        board.clock.step(100 * SECOND)
        assert board.expired == 1

    def test_guest_that_comes_back_starts_it_over(self):
        board = Board()
        for _ in range(5):
            board.outb(PORT_ENABLE, 14)
            board.clock.step(SECOND)
        assert board.expired == 0
        board.clock.step(SECOND)
        assert board.expired == 1
        kinds = [type(e) for e in board.recording.of(Ib700Start, Ib700Stop, Ib700Expired)]
        assert kinds == [Ib700Start] * 5 + [Ib700Expired]

    def test_stop_and_reset_and_unrealize_stop_it(self):
        for stop in (
            lambda board: board.outb(PORT_DISABLE, 0),
            lambda board: board.watchdog.reset(),
            lambda board: board.watchdog.unrealize(),
        ):
            board = Board()
            board.outb(PORT_ENABLE, 15)
            board.outb(PORT_ENABLE, 14)
            stop(board)
            board.clock.step(100 * SECOND)
            assert board.expired == 0

    def test_ports_read_as_nothing_and_are_given_back(self):
        board = Board()
        assert (board.inb(PORT_ENABLE), board.inb(PORT_DISABLE)) == (0xFF, 0xFF)
        board.watchdog.unrealize()
        assert board.ledger.rows() == []
        assert board.ports.mappings() == []

    def test_board_without_a_watchdog_s_action_refuses_it(self):
        device = Ib700()
        with pytest.raises(PropertyError, match="takes no watchdogs"):
            device.realize(FakeBoard())
        device.unwind()


class TestAction:
    def events(self, action, **config):
        link = LocalLink(devices=({"driver": "ib700"},), watchdog=action, **config)
        seen = []
        link.machine.on_event(lambda name, data: seen.append((name, data)))
        link("outb 0x443 14")
        link(f"clock_step {2 * SECOND}")
        link.machine.loop.turn()
        state = link.machine.state.value
        link.close()
        return seen, state

    @pytest.mark.parametrize(
        ("action", "then", "state"),
        [
            ("reset", [("RESET", {"guest": True, "reason": "guest-reset"})], "running"),
            ("shutdown", [("POWERDOWN", {})], "running"),
            ("poweroff", [("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})], "running"),
            ("pause", [("STOP", {})], "watchdog"),
            ("debug", [], "running"),
            ("none", [], "running"),
            ("inject-nmi", [], "running"),
        ],
    )
    def test_event_names_the_action_and_it_follows(self, action, then, state):
        seen, found = self.events(action)
        assert seen == [("WATCHDOG", {"action": action}), *then]
        assert found == state

    def test_reset_that_is_not_wanted_is_a_shutdown(self):
        seen, _ = self.events("reset", no_reboot=True)
        assert seen == [("WATCHDOG", {"action": "reset"}), ("SHUTDOWN", {"guest": True, "reason": "guest-reset"})]

    def test_paused_machine_can_go_on(self):
        link = LocalLink(devices=({"driver": "ib700"},), watchdog="pause")
        link("outb 0x443 14")
        link(f"clock_step {2 * SECOND}")
        link.machine.loop.turn()
        link.machine.cont()
        assert link.machine.state.value == "running"
        link.close()

    def test_reset_is_the_default(self):
        assert MachineConfig().watchdog == "reset"
