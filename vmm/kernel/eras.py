"""What the host kernel's irqfd code did at a time. An era is a set of facts; the code asks for the fact, not the name.

Ref: Linux commits named at each field.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Era:
    """One kernel's behaviour. `name` is what `irqfd_era` takes."""

    name: str
    resample: bool = True
    """KVM_IRQFD_FLAG_RESAMPLE and the shared source id 1 (7a84428af7ca, 3.8)."""
    eoifd: bool = False
    """KVM_EOIFD and KVM_IRQFD_FLAG_LEVEL with a source id each, as posted in July 2012 and never merged."""
    poll_under_lock: bool = False
    """Assign polled the eventfd under irqfds.lock; until 684a0b719ddb (3.15)."""
    checks_irqchip: bool = True
    """RESAMPLE without a full in-kernel irqchip is refused (654f1f13ea56, 5.2)."""
    consumes: bool = True
    """The wake-up takes the event first and for itself: priority, exclusive, counter drained (b59e00dd8cda, 5.11)."""
    resample_on_unmask: bool = True
    """Unmasking a pin with a latched level asks its resampler instead of delivering (fef8f2b90edb, 6.3)."""
    unique: bool = True
    """An eventfd has one irqfd on the whole host, not per VM (2cdd64cbf990, 6.17)."""
    fixed_pit_source: bool = True
    """The in-kernel PIT has source id 2; before it asked for a free one (61423c413a74, 6.17)."""


_OLD = {"poll_under_lock": True, "checks_irqchip": False, "consumes": False}
_LATE = {"resample_on_unmask": False, "unique": False, "fixed_pit_source": False}

ERAS = {
    era.name: era
    for era in (
        Era("v5", resample=False, eoifd=True, **_OLD, **_LATE),
        Era("3.8", **_OLD, **_LATE),
        Era("5.11", **_LATE),
        Era("6.3", unique=False, fixed_pit_source=False),
        Era("6.18"),
    )
}
DEFAULT_ERA = "6.18"


def era(name: str) -> Era:
    """The era of that name; ConfigError with the names there are."""
    try:
        return ERAS[name]
    except KeyError:
        raise ConfigError(f"irqfd_era {name!r} is not known; there are {', '.join(ERAS)}") from None
