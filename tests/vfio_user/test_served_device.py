"""What the author of a served device meets: no second call while DMA is waited for, mistakes told, a trace."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

import pytest

from devices import IoRegion, PciDevice
from support.vfio_user import RawClient, serving
from vmm.trace import Recording
from vmm.vfio_user import protocol as p
from vmm.vfio_user.protocol import Command
from vmm.vfio_user.server import tell_mistakes

BASE = 0x1000_0000
COUNTER, START, PIN = 0, 4, 8


class Reader(PciDevice):
    """Writes are counted. One to START has a timer read the client's memory, which must not be interrupted."""

    driver = "reader"
    vendor_id, device_id, class_id, interrupt_pin = 0x1234, 0x7E42, 0x00FF, 1

    def realize(self, board):
        super().realize(board)
        self.register_bar(0, IoRegion("reader", 0x1000, self.read, self.write, min_access=4, max_access=4))
        self.timer = board.clock.timer("reader", self.fetch)
        self.holdings.hold("timer", "reader", self.timer.cancel)
        self.log = []
        self.counter = 0

    def fetch(self):
        self.log.append("begin")
        self.log.append(self.dma_read(BASE, 4))
        self.log.append("end")

    def read(self, _offset, _size):
        self.log.append("read")
        return self.counter

    def write(self, offset, _size, value):
        self.log.append("write")
        self.counter += 1
        if offset == START:
            self.timer.arm(self.board.clock.now())
        elif offset == PIN:
            self._line.set(bool(value))  # a mistake


@pytest.fixture
def served(tmp_path):
    device = Reader()
    tell_mistakes(device)
    with serving(device, tmp_path) as server:
        client = RawClient(server)
        client.write(p.REGION_CONFIG, 4, 7, 2)
        assert client.dma_map(BASE, 4096) == 0
        yield client, device, server
        client.connection.close()


def posted(offset, value=0):
    payload = p.REGION_ACCESS.pack(offset, 0, 4) + value.to_bytes(4, "little")
    size = p.HEADER_SIZE + len(payload)
    return p.HEADER.pack(7, Command.REGION_WRITE, size, p.FLAG_NO_REPLY, 0) + payload


def answer(message, data=b"data"):
    assert message.command == Command.DMA_READ
    return p.reply_bytes(message.msg_id, message.command, message.payload + data)


def receive(client):
    """The next message that the server sends, without letting it take a turn."""
    message = client.connection.wait(time.monotonic() + 10)
    assert message is not None
    return message


def run_beside(server, action):
    """Let the server take turns on this thread while another does `action` as the client."""
    done = threading.Event()
    failures = []

    def act():
        try:
            action()
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()
            server.wake()

    thread = threading.Thread(target=act)
    thread.start()
    while not done.is_set():
        server.turn(None)
    thread.join()
    for _ in range(3):
        server.turn()
    assert failures == []


def test_posted_writes_wait_until_the_device_has_its_data(served):
    client, device, server = served

    def act():
        client.send(posted(START))
        wanted = receive(client)
        client.send(posted(COUNTER) * 3)
        client.send(answer(wanted))

    run_beside(server, act)
    assert device.log == ["write", "begin", b"data", "end", "write", "write", "write"]


def test_read_that_the_client_waits_for_is_answered_while_data_is_awaited_behind_the_writes_before_it(served):
    client, device, server = served

    def act():
        client.send(posted(START))
        wanted = receive(client)
        client.send(posted(COUNTER) * 2)
        client.send(p.command_bytes(9, Command.REGION_READ, p.REGION_ACCESS.pack(COUNTER, 0, 4)))
        reply = receive(client)
        assert (reply.msg_id, reply.payload[16:]) == (9, b"\3\0\0\0")
        client.send(answer(wanted))

    run_beside(server, act)
    assert device.log == ["write", "begin", "write", "write", "read", b"data", "end"]


def test_mistake_at_work_is_told_once_on_stderr(served, capfd):
    client, _, _ = served
    for level in (1, 0, 1, 0):
        client.write(0, PIN, level)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("reader: STATUS.Interrupt Status is 0 while the pin is high")
    assert "self.set_intx(level)" in said[0]


def test_trace_tells_accesses_triggers_and_unmasks(served):
    client, device, server = served
    recording = Recording()
    server.trace.listen(recording, "vfio_user_*")
    trigger = os.eventfd(0, os.EFD_NONBLOCK)
    assert client.set_irqs(0x24, (trigger,)) == 0
    device.set_intx(True)
    assert client.set_irqs(0x11) == 0
    device.set_intx(False)
    assert client.set_irqs(0x11) == 0
    client.write(0, COUNTER, 5)
    client.read(0, COUNTER)
    client.close()
    assert os.eventfd_read(trigger) == 2
    os.close(trigger)
    assert [(r.event.name.removeprefix("vfio_user_"), tuple(r.event.fields().values())[1:]) for r in recording] == [
        ("intx_trigger", ()),
        ("intx_unmask", (True,)),
        ("intx_trigger", ()),
        ("intx_unmask", (False,)),
        ("region_write", (0, COUNTER, 4, 5)),
        ("region_read", (0, COUNTER, 4, 1)),
        ("client", (False,)),
    ]


def test_signal_that_comes_just_before_the_server_sleeps_ends_the_sleep(served, monkeypatch):
    _, _, server = served
    looked = []

    def turn(_timeout):
        """A handler that only notes that it was called, as Python's are called later than the signal comes."""
        os.kill(os.getpid(), signal.SIGUSR1)
        looked.extend(select.select([server._wake], [], [], 10)[0])
        server.stop()

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        monkeypatch.setattr(server, "turn", turn)
        server.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert looked == [server._wake]
    assert signal.set_wakeup_fd(-1) == -1


def test_descriptors_reach_their_messages_out_of_the_midst_of_others(served):
    client, device, _ = served
    trigger = os.eventfd(0, os.EFD_NONBLOCK)
    file = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.ftruncate(file, 4096)
    os.write(file, b"here")
    irq_set = {"argsz": 20, "flags": 0x24, "index": 0, "start": 0, "count": 1, "data": b""}
    mapping = {"argsz": 32, "flags": 3, "offset": 0, "address": 0x2000_0000, "size": 4096}
    for data, fds in (
        (posted(COUNTER) * 3, ()),
        (p.command_bytes(1, Command.DEVICE_SET_IRQS, p.IrqSet.build(irq_set)), (trigger,)),
        (posted(COUNTER) * 40, ()),
        (p.command_bytes(2, Command.DMA_MAP, p.DmaMap.build(mapping)), (file,)),
        (posted(COUNTER) * 400, ()),
        (p.command_bytes(3, Command.REGION_READ, p.REGION_ACCESS.pack(COUNTER, 0, 4)), ()),
    ):
        client.send(data, fds)
    replies = [client.receive() for _ in range(3)]
    assert [(reply.msg_id, reply.failure) for reply in replies] == [(1, 0), (2, 0), (3, 0)]
    assert int.from_bytes(replies[2].payload[16:], "little") == 443
    device.set_intx(True)
    assert os.eventfd_read(trigger) == 1
    assert device.dma_read(0x2000_0000, 4) == b"here"
    os.close(trigger)
    os.close(file)
