"""Our firmware and SeaBIOS set up the same QEMU machine alike."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

import guest_images
from vmm.boot import firmware

if TYPE_CHECKING:
    from collections.abc import Iterator

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")

DEVICES = ("edu", "virtio-rng-pci", "rtl8139", "edu,addr=0x1c", "edu,addr=0x1d")
SIZES = {1: "b", 2: "w", 4: "l"}


class QtestBus:
    """A QEMU whose CPU is stopped, its ports and memory driven over the qtest protocol."""

    def __init__(self, stream) -> None:
        self.stream = stream

    def ask(self, words: str) -> list[str]:
        self.stream.write(words + "\n")
        self.stream.flush()
        answer = self.stream.readline().split()
        assert answer[:1] == ["OK"], f"{words}: {answer}"
        return answer

    def port_read(self, port: int, size: int) -> int:
        return int(self.ask(f"in{SIZES[size]} {port:#x}")[1], 0)

    def port_write(self, port: int, size: int, value: int) -> None:
        self.ask(f"out{SIZES[size]} {port:#x} {value:#x}")

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self.ask(f"write{SIZES[size]} {gpa:#x} {value:#x}")


@contextlib.contextmanager
def qemu(tmp_path, *options: str) -> Iterator[tuple[QtestBus, subprocess.Popen[bytes]]]:
    """A QEMU `pc` with `DEVICES`, and qtest on it."""
    path = tmp_path / "qtest"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(30)
        command = [QEMU, "-accel", "tcg", "-M", "pc", "-nodefaults", "-display", "none", "-monitor", "none"]
        command += ["-qtest", f"unix:{path}", "-qtest-log", "none"]
        for device in DEVICES:
            command += ["-device", device]
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            connection, _ = listener.accept()
            connection.settimeout(30)
            with connection, connection.makefile("rw") as stream:
                yield QtestBus(stream), process
        finally:
            process.kill()
            process.communicate()
            path.unlink()


def setup_of(bus: QtestBus) -> dict[str, object]:
    """Configuration space of every function (without status registers), interrupt controllers, clock registers."""
    reader = firmware.Firmware(bus)
    state: dict[str, object] = {}
    for devfn in reader._functions():
        for offset in range(0, 256, 2):
            if offset != 0x06:
                state[f"{devfn:02x}+{offset:02x}"] = reader.read(devfn, offset, 2)
    for port in (0x21, 0xA1, 0x4D0, 0x4D1):
        state[f"port {port:#x}"] = bus.port_read(port, 1)
    bus.port_write(0x43, 1, 0xE2)
    state["timer"] = bus.port_read(0x40, 1) & 0x3F
    for register in (0x0A, 0x0B):
        bus.port_write(0x70, 1, register)
        state[f"clock {register:#x}"] = bus.port_read(0x71, 1) & 0x7F
    return state


def test_setup_equals_what_seabios_left_for_a_multiboot_kernel(tmp_path):
    # With no edu for it the guest is over at once; -no-shutdown keeps the machine as it is then.
    with qemu(tmp_path, "-serial", "null", "-S") as (bus, _):
        firmware.run(bus)
        ours = setup_of(bus)
    kernel = str(guest_images.path("intx_loop"))
    options = ("-serial", "stdio", "-no-shutdown", "-kernel", kernel, "-append", "devices=0")
    with qemu(tmp_path, *options) as (bus, process):
        printed = b""
        while b"no devices\n" not in printed:
            printed += process.stdout.read1(4096)
            assert process.poll() is None
        seabios = setup_of(bus)
    # The guest has masked the PICs by then; that much is its own.
    seabios |= {"port 0x21": 0xB8, "port 0xa1": 0x8E}
    assert ours == seabios
