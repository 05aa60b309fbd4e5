"""Character devices: what reaches the other side, and what comes from there."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vmm import chardev
from vmm.chardev import FileBackend, MemoryBackend, NullBackend, PipeBackend, PtyBackend, StdioBackend
from vmm.chardev_options import chardev_kinds, parse_chardev, parse_serial
from vmm.chardev_socket import SocketAddress, SocketBackend
from vmm.errors import ConfigError, InUse, UsageError


class Front:
    """A front end that takes `room` bytes and writes down what happens."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.got = b""
        self.events: list[str] = []
        self.drained = 0
        self.arrived = asyncio.Event()

    def can_receive(self) -> int:
        return self.room - len(self.got)

    def receive(self, data: bytes) -> None:
        assert len(data) <= self.can_receive()
        self.got += data
        self.arrived.set()

    def char_event(self, event: str) -> None:
        self.events.append(event)
        self.arrived.set()

    def writable(self) -> None:
        self.drained += 1

    async def until(self, condition) -> None:
        while not condition():
            await self.arrived.wait()
            self.arrived.clear()


def test_writes_of_one_turn_reach_the_host_in_one_call(tmp_path):
    path = tmp_path / "out"
    backend = FileBackend("f", str(path))
    calls = []
    send = backend._send
    backend._send = lambda data: calls.append(len(data)) or send(data)

    async def main() -> None:
        backend.start(asyncio.get_running_loop())
        for character in b"hello":
            backend.write(bytes([character]))
        assert path.read_bytes() == b""
        await asyncio.sleep(0)

    asyncio.run(main())
    assert path.read_bytes() == b"hello"
    assert calls == [5]
    backend.close()


def test_close_flushes_what_no_loop_has_sent(tmp_path):
    path = tmp_path / "out"
    backend = FileBackend("f", str(path))
    backend.write(b"last words")
    backend.close()
    backend.close()
    assert path.read_bytes() == b"last words"


def test_file_is_cut_unless_append_is_on(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"old ")
    for backend in (parse_chardev(f"file,id=f,path={path},append=on"), parse_serial(f"file:{path}", "s", {})):
        backend.write(b"new")
        backend.close()
        assert path.read_bytes() in (b"old new", b"new")
    assert path.read_bytes() == b"new"


def test_log_file_gets_a_copy_of_output(tmp_path):
    backend = parse_chardev(f"null,id=n,logfile={tmp_path / 'log'}")
    backend.write(b"seen")
    backend.close()
    assert (tmp_path / "log").read_bytes() == b"seen"


def test_reader_that_is_gone_does_not_stop_the_writer():
    read, write = os.pipe()
    os.close(read)
    backend = chardev.FdBackend("p", None, write)
    assert backend.write(bytes(chardev.BUFFER_SIZE)) == chardev.BUFFER_SIZE
    backend.flush()
    assert backend.write(b"more") == 4
    backend.close()


def test_slow_reader_gets_everything_and_writer_hears_when_there_is_room():
    read, write = os.pipe()
    os.set_blocking(write, False)
    backend = chardev.FdBackend("p", None, write)
    front = Front()
    backend.connect(front)
    sent = bytearray()
    got = bytearray()

    async def main() -> None:
        backend.start(asyncio.get_running_loop())
        while (taken := backend.write(bytes([len(sent) & 0xFF]) * 4096)) == 4096:
            sent.extend(bytes([len(sent) & 0xFF]) * 4096)
        sent.extend(bytes([len(sent) & 0xFF]) * taken)
        assert front.drained == 0
        while len(got) < len(sent):
            got.extend(os.read(read, 4096))
            await asyncio.sleep(0)

    asyncio.run(main())
    assert got == sent
    assert front.drained >= 1
    backend.close()
    os.close(read)


def test_memory_feeds_only_what_the_front_end_takes():
    backend = MemoryBackend("m")
    front = Front(room=3)
    backend.connect(front)
    backend.feed(b"abcdef")
    assert front.got == b"abc"
    front.room = 100
    backend.accept_input()
    assert front.got == b"abcdef"


def test_ringbuf_keeps_the_newest_and_take_removes_the_oldest():
    backend = parse_chardev("ringbuf,id=r,size=8")
    backend.write(b"0123456789")
    assert backend.take(3) == b"234"
    assert backend.output == b"56789"


