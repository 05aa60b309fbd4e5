"""The committed images are what their sources give, and bootable."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import guest_images
from vmm.boot import prepare

TOOLS = ("make", "as", "ld", "objdump")
SOURCES = Path(guest_images.__file__).parent


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory) -> Path:
    """A directory with freshly built images."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    directory = tmp_path_factory.mktemp("images")
    subprocess.run(["make", "-s", "-C", SOURCES, f"BUILD={directory}", "all"], check=True)
    return directory


@pytest.mark.parametrize("name", guest_images.IMAGES)
def test_rebuilding_gives_the_committed_bytes(rebuilt, name):
    assert (rebuilt / f"{name}.elf").read_bytes() == guest_images.path(name).read_bytes()


@pytest.mark.parametrize("name", guest_images.IMAGES)
def test_listing_shows_the_entry_of_its_image(name):
    state = prepare(guest_images.path(name), None, "", 8 << 20)
    listing = (SOURCES / f"{name}.lst").read_text()
    assert f"{state.registers.rip:08x} <_start>:" in listing


@pytest.mark.parametrize("name", guest_images.IMAGES)
def test_image_is_a_multiboot_kernel_for_a_small_machine(name):
    state = prepare(guest_images.path(name), None, "", 2 << 20)
    assert state.protocol == "multiboot"


def test_an_unknown_image_is_an_error_that_names_the_known_ones():
    with pytest.raises(KeyError, match=", ".join(guest_images.IMAGES)):
        guest_images.path("none")
