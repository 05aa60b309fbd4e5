"""Block nodes and drives by name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.block_graph import BlockGraph, InjectError, parse_blkdebug_config
from vmm.errors import ConfigError, InUse, UsageError
from vmm.ini import Section, format_ini, parse_ini

SIZE = 64 << 10


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return str(path)


@pytest.fixture
def graph() -> Any:
    made = BlockGraph()
    yield made
    made.close()


def file_node(disk: str, name: str = "f0", **more: Any) -> dict[str, Any]:
    return {"driver": "file", "node-name": name, "filename": disk, **more}


def test_device_reads_what_the_file_has_through_raw_and_its_writes_are_in_the_file(
    graph: BlockGraph, disk: str
) -> None:
    graph.add({"driver": "raw", "node-name": "r0", "file": file_node(disk, ""), "offset": 4096, "size": 8192})
    image = graph.use("r0", "/machine/peripheral/n0")
    assert image.size == 8192
    got = bytearray(512)
    image.read(512, [got])
    assert got == bytes(range(256)) * 2
    image.write(0, [b"\xff" * 512])
    image.close()
    assert Path(disk).read_bytes()[4096 : 4096 + 512] == b"\xff" * 512
    with pytest.raises(OSError, match="ends at"):
        image.read(8192 - 256, [bytearray(512)])


def test_node_in_use_is_neither_deleted_nor_used_again_until_it_is_given_back(graph: BlockGraph, disk: str) -> None:
    graph.add(file_node(disk))
    image = graph.use("f0", "/machine/peripheral/n0")
    with pytest.raises(InUse, match="Drive 'f0' is already in use by another block device"):
        graph.use("f0", "/machine/peripheral/n1")
    with pytest.raises(InUse, match="Node f0 is in use"):
        graph.remove("f0")
    (row,) = graph.query_drives()
    assert (row["qdev"], row["inserted"]["node-name"]) == ("/machine/peripheral/n0", "f0")
    image.close()
    image.close()
    graph.remove("f0")
    assert graph.query_nodes() == []


def test_node_that_was_made_for_another_goes_with_it_and_one_with_a_name_stays(graph: BlockGraph, disk: str) -> None:
    graph.add({"driver": "raw", "node-name": "r0", "file": {"driver": "file", "filename": disk}})
    assert len(graph.nodes) == 2
    graph.remove("r0")
    assert not graph.nodes
    graph.add(file_node(disk))
    graph.add({"driver": "raw", "node-name": "r0", "file": "f0"})
    with pytest.raises(InUse, match="Node f0 is in use"):
        graph.remove("f0")
    graph.remove("r0")
    assert list(graph.nodes) == ["f0"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"driver": "null-co"}, ConfigError, "'node-name' must be specified for the root node"),
        ({"driver": "null-co", "node-name": "n"}, InUse, "Duplicate nodes with node-name='n'"),
        ({"driver": "null-co", "node-name": "d"}, InUse, "node-name=d is conflicting with a device id"),
        ({"driver": "file", "node-name": "x", "filename": "nosuch"}, ConfigError, "Could not open 'nosuch'"),
        ({"driver": "raw", "node-name": "x", "file": "nosuch"}, ConfigError, "nor node-name='nosuch'"),
        (
            {"driver": "raw", "node-name": "x", "file": "n", "offset": 1 << 40},
            ConfigError,
            "The offset has to be smaller",
        ),
        ({"driver": "raw", "node-name": "x", "file": "n", "size": 1 << 40}, ConfigError, "sum of offset"),
    ],
)
def test_refusal_leaves_nothing_behind(
    graph: BlockGraph, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    graph.add({"driver": "null-co", "node-name": "n"})
    graph.add_drive("d", {"driver": "null-co"})
    before = [(node.name, node.user) for node in graph.nodes.values()]
    with pytest.raises(error, match=message):
        graph.add(options)
    assert [(node.name, node.user) for node in graph.nodes.values()] == before


def test_drive_has_a_node_that_the_monitor_does_not_delete(graph: BlockGraph) -> None:
    graph.add_drive("d0", {"driver": "null-co"})
    ((name, node),) = graph.nodes.items()
    assert name.startswith("#block")
    with pytest.raises(ConfigError, match="is not owned by the monitor"):
        graph.remove(name)
    with pytest.raises(ConfigError, match="Failed to find node with node-name='d0'"):
        graph.remove("d0")
    with pytest.raises(InUse, match="Duplicate ID 'd0' for drive"):
        graph.add_drive("d0", {"driver": "null-co"})
    assert graph.query_drives()[0]["device"] == "d0"
    assert graph.use("d0", "/x").node is node


def test_read_only_node_is_for_readers_only(graph: BlockGraph, disk: str) -> None:
    graph.add(file_node(disk, **{"read-only": True}))
    with pytest.raises(ConfigError, match="Block node is read-only"):
        graph.use("f0", "/x")
    assert graph.use("f0", "/x", readonly=graph.readonly("f0")).readonly


def test_file_that_cannot_be_written_is_read_only_where_that_is_wanted(graph: BlockGraph, tmp_path: Path) -> None:
    path = tmp_path / "ro"
    path.write_bytes(bytes(512))
    path.chmod(0o400)
    node = graph.add(file_node(str(path), **{"auto-read-only": True}))
    assert node.image.readonly is not os.access(path, os.W_OK)


def test_resize_tells_the_device(graph: BlockGraph, disk: str) -> None:
    graph.add(file_node(disk))
    image = graph.use("f0", "/x")
    told: list[int] = []
    image.on_resize = lambda: told.append(image.size)
    graph.resize("f0", 1 << 20)
    assert told == [1 << 20]
    assert Path(disk).stat().st_size == 1 << 20
    with pytest.raises(ConfigError, match="Cannot find device='nosuch'"):
        graph.resize("nosuch", 1)


def test_blkdebug_fails_as_told_once_or_always(graph: BlockGraph, disk: str) -> None:
    rules = [InjectError("read_aio", errno.ENOSPC, sector=3, once=True)]
    graph.add(file_node(disk))
    inline = [{"event": "flush_to_disk"}]
    graph.add({"driver": "blkdebug", "node-name": "b0", "image": "f0", "inject-error": inline}, rules)
    image = graph.use("b0", "/x")
    data = bytearray(512)
    image.read(0, [data])
    with pytest.raises(OSError, match=r".") as caught:
        image.read(1024, [data, bytearray(512)])
    assert caught.value.errno == errno.ENOSPC
    image.read(1024, [data, bytearray(512)])
    for _ in range(2):
        with pytest.raises(OSError, match=r".") as caught:
            image.flush()
        assert caught.value.errno == errno.EIO


def test_blkdebug_file_has_rules() -> None:
    text = '# a comment\n[inject-error]\nevent = "write_aio"\nerrno = "28"\nonce = "on"\n'
    text += '\n[inject-error]\nevent="read_aio"\n'
    assert parse_blkdebug_config("f", text) == [InjectError("write_aio", 28, -1, True), InjectError("read_aio")]
    with pytest.raises(ConfigError, match=r"section \[set-state\] is not supported"):
        parse_blkdebug_config("f", "[set-state]\n")
    with pytest.raises(UsageError, match="f:1: no group defined"):
        parse_blkdebug_config("f", 'event = "x"')


WORD = st.text("abcxyz019-._", min_size=1, max_size=8)
VALUE = st.text(
    st.characters(blacklist_characters='"\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029', blacklist_categories=["Cs"])
)


@given(st.lists(st.tuples(WORD, VALUE, st.dictionaries(WORD, VALUE, max_size=4)), max_size=4))
def test_config_file_that_was_written_says_the_same_when_read(parts: list[tuple[str, str, dict[str, str]]]) -> None:
    sections = [Section(group, name, values, 0) for group, name, values in parts]
    read = parse_ini(format_ini(sections), "f")
    assert [(s.group, s.id, s.values) for s in read] == [(s.group, s.id, s.values) for s in sections]
