"""`make guests`: fetch or take a kernel and a busybox, and build the Linux guest in the cache."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from guest_images.linux import GuestMissing, build, fetch
from vmm.errors import VintxError


def main(argv: list[str] | None = None) -> int:
    """Exit status 1, and one line that says why, where there is no apt and no files were given."""
    parser = argparse.ArgumentParser(
        prog="python -m guest_images.linux", description="Build the Linux guest that tests and benches use."
    )
    environment = os.environ.get
    parser.add_argument("--suite", default=environment("SUITE") or None, help="another Debian: trixie, sid (SUITE)")
    for name, what in (
        ("kernel", "a bzImage, instead of Debian's"),
        ("busybox", "a static busybox"),
        ("modules", "the kernel's lib/modules/RELEASE"),
    ):
        variable = f"VINTX_{name.upper()}"
        parser.add_argument(
            f"--{name}", type=Path, default=Path(environment(variable, "")), help=f"{what} ({variable})"
        )
    arguments = parser.parse_args(argv)
    nowhere = Path()
    try:
        if arguments.kernel == nowhere:
            guest = fetch(arguments.suite)
        elif arguments.busybox == nowhere:
            raise GuestMissing("with a kernel of your own give a busybox as well: VINTX_BUSYBOX=/bin/busybox")
        else:
            modules = None if arguments.modules == nowhere else arguments.modules
            guest = build(arguments.kernel, arguments.busybox, modules)
    except (VintxError, OSError) as error:
        print(f"guests: {error}", file=sys.stderr)
        return 1
    print(f"kernel  {guest.kernel}  ({guest.release})")
    print(f"initrd  {guest.initrd}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
