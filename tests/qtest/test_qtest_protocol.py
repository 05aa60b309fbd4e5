"""The qtest protocol: grammar, order of lines, interception, time, sockets, log."""

import base64
import io
import os
import socket
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devices.ioapic import LEVEL
from machine import Machine, MachineConfig
from support.qtest_link import LocalLink, ProcessLink
from vmm.chardev import CharBackend, MemoryBackend
from vmm.errors import InUse
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_RESAMPLE
from vmm.qtest import QtestServer

IOREGSEL, IOWIN, IOAPIC_EOI = 0xFEC0_0000, 0xFEC0_0010, 0xFEC0_0040
RAM = 16 << 20


@pytest.fixture
def link():
    made = LocalLink(devices=({"driver": "pc-testdev"},))
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared():
    """One machine for the laws, which put back what they change or do not depend on it."""
    made = LocalLink(devices=({"driver": "pc-testdev"},))
    yield made
    made.close()


# Grammar.


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("inb", "FAIL inb: port is missing"),
        ("inb 0x10000", "FAIL inb: port is out of range: 0x10000"),
        ("inb  0x71", "FAIL inb: port is no number: ''"),
        ("inb 0x", "FAIL inb: port is no number: '0x'"),
        ("inb 09", "FAIL inb: port is no number: '09'"),
        ("inb 1_0", "FAIL inb: port is no number: '1_0'"),
        ("outb 0x80", "FAIL outb: value is missing"),
        ("readl 0x10000000000000000", "FAIL readl: address is out of range: 0x10000000000000000"),
        ("read 0x1000 0", "FAIL read: size is out of range: 0"),
        ("read 0x1000 0x7fffffffffffffff", "FAIL read: size is out of range: 9223372036854775807"),
        ("write 0x1000 4", "ERR invalid argument size"),
        ("write 0x1000 4 0xzz", "FAIL write: data is not hexadecimal: '0xzz'"),
        ("b64write 0x1000 3", "ERR invalid argument size"),
        ("b64write 0x1000 3 A", "FAIL b64write: data is not base64"),
        ("b64write 0x1000 3 \u00ff\u00ff\u00ff\u00ff", "FAIL b64write: data is not base64"),
        ("memset 0x1000 4", "FAIL memset: value is missing"),
        ("clock_step zz", "FAIL clock_step: time is no number: 'zz'"),
        ("clock_step 0", "FAIL could not advance time"),
        ("clock_set", "FAIL clock_set: time is missing"),
        ("irq_intercept_in", "FAIL irq_intercept_in: path is missing"),
        ("irq_intercept_in /objects", "FAIL Unknown device"),
        ("irq_intercept_in device", "FAIL Unknown device"),
        ("set_irq_in ioapic unnamed-gpio-in 5", "FAIL set_irq_in: want PATH NAME NUMBER LEVEL"),
        ("set_irq_in ioapic unnamed-gpio-in 24 1", "FAIL No input 24 of 'unnamed-gpio-in'"),
        ("set_irq_in ioapic other 5 1", "FAIL No input 5 of 'other'"),
        ("module_load", "FAIL module_load: want PREFIX NAME"),
        ("INB 0x71", "FAIL Unknown command 'INB'"),
        (" inb 0x71", "FAIL Unknown command ''"),
        ("_execute", "FAIL Unknown command '_execute'"),
    ],
)
def test_malformed_command_is_answered_with_what_is_wrong(link, command, reply):
    assert link.lines(command) == [reply]
    assert link("endianness") == "OK little"


@pytest.mark.parametrize(("word", "value"), [("0x10", 16), ("16", 16), ("020", 16), ("+16", 16), ("0X10", 16)])
def test_number_is_read_as_c_does(link, word, value):
    link(f"writeb 0x1000 {word}")
    assert link.value("readb 0x1000") == value


def test_negative_value_wraps_around(link):
    link("writew 0x1000 -2")
    assert link.value("readl 0x1000") == 0xFFFE


def test_value_wider_than_the_access_is_cut_off(link):
    link("writeb 0x1000 0x1ff")
    assert link.value("readw 0x1000") == 0xFF
    link("outb 0xe0 0x1ff")
    assert link.value("inl 0xe0") == 0xFF


