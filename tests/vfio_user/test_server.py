"""A served device: interrupts as a level made of edges, DMA, state that outlives its client, clients that misbehave."""

import errno
import fcntl
import os
import resource
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import PciDevice
from devices.edu import REG_DMA_CMD, REG_DMA_COUNT, REG_DMA_DST, REG_DMA_SRC, REG_IRQ_ACK, REG_IRQ_RAISE, Edu
from devices.pci import config as cfg
from devices.pci.msi import Msi
from support.vfio_user import RawClient, open_fds, recording, serving, version
from vmm.errors import ConfigError, InUse
from vmm.kernel.files import DescriptorTable
from vmm.memory import GuestMemory, IoRegion
from vmm.vfio_user import protocol as p
from vmm.vfio_user.client import CAPABILITIES, RemoteDevice
from vmm.vfio_user.interrupts import Interrupts, IrqSetRequest
from vmm.vfio_user.protocol import Command
from vmm.vfio_user.server import Server
from vmm.vfio_user.transport import Connection

TRIGGER, UNMASK, MASK = 0x24, 0x11, 0x09
UNMASK_EVENTFD, DISABLE = 0x14, 0x21
INTX_DISABLE = cfg.COMMAND_INTX_DISABLE
CONFIG = p.REGION_CONFIG


@pytest.fixture
def server(tmp_path):
    with serving(Edu(**{"x-dma-delay-us": 0}), tmp_path) as made:
        yield made


@pytest.fixture
def client(server):
    raw = RawClient(server)
    yield raw
    raw.close()


@pytest.fixture
def trigger(client):
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    assert client.set_irqs(TRIGGER, [fd]) == 0
    yield fd
    os.close(fd)


