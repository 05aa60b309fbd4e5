"""What becomes of an eoifd when its irqfd goes: the rules that were argued over in July 2012, and the one merged.

KVM_EOIFD named an irqfd and kept a reference of its irq source id. Deassign or close the irqfd first, and an eoifd is
left that can never fire again but still holds the id; assign the same eventfd again, and irqfd and eoifd speak of two
different ids. Each policy is one way out. They are small on purpose: irqfd and eoifd call these hooks, all of them
with irqfds.lock held, and everything else is the same code. What each comes to: docs/dispute.md.

| `irqfd_policy` | rule |
|---|---|
| `eoifd-v5` | as posted: the source id is kept by irqfd and eoifd; closing the eoifd is not noticed |
| `deassign-fails` | deassign of an irqfd is EBUSY while an eoifd is bound; close cannot be refused |
| `eoifd-follows-irqfd` | deassign or close of the irqfd deactivates its eoifds: the id lives as long as the irqfd |
| `assign-busy` | assigning an eventfd that an eoifd still names is EBUSY, level or not |
| `assign-rebinds` | such an assign takes the eoifd's source again; another GSI or an edge irqfd is EBUSY |
| `eoifd-holds-file` | the eoifd holds the irqfd's file: no POLLHUP while it lives |
| `resample` | merged in 3.8: one object, one assign, one shared source id; nothing to order (no eoifd) |

A rule with an eoifd takes options, `NAME:OPTION=VALUE:...`, as in `eoifd-v5:eoifd-close=deassigns`:

* `eoifd-close`: the last close of an eoifd `deassigns` it, as the thread says, or is `ignored` until the VM goes, as
  was said of version 5 when 6 was posted. The default is `ignored` for `eoifd-v5`, `deassigns` for the others.
* `deassert`: how an EOI knows that the line was ours. By an `asserted-flag` of the source (patch 2 of version 5, the
  default), or `clear-irq`, the old value of the source's bit at the chip (`kvm_clear_irq`, patches 3 and 4).
* `edge-on-gsi`, of `assign-busy`: an edge irqfd on the GSI of a bound pair is `allowed` (default) or `refused`.

The quotations below are of the thread under "[PATCH v5 2/4] kvm: KVM_EOIFD, an eventfd for EOIs", 16 to 18 July 2012.
"""

from __future__ import annotations

import errno
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from vmm.errors import ConfigError
from vmm.kernel.files import os_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.kernel.eoifd import EoiIrqfds, LevelIrqfd
    from vmm.kernel.files import EventfdCtx

DEFAULT_POLICY = "resample"


class Policy:
    """A rule: hooks that do nothing, and the options. `eoifd_close`: `deassigns` or `ignored`; `deassert`:
    `asserted-flag` or `clear-irq`. ConfigError for another value.
    """

    name: ClassVar[str]
    options: ClassVar[dict[str, tuple[str, ...]]] = {
        "eoifd-close": ("deassigns", "ignored"),
        "deassert": ("asserted-flag", "clear-irq"),
    }
    """What may be chosen, the default first."""
    holds_file: ClassVar[bool] = False
    """An eoifd holds a reference of the file of its irqfd's eventfd, not only of the context."""
    unbinds_eoifds: ClassVar[bool] = False
    """The interface says that an eoifd is unbound when its irqfd goes."""
    source_first: ClassVar[bool] = True
    """Assign takes a source id before it looks at its descriptors, as version 5 did."""

    def __init__(self, chosen: Mapping[str, str] = MappingProxyType({})) -> None:
        self.chosen = {name: chosen.get(name, values[0]) for name, values in self.options.items()}
        for name, value in chosen.items():
            if name not in self.options:
                raise ConfigError(
                    f"irqfd_policy {self.name!r} has no option {name!r}; it has {', '.join(self.options)}"
                )
            if value not in self.options[name]:
                raise ConfigError(f"irqfd_policy {self.name!r}: {name} is {' or '.join(self.options[name])}")
        self.notices_close = self.chosen["eoifd-close"] == "deassigns"
        """The last close of an eoifd's eventfd removes it (the POLLHUP machinery of version 6)."""
        self.clears_irq = self.chosen["deassert"] == "clear-irq"
        """An EOI asks the chip whether the source held the pin, not a flag of the source."""

    def __repr__(self) -> str:
        return f"<irqfd_policy {self.name}>"

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
    """As posted in version 5: nothing that happens to an irqfd concerns its eoifds. They share a counted source id, and
    the last of the two gives it back.

    For: irqfd and eoifd "may be closed in any order", and the id "becomes unused when neither irqfd nor eoifd are
    making use of it": use of the id is what is counted. An eoifd left behind can be deassigned by naming the irqfd's
    eventfd (its context is held for that) or, the author says, by closing it.
    Against: an eoifd whose irqfd is gone "has no meaning", and if the irqfd was closed nobody can name it. Holding
    "on the source id ... is an undocumented side effect": assign irqfd, assign eoifd, deassign irqfd, assign irqfd2
    can fail. The same eventfd assigned again gets another id than the eoifd listens to.
    """

    name = "eoifd-v5"
    options: ClassVar[dict[str, tuple[str, ...]]] = {**Policy.options, "eoifd-close": ("ignored", "deassigns")}


