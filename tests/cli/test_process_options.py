"""Options about the process, its disks and its files, as a user sees them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAM = [sys.executable, "-m", "vmm.cli.system", "-accel", "qtest", "-nodefaults", "-m", "16"]
PATIENCE_S = 60


def run(*arguments: str, messages: tuple[dict[str, Any], ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a machine with a QMP monitor on stdio, send it messages, then `quit`."""
    words = [{"execute": "qmp_capabilities"}, *messages, {"execute": "quit"}]
    return subprocess.run(
        [*PROGRAM, *arguments, "-qmp", "stdio"],
        input="".join(map(json.dumps, words)),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        **options,
    )


def replies(done: subprocess.CompletedProcess[str]) -> list[Any]:
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [message["return"] for message in found if "return" in message][1:-1]


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_daemon_is_there_when_the_command_returns_and_gone_when_it_is_ended(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "-daemonize", "-pidfile", "pid", "-qmp", "unix:qmp,server=on,wait=off"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = int((tmp_path / "pid").read_text())
    try:
        assert os.getsid(pid) != os.getsid(0)
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        assert [str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in (0, 1, 2)] == ["/dev/null"] * 3
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE_S)
            peer.connect(str(tmp_path / "qmp"))
            assert b'"QMP"' in peer.recv(4096)
    finally:
        os.kill(pid, signal.SIGTERM)
    until(lambda: not list(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-device", "nosuch"], "-device nosuch: 'nosuch' is not a valid device model name"),
        (["-serial", "stdio"], "cannot use stdio with -daemonize"),
        (["-nographic"], "-nographic cannot be used with -daemonize"),
    ],
)
def test_daemon_that_cannot_be_made_is_told_by_the_command(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [*PROGRAM, "-daemonize", *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give up being root")
def test_rights_are_given_up_once_everything_is_open(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "-run-with", f"chroot={tmp_path},user=65534:65534", "-qmp", "stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    process.stdin.write(b'{"execute":"qmp_capabilities"}')
    process.stdin.flush()
    process.stdout.readline()
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    assert Path(f"/proc/{process.pid}/root").readlink() == tmp_path
    process.stdin.write(b'{"execute":"quit"}')
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0
    process.stdout.close()


def test_user_that_does_not_exist_is_named() -> None:
    done = run("-run-with", "user=no-such-user")
    assert (done.returncode, 'User "no-such-user" doesn\'t exist' in done.stderr) == (1, True)


def test_process_has_the_name_that_was_given() -> None:
    process = subprocess.Popen(
        [*PROGRAM, "-name", "guest,process=my-guest", "-qmp", "stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"execute":"qmp_capabilities"}')
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.readline()
    assert Path(f"/proc/{process.pid}/comm").read_text() == "my-guest\n"
    process.stdin.close()
    process.terminate()
    process.wait()
    process.stdout.close()


def test_drive_and_blockdev_are_disks_of_devices(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    done = run(
        "-drive", "if=none,id=d0,file=disk,format=raw",
        "-blockdev", "driver=null-co,node-name=z0,size=2M",
        "-blockdev", "{'driver':'raw','node-name':'z1','file':'z0','read-only':true}",
        "-device", "nvme,id=n0,serial=a,drive=d0", "-device", "nvme,id=n1,serial=b,drive=z1",
        messages=({"execute": "query-block"}, {"execute": "query-named-block-nodes"}), cwd=tmp_path,
    )  # fmt: skip
    block, nodes = replies(done)
    assert {row["device"]: row["qdev"] for row in block} == {
        "d0": "/machine/peripheral/n0",
        "": "/machine/peripheral/n1",
    }
    assert {"z0", "z1"} <= {row["node-name"] for row in nodes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-drive", "if=none,id=d0,file=nosuch"], "Could not open 'nosuch'"),
        (["-drive", "if=none,file=x"], "Parameter 'id' is missing"),
        (["-drive", "if=none,id=d,file=x,format=qcow2"], "only format=raw is known"),
        (["-drive", "file=x,if=virtio"], "if=virtio: there is no such controller"),
        (["-blockdev", "driver=file,node-name=n"], "Parameter 'filename' is missing"),
        (["-blockdev", "driver=null-co,node-name=n,size=x"], "Parameter 'size' expects an integer"),
        (["-blockdev", "driver=null-co,node-name=n,bogus=x"], "Parameter 'bogus' is unexpected"),
        (["-blockdev", "driver=qcow2,node-name=n"], "Parameter 'driver' does not accept value 'qcow2'"),
        (["-device", "nvme,serial=s,drive=nosuch"], "can't find value 'nosuch'"),
        (["-device", "nvme,serial=s"], "drive property not set"),
    ],
)
def test_disk_that_cannot_be_had_is_one_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_log_items_are_events(tmp_path: Path) -> None:
    done = run("-d", "cpu_reset,trace:pci_cfg_*", "-D", "log", messages=({"execute": "system_reset"},), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "system_reset" in (tmp_path / "log").read_text()
    assert "there is no such log" in run("-d", "bogus").stderr


def test_config_is_written_and_read_back(tmp_path: Path) -> None:
    options = ["-device", "edu,id=e0,addr=5", "-object", "memory-backend-ram,id=m0,size=1M"]
    assert run(*options, "-writeconfig", "config", cwd=tmp_path).returncode == 0
    done = run(
        "-readconfig",
        "config",
        messages=({"execute": "qom-get", "arguments": {"path": "e0", "property": "addr"}}, {"execute": "query-memdev"}),
        cwd=tmp_path,
    )
    addr, memory = replies(done)
    assert addr in ("05.0", 40)
    assert [row["id"] for row in memory if row["size"] == 1 << 20] == ["m0"]


def test_boot_options_reach_the_guests_firmware_tables(tmp_path: Path) -> None:
    (tmp_path / "splash.bmp").write_bytes(b"BM" + bytes(60))
    done = run("-boot", "splash=splash.bmp,splash-time=12,reboot-timeout=-1,once=d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "text").write_text("hello")
    assert "must be JPEG or BMP" in run("-boot", "splash=text", cwd=tmp_path).stderr
    assert "it should be a value between 0 and 65535" in run("-boot", "splash-time=70000").stderr
    assert "Boot device 'c' was given twice" in run("-boot", "cc").stderr


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no shell")
def test_help_is_there_for_every_option_that_has_types() -> None:
    for option in (
        "-machine",
        "-cpu",
        "-accel",
        "-device",
        "-object",
        "-chardev",
        "-trace",
        "-d",
        "-netdev",
        "-blockdev",
    ):
        done = subprocess.run(
            [sys.executable, "-m", "vmm.cli.system", option, "help"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert (done.returncode, done.stderr) == (0, ""), option
        assert done.stdout.count("\n") >= 2, option


def test_messages_begin_as_msg_wants() -> None:
    done = run("-msg", "timestamp=on,guest-name=on", "-name", "here", "-device", "nosuch")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z here vintx-system-x86_64: -device nosuch: ", done.stderr)
    assert run("-msg", "timestamp=off", "-device", "nosuch").stderr.startswith("vintx-system-x86_64: ")
    assert "mem-lock=on is not supported" in run("-overcommit", "mem-lock=on").stderr
    assert run("-overcommit", "mem-lock=off,cpu-pm=off", "-sandbox", "off").returncode == 0
