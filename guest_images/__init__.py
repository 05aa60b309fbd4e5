"""Bare-metal guests: source, listing and built image of each.

Every image is a Multiboot 1 kernel of a few kilobytes that runs on this monitor and on QEMU alike
(`qemu-system-x86_64 -M pc -kernel image.elf -append "..." -serial stdio`). Each talks in lines on COM1, leaves
through isa-debug-exit (port 0xf4; a QEMU-like process ends with status ``value << 1 | 1``) and is described at the
top of its source. The images are committed with their sources; `make -C guest_images` rebuilds the same bytes.
"""

from __future__ import annotations

import re
from pathlib import Path

IMAGES = ("intx_loop", "hotplug", "smp", "smp_intx", "exits", "mailbox")
"""Names `path` knows."""

DEBUG_EXIT_PORT = 0xF4
EXIT_PASSED = 0
"""Written to isa-debug-exit when the guest found everything right."""
EXIT_FAILED = 1
"""Written when it did not, or met an interrupt or exception it did not ask for."""

UNEXPECTED = re.compile(
    r"^(?P<image>\w+): unexpected vector (?P<vector>\d+) error (?P<error>[0-9a-f]{8})"
    r" eip (?P<eip>[0-9a-f]{8}) cr2 (?P<cr2>[0-9a-f]{8})$",
    re.MULTILINE,
)
"""What any image prints before it leaves with EXIT_FAILED because of an exception or a stray vector."""

INTX_LOOP_START = "intx_loop: start"
INTX_LOOP_DONE = "intx_loop: done"
INTX_LOOP_NO_DEVICES = "intx_loop: no devices"
INTX_LOOP_DEVICE = re.compile(
    r"^intx_loop: dev (?P<device>[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) pin (?P<pin>\d+)"
    r" raised (?P<raised>\d+) handled (?P<handled>\d+) spurious (?P<spurious>\d+)$",
    re.MULTILINE,
)
"""One line per device, in order of slots. `spurious` counts interrupts of the pin at which nobody on it was pending."""
INTX_LOOP_BURST = re.compile(r"^intx_loop: burst (?P<rounds>\d+) cycles (?P<cycles>\d+)$", re.MULTILINE)
"""Only with `burst` on the command line: TSC cycles of all rounds."""
INTX_LOOP_VECTOR = 0x51
"""Vector of the first pin; the next pins follow in steps of 0x10."""

HOTPLUG_READY = "hotplug: ready"
"""From here on the guest listens to the SCI; what was plugged before is found as well."""
HOTPLUG_FOUND = re.compile(r"^hotplug: found slot (?P<slot>\d+)$", re.MULTILINE)
HOTPLUG_ADD = re.compile(r"^hotplug: add slot (?P<slot>\d+) pin (?P<pin>\d+)$", re.MULTILINE)
"""`pin` is the IOAPIC pin, 0 when the device has no INTx."""
HOTPLUG_ENABLED = re.compile(
    r"^hotplug: slot (?P<slot>\d+) id (?P<vendor>[0-9a-f]{4}):(?P<device>[0-9a-f]{4}) bar0 (?P<bar>[0-9a-f]{8})$",
    re.MULTILINE,
)
HOTPLUG_HANDLED = re.compile(
    r"^hotplug: slot (?P<slot>\d+) handled (?P<handled>\d+) spurious (?P<spurious>\d+)$", re.MULTILINE
)
HOTPLUG_HELD = re.compile(r"^hotplug: slot (?P<slot>\d+) line held high$", re.MULTILINE)
"""With `hold`: the device's line is high and its pin masked."""
HOTPLUG_REMOVE = re.compile(r"^hotplug: remove slot (?P<slot>\d+)$", re.MULTILINE)
HOTPLUG_EJECTED = re.compile(r"^hotplug: ejected slot (?P<slot>\d+)$", re.MULTILINE)
HOTPLUG_STUCK = re.compile(r"^hotplug: pin (?P<pin>\d+) stuck high$", re.MULTILINE)
"""A thousand interrupts in a row were for nobody: some line stayed high. The guest masked the pin."""
HOTPLUG_SUMMARY = re.compile(
    r"^hotplug: added (?P<added>\d+) ejected (?P<ejected>\d+) handled (?P<handled>\d+) spurious (?P<spurious>\d+)$",
    re.MULTILINE,
)
HOTPLUG_DONE = "hotplug: done"
HOTPLUG_QUIT = b"quit\n"
"""Sent to COM1: print the summary and leave."""
HOTPLUG_CYCLE_ADDED = re.compile(r"^\+(?P<slot>\d+)$", re.MULTILINE)
"""With `cycle`, instead of all words about an addition: the slot's device was enabled and driven."""
HOTPLUG_CYCLE_EJECTED = re.compile(r"^-(?P<slot>\d+)$", re.MULTILINE)

SMP_CPUS = re.compile(r"^smp: cpus (?P<cpus>\d+)$", re.MULTILINE)
"""What the MADT says, else fw_cfg."""
SMP_ONLINE = re.compile(r"^smp: online (?P<cpus>\d+)$", re.MULTILINE)
SMP_CPU = re.compile(r"^smp: cpu (?P<cpu>\d+) ipis (?P<ipis>\d+) broadcasts (?P<broadcasts>\d+)$", re.MULTILINE)
"""One line per application processor, by APIC id."""
SMP_CYCLES = re.compile(r"^smp: cycles (?P<cycles>\d+)$", re.MULTILINE)
SMP_DONE = "smp: done"

SMP_INTX_DEVICE = re.compile(
    r"^smp_intx: dev (?P<device>[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) pin (?P<pin>\d+)"
    r" raised (?P<raised>\d+) handled (?P<handled>\d+)$",
    re.MULTILINE,
)
SMP_INTX_CPU = re.compile(
    r"^smp_intx: cpu (?P<cpu>\d+) handled (?P<handled>\d+) spurious (?P<spurious>\d+)$", re.MULTILINE
)
"""One line per processor, by APIC id."""
SMP_INTX_DONE = "smp_intx: done"

EXITS_TIMED = re.compile(r"^exits: (?P<kind>[a-z-]+) (?P<count>\d+) cycles (?P<cycles>\d+)$", re.MULTILINE)
"""One line for each kind of exit: TSC cycles of all `count` of them."""
EXITS_HALT_NS = 100_000
"""What the timer of `halt` is set to: what a round takes beyond it is the cost of a wake-up."""
EXITS_DONE = "exits: done"

MAILBOX_READY = re.compile(r"^mailbox: pin (?P<pin>\d+) vector (?P<vector>\d+)\nmailbox: ready$", re.MULTILINE)
"""From here on commands are read from COM1: a number, a space, and take, eoi, mask, unmask, read or quit."""
MAILBOX_TOOK = re.compile(r"^mailbox: (?P<number>\d+) took (?P<vector>\d+)$", re.MULTILINE)
"""`vector` is 0 if nothing was pending."""
MAILBOX_ENDED = re.compile(r"^mailbox: (?P<number>\d+) ended$", re.MULTILINE)
MAILBOX_ENTRY = re.compile(r"^mailbox: (?P<number>\d+) entry (?P<entry>[0-9a-f]{8})$", re.MULTILINE)
"""The low half of the pin's redirection entry, after a `mask` or `unmask` if it was one."""
MAILBOX_DONE = "mailbox: done"


def path(name: str) -> Path:
    """The built image `name` (one of `IMAGES`). KeyError for another name."""
    if name not in IMAGES:
        raise KeyError(f"no guest image {name!r}; there are {', '.join(IMAGES)}")
    return Path(__file__).with_name(f"{name}.elf")
