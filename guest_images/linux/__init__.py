"""A Linux guest: Debian's own cloud kernel, and an initrd of busybox with our scripts.

`make guests` (or `python -m guest_images.linux`) fetches and builds it into a cache outside the repository; nothing of
it is part of vintx. `find` tells where it is. docs/linux.md says what is in it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from vmm.errors import VintxError

DEFAULT = "debian"
"""The name of the guest from the host's own Debian, or from the files that were given."""
KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"
READY = "vintx: init reached"
"""The first line of our init."""
PROMPT = "vintx# "


class GuestMissing(VintxError):
    """There is no such guest in the cache."""


class LinuxGuest(NamedTuple):
    """Where a guest's files are. `release`: what `uname -r` says; `packages`: what it was made from."""

    kernel: Path
    initrd: Path
    release: str
    packages: tuple[str, ...]


def cache() -> Path:
    """Where guests are kept: `$XDG_CACHE_HOME/vintx/guests`, else below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vintx" / "guests"


def find(name: str = DEFAULT) -> LinuxGuest:
    """A guest of the cache: `debian`, or a suite that was fetched. GuestMissing says how to get it."""
    folder = cache() / name
    try:
        about = json.loads((folder / "guest.json").read_text())
    except OSError:
        how = "make guests" if name == DEFAULT else f"make guests SUITE={name}"
        raise GuestMissing(f"no Linux guest {name!r} in {cache()}: {how}") from None
    _refresh(folder)
    return LinuxGuest(folder / "vmlinuz", folder / "initrd.gz", about["release"], tuple(about["packages"]))


def _refresh(folder: Path) -> None:
    """Make initrd.gz of what was fetched and of our own files as they are now."""
    from guest_images.linux import initrd

    wanted = (folder / "base.cpio.gz").read_bytes() + initrd.scripts()
    place = folder / "initrd.gz"
    if not place.exists() or place.read_bytes() != wanted:
        new = folder / f"initrd.{os.getpid()}"
        new.write_bytes(wanted)
        new.replace(place)


def fetch(suite: str | None = None) -> LinuxGuest:
    """Get kernel and busybox through apt and build the guest. `suite`: another Debian than the host's (`trixie`)."""
    from guest_images.linux.packages import Apt

    root = cache()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix="unpacked-") as temporary:
        unpacked = Path(temporary)
        packages = Apt(root / "apt").unpack(BUSYBOX_PACKAGE, unpacked)
        packages += Apt(root / "apt", suite).unpack(KERNEL_PACKAGE, unpacked)
        kernels = sorted(unpacked.glob("boot/vmlinuz-*")) + sorted(unpacked.glob("**/lib/modules/*/vmlinuz"))
        if not kernels:
            raise GuestMissing(f"{', '.join(packages)}: no boot/vmlinuz-* in them")
        folders = [*unpacked.glob("lib/modules/*"), *unpacked.glob("usr/lib/modules/*")]
        busybox = next(path for path in unpacked.glob("**/bin/busybox") if path.is_file())
        return build(kernels[-1], busybox, folders[0] if folders else None, suite or DEFAULT, packages)


def build(
    kernel: Path, busybox: Path, modules: Path | None, name: str = DEFAULT, packages: list[str] | None = None
) -> LinuxGuest:
    """Build the guest `name` from files: a bzImage, a static busybox, and its lib/modules/RELEASE if it has modules."""
    from guest_images.linux import initrd
    from vmm.boot.linux import version

    content = kernel.read_bytes()
    release = version(content, str(kernel)).split()[0]
    folder = cache() / name
    folder.mkdir(parents=True, exist_ok=True)
    base = initrd.build(busybox, release, modules)
    (folder / "guest.json").unlink(missing_ok=True)
    shutil.copyfile(kernel, folder / "vmlinuz")
    shutil.copyfile(busybox, folder / "busybox")
    (folder / "base.cpio.gz").write_bytes(base)
    about = {"release": release, "packages": packages or [str(kernel), str(busybox)]}
    (folder / "guest.json").write_text(json.dumps(about, indent=2) + "\n")
    return find(name)