def test_second_front_end_is_refused():
    backend = NullBackend("n")
    backend.connect(Front())
    with pytest.raises(InUse, match="'n'"):
        backend.connect(Front())
    backend.disconnect()
    backend.connect(Front())
    assert backend.frontend is not None


def test_pipe_pair_carries_bytes_both_ways(tmp_path):
    path = str(tmp_path / "p")
    os.mkfifo(path + ".in")
    os.mkfifo(path + ".out")
    backend = parse_serial(f"pipe:{path}", "s", {})
    assert isinstance(backend, PipeBackend)
    front = Front()
    backend.connect(front)
    outside_in = os.open(path + ".in", os.O_WRONLY | os.O_NONBLOCK)
    outside_out = os.open(path + ".out", os.O_RDONLY | os.O_NONBLOCK)

    async def main() -> None:
        backend.start(asyncio.get_running_loop())
        os.write(outside_in, b"hi")
        await front.until(lambda: front.got == b"hi")

    asyncio.run(main())
    backend.write(b"out")
    backend.flush()
    assert os.read(outside_out, 10) == b"out"
    backend.close()
    os.close(outside_in)
    os.close(outside_out)


@pytest.mark.parametrize("missing", ["openpty", "ttyname"])
def test_pty_on_a_system_without_terminals_is_refused_and_leaves_nothing(missing, monkeypatch):
    def fail(*_args: int) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, missing, fail)
    with pytest.raises(ConfigError, match=r"chardev p: cannot make a pseudo-terminal: No such file.*devpts"):
        PtyBackend("p")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_pty_names_a_terminal_that_carries_bytes_both_ways():
    backend = PtyBackend("p")
    front = Front()
    backend.connect(front)
    other = os.open(backend.name, os.O_RDWR | os.O_NOCTTY)
    backend.write(b"out\n")
    backend.flush()
    assert os.read(other, 10) == b"out\n"

    async def main() -> None:
        backend.start(asyncio.get_running_loop())
        os.write(other, b"\x03in")
        await front.until(lambda: len(front.got) >= 3)

    asyncio.run(main())
    assert front.got == b"\x03in"
    assert backend.filename == f"pty:{backend.name}"
    backend.close()
    os.close(other)


def test_unix_server_serves_one_peer_after_another(tmp_path):
    path = str(tmp_path / "s")
    backend = parse_serial(f"unix:{path},server=on,wait=off", "s", {})
    front = Front()
    backend.connect(front)
    assert backend.filename == f"disconnected:unix:{path},server=on"

    async def visit(greeting: bytes) -> bytes:
        front.got = b""
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(greeting)
        await front.until(lambda: front.got == greeting)
        backend.write(b"re:" + greeting)
        answer = await reader.readexactly(3 + len(greeting))
        closed = front.events.count("closed")
        writer.close()
        await writer.wait_closed()
        await front.until(lambda: front.events.count("closed") > closed)
        return answer

    async def main() -> list[bytes]:
        backend.start(asyncio.get_running_loop())
        return [await visit(b"one"), await visit(b"two")]

    assert asyncio.run(main()) == [b"re:one", b"re:two"]
    assert front.events == ["opened", "closed", "opened", "closed"]
    backend.close()
    assert not Path(path).exists()


def test_server_with_wait_starts_once_somebody_is_there(tmp_path, capsys):
    path = str(tmp_path / "s")
    backend = SocketBackend("s", SocketAddress(path), server=True, wait=True)
    peer = socket.socket(socket.AF_UNIX)
    thread = threading.Thread(target=peer.connect, args=(path,))
    thread.start()

    async def main() -> None:
        backend.start(asyncio.get_running_loop())

    asyncio.run(main())
    thread.join()
    assert backend.open
    assert "waiting for connection on: disconnected:unix:" in capsys.readouterr().err
    backend.close()
    assert peer.recv(1) == b""
    peer.close()


def test_tcp_client_reaches_a_listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        backend = parse_serial(f"tcp:127.0.0.1:{port}", "s", {})
        peer, _ = listener.accept()
        backend.write(b"x")
        backend.flush()
        assert peer.recv(1) == b"x"
        backend.close()
        peer.close()


def test_tcp_server_on_port_zero_tells_its_port():
    backend = parse_chardev("socket,id=s,host=127.0.0.1,port=0,server=on,wait=off")
    assert backend.address.port != 0
    backend.close()