def signals(fd):
    """How often the eventfd was signalled since the last call."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


# Interrupts.


def test_level_that_stays_high_signals_once_until_unmasked(client, trigger):
    client.write(0, REG_IRQ_RAISE, 1)
    client.write(0, REG_IRQ_RAISE, 2)
    assert signals(trigger) == 1
    assert client.set_irqs(UNMASK) == 0
    assert signals(trigger) == 1


def test_level_that_falls_and_rises_while_masked_is_not_signalled_before_the_unmask(client, trigger):
    client.write(0, REG_IRQ_RAISE, 1)
    client.write(CONFIG, cfg.COMMAND, INTX_DISABLE, 2)
    client.write(CONFIG, cfg.COMMAND, 0, 2)
    assert signals(trigger) == 1
    client.set_irqs(UNMASK)
    assert signals(trigger) == 1


def test_level_that_went_low_is_not_signalled_again_at_unmask(client, trigger):
    client.write(0, REG_IRQ_RAISE, 1)
    client.write(0, REG_IRQ_ACK, 1)
    client.set_irqs(UNMASK)
    assert signals(trigger) == 1
    client.write(0, REG_IRQ_RAISE, 1)
    assert signals(trigger) == 1


def test_intx_disable_keeps_it_quiet_and_status_shows_it_pending(client, trigger):
    client.write(CONFIG, cfg.COMMAND, INTX_DISABLE, 2)
    client.write(0, REG_IRQ_RAISE, 1)
    assert signals(trigger) == 0
    assert client.read(CONFIG, cfg.STATUS, 2) & cfg.STATUS_INTERRUPT
    assert client.read(CONFIG, cfg.COMMAND, 2) == INTX_DISABLE


def test_interrupt_enabled_again_but_not_acknowledged_is_signalled_again(client, trigger):
    client.write(0, REG_IRQ_RAISE, 1)
    client.write(CONFIG, cfg.COMMAND, INTX_DISABLE, 2)
    client.set_irqs(UNMASK)
    assert signals(trigger) == 1
    client.write(CONFIG, cfg.COMMAND, 0, 2)
    assert signals(trigger) == 1


def test_unmask_eventfd_works_as_the_message_and_after_what_was_sent_before_it(client, trigger):
    resample = os.eventfd(0, os.EFD_NONBLOCK)
    client.set_irqs(UNMASK_EVENTFD, [resample])
    client.write(0, REG_IRQ_RAISE, 1)
    assert signals(trigger) == 1
    os.eventfd_write(resample, 1)
    client.server.turn()
    assert signals(trigger) == 1
    ack = p.REGION_ACCESS.pack(REG_IRQ_ACK, 0, 4) + b"\1\0\0\0"
    client.send(p.command_bytes(1, Command.REGION_WRITE, ack, p.FLAG_NO_REPLY))
    os.eventfd_write(resample, 1)
    client.server.turn()
    assert signals(trigger) == 0
    os.close(resample)


def test_message_that_came_after_the_poll_but_before_the_eventfd_is_carried_out_first(client, trigger):
    resample = os.eventfd(0, os.EFD_NONBLOCK)
    client.set_irqs(UNMASK_EVENTFD, [resample])
    client.write(0, REG_IRQ_RAISE, 1)
    assert signals(trigger) == 1
    ack = p.REGION_ACCESS.pack(REG_IRQ_ACK, 0, 4) + b"\1\0\0\0"
    client.send(p.command_bytes(1, Command.REGION_WRITE, ack, p.FLAG_NO_REPLY))
    os.eventfd_write(resample, 1)
    server = client.server
    server._poll = lambda _timeout: list(server.endpoint.watched())
    server.turn()
    del server._poll
    assert signals(trigger) == 0
    os.close(resample)


def test_mask_holds_back_and_disable_forgets_the_mask(client, trigger):
    client.set_irqs(MASK)
    client.write(0, REG_IRQ_RAISE, 1)
    assert signals(trigger) == 0
    client.set_irqs(DISABLE, count=0)
    assert signals(trigger) == 0
    client.set_irqs(TRIGGER, [trigger])
    assert signals(trigger) == 1


def test_loopback_signals_without_a_level(client, trigger):
    client.set_irqs(DISABLE)
    assert signals(trigger) == 1


def test_full_eventfd_does_not_stop_the_server(client):
    full = os.eventfd(0, 0)
    os.eventfd_write(full, 2**64 - 2)
    client.set_irqs(TRIGGER, [full])
    client.write(0, REG_IRQ_RAISE, 1)
    assert client.is_served()
    os.close(full)


def test_reset_lowers_the_line_and_keeps_the_eventfd(client, trigger):
    client.write(0, REG_IRQ_RAISE, 1)
    assert signals(trigger) == 1
    assert client.call(Command.DEVICE_RESET).failure == 0
    assert not client.read(CONFIG, cfg.STATUS, 2) & cfg.STATUS_INTERRUPT
    client.write(0, REG_IRQ_RAISE, 1)
    assert signals(trigger) == 1


def test_end_of_the_server_asks_the_client_to_let_go(tmp_path):
    request = os.eventfd(0, os.EFD_NONBLOCK)
    with serving(Edu(), tmp_path) as server:
        client = RawClient(server)
        client.set_irqs(TRIGGER, [request], index=p.IRQ_REQ)
    assert signals(request) == 1
    os.close(request)
    client.connection.close()


# DMA.


def memory(size=8192, seals=0):
    fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS if hasattr(fcntl, "F_ADD_SEALS") else 1033, seals)
    return fd


def dma(client, source, destination, count, to_memory):
    """Let edu copy, and wait until it says that it is done."""
    client.write(CONFIG, cfg.COMMAND, cfg.COMMAND_MASTER, 2)
    client.write(0, REG_DMA_SRC, source, 8)
    client.write(0, REG_DMA_DST, destination, 8)
    client.write(0, REG_DMA_COUNT, count, 8)
    client.write(0, REG_DMA_CMD, 3 if to_memory else 1, 8)
    deadline = time.monotonic() + 10
    while client.read(0, REG_DMA_CMD, 8) & 1:
        assert time.monotonic() < deadline


BUFFER = 0x40000


@pytest.mark.parametrize("seals", [0, 2], ids=["unsealed", "sealed"])
def test_dma_goes_through_a_descriptor_both_ways(client, seals):
    fd = memory(seals=seals)
    os.pwrite(fd, b"from guest", 0x100)
    assert client.dma_map(0x10000, 4096, fd) == 0
    assert client.dma_map(0x11000, 4096, fd, offset=4096) == 0
    dma(client, 0x10100, BUFFER, 10, to_memory=False)
    dma(client, BUFFER, 0x10FFC, 10, to_memory=True)  # across two mappings
    assert os.pread(fd, 10, 0xFFC) == b"from guest"
    os.close(fd)


def test_dma_outside_every_mapping_reads_all_ones_and_is_lost(client):
    fd = memory()
    client.dma_map(0x10000, 4096, fd)
    dma(client, 0x10FFE, BUFFER, 4, to_memory=False)
    dma(client, BUFFER, 0x10000, 4, to_memory=True)
    assert os.pread(fd, 4, 0) == b"\0\0\xff\xff"
    os.close(fd)


def test_file_that_is_cut_off_after_it_was_mapped_reads_all_ones(client):
    fd = memory()
    client.dma_map(0x10000, 8192, fd)
    os.truncate(fd, 0)
    dma(client, 0x10000, BUFFER, 4, to_memory=False)
    dma(client, BUFFER, 0x11000, 4, to_memory=True)
    assert client.server.device.buffer[:4] == b"\xff" * 4
    assert os.fstat(fd).st_size == 0
    os.close(fd)


def test_mapping_for_reading_takes_no_writes(client):
    fd = memory()
    client.dma_map(0x10000, 4096, fd, flags=1)
    client.server.device.buffer[:4] = b"data"
    dma(client, BUFFER, 0x10000, 4, to_memory=True)
    assert os.pread(fd, 4, 0) == bytes(4)
    os.close(fd)


def test_mappings_that_overlap_are_refused_and_exact_ones_unmapped(client):
    assert client.dma_map(0x1000, 0x2000) == 0
    for address, size in ((0x1000, 0x2000), (0, 0x1001), (0x2FFF, 1), (0x1800, 0x100), (0, 0x10000)):
        assert client.dma_map(address, size) == errno.EEXIST
    assert client.dma_map(0x3000, 0x1000) == 0

    def unmap(address, size):
        request = {"argsz": 24, "flags": 0, "address": address, "size": size}
        return client.call(Command.DMA_UNMAP, p.DmaUnmap.build(request))

    assert unmap(0x1000, 0x1000).failure == errno.ENOENT
    assert unmap(0x2000, 0x1000).failure == errno.ENOENT
    done = unmap(0x1000, 0x2000)
    assert p.DmaUnmap.parse(done.payload).size == 0x2000
    assert client.dma_map(0x1000, 0x1000) == 0


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A server on a thread of its own, and our own client, which serves DMA by message."""
    made = []

    def attach(device, twin=True):
        if not twin:
            monkeypatch.delitem(CAPABILITIES, "twin_socket")
        server = Server(device, str(tmp_path / "socket"))
        thread = threading.Thread(target=server.run)
        thread.start()
        lost = []
        client = RemoteDevice("r0", server.path, GuestMemory(1 << 20), DescriptorTable(), lost.append)
        client.attach()
        made.append((server, thread, client))
        return client, lost

    yield attach
    for server, thread, client in made:
        client.close()
        server.stop()
        thread.join()
        server.close()


