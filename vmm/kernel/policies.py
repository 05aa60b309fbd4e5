"""What becomes of an eoifd when its irqfd goes: the rules that were argued over in July 2012, and the one merged.

KVM_EOIFD named an irqfd and kept a reference of its irq source id. Deassign or close the irqfd first, and an eoifd is
left that can never fire again but still holds the id; assign the same eventfd again, and irqfd and eoifd speak of two
different ids. Each policy is one way out. They are small on purpose: irqfd and eoifd call these hooks, all of them
with irqfds.lock held, and everything else is the same code.

| `irqfd_policy` | rule |
|---|---|
| `eoifd-v5` | as posted: the source id is kept by irqfd and eoifd; closing the eoifd is not noticed |
| `deassign-fails` | deassign of an irqfd is EBUSY while an eoifd is bound; close cannot be refused |
| `eoifd-follows-irqfd` | deassign or close of the irqfd deactivates its eoifds: the id lives as long as the irqfd |
| `assign-busy` | assigning an eventfd that an eoifd still names is EBUSY, level or not |
| `assign-rebinds` | such an assign takes the eoifd's source again; another GSI or an edge irqfd is EBUSY |
| `eoifd-holds-file` | the eoifd holds the irqfd's file: no POLLHUP while it lives |
| `resample` | merged in 3.8: one object, one assign, one shared source id; nothing to order (no eoifd) |
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from vmm.errors import ConfigError
from vmm.kernel.files import os_error

if TYPE_CHECKING:
    from vmm.kernel.eoifd import EoiIrqfds, LevelIrqfd
    from vmm.kernel.files import EventfdCtx

DEFAULT_POLICY = "resample"


class Policy:
    """As posted in version 5: nothing that happens to an irqfd concerns its eoifds."""

    name: ClassVar[str] = "eoifd-v5"
    notices_close: ClassVar[bool] = True
    """The last close of an eoifd's eventfd removes it (the POLLHUP machinery of version 6)."""
    holds_file: ClassVar[bool] = False
    """An eoifd holds a reference of the file of its irqfd's eventfd, not only of the context."""
    source_first: ClassVar[bool] = True
    """Assign takes a source id before it looks at its descriptors, as version 5 did."""

    def may_deassign(self, irqfds: EoiIrqfds, irqfd: LevelIrqfd) -> bool:  # noqa: ARG002
        """Whether KVM_IRQFD may deassign `irqfd` now."""
        return True

    def irqfd_deactivated(self, irqfds: EoiIrqfds, irqfd: LevelIrqfd) -> None:
        """`irqfd` was deassigned or its eventfd closed; its shutdown is queued."""

    def admit(self, irqfds: EoiIrqfds, irqfd: LevelIrqfd, ctx: EventfdCtx) -> None:
        """`irqfd` is about to be assigned to `ctx`. OSError EBUSY to refuse."""

    def may_bind(self, irqfd: LevelIrqfd) -> bool:  # noqa: ARG002
        """Whether an eoifd that looked `irqfd` up earlier may still be bound to it."""
        return True


class EoifdV5(Policy):
    """As posted, and without noticing that an eoifd was closed."""

    notices_close = False


class DeassignFails(Policy):
    """The easy way: fail deassign. Close and deassign are then not the same."""

    name = "deassign-fails"

    def may_deassign(self, irqfds: EoiIrqfds, irqfd: LevelIrqfd) -> bool:
        return not irqfds.bound_to(irqfd)

    def may_bind(self, irqfd: LevelIrqfd) -> bool:
        # Else a deassign that was let through before the eoifd was listed leaves the zombie after all.
        return irqfd.active


class EoifdFollowsIrqfd(Policy):
    """The elegant way: an irqfd takes its eoifds along, whichever way it goes."""

    name = "eoifd-follows-irqfd"

    def irqfd_deactivated(self, irqfds: EoiIrqfds, irqfd: LevelIrqfd) -> None:
        bound = irqfds.bound_to(irqfd)
        i = 0
        while i < len(bound):
            bound[i].deactivate()
            i += 1

    def may_bind(self, irqfd: LevelIrqfd) -> bool:
        return irqfd.active


class AssignBusy(Policy):
    """Fix assign: an eventfd that an eoifd still names is in use."""

    name = "assign-busy"

    def admit(self, irqfds: EoiIrqfds, irqfd: LevelIrqfd, ctx: EventfdCtx) -> None:  # noqa: ARG002
        if irqfds.naming(ctx):
            raise os_error(errno.EBUSY, f"an eoifd names {ctx!r}")


class AssignRebinds(Policy):
    """Fix assign the other way: the new irqfd speaks with the source that the eoifd listens to."""

    name = "assign-rebinds"
    source_first = False

    def admit(self, irqfds: EoiIrqfds, irqfd: LevelIrqfd, ctx: EventfdCtx) -> None:
        named = irqfds.naming(ctx)
        if not named:
            if irqfd.level:
                irqfd.source = irqfds.new_source(irqfd.gsi)
            return
        source = named[0].source
        if source is None or not irqfd.level or source.gsi != irqfd.gsi:
            raise os_error(errno.EBUSY, f"an eoifd names {ctx!r} for another use")
        irqfd.source = source.get()


class EoifdHoldsFile(Policy):
    """The eoifd holds the irqfd's file, so that closing it comes to nothing while the eoifd lives."""

    name = "eoifd-holds-file"
    holds_file = True


POLICIES: dict[str, Policy | None] = {
    DEFAULT_POLICY: None,
    **{p.name: p() for p in (EoifdV5, DeassignFails, EoifdFollowsIrqfd, AssignBusy, AssignRebinds, EoifdHoldsFile)},
}
"""By name; None: there is no KVM_EOIFD."""


def policy(name: str) -> Policy | None:
    """The policy of that name; ConfigError with the names there are."""
    try:
        return POLICIES[name]
    except KeyError:
        raise ConfigError(f"irqfd_policy {name!r} is not known; there are {', '.join(POLICIES)}") from None
