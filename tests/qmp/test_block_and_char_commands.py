"""Block nodes and character devices over QMP, on a real machine."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest


def error(guest, command, **arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011  (the client's own class)
        guest.qmp(command, **arguments)
    return str(caught.value)


@pytest.fixture
def guest(vm):
    return vm("pc", accel="qtest")


def test_disk_that_was_added_is_plugged_used_and_given_back(guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    guest.qmp("blockdev-add", driver="raw", node_name="d0", file={"driver": "file", "filename": str(disk)})
    assert guest.qmp("query-block") == []
    guest.qmp("device_add", driver="nvme", id="n0", serial="s", drive="d0")
    (row,) = guest.qmp("query-block")
    assert (row["qdev"], row["inserted"]["image"]["virtual-size"]) == ("/machine/peripheral/n0", 1 << 20)
    assert "is in use" in error(guest, "blockdev-del", node_name="d0")
    assert "already in use" in error(guest, "device_add", driver="nvme", id="n1", serial="s", drive="d0")
    guest.qmp("device_del", id="n0")
    guest.qmp("system_reset")
    guest.qmp("blockdev-del", node_name="d0")
    assert guest.qmp("query-named-block-nodes") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"driver": "qcow2"}, "Parameter 'driver' does not accept value 'qcow2'"),
        ({"driver": "file", "node_name": "x"}, "Parameter 'filename' is missing"),
        ({"driver": "raw", "node_name": "x", "file": 5}, "Invalid parameter type for 'file', expected: BlockdevRef"),
        ({"driver": "raw", "node_name": "x", "file": {"driver": "file"}}, "Parameter 'file.filename' is missing"),
        ({"driver": "null-co", "node_name": "x", "bogus": 1}, "Parameter 'bogus' is unexpected"),
    ],
)
def test_what_blockdev_add_cannot_take_is_refused_in_qemus_words(guest, arguments, message) -> None:
    assert error(guest, "blockdev-add", **arguments) == message


def test_plain_file_and_fifo_are_both_a_config_of_blkdebug(guest, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text('[inject-error]\nevent = "read_aio"\n')
    image = {"driver": "null-co"}
    guest.qmp("blockdev-add", driver="blkdebug", node_name="b0", image=image, config=str(rules))
    assert "Could not read blkdebug config file" in error(
        guest, "blockdev-add", driver="blkdebug", node_name="b1", image=image, config=str(tmp_path / "nosuch")
    )


def test_socket_device_comes_and_goes(guest, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    backend = {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": path}}}}
    guest.qmp("chardev-add", id="c0", backend=backend)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    (row,) = (row for row in guest.qmp("query-chardev") if row["label"] == "c0")
    assert row == {"frontend-open": False, "label": "c0", "filename": f"disconnected:unix:{path},server=on"}
    assert error(guest, "chardev-add", id="c0", backend=backend) == "Chardev with id 'c0' already exists"
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        guest.qmp("query-status")
        assert {"type": "chardev", "id": "c0"} in guest.qmp("query-yank")
        guest.qmp("yank", instances=[{"type": "chardev", "id": "c0"}])
        assert peer.recv(1) == b""
    guest.qmp("chardev-remove", id="c0")
    assert not Path(path).exists()
    assert error(guest, "chardev-remove", id="c0") == "Chardev 'c0' not found"


def test_ring_buffer_keeps_what_was_written_until_it_is_read(guest) -> None:
    guest.qmp("chardev-add", id="r0", backend={"type": "ringbuf", "data": {"size": 8}})
    guest.qmp("ringbuf-write", device="r0", data="0123456789")
    guest.qmp("ringbuf-write", device="r0", data="QUI=", format="base64")
    assert guest.qmp("ringbuf-read", device="r0", size=4) == "4567"
    assert guest.qmp("ringbuf-read", device="r0", size=4, format="base64") == "ODlBQg=="
    assert error(guest, "ringbuf-read", device="r0", size=0) == "size must be greater than zero"
    assert error(guest, "ringbuf-write", device="r0", data="?", format="base64") == "Base64 data is not valid base64"
    assert error(guest, "ringbuf-read", device="nosuch", size=1) == "Device 'nosuch' not found"


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ({"type": "bogus"}, "Parameter 'type' does not accept value 'bogus'"),
        ({"type": "null"}, "Parameter 'backend.data' is missing"),
        ({"type": "file", "data": {}}, "Parameter 'backend.data.out' is missing"),
        ({"type": "file", "data": {"out": "/nosuch/file"}}, "cannot open '/nosuch/file'"),
    ],
)
def test_device_that_cannot_be_made_is_refused(guest, backend, message) -> None:
    assert message in error(guest, "chardev-add", id="c0", backend=backend)


def test_pty_tells_its_path(guest) -> None:
    path = guest.qmp("chardev-add", id="p0", backend={"type": "pty", "data": {}})["pty"]
    assert Path(path).exists()


def test_memory_is_written_to_a_file_and_no_more_than_there_is(guest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    guest.machine.memory.write(0x1000, b"level-triggered!")
    guest.qmp("pmemsave", val=0x1000, size=16, filename=str(out))
    assert out.read_bytes() == b"level-triggered!"
    assert "Invalid addr" in error(guest, "pmemsave", val=0, size=1 << 40, filename=str(out))
    assert "Invalid addr" in error(guest, "pmemsave", val=-1, size=1, filename=str(out))
    assert "Could not open" in error(guest, "pmemsave", val=0, size=1, filename=str(tmp_path / "no" / "dir"))


def test_actions_can_be_changed(guest) -> None:
    guest.qmp("set-action", reboot="shutdown", shutdown="pause", panic="none", watchdog="pause")
    config = guest.machine.config
    assert (config.no_reboot, config.no_shutdown, config.panic) == (True, True, "none")
    guest.qmp("watchdog-set-action", action="none")
    assert guest.machine.watchdog_action == "none"
    assert error(guest, "set-action", reboot="bogus") == "Parameter 'reboot' does not accept value 'bogus'"


def test_monitor_is_made_on_a_device_and_deleted_while_others_go_on(guest, tmp_path: Path) -> None:
    path = str(tmp_path / "m")
    backend = {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": path}}}}
    guest.qmp("chardev-add", id="c0", backend=backend)
    guest.qmp("object-add", qom_type="monitor-qmp", id="m0", chardev="c0")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(60)
        peer.connect(path)
        guest.qmp("query-status")
        assert peer.recv(4096).startswith(b'{"QMP": ')
        peer.sendall(b'{"execute":"qmp_capabilities"}')
        guest.qmp("query-status")
        guest.qmp("query-status")
        assert peer.recv(4096) == b'{"return": {}}\r\n'
        guest.qmp("stop")
        guest.qmp("query-status")
        assert b'"event": "STOP"' in peer.recv(4096)
        assert error(guest, "chardev-remove", id="c0") == "Chardev 'c0' is busy"
        guest.qmp("object-del", id="m0")
        guest.qmp("cont")
        guest.qmp("chardev-remove", id="c0")
        assert peer.recv(4096) == b""
    assert error(guest, "object-add", qom_type="monitor-qmp", id="m1", chardev="c0") == 'chardev "c0" not found'
    assert error(guest, "object-add", qom_type="monitor-hmp", id="m1") == "Parameter 'chardev' is missing"