class Copier(PciDevice):
    """Copies a dword from 0x1000 to 0x2000 when register 0 is written; a read of it is DMA as well."""

    driver = "copier"
    vendor_id, device_id, class_id = 0x1234, 0x0003, 0x00FF

    def realize(self, board):
        super().realize(board)
        self.register_bar(0, IoRegion("copier", 0x1000, self.read, self.write))

    def read(self, offset, size):
        if offset == 8:
            raise RuntimeError("a mistake in the device")
        return int.from_bytes(self.dma_read(0x1000, size), "little")

    def write(self, offset, size, _value):
        self.dma_write(0x2000 + offset, self.dma_read(0x1000, size))


@pytest.mark.parametrize("twin", [False, True], ids=["one socket", "two sockets"])
def test_device_does_dma_by_message_inside_register_accesses(remote, twin):
    client, lost = remote(Copier(), twin)
    assert len(client.filenos()) == 1 + twin
    client.offer.memory.write(0x1000, b"\x11\x22\x33\x44")
    client.config_write(cfg.COMMAND, 2, cfg.COMMAND_MASTER)
    assert client.bar_read(0, 0, 4) == 0x44332211
    client.bar_write(0, 0, 4, 0)  # posted
    client.port_write(0, 4, 4, 0)
    assert client.bar_read(0, 0, 4) == 0x44332211
    assert client.offer.memory.read(0x2000, 8) == b"\x11\x22\x33\x44" * 2
    assert lost == []


