"""Debian's kernel boots, its shell takes what is typed, and it ends the ways that a PC ends."""

from __future__ import annotations

import subprocess

import pytest

from guest_images import linux
from support.endurance import size
from support.linux_shell import boot, needs_linux
from vmm.boot import prepare
from vmm.boot.linux import SECTOR, SETUP_HEADER, SetupLayout
from vmm.boot.unpack import unpack
from vmm.cli.process import program

pytestmark = needs_linux
BOOTS = size(2, 20)


def command(*more: str, cpus: int = 2, append: str = "quiet") -> list[str]:
    """vintx-system-x86_64 with Linux on standard input and output."""
    here = linux.find()
    line = [program(), "-M", "pc", "-smp", str(cpus), "-m", "512", "-kernel", str(here.kernel)]
    line += ["-initrd", str(here.initrd), "-append", f"console=ttyS0 panic=-1 {append}"]
    return [*line, "-serial", "stdio", "-nodefaults", *more]


def typed(process: subprocess.Popen[str], script: str) -> str:
    """Wait for the prompt, type, and read to the end."""
    assert process.stdin is not None
    assert process.stdout is not None
    said = ""
    while linux.PROMPT not in said:
        piece = process.stdout.read(1)
        assert piece, said
        said += piece
    process.stdin.write(script)
    process.stdin.flush()
    return said + process.stdout.read()


@pytest.mark.parametrize("cpus", [1, 2, 4, 8])
def test_a_shell_takes_commands_and_poweroff_ends_the_process_with_status_0(cpus):
    for _ in range(BOOTS if cpus == 2 else 1):
        argv = command("-no-reboot", cpus=cpus)
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            said = typed(process, "echo $((6*7)) of $(nproc)\npoweroff -f\n")
        assert f"42 of {cpus}" in said
        assert process.returncode == 0


def test_poweroff_through_init_and_the_power_button_are_both_a_guest_shutdown(vm):
    shell = boot(vm)
    shell.guest.type("poweroff\n")
    assert shell.guest.wait_exit() == 0
    shell.guest.wait_event("SHUTDOWN", guest=True, reason="guest-shutdown")

    shell = boot(vm)
    shell.guest.qmp("system_powerdown")
    shell.wait("vintx: power button")
    assert shell.guest.wait_exit() == 0
    shell.guest.wait_event("SHUTDOWN", guest=True, reason="guest-shutdown")


def test_reboot_starts_linux_again_and_with_no_reboot_ends_the_machine(vm):
    shell = boot(vm)
    shell.run("touch /was-here")
    shell.guest.type("reboot\n")
    shell.guest.wait_event("RESET", guest=True)
    shell.wait(linux.READY)
    shell.begin()
    shell.run("test ! -e /was-here")
    shell.machine.config.no_reboot = True
    shell.guest.type("reboot -f\n")
    assert shell.guest.wait_exit() == 0
    shell.guest.wait_event("SHUTDOWN", guest=True, reason="guest-reset")


def test_a_panic_reboots_as_the_command_line_says(vm):
    shell = boot(vm, no_reboot=True)
    shell.guest.type("echo c > /proc/sysrq-trigger\n")
    assert shell.guest.wait_exit() == 0
    shell.guest.wait_event("SHUTDOWN", guest=True, reason="guest-reset")


def test_a_kernel_that_unpacks_itself_in_the_guest_comes_to_the_same_shell(vm):
    shell = boot(vm, options={"x-unpack-kernel": "off"})
    assert shell.run("uname -r") == linux.find().release
    assert shell.power_off() == 0


def test_the_tsc_is_the_clock_and_every_pin_of_pci_is_level(vm):
    shell = boot(vm, cpus=2)
    shell.run("grep -q '^acpi_pm\\|tsc' /sys/devices/system/clocksource/clocksource0/current_clocksource")
    assert "fasteoi" in shell.run("grep acpi /proc/interrupts")
    assert shell.run("dmesg -r | grep -ciE 'nobody cared|call trace|BUG:'", status=1) == "0"
    assert shell.power_off() == 0


def test_vmlinux_out_of_the_bzimage_starts_by_its_pvh_note(vm, tmp_path):
    image = linux.find().kernel.read_bytes()
    setup = SetupLayout.parse(image[SETUP_HEADER:])
    start = (setup.setup_sects + 1) * SECTOR + setup.payload_offset
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(unpack(image[start : start + setup.payload_length], "vmlinux"))
    assert prepare(vmlinux, None, "", 256 << 20).protocol == "pvh"
    shell = boot(vm, kernel=vmlinux)
    assert shell.run("uname -r") == linux.find().release
    assert shell.power_off() == 0