def test_empty_line_gets_no_reply(link):
    assert link.raw(b"\n\nendianness\n\n") == b"OK little\n"


def test_words_after_the_last_are_ignored(link):
    assert link("endianness please") == "OK little"


def test_pipelined_commands_are_answered_in_order(link):
    count = 500
    replies = link.raw("".join(f"writel 0x1000 {n}\nreadl 0x1000\n" for n in range(count)).encode()).splitlines()
    assert replies[0::2] == [b"OK"] * count
    assert [int(r.split()[1], 16) for r in replies[1::2]] == list(range(count))


def test_command_in_pieces_is_one_command(link):
    for piece in (b"in", b"b 0x", b"80"):
        assert link.raw(piece) == b""
    assert link.raw(b"\nendian") == b"OK 0x00ff\n"
    assert link.raw(b"ness\n") == b"OK little\n"


@given(st.binary(max_size=60).filter(lambda line: b"\n" not in line))
@example(b"irq_intercept_in \xff")
@example(b"read 0xffffffffffffffff 16")
@example(b"readq 0xfffffffffffffffc")
def test_any_line_gets_one_reply_and_the_next_one_works(shared, line):
    replies = shared.raw(line + b"\nendianness\n").split(b"\n")  # a reply may quote a carriage return
    assert replies.pop() == b""
    assert replies[-1] == b"OK little"
    assert [r.split()[0] in (b"OK", b"FAIL", b"ERR") for r in replies[:-1]] == [True] * (1 if line else 0)


VERBS = ["inb", "inw", "inl", "outb", "outw", "outl", "readb", "readw", "readl", "readq"]
VERBS += ["writeb", "writew", "writel", "writeq", "read", "write", "memset", "b64read"]
PLACES = st.integers(0, 0xFFFF) | st.integers(RAM - 16, RAM + 16) | st.integers(0xFEC0_0000, 0xFEE0_1010)
PLACES |= st.integers(0, (1 << 64) - 1)
VALUES = st.integers(0, 0x200) | st.integers(1 << 40, (1 << 64) - 1)
ACCESSES = st.tuples(st.sampled_from(VERBS), PLACES, VALUES).map(lambda t: f"{t[0]} {t[1]:#x} {t[2]:#x} 0x5a")


@given(st.lists(ACCESSES, max_size=20))
def test_any_access_is_answered(lines):
    link = LocalLink()
    try:
        replies = link.raw("".join(f"{line}\n" for line in lines).encode()).splitlines()
        replies = [r for r in replies if not r.startswith(b"IRQ")]
        assert [r.split()[0] in (b"OK", b"FAIL", b"ERR") for r in replies] == [True] * len(lines)
    finally:
        link.close()


# Memory.


@given(st.integers(0, RAM - 1), st.binary(min_size=1, max_size=64))
def test_what_is_written_is_read_in_every_form(shared, address, data):
    size = min(len(data), RAM - address)
    data = data[:size]
    assert shared(f"write {address:#x} {size} 0x{data.hex()}") == "OK"
    assert shared(f"read {address:#x} {size}") == f"OK 0x{data.hex()}"
    assert shared(f"b64read {address:#x} {size}") == "OK " + base64.b64encode(data).decode()
    assert shared(f"memset {address:#x} {size} 0xa5") == "OK"
    assert shared(f"b64write {address:#x} {size} {base64.b64encode(data).decode()}") == "OK"
    assert shared.value(f"readb {address:#x}") == data[0]


def test_access_across_the_end_of_ram_reads_zero_behind_it(link):
    link(f"memset {RAM - 4:#x} 8 0xff")
    assert link(f"read {RAM - 4:#x} 8") == "OK 0xffffffff00000000"
    assert link(f"readq {RAM - 4:#x}") == "OK 0x00000000ffffffff"


def test_write_shorter_or_longer_than_its_size_is_filled_or_cut(link):
    link("memset 0x1000 6 0xee")
    link("write 0x1000 4 0xaabb")
    link("write 0x1004 1 0xccdd")
    assert link("read 0x1000 6") == "OK 0xaabb0000ccee"