def test_client_that_serves_dma_only_after_its_reply_is_not_waited_for_in_vain(remote):
    """As QEMU, whose vCPU holds the lock that its DMA needs."""
    client, _ = remote(Copier(), twin=False)
    client.offer.memory.write(0x1000, b"data")
    client.config_write(cfg.COMMAND, 2, cfg.COMMAND_MASTER)
    connection = client._connection
    deadline = time.monotonic() + 10
    connection.send(p.command_bytes(1000, Command.REGION_WRITE, p.REGION_ACCESS.pack(0, 0, 4) + bytes(4)))
    connection.send(p.command_bytes(1001, Command.REGION_READ, p.REGION_ACCESS.pack(0, CONFIG, 4)))
    early, request, answer = (connection.wait(deadline) for _ in range(3))
    assert (early.msg_id, early.failure, answer.msg_id, answer.failure) == (1000, 0, 1001, 0)
    assert (request.command, request.is_reply) == (Command.DMA_READ, False)
    client._serve(request, connection)
    write = connection.wait(deadline)
    assert write.command == Command.DMA_WRITE
    client._serve(write, connection)
    assert client.offer.memory.read(0x2000, 4) == b"data"


def test_dma_by_message_is_cut_to_what_the_client_takes(server):
    client = RawClient(server, negotiate=False)
    small = b'{"capabilities":{"max_data_xfer_size":1024}}\0'
    assert client.call(Command.VERSION, version(small)).failure == 0
    assert server.memory.max_transfer == 1024
    client.close()
    client = RawClient(server)
    assert server.memory.max_transfer == p.CHUNK
    client.close()


def test_error_in_the_code_of_a_device_is_shown_and_answered_with_eio(tmp_path, capsys):
    with serving(Copier(), tmp_path) as server:
        client = RawClient(server)
        for _ in range(20):
            reply = client.call(Command.REGION_READ, p.REGION_ACCESS.pack(8, 0, 4))
            assert reply.failure == errno.EIO
        client.close()
    shown = capsys.readouterr().err
    assert shown.count("RuntimeError: a mistake in the device") == 10


def test_second_socket_carries_dma_and_its_replies_only(server):
    before = open_fds()
    client = RawClient(server, negotiate=False)
    wanted = b'{"capabilities":{"twin_socket":{"supported":true}}}\0'
    client.send(p.command_bytes(1, Command.VERSION, version(wanted)))
    reply = client.receive()
    assert p.parse_capabilities(reply.payload[4:])["twin_socket"] == 0
    (fd,) = reply.fds
    twin = Connection(socket.socket(fileno=fd))
    twin.send(p.command_bytes(2, Command.DEVICE_GET_INFO, b"\x10" + bytes(15)))
    assert client.is_served()
    client.dma_map(0, 4096)
    client.write(CONFIG, cfg.COMMAND, cfg.COMMAND_MASTER, 2)
    client.write(0, REG_DMA_DST, BUFFER, 8)
    client.write(0, REG_DMA_COUNT, 4, 8)
    client.write(0, REG_DMA_CMD, 1, 8)
    while server.connected:  # until it wants a reply and finds a command
        server.turn(1)
    twin.close()
    client.close()
    assert open_fds() == before


