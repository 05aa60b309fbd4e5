"""The builder of the Linux guest, without a kernel: archives, modules, and what is said where there is no guest."""

from __future__ import annotations

import lzma
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_images import linux
from guest_images.linux import initrd, modules
from guest_images.linux.__main__ import main
from guest_images.linux.newc import Archive
from vmm.errors import BootError

SOURCES = Path(linux.__file__).parent


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """What is in newc archives that follow each other: mode and content by name; later ones win."""
    found = {}
    at = 0
    while at < len(archive):
        if not archive[at]:
            at += 4  # padding between archives
            continue
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        at = (at + 110 + length + 3) & -4
        if name != "TRAILER!!!":
            found[name] = (mode, archive[at : at + size])
        at = (at + size + 3) & -4
    return found


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}", fullmatch=True), st.binary(max_size=9), max_size=5)
)
def test_archive_has_every_file_and_the_directories_above_it(files):
    archive = Archive()
    names = [name for name in files if not any(other.startswith(name + "/") for other in files)]
    for name in names:
        archive.file(name, files[name])
    found = entries(archive.finish())
    assert {name: content for name, (mode, content) in found.items() if stat.S_ISREG(mode)} == {
        name: files[name] for name in names
    }
    above = {name.rsplit("/", depth)[0] for name in names for depth in range(1, name.count("/") + 1)}
    assert {name for name, (mode, _) in found.items() if stat.S_ISDIR(mode)} == above


def test_links_nodes_and_permissions_are_kept():
    archive = Archive()
    archive.link("bin/sh", "busybox")
    archive.character_device("dev/console", 5, 1)
    archive.file("init", b"#!", 0o755)
    found = entries(archive.finish())
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox")
    assert stat.S_ISCHR(found["dev/console"][0])
    assert found["init"] == (stat.S_IFREG | 0o755, b"#!")


def test_archive_is_what_cpio_reads(tmp_path):
    if shutil.which("cpio") is None:
        pytest.skip("not installed: cpio")
    archive = Archive()
    archive.file("a/b/c", b"content")
    done = subprocess.run(
        ["cpio", "-t", "--quiet"], input=archive.finish(), capture_output=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == [b"a", b"a/b", b"a/b/c"]


def module(folder: Path, path: str, depends: str = "", aliases: tuple[str, ...] = ()) -> None:
    """A file with what modules say of themselves."""
    info = b"".join(
        f"{key}={value}\0".encode() for key, value in [("depends", depends), *(("alias", a) for a in aliases)]
    )
    content = b"\x7fELF" + bytes(12) + info
    file = folder / "kernel" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.compress(content) if file.suffix == ".xz" else content)


def test_modules_come_with_what_they_need_and_the_tables_for_modprobe(tmp_path):
    module(tmp_path, "drivers/virtio/virtio_pci.ko", "virtio_ring,virtio", ("pci:v00001AF4d*",))
    module(tmp_path, "drivers/virtio/virtio_ring.ko.xz", "virtio")
    module(tmp_path, "drivers/virtio/virtio.ko")
    module(tmp_path, "drivers/char/virtio-rng.ko", "virtio", ("virtio:d00000004v*",))
    module(tmp_path, "drivers/other.ko")
    chosen = modules.closure(tmp_path, ["virtio_pci", "virtio_rng", "built_in"])
    assert [m.name for m in chosen] == ["virtio", "virtio_ring", "virtio_pci", "virtio_rng"]
    assert all(m.content.startswith(b"\x7fELF") for m in chosen)
    assert modules.dependencies(chosen).splitlines() == [
        "kernel/drivers/virtio/virtio.ko:",
        "kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko",
        "kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko",
        "kernel/drivers/char/virtio-rng.ko: kernel/drivers/virtio/virtio.ko",
    ]
    assert modules.aliases(chosen) == "alias pci:v00001AF4d* virtio_pci\nalias virtio:d00000004v* virtio_rng\n"


def test_a_file_that_is_no_module_is_named(tmp_path):
    path = tmp_path / "kernel" / "x.ko"
    path.parent.mkdir()
    path.write_bytes(b"text")
    with pytest.raises(BootError, match="not a kernel module") as caught:
        modules.closure(tmp_path, ["x"])
    assert caught.value.path == str(path)


def test_scripts_of_the_guest_can_be_executed_and_an_overlay_wins(tmp_path):
    import gzip

    ours = entries(gzip.decompress(initrd.scripts()))
    for name in ("init", "etc/uevent", "etc/acpi/PWRF/00000080", "bin/edu_irqs", "bin/code_alias"):
        assert ours[name][0] == stat.S_IFREG | 0o755
    base = tmp_path / "initrd"
    archive = Archive()
    archive.file("run.sh", b"old")
    base.write_bytes(archive.finish() + b"\0")
    assert entries(initrd.overlay(base, {"run.sh": "new"}))["run.sh"] == (stat.S_IFREG | 0o755, b"new")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("SUITE", "VINTX_KERNEL", "VINTX_BUSYBOX", "VINTX_MODULES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "vintx" / "guests"


def test_a_guest_that_was_not_fetched_says_how_to_get_it(cache):
    with pytest.raises(linux.GuestMissing, match=r"make guests$"):
        linux.find()
    with pytest.raises(linux.GuestMissing, match=r"make guests SUITE=trixie$"):
        linux.find("trixie")
    assert linux.cache() == cache


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kernel", "/nowhere"], "VINTX_BUSYBOX"),
        (["--kernel", "/nowhere", "--busybox", "/nowhere"], "No such file"),
        (["--kernel", "SCRIPT", "--busybox", "SCRIPT"], "not a Linux bzImage"),
    ],
)
def test_files_that_will_not_do_are_refused_in_one_line(cache, tmp_path, capsys, arguments, says):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    assert main([str(script) if word == "SCRIPT" else word for word in arguments]) == 1
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1
    assert not (cache / "debian" / "guest.json").exists()


@pytest.mark.parametrize("program", ["edu_irqs", "code_alias"])
def test_programs_of_the_guest_are_what_their_sources_give(program, tmp_path):
    missing = [tool for tool in ("make", "as", "ld") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    subprocess.run(["make", "-s", "-C", SOURCES, f"BUILD={tmp_path}", str(tmp_path / program)], check=True)
    assert (tmp_path / program).read_bytes() == (SOURCES / "root/bin" / program).read_bytes()