def test_bytes_of_a_device_are_read_by_aligned_accesses(link):
    link("writel 0xff000000 0x44332211")
    link("writel 0xff000004 0x88776655")
    assert link("read 0xff000001 6") == "OK 0x223344556677"
    assert link("write 0xff000003 2 0x0102") == "OK"
    assert link("readq 0xff000000") == "OK 0x8877660201332211"


def test_memory_around_a_device_reads_zero(link):
    assert link("read 0xfeffffff 2") == "OK 0x0000"
    link("writeb 0xff000000 0x77")
    assert link("read 0xfefffffe 4") == "OK 0x00007700"


def test_hole_of_the_whole_address_space_is_walked_at_once(link):
    assert link("memset 0x100000000 0x10000000 1") == "OK"


@pytest.mark.parametrize("command", ["readb 0xfee00020", "readw 0xfee00020"])
def test_narrow_access_of_the_local_apic_page_reads_zero(link, command):
    assert link.value(command) == 0


# IRQ lines.


def test_irq_line_comes_before_the_reply_of_what_caused_it(link):
    link("irq_intercept_in ioapic")
    assert link.lines("outb 0x2005 1") == ["IRQ raise 5", "OK"]
    assert link.lines("outb 0x2005 1") == ["OK"]
    assert link.raw(b"outb 0x2005 0\ninb 0x80\noutb 0x2005 1\n").decode().splitlines() == [
        *["IRQ lower 5", "OK", "OK 0x00ff", "IRQ raise 5", "OK"]
    ]


def test_interrupt_0_is_told_as_0_and_served_by_entry_2(link):
    link("irq_intercept_in ioapic")
    link(f"writel {IOREGSEL:#x} {0x10 + 2 * 2:#x}")
    link(f"writel {IOWIN:#x} {LEVEL | 0x41:#x}")
    assert link.lines("outb 0x2000 1") == ["IRQ raise 0", "OK"]
    assert link.value(f"readl {IOWIN:#x}") & 1 << 14


def test_line_is_seen_although_its_entry_is_masked(link):
    link("irq_intercept_in ioapic")
    assert link.lines("set_irq_in ioapic unnamed-gpio-in 23 1") == ["IRQ raise 23", "OK"]


def test_intercept_in_of_another_device_is_refused_and_the_first_goes_on(link):
    link("irq_intercept_in ioapic")
    assert link("irq_intercept_in fw_cfg") == "FAIL IRQ intercept already enabled"
    assert link("irq_intercept_in /machine/i440fx/ioapic") == "OK"
    assert link.lines("outb 0x2006 1") == ["IRQ raise 6", "OK"]


def test_intercept_of_a_device_without_lines_sees_nothing(link):
    assert link("irq_intercept_in fw_cfg") == "OK"
    assert link.lines("outb 0x2005 1") == ["OK"]


def pic_path(link):
    return next(d.path for d in link.machine.unattached if d.driver == "isa-i8259")


def test_output_of_the_pics_is_told_and_still_reaches_the_cpu(link):
    assert link(f"irq_intercept_out {pic_path(link)}") == "OK"
    for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x01), (0x21, 0xDF)):
        link(f"outb {port:#x} {value:#x}")
    assert link.lines("outb 0x2005 1") == ["IRQ raise 0", "OK"]
    assert link.machine.pic.peek() == 0x35
    link("outb 0x20 0x0c")  # poll: the next read acknowledges
    assert link.lines("inb 0x20") == ["IRQ lower 0", "OK 0x0085"]


def test_outputs_of_a_name_are_refused_where_there_are_none(link):
    assert link(f"irq_intercept_out {pic_path(link)} sysbus-irq") == "FAIL No intercepts installed"
    assert link("irq_intercept_out fw_cfg") == "FAIL No intercepts installed"


def test_inputs_of_the_pics_are_numbered_through(link):
    link(f"irq_intercept_in {pic_path(link)}")
    assert link.lines("outb 0x200c 1") == ["IRQ raise 12", "OK"]
    assert link.lines(f"set_irq_in {pic_path(link)} unnamed-gpio-in 3 1") == ["IRQ raise 3", "OK"]