# Coming and going.


def test_device_keeps_its_state_for_the_next_client_and_tells_it_a_pending_interrupt(server):
    before = open_fds()
    first = RawClient(server)
    first.write(0, 4, 0x1234)
    first.write(0, REG_IRQ_RAISE, 1)
    first.close()
    assert not server.connected
    assert open_fds() == before
    second = RawClient(server)
    assert second.read(0, 4) == 0x1234 ^ 0xFFFF_FFFF
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    second.set_irqs(TRIGGER, [fd])
    assert signals(fd) == 1
    os.close(fd)
    second.close()


def test_memory_and_eventfds_of_a_client_go_with_it(server):
    before = open_fds()
    client = RawClient(server)
    fd = memory()
    client.dma_map(0, 4096, fd)
    client.set_irqs(TRIGGER, [fd2 := os.eventfd(0)])
    client.set_irqs(UNMASK_EVENTFD, [fd2])
    os.close(fd)
    os.close(fd2)
    client.close()
    assert (len(server.memory), open_fds()) == (0, before)


def test_client_that_dies_in_the_middle_of_a_message_is_forgotten(server):
    client = RawClient(server)
    client.send(p.command_bytes(1, Command.REGION_READ, bytes(16))[:20], [0])
    client.close()
    assert RawClient(server).is_served()


def test_second_client_is_shown_the_door_and_the_first_goes_on(client):
    second = socket.socket(socket.AF_UNIX)
    second.connect(client.server.path)
    client.server.turn()
    assert second.recv(1) == b""
    second.close()
    assert client.is_served()


def test_flood_of_writes_does_not_keep_eventfds_waiting(client, trigger):
    resample = os.eventfd(0, os.EFD_NONBLOCK)
    client.set_irqs(UNMASK_EVENTFD, [resample])
    client.write(0, REG_IRQ_RAISE, 1)
    signals(trigger)
    write = p.command_bytes(1, Command.REGION_WRITE, p.REGION_ACCESS.pack(4, 0, 4) + bytes(4), p.FLAG_NO_REPLY)
    client.send(write * 1000)
    os.eventfd_write(resample, 1)
    client.server.turn()
    assert signals(trigger) == 1
    assert client.is_served()
    os.close(resample)


def test_client_that_does_not_read_is_dropped(server, monkeypatch):
    monkeypatch.setattr("vmm.vfio_user.transport.Connection.send.__defaults__", ((), 0.05))
    client = RawClient(server)
    read = p.command_bytes(1, Command.REGION_READ, p.REGION_ACCESS.pack(0, 0, 1 << 20))
    client.send(read)
    server.turn()
    assert not server.connected
    client.close()


def test_descriptors_that_find_no_room_in_our_table_end_the_connection_and_nothing_else(server):
    client = RawClient(server)
    before = open_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 3, hard))
    try:
        client.send(p.command_bytes(1, Command.DEVICE_RESET), [0] * 50)
        server.turn()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not server.connected
    client.close()
    again = RawClient(server)
    assert again.is_served()
    assert open_fds() == before
    again.close()


def test_live_server_keeps_its_socket_and_a_dead_one_is_replaced(tmp_path):
    path = str(tmp_path / "socket")
    with Server(Edu(), path), pytest.raises(InUse, match="another server"):
        Server(Edu(), path)
    assert not os.path.exists(path)  # noqa: PTH110
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with serving(Edu(), tmp_path) as server:
        assert RawClient(server).is_served()


