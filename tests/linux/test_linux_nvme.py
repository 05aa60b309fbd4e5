"""Linux' nvme driver on INTx: a file system in a file of the host, unplugged under load, killed with its machine."""

from __future__ import annotations

import hashlib
import signal
import subprocess

from guest_images import linux
from support.endurance import size
from support.linux_shell import boot, needs_linux
from vmm.cli.process import program

pytestmark = needs_linux
MIB = 1 << 20
WRITTEN_MIB = size(16, 64)


def test_a_file_system_keeps_what_was_written_and_the_host_can_read_the_image(vm, tmp_path):
    image = tmp_path / "disk.img"
    image.touch()
    with image.open("r+b") as file:
        file.truncate((WRITTEN_MIB + 64) * MIB)
    shell = boot(vm, cpus=2, devices=[{"driver": "nvme", "id": "n0", "serial": "v1", "x-image": str(image)}])
    shell.run("mke2fs -F /dev/nvme0n1 >/dev/null && mount -t ext4 /dev/nvme0n1 /mnt")
    shell.run(f"dd if=/dev/urandom of=/mnt/file bs=1M count={WRITTEN_MIB} 2>&1")
    before = shell.run("sha256sum /mnt/file")
    shell.run("umount /mnt && echo 3 > /proc/sys/vm/drop_caches && mount -t ext4 /dev/nvme0n1 /mnt")
    assert shell.run("sha256sum /mnt/file") == before
    shell.run("printf 'for the host\\n' > /mnt/note && umount /mnt")
    assert shell.run("dmesg | grep -c 'nvme.*timeout\\|I/O error'", status=1) == "0"
    assert shell.power_off() == 0
    content = image.read_bytes()
    assert content[0x438:0x43A] == b"\x53\xef"  # ext2's magic number
    assert b"for the host\n" in content


def test_an_unplug_under_dd_gives_the_guest_errors_and_leaves_the_machine_as_it_was(vm, tmp_path):
    image = tmp_path / "disk.img"
    pattern = hashlib.sha512(b"x").digest()
    image.write_bytes(pattern * (16 * MIB // len(pattern)))
    shell = boot(vm, cpus=2)
    machine = shell.machine
    before = machine.ledger.snapshot()
    plug = {"driver": "nvme", "id": "n0", "serial": "v1", "x-image": str(image), "addr": "5"}
    for _ in range(2):
        shell.guest.qmp("device_add", **plug)
        shell.run("until [ -b /dev/nvme0n1 ]; do usleep 10000; done")
        shell.run(
            "(while dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct; do :; done) >/tmp/log 2>&1 & "
            "until grep -q records /tmp/log; do usleep 10000; done"
        )
        shell.guest.qmp("device_del", id="n0")
        shell.guest.wait_event("DEVICE_DELETED", device="n0")
        shell.run("wait; grep -i 'error\\|no such\\|can.t open' /tmp/log; test ! -e /dev/nvme0n1")
        assert machine.ledger.difference(before) == ([], [])
        shell.guest.events.clear()
    shell.guest.qmp("device_add", **plug)
    shell.run("until [ -b /dev/nvme0n1 ]; do usleep 10000; done")
    digest = shell.run("dd if=/dev/nvme0n1 bs=64 count=1 2>/dev/null | sha1sum").split()[0]
    assert digest == hashlib.sha1(pattern).hexdigest()
    assert shell.power_off() == 0


def test_a_controller_that_is_pulled_out_under_dd_is_given_up_by_the_driver(vm, tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(16 * MIB))
    shell = boot(vm, cpus=2)
    before = shell.machine.ledger.snapshot()
    plug = {"driver": "nvme", "id": "n0", "serial": "v1", "x-image": str(image), "addr": "5"}
    shell.guest.qmp("device_add", **plug)
    shell.run("until [ -b /dev/nvme0n1 ]; do usleep 10000; done")
    shell.run(
        "(while dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct; do :; done) >/tmp/log 2>&1 & "
        "until grep -q records /tmp/log; do usleep 10000; done"
    )
    shell.guest.qmp("x-device-pull", id="n0")
    shell.guest.wait_event("DEVICE_DELETED", device="n0")
    assert shell.machine.ledger.difference(before) == ([], [])
    shell.run("echo 1 > /sys/bus/pci/devices/0000:00:05.0/remove; wait; test ! -e /dev/nvme0n1")
    shell.run("grep -i 'error\\|no such\\|can.t open' /tmp/log")
    shell.guest.qmp("device_add", **plug)
    shell.run("until [ -b /dev/nvme0n1 ]; do usleep 10000; done")
    shell.run("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=10 iflag=direct 2>&1")
    assert shell.power_off() == 0


def test_what_was_flushed_is_in_the_image_after_the_machine_was_killed(tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(64 * MIB))
    here = linux.find()
    argv = [program(), "-M", "pc", "-smp", "2", "-m", "256", "-nodefaults", "-serial", "stdio"]
    argv += ["-kernel", str(here.kernel), "-initrd", str(here.initrd), "-append", "console=ttyS0 quiet"]
    argv += ["-device", f"nvme,serial=v1,x-image={image}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(
            "\n"
            * 3
            + "yes killed-9 | head -c 1048576 > /tmp/x; dd if=/tmp/x of=/dev/nvme0n1 bs=64k seek=16 conv=fsync; "
            "echo FLU''SHED; while :; do dd if=/dev/zero of=/dev/nvme0n1 bs=64k seek=200 count=300; done\n"
        )
        process.stdin.flush()
        assert any("FLUSHED" in line for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with image.open("rb") as file:
        file.seek(MIB)
        assert file.read(MIB) == (b"killed-9\n" * MIB)[:MIB]
