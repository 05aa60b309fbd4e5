"""A server that spoils some of its answers at random: the machine refuses it, loses it or goes on; nothing leaks."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from random import Random

import pytest

from devices.edu import REG_IRQ_ACK, REG_IRQ_RAISE, Edu
from devices.pci import config as cfg
from support.vfio_board import BAR
from support.vfio_user import open_fds
from support.vfio_user_board import RemoteBoard
from vmm.errors import ConfigError
from vmm.memory import GuestMemory
from vmm.shared_memory import memfd
from vmm.vfio_user import protocol as p
from vmm.vfio_user.protocol import Command
from vmm.vfio_user.server import Server
from vmm.vfio_user.transport import PeerGone

SESSIONS = 3000 if os.environ.get("VINTX_FULL") else 150
SPOILS = ("flip", "cut", "lengthen", "error", "bytes", "descriptors", "dma", "leave")


class MadServer(Server):
    """Spoils an answer with the probability `rate`."""

    def __init__(self, path: str, seed: int) -> None:
        self.random = Random(seed)
        self.rate = 0.0
        super().__init__(Edu(**{"x-dma-delay-us": 0}), path)

    def _dispatch(self, connection, message):
        if message.is_reply or self.random.random() >= self.rate:
            super()._dispatch(connection, message)
            return
        reply = self.endpoint.handle(message) or p.reply_bytes(message.msg_id, message.command)
        fds, self.endpoint.reply_fds = self.endpoint.reply_fds, []
        try:
            reply = self.spoiled(self.random.choice(SPOILS), bytearray(reply), fds, message)
            connection.send(bytes(reply), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def spoiled(self, how, reply, fds, message):
        random = self.random
        if how == "flip":
            reply[random.randrange(len(reply))] ^= 1 << random.randrange(8)
        elif how == "cut":
            del reply[random.randrange(len(reply)) :]
        elif how == "lengthen":
            reply += random.randbytes(20)
        elif how == "error":
            return p.error_bytes(message.msg_id, message.command, random.choice((0, 5, 22, 1 << 31)))
        elif how == "bytes":
            reply[p.HEADER_SIZE :] = random.randbytes(len(reply) - p.HEADER_SIZE)
        elif how == "descriptors":
            fds += [os.eventfd(0) for _ in range(random.randrange(1, 5))]
        elif how == "dma":
            access = p.DMA_ACCESS.pack(random.choice((0, 1 << 20, 1 << 63)), random.choice((4, 1 << 30))) + b"data"
            return p.command_bytes(9, random.choice((Command.DMA_READ, Command.DMA_WRITE, 1, 99)), access) + reply
        else:
            raise PeerGone("it leaves")
        return reply


@pytest.fixture
def mad(tmp_path):
    server = MadServer(str(tmp_path / "mad"), 11)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.stop()
    thread.join()
    server.close()


def live(board, device, random):
    """Some of what a guest does."""
    board.enable(device)
    for _ in range(random.randrange(15)):
        match random.randrange(6):
            case 0:
                for offset, size, value in ((4, 4, 0xFEE0_0000), (12, 2, 0x40), (2, 2, random.randrange(2))):
                    device.config_write(0x40 + offset, size, value)
            case 1:
                device.reset()
                board.enable(device)
            case 2:
                board.write(BAR + REG_IRQ_RAISE, 1)
                board.turn(device)
                board.take()
                board.write(BAR + REG_IRQ_ACK, 1)
            case 3:
                device.config_write(cfg.HEADER_SIZE + 4 * random.randrange(48), 4, random.getrandbits(32))
            case 4:
                device.config_read(4 * random.randrange(64), 4)
            case 5:
                board.read(BAR + 4)
        board.turn(device)


def test_whatever_a_server_answers_the_machine_lives_and_gives_everything_back(mad):
    random = Random(5)
    refused = lost = 0
    fds = None
    for session in range(SESSIONS):
        board = RemoteBoard()
        ram = memfd("ram", 1 << 20) if session % 2 else -1
        if ram >= 0:
            board.memory = GuestMemory(1 << 20, ram)
            board.memory.on_write = (lambda _address, _length: None) if session % 4 == 1 else None
        mad.rate = random.choice((0.01, 0.03, 0.1, 0.5))
        try:
            device = board.attach(mad.path, **{"x-msg-timeout": 50})
        except ConfigError:
            refused += 1
        else:
            live(board, device, random)
            with contextlib.suppress(OSError):
                device.remote.load_state(device.remote.save_state())
            lost += not device.remote.attached
            device.unrealize()
        assert board.ledger.rows() == []
        if ram >= 0:
            os.close(ram)
        if session in (20, SESSIONS - 1):
            mad.rate = 0
            RemoteBoard().attach(mad.path).unrealize()
            while mad.connected:  # it is at the last of them
                pass
            board = device = None
            gc.collect()  # mappings of RAM have descriptors of their own
            assert fds in (None, open_fds())
            fds = open_fds()
    assert refused > 20
    assert lost > 5