def test_resampling_irqfd_is_seen_at_the_chip_and_ored_with_the_wire(link):
    machine = link.machine
    files = machine.files
    trigger, resample = files.eventfd(), files.eventfd()
    machine.kvm.irqfd(trigger, 10, KVM_IRQFD_FLAG_RESAMPLE, resample)
    link("irq_intercept_in ioapic")
    link(f"writel {IOREGSEL:#x} {0x10 + 2 * 10:#x}")
    link(f"writel {IOWIN:#x} {LEVEL | 0x51:#x}")
    files.write(trigger, 1)
    machine.executor.drain()
    assert link.backend.take() == b"IRQ raise 10\n"
    assert link.lines("outb 0x200a 1") == ["OK"]
    assert link.lines(f"writel {IOAPIC_EOI:#x} 0x51") == ["OK"]
    assert link.lines("outb 0x200a 0") == ["IRQ lower 10", "OK"]
    assert files.read(resample) == 1


def test_unplug_lowers_the_line_of_the_device_that_goes(link):
    link.machine.device_add({"driver": "edu", "id": "e0", "addr": "4"})
    link("irq_intercept_in ioapic")
    for command in ("outl 0xcf8 0x80000860", "outl 0xcfc 0x0b0a0b05", "outl 0xcf8 0x80002010", "outl 0xcfc 0xe0000000"):
        link(command)
    link("outl 0xcf8 0x80002004")
    link("outl 0xcfc 2")
    raised = link.lines("writel 0xe0000060 1")[0]
    assert raised.startswith("IRQ raise ")
    assert link.lines("outl 0xae08 0x10") == [raised.replace("raise", "lower"), "OK"]


def test_new_peer_starts_with_every_line_low(link):
    link("irq_intercept_in ioapic")
    link("outb 0x2005 1")
    link.server.char_event("closed")
    link.server.char_event("opened")
    assert link.lines("outb 0x2005 0") == ["OK"]
    assert link.lines("outb 0x2005 1") == ["IRQ raise 5", "OK"]


# Time.


def test_time_moves_only_by_command_and_fires_timers_on_its_way(link):
    link("outb 0x70 0x0b")
    link("outb 0x71 0x42")  # 24 hours, periodic interrupt
    link("outb 0x70 0x0a")
    link("outb 0x71 0x26")  # 1024 Hz
    link("irq_intercept_in ioapic")
    assert link.machine.clock.now() == 0
    lines = link.lines("clock_step 2000000")
    assert "IRQ raise 8" in lines
    assert lines[-1] == "OK 2000000"
    assert link("clock_set 1000000") == "FAIL 2000000"
    assert link("clock_set 0x1e8480") == "OK 2000000"


def test_step_to_the_next_timer_without_one_fails():
    link = LocalLink("none")
    no_timer = "FAIL cannot advance clock to the next deadline because there is no pending deadline"
    assert link("clock_step") == no_timer
    assert link("clock_step 5") == "OK 5"
    link.close()


def test_clock_commands_are_unknown_while_a_guest_runs_by_itself():
    machine = Machine.create("pc", MachineConfig(ram_size=RAM))
    backend = MemoryBackend("qtest")
    QtestServer(machine, backend)
    backend.feed(b"clock_step\nclock_set 1\nwritel 0x1000 7\nreadl 0x1000\n")
    machine.close()
    assert backend.take().decode().splitlines() == [
        "FAIL Unknown command 'clock_step'",
        "FAIL Unknown command 'clock_set'",
        "OK",
        "OK 0x0000000000000007",
    ]


# The character device.


class Narrow(CharBackend):
    """A peer that reads a few bytes at a time."""

    def __init__(self):
        super().__init__("narrow")
        self.got = bytearray()
        self.room = 0

    def _send(self, data):
        taken = min(self.room, len(data))
        self.got += data[:taken]
        self.room -= taken
        return taken


def test_slow_reader_gets_every_reply_and_is_sent_no_more_meanwhile(link):
    backend = Narrow()
    server = QtestServer(link.machine, backend)
    server.receive(b"read 0x0 0x20000\n")
    assert server.can_receive() == 0
    while server.can_receive() == 0:
        backend.room = 5000
        backend.flush()
    backend.room = 1 << 20
    backend.flush()
    assert bytes(backend.got) == b"OK 0x" + b"00" * 0x20000 + b"\n"