class DeassignFails(Policy):
    """Deassign of an irqfd fails while an eoifd is bound to it.

    For: "easy way - fail deassign". No zombie comes of a deassign, and the id is in use by an irqfd that is there.
    Against: "then close() and deassign are not the same". A close cannot be refused ("we can't fail a release, nobody
    checks close(3p) return"), so a close leaves what version 5 leaves.
    """

    name = "deassign-fails"

    def may_deassign(self, irqfds: EoiIrqfds, irqfd: LevelIrqfd) -> bool:
        return not irqfds.bound_to(irqfd)

    def may_bind(self, irqfd: LevelIrqfd) -> bool:
        # Else a deassign that was let through before the eoifd was listed leaves the zombie after all.
        return irqfd.active


class EoifdFollowsIrqfd(Policy):
    """Deassign or close of an irqfd deactivates the eoifds bound to it: the source id lives as long as the irqfd.

    For: "elegant way - shut down eoifd on irqfd deassign too". The id "is internal to kvm, users do not know about
    it"; "now you deassign or close irqfd. You will not get any more eoi indications": nothing is lost, and no count of
    users is needed.
    Against: "it's a bad idea to have one interface kill another from inside the kernel"; "unintended consequences
    should not be designed in". (Answer: "not kill merely deassign".)
    """

    name = "eoifd-follows-irqfd"
    unbinds_eoifds = True

    def irqfd_deactivated(self, irqfds: EoiIrqfds, irqfd: LevelIrqfd) -> None:
        bound = irqfds.bound_to(irqfd)
        i = 0
        while i < len(bound):
            bound[i].deactivate()
            i += 1

    def may_bind(self, irqfd: LevelIrqfd) -> bool:
        return irqfd.active


class AssignBusy(Policy):
    """Assigning an eventfd that an eoifd still names fails with EBUSY, level or edge.

    For: "I don't think close or de-assign have a bug, assign has a bug that it can allow re-assignment using an in-use
    eventfd. I think I'd rather fix that." "Just failing assign of this irqfd with EBUSY should be enough."
    Against: "you also would need to protect against someone binding an irqfd that is not level to same GSI" (refused
    here on the same eventfd, and on the GSI with `edge-on-gsi=refused`). The counter-example assigns another eventfd,
    which this rule does not see: the id is still gone.
    """

    name = "assign-busy"
    options: ClassVar[dict[str, tuple[str, ...]]] = {**Policy.options, "edge-on-gsi": ("allowed", "refused")}

    def admit(self, irqfds: EoiIrqfds, irqfd: LevelIrqfd, ctx: EventfdCtx) -> None:
        if irqfds.naming(ctx):
            raise os_error(errno.EBUSY, f"an eoifd names {ctx!r}")
        if not irqfd.level and self.chosen["edge-on-gsi"] == "refused" and irqfds.listening(irqfd.gsi):
            raise os_error(errno.EBUSY, f"an eoifd listens to GSI {irqfd.gsi}")


class AssignRebinds(Policy):
    """Assigning an eventfd that an eoifd still names takes the eoifd's source again. Another GSI or an edge irqfd is
    EBUSY: the source cannot serve them.

    For: a pair can be taken apart and put together again with the eoifd left in place, and works.
    Against: "I do not think we need to rebind to the same source id"; and as `assign-busy`, it leaves the id to an
    eoifd without an irqfd.
    """

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
    """The eoifd holds the irqfd's file, so that closing it comes to nothing while the eoifd lives.

    For: "POLLHUP is not invoked until eoifd is closed", so a close leaves no zombie.
    Against: "that's no better than the eventfd context we already hold": an explicit deassign is what it was. "What
    state of functionality is an irqfd that has been closed/de-assigned but is still attached to an eoifd? It can't
    continue to fire interrupts into the guest": but it does, for whoever else has the eventfd.
    """

    name = "eoifd-holds-file"
    holds_file = True


POLICIES: dict[str, Policy | None] = {
    DEFAULT_POLICY: None,
    **{p.name: p() for p in (EoifdV5, DeassignFails, EoifdFollowsIrqfd, AssignBusy, AssignRebinds, EoifdHoldsFile)},
}
"""By name; None: there is no KVM_EOIFD."""


def policy(name: str) -> Policy | None:
    """The policy of that name, with the options that follow it; ConfigError with the names there are."""
    bare, *texts = name.split(":")
    try:
        found = POLICIES[bare]
    except KeyError:
        raise ConfigError(f"irqfd_policy {bare!r} is not known; there are {', '.join(POLICIES)}") from None
    if not texts:
        return found
    if found is None:
        raise ConfigError(f"irqfd_policy {bare!r} has no options")
    chosen: dict[str, str] = {}
    for text in texts:
        option, equals, value = text.partition("=")
        if not equals or option in chosen:
            raise ConfigError(f"irqfd_policy {name!r}: {text!r} should be OPTION=VALUE, each option once")
        chosen[option] = value
    return type(found)(chosen)