def test_output_without_a_peer_is_lost_not_kept(tmp_path):
    backend = SocketBackend("s", SocketAddress(str(tmp_path / "s")), server=True, wait=False)
    assert backend.write(bytes(10 * chardev.BUFFER_SIZE))
    backend.flush()
    assert backend.write(bytes(chardev.BUFFER_SIZE)) == chardev.BUFFER_SIZE
    backend.close()


def test_client_without_a_listener_is_refused_by_address(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot connect to unix:.*nobody"):
        parse_serial(f"unix:{tmp_path / 'nobody'}", "s", {})


def test_stdio_writes_to_stdout_and_reads_stdin_to_its_end():
    script = (
        "import asyncio\n"
        "from vmm.chardev_options import parse_serial\n"
        "b = parse_serial('stdio', 'serial0', {})\n"
        "class Front:\n"
        "    def can_receive(self): return 4\n"
        "    def receive(self, data): b.write(data.upper()); done.set()\n"
        "    def char_event(self, event): pass\n"
        "    def writable(self): pass\n"
        "async def main():\n"
        "    global done\n"
        "    done = asyncio.Event()\n"
        "    b.connect(Front())\n"
        "    b.start(asyncio.get_running_loop())\n"
        "    await done.wait()\n"
        "asyncio.run(main())\n"
        "b.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=b"abc", capture_output=True, check=True)
    assert done.stdout == b"ABC"


def test_second_stdio_is_refused_until_the_first_closes(monkeypatch):
    monkeypatch.setattr(chardev, "_raw_terminal", lambda _signal: None)
    first = StdioBackend("a")
    with pytest.raises(InUse, match="stdio"):
        StdioBackend("b")
    first.close()
    StdioBackend("b").close()
    assert StdioBackend._owner is None


def test_serial_none_is_nothing_and_chardev_is_looked_up():
    backend = NullBackend("x")
    assert parse_serial("none", "s", {}) is None
    assert parse_serial("chardev:x", "s", {"x": backend}) is backend
    assert isinstance(parse_serial("null", "s", {}), NullBackend)


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        ("serial", "chardev:nosuch", "'nosuch' not found"),
        ("serial", "vc", "not a valid char driver name"),
        ("serial", "mon:stdio", "not supported"),
        ("serial", "file", "file:WHERE"),
        ("serial", "unix:/tmp/x,wait=maybe,server=on", "'wait' expects 'on' or 'off'"),
        ("serial", "tcp:localhost", "'port' expects a number"),
        ("chardev", "null", "'id' is missing"),
        ("chardev", "nosuch,id=a", "'nosuch' is not a valid"),
        ("chardev", "null,id=a,path=/x", "Invalid parameter 'path'"),
        ("chardev", "file,id=a", "no path given"),
        ("chardev", "socket,id=a", "path="),
        ("chardev", "socket,id=a,path=/x,wait=on", "incompatible"),
        ("chardev", "socket,id=a,host=h,port=70000", "out of range"),
        ("chardev", "ringbuf,id=a,size=many", "'size' expects a number"),
        ("chardev", "stdio,id=a,signal=perhaps", "'signal' expects"),
    ],
)
def test_wrong_option_is_refused_in_words(parse, text, says):
    with pytest.raises(UsageError) as refused:
        parse_serial(text, "s", {}) if parse == "serial" else parse_chardev(text)
    assert says in str(refused.value)


@pytest.mark.parametrize("text", ["file,id=a,path=/no/such/dir/x", "pipe,id=a,path=/no/such/pipe"])
def test_path_that_cannot_be_opened_is_named(text):
    with pytest.raises(ConfigError, match="/no/such"):
        parse_chardev(text)


def test_ringbuf_of_odd_size_is_refused():
    with pytest.raises(ConfigError, match="power of two"):
        parse_chardev("ringbuf,id=a,size=1000")


def test_doubled_comma_is_a_comma_in_a_path(tmp_path):
    backend = parse_serial(f"file:{tmp_path}/a,,b", "s", {})
    backend.close()
    assert (tmp_path / "a,b").exists()


def test_kinds_for_help_are_sorted():
    assert chardev_kinds() == ["file", "null", "pipe", "pty", "ringbuf", "socket", "stdio"]
