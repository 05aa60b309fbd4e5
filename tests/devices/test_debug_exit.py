"""isa-debug-exit."""

from __future__ import annotations

import pytest

from devices.debug_exit import DebugExit
from tests.support.board import FakeBoard
from vmm.errors import PropertyError


def realized(**values: int) -> FakeBoard:
    board = FakeBoard()
    DebugExit(**values).realize(board)
    return board


def test_write_at_default_port_ends_machine_with_odd_status():
    board = realized()
    board.outb(0x501, 0x21)
    assert board.shutdowns == [("guest-shutdown", 0x43)]


def test_dword_write_at_given_port_carries_whole_value():
    board = realized(iobase=0xF4, iosize=4)
    board.outl(0xF4, 0x8000_0000)
    assert board.shutdowns == [("guest-shutdown", 0x1_0000_0001)]


def test_read_gives_zero_and_does_not_end_machine():
    board = realized()
    assert board.inw(0x501) == 0
    assert board.shutdowns == []


def test_ports_outside_64k_are_refused():
    with pytest.raises(PropertyError, match="0xffff"):
        DebugExit(iobase=0xFFFF, iosize=2)
    with pytest.raises(PropertyError):
        DebugExit(iosize=0)