@pytest.mark.parametrize("size", [1, 0x7FFD, 0x8000, 0x10000, 0x100000])
def test_long_reply_arrives_whole_with_those_around_it(link, size):
    replies = link.raw(f"inb 0x80\nread 0x0 {size:#x}\nendianness\n".encode())
    assert replies == b"OK 0x00ff\nOK 0x" + b"00" * size + b"\nOK little\n"


def test_device_takes_one_server(link):
    with pytest.raises(InUse):
        QtestServer(link.machine, link.backend)
    link.server.close()
    QtestServer(link.machine, link.backend).close()


def test_log_has_both_directions():
    machine = Machine.create("none", MachineConfig(accel="qtest", ram_size=RAM))
    log = io.StringIO()
    backend = MemoryBackend("qtest")
    QtestServer(machine, backend, log)
    backend.feed(b"endianness\nbogus\n")
    machine.close()
    kinds = [(line[1], line.partition("] ")[2]) for line in log.getvalue().splitlines()]
    assert kinds == [
        ("I", "OPENED"),
        ("R", "endianness"),
        ("R", "bogus"),
        ("S", "OK little"),
        ("S", "FAIL Unknown command 'bogus'"),
    ]


# Processes.


def test_process_connects_and_sigterm_ends_it_with_status_0_and_an_event(tmp_path):
    link = ProcessLink(tmp_path, "-machine", "pc", "-m", "16")
    assert link("endianness") == "OK little"
    link("irq_intercept_in ioapic")
    assert link.lines("set_irq_in ioapic unnamed-gpio-in 7 1") == ["IRQ raise 7", "OK"]
    link.execute("system_reset")
    assert link.value("inb 0x92") < 0x100
    status = link.end()
    link.close()
    assert status == 0
    assert "SHUTDOWN" in link.events


def test_guest_reset_is_done_before_the_next_command_that_waits_for_it(tmp_path):
    link = ProcessLink(tmp_path, "-machine", "pc", "-m", "16")
    link("outb 0xe0 1")
    link(f"writel {IOREGSEL:#x} 0x22")
    link("outb 0xcf9 6")
    assert link.value(f"readl {IOREGSEL:#x}") == 0
    link.end()
    link.close()
    assert "RESET" in link.events


def run_system(*arguments, **options):
    command = [sys.executable, "-m", "vmm.cli.system", "-display", "none", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_server_socket_waits_for_the_test_and_log_goes_to_its_file(tmp_path):
    path, log = tmp_path / "q", tmp_path / "log"
    process = run_system(
        "-M", "none", "-accel", "qtest", "-qtest", f"unix:{path},server=on,wait=on", "-qtest-log", str(log)
    )
    assert "waiting for connection" in process.stderr.readline()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(os.fspath(path))
        peer.sendall(b"endianness\n")
        assert peer.recv(100) == b"OK little\n"
        process.terminate()
        assert process.wait() == 0
    process.communicate()
    assert "] endianness\n" in log.read_text()


def test_stdio_carries_the_protocol_and_the_log_goes_to_stderr_by_default():
    process = run_system("-M", "none", "-accel", "qtest", "-qtest", "stdio", "-serial", "none", stdin=subprocess.PIPE)
    process.stdin.write("endianness\n")
    process.stdin.flush()
    assert process.stdout.readline() == "OK little\n"
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 0
    assert "] endianness\n" in errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("-qtest", "bogus:x"), "-qtest bogus:x: "),
        (("-qtest", "unix:/nonexistent/q"), "-qtest unix:/nonexistent/q: "),
        (("-qtest", "null", "-qtest-log", "/nonexistent/log"), "-qtest-log /nonexistent/log: "),
    ],
)
def test_bad_place_for_qtest_is_an_error_that_names_the_option(arguments, complaint):
    process = run_system("-M", "none", "-accel", "qtest", *arguments)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith(f"vintx-system-x86_64: {complaint}")


def test_sigterm_after_the_guest_shut_down_leaves_the_exit_status_0(tmp_path):
    link = ProcessLink(tmp_path, "-machine", "pc", "-m", "16", "-device", "pvpanic")
    link("outb 0x505 4")
    while "SHUTDOWN" not in link.events:
        assert link.message()
    status = link.end()
    link.close()
    assert status == 0
    assert link.events == ["GUEST_PVSHUTDOWN", "SHUTDOWN"]
