"""What five of the bugs should break, and why: written from the references before the search was asked.

This is data, not a copy of what the search says, and was committed before these bugs had a scene. What another one
should break is the `breaks` of its entry. Evidence as in `vmm/dispute/row.py`: S stated in the thread; E read in the
source or a commit; K common knowledge; R reconstructed.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Expected(NamedTuple):
    """`verdict`: what `vintx zoo` prints for the bug; for the fix it prints `clean`. `rule`: the invariant's number."""

    verdict: str
    rule: str
    ref: str
    grade: str
    says: str


EXPECTED: Final = {
    "Z43": Expected(
        "raised AttributeError",
        "S4",
        "e97f852fd456, CVE-2018-19407",
        "E",
        "kvm_ioapic_scan_entry takes the lock of a chip that there is not: a NULL pointer, which is None here, as in "
        "Z06 and Z52. What it takes is a CPU that runs with a scan requested, and no irqchip or one whose creation "
        "failed. With the fix the scan finds nothing to scan.",
    ),
    "Z45": Expected(
        "S11",
        "S11",
        "16e604a437c8",
        "E",
        "What is mapped to a host interrupt is told of a rise only. A line that rose and fell while the guest had it "
        "disabled is high in the cache, and is injected when the guest enables it. With the fix the line is asked, and "
        "a later rise is seen all the same.",
    ),
    "Z72": Expected(
        "S18",
        "S18",
        "QEMU 0446f81217",
        "E",
        "A device without an interrupt pin never listened to changes of the irqchip; if its realize fails later, or it "
        "is unplugged, it is taken from the list all the same.",
    ),
    "Z73": Expected(
        "L1",
        "L1",
        "QEMU c5478fea27",
        "E",
        "What the irqfd asserted is in the irqchip that is gone; the device is masked until an EOI that the new one "
        "has no reason to send. Routes are equal, so whoever looks at routes does nothing. With the fix the irqfd is "
        "made anew and the device unmasked, so that it interrupts again.",
    ),
    "Z79": Expected(
        "L2",
        "L2",
        "QEMU a5b39cd3f6",
        "E",
        "VFIO has no unmask for an interrupt that it does not mask: EINVAL, and the irqfd that was assigned already is "
        "given up for a handler in user space. No event is lost either way.",
    ),
}
