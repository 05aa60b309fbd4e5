"""The guest's first root file system, in two archives: busybox and a few kernel modules, then what is in `root/`."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from guest_images.linux import modules
from guest_images.linux.newc import Archive
from vmm.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).with_name("root")
FOLDERS: Final = ("dev", "proc", "sys", "mnt", "tmp", "run", "var/log", "etc", "bin", "sbin")
MODULES: Final = (
    "button",
    "evdev",
    "uio_pci_generic",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
)
"""What the guest may load; whatever these need comes along."""


def build(busybox: Path, release: str, folder: Path | None) -> bytes:
    """The first archive, compressed. `folder`: the kernel's lib/modules/RELEASE, None for a guest without modules."""
    archive = Archive()
    for name in FOLDERS:
        archive.directory(name)
    archive.directory("tmp", 0o1777)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("bin/busybox", _executable(busybox), 0o755)
    for applet in _applets(busybox):
        if applet != "busybox":
            archive.link(f"bin/{applet}", "busybox")
    if folder is not None:
        chosen = modules.closure(folder, MODULES)
        place = f"lib/modules/{release}"
        for module in chosen:
            archive.file(f"{place}/{module.path}", module.content)
        archive.file(f"{place}/modules.dep", modules.dependencies(chosen).encode())
        archive.file(f"{place}/modules.alias", modules.aliases(chosen).encode())
    return gzip.compress(archive.finish(), 6, mtime=0)


def scripts() -> bytes:
    """The second archive, compressed: our own files."""
    archive = Archive()
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.is_dir():
            archive.directory(name)
        else:
            content = path.read_bytes()
            archive.file(name, content, 0o755 if content.startswith((b"#!", b"\x7fELF")) else 0o644)
    return gzip.compress(archive.finish(), 6, mtime=0)


def overlay(initrd: Path, files: Mapping[str, bytes | str]) -> bytes:
    """`initrd` with more files in it: Linux unpacks archives that follow each other. A script there can be /run.sh."""
    archive = Archive()
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        archive.file(name, data, 0o755)
    base = initrd.read_bytes()
    return base + bytes(-len(base) % 4) + archive.finish()


def _executable(busybox: Path) -> bytes:
    content = busybox.read_bytes()
    if content[:5] != b"\x7fELF\x02":
        raise BootError("no 64-bit program: a busybox for x86-64 is needed", str(busybox))
    if b"/lib64/ld-linux" in content[:4096]:
        raise BootError("linked with shared libraries, which the guest has not: busybox-static is needed", str(busybox))
    return content


def _applets(busybox: Path) -> list[str]:
    try:
        done = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BootError(f"does not say what it can do ({error})", str(busybox)) from error
    return done.stdout.split()