def test_path_that_cannot_be_had_is_an_error_that_names_it_and_leaks_nothing(tmp_path):
    before = open_fds()
    with pytest.raises(ConfigError, match="nowhere"):
        Server(Edu(), str(tmp_path / "nowhere" / "socket"))
    assert open_fds() == before


# What QEMU says.


@pytest.mark.parametrize("name", ["qemu11-gpio.log", "qemu11-python-server-kvm.log", "qemu11-python-server-msi.log"])
def test_qemu_conversation_gets_the_answers_that_qemu_takes(tmp_path, name):
    """QEMU 11 with two other servers, its messages replayed: connect, realize, reset, boot, INTx, device_del."""
    messages = list(recording(name))
    infos = [m.fields for m in messages if m.command is Command.DEVICE_GET_REGION_INFO and m.reply]

    class Recorded(PciDevice):
        driver = "recorded"
        vendor_id, device_id, class_id, interrupt_pin = 0x494F, 0x0DC8, 0x0000, 1

        def realize(self, board):
            super().realize(board)
            self.msi = Msi(self, 4) if "msi" in name else None
            for info in infos:
                index, size = info["index"], info["size"]
                if size and index < p.REGION_ROM:
                    region = IoRegion("BAR", size, lambda _offset, _size: 0, lambda *_: None)
                    self.register_bar(index, region, io=index == 2)

    theirs = {m.msg_id: m for m in messages if m.reply}
    answered = 0
    with serving(Recorded(), tmp_path) as server:
        client = RawClient(server, negotiate=False)
        for message in messages:
            if not message.to_server:
                continue
            make = os.eventfd if message.command is Command.DEVICE_SET_IRQS else memory
            fds = [make(0 if make is os.eventfd else 256 << 20) for _ in range(message.fds)]
            client.send(message.bytes(), fds)
            for fd in fds:
                os.close(fd)
            if message.flags & p.FLAG_NO_REPLY:
                continue
            reply = client.receive()
            answered += 1
            assert (reply.msg_id, reply.command, reply.failure) == (message.msg_id, message.command, 0), message
            if message.command is Command.VERSION:
                assert len(reply.payload) + 16 <= len(message.bytes())
                assert p.Version.parse(reply.payload).minor == 0
                continue
            expected = theirs[message.msg_id]
            if expected.size is not None:
                assert len(reply.payload) + 16 == expected.size
            if message.command in (Command.DEVICE_GET_REGION_INFO, Command.DEVICE_GET_INFO):
                assert reply.payload == expected.bytes()[16:]
        client.close()
    assert answered > 80


OPERATIONS = st.lists(
    st.sampled_from(["high", "low", "unmask", "mask", "trigger", "no trigger", "disable", "reset"]), max_size=30
)


@given(OPERATIONS)
def test_high_and_unmasked_is_never_left_untold_and_nothing_is_told_twice(operations):
    """The law of the level loop, whatever the order."""
    interrupts = Interrupts(has_intx=True)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    attached = False
    try:
        for operation in operations:
            masked_before = interrupts.masked
            if operation in ("high", "low"):
                interrupts.set_level(operation == "high")
            elif operation in ("unmask", "mask"):
                flags = UNMASK if operation == "unmask" else MASK
                interrupts.set_irqs(IrqSetRequest(flags, 0, 0, 1, b""), [])
            elif operation in ("trigger", "no trigger"):
                attached = operation == "trigger"
                interrupts.set_irqs(IrqSetRequest(TRIGGER, 0, 0, 1, b""), [os.dup(eventfd)] if attached else [])
            elif operation == "disable":
                attached = False
                interrupts.set_irqs(IrqSetRequest(DISABLE, 0, 0, 0, b""), [])
            else:
                interrupts.reset()
            told = signals(eventfd)
            assert told <= 1
            assert not (interrupts.level and attached and not interrupts.masked)
            if told:
                assert interrupts.level
                assert interrupts.masked
                assert not masked_before or operation in ("unmask", "trigger", "reset")
    finally:
        interrupts.close()
        os.close(eventfd)
