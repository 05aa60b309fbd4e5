"""What the server of a device traces, beside what the device itself does. `device` is the device's id or driver."""

from __future__ import annotations

from vmm.trace import Event


class VfioUserClient(Event):
    """A client came, or went."""

    device: str
    connected: bool


class VfioUserRegionRead(Event):
    """The client read a region: 0 to 5 are the BARs, 7 is configuration space."""

    device: str
    region: int
    offset: int
    size: int
    value: int


class VfioUserRegionWrite(Event):
    """The client writes a region."""

    device: str
    region: int
    offset: int
    size: int
    value: int


class VfioUserIntxTrigger(Event):
    """The trigger eventfd of INTx is signalled, and INTx masked until the client unmasks it."""

    device: str


class VfioUserIntxUnmask(Event):
    """The client unmasks INTx; if `level` is high then the trigger is signalled again."""

    device: str
    level: bool
