"""What each rule should break in each scene, over all orders: written from the references before the search was asked.

This is data, not a copy of what the model does. It was committed before the first run of `vintx explore --matrix`; a
later change of an expectation wants a decision record in docs/adr. Where the search finds something else,
docs/dispute.md says why.

`row` is the row of docs/dispute.md that the scene of `vmm/explore/scenarios` plays in every order. Invariants are those
of docs/explore.md: S1 and S5 in their strict forms, asked wherever nothing is queued or running, S1' where nobody can
act any more (an id that is in use can be given back by somebody). Evidence as in `vmm/dispute/row.py`: S stated in the
thread; E read in the source or a commit; K common knowledge of the kernel; R reconstructed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vmm.dispute.row import BUSY, FAILS, FOLLOWS, HOLDS, MERGED, POLICIES, REBINDS, TWO_OBJECTS, V5

ZOMBIES: Final = (V5, BUSY, REBINDS, HOLDS)
"""The rules under which a deassign leaves an eoifd its source."""


class Verdict(NamedTuple):
    """What the orders of a scene break under `policies`, and why that is expected."""

    policies: tuple[str, ...]
    breaks: tuple[str, ...]
    grade: str
    says: str


class Case(NamedTuple):
    """A scene with `sources` irq source ids to give out (None: all). Rules in no verdict: it cannot be said there."""

    scenario: str
    scene: str
    row: str
    ref: str
    verdicts: tuple[Verdict, ...]
    sources: int | None = 1

    @property
    def name(self) -> str:
        """As `--matrix` names it."""
        return f"{self.scenario}/{self.scene}"

    def expected(self, policy: str) -> Verdict | None:
        """The verdict under a rule, None if the scene cannot be said there."""
        return next((verdict for verdict in self.verdicts if policy in verdict.policies), None)


def _rest(*verdicts: Verdict, says: str, grade: str = "E", of: tuple[str, ...] = POLICIES) -> tuple[Verdict, ...]:
    """The verdicts, and that the other rules break nothing."""
    named = {policy for verdict in verdicts for policy in verdict.policies}
    return (*verdicts, Verdict(tuple(policy for policy in of if policy not in named), (), grade, says))


CASES: Final = (
    Case(
        "dispute",
        "other-eventfd",
        "a",
        "M. S. Tsirkin, 18 Jul 2012: the counter-example, its calls in any order",
        _rest(
            Verdict(
                (V5,),
                ("S1", "S1'", "S20"),
                "S",
                "The eoifd keeps the id, so an assign fails that has nothing to do with it. Posted as it was, a close "
                "of the eoifd is not noticed (K), and then nobody can give the id back.",
            ),
            Verdict(
                (BUSY, REBINDS, HOLDS),
                ("S1", "S20"),
                "S",
                "It is another eventfd, which fixing assign does not see; and a file that is held is not closed here.",
            ),
            says="An id lives exactly as long as its irqfd, or deassign is refused.",
            grade="S",
        ),
    ),
    Case(
        "dispute",
        "same-eventfd",
        "a'",
        "the same eventfd is assigned again while an eoifd names it, and fires",
        _rest(
            Verdict(
                (V5, HOLDS), ("S1", "S7"), "S", "The new irqfd has a new id; the eoifd listens to the old one for ever."
            ),
            Verdict((BUSY, REBINDS), ("S1",), "S", "Refused, or bound again to the same id; the zombie keeps it."),
            says="No eoifd is left that could listen to the wrong id.",
            grade="S",
        ),
        sources=2,
    ),
    Case(
        "dispute",
        "close",
        "b",
        "the irqfd's eventfd is closed; compared with a deassign in its stead",
        _rest(
            Verdict(
                (V5,),
                ("S1", "S1'", "S5"),
                "S",
                "A zombie that nobody can name, and its line may be high. Deassign leaves the same: the difference is "
                "only who can name it, so S3 holds.",
            ),
            Verdict((FAILS,), ("S1", "S3", "S5"), "S", "close(2) cannot be refused, so it is not deassign any more."),
            Verdict((BUSY, REBINDS), ("S1", "S5"), "S", "A zombie; closing the eoifd would remove it."),
            Verdict((HOLDS,), ("S3",), "S", "Its file is held, so the close is none, and deassign is one."),
            says="Both go with the close as they would with a deassign.",
            grade="S",
        ),
    ),
    Case(
        "dispute",
        "close-both",
        "b",
        "both eventfds are closed by two threads; nothing may be left",
        _rest(
            Verdict((V5,), ("S1", "S1'"), "K", "The eoifd's close is not noticed: the id is lost until the VM goes."),
            Verdict((FAILS, BUSY, REBINDS), ("S1",), "S", "Only between the two closes."),
            says="The file that is held goes with the eoifd; or the eoifd with the irqfd; or there is one object.",
            grade="R",
        ),
    ),
    Case(
        "dispute",
        "assign-twice",
        "c",
        "two threads assign one eventfd at once",
        _rest(says="The duplicate check looks at the context, under the lock that lists it."),
        sources=2,
    ),
    Case(
        "dispute",
        "edge-again",
        "d",
        'M. S. Tsirkin: "you also would need to protect against someone binding an irqfd that is not level"',
        _rest(
            Verdict(
                (V5, HOLDS),
                ("S1",),
                "S",
                "The hole is there; that the zombie is not told of a foreign EOI is due to the asserted filter (R).",
            ),
            Verdict((BUSY, REBINDS), ("S1",), "S", "Refused whatever the flavour; the zombie is there all the same."),
            says="No zombie.",
            grade="S",
        ),
    ),
    Case(
        "dispute",
        "edge-beside",
        "d'",
        "another, edge irqfd on the GSI of a bound pair, both fire",
        _rest(says="The pulse is ORed with the level source, which stays until its own EOI.", grade="R"),
    ),
    Case(
        "dispute",
        "loop",
        "e",
        "the counter-example as a loop: two ids to give out, three turns",
        _rest(
            Verdict(ZOMBIES, ("S1", "S20"), "S", "Out of ids with no irqfd in sight."),
            says="Never fails; or the pool is used up by irqfds that are there.",
            grade="S",
        ),
        sources=2,
    ),
    Case(
        "dispute",
        "bind",
        "f",
        "assign, bind and deassign by three threads: the look-up and the binding are two steps",
        _rest(
            Verdict(ZOMBIES, ("S1",), "S", "As a; and the eoifd may be born an orphan."),
            Verdict(
                (FAILS,), ("S1",), "R", "Between look-up and binding nothing is bound, so deassign is not refused."
            ),
            says="A binding to an irqfd that went meanwhile is refused; or there is nothing to bind.",
            grade="R",
        ),
        sources=2,
    ),
    Case(
        "dispute",
        "eoifd-of-edge",
        "g",
        "`if (!source) { ret = -EINVAL; goto fail; }` in the patch that the thread quotes",
        (Verdict(TWO_OBJECTS, (), "S", "EINVAL, or ENODEV before there is an irqfd; nothing is left of either."),),
    ),
    Case(
        "dispute",
        "two-eoifds",
        "h",
        "follows from an asserted flag that belongs to the source",
        _rest(
            Verdict(TWO_OBJECTS, ("S7",), "R", "The first to be called clears the flag; the other one is never told."),
            says="All members of the GSI are told.",
        ),
        sources=2,
    ),
    Case(
        "dispute",
        "eoifd-closed",
        "i",
        'A. Williamson: "it will still get de-assigned if they close the eoifd"',
        _rest(
            Verdict(
                (V5,),
                ("S3",),
                "K",
                "Posted as it was the close is not noticed: the line is lowered, and an eventfd is signalled that "
                "nobody can read. A deassign would have removed it.",
            ),
            Verdict(
                (FAILS, FOLLOWS, BUSY, REBINDS, HOLDS),
                ("L5",),
                "S",
                "The irqfd stays, and nobody lowers what it asserts. Also where the eoifd follows its irqfd: the irqfd "
                "does not follow the eoifd.",
            ),
            says="Closing a resamplefd disables nothing: the line falls.",
        ),
    ),
    Case(
        "dispute",
        "eoifd-deassigned",
        "i",
        "the same with a deassign of the eoifd: half of a pair is no level interrupt",
        _rest(
            Verdict(TWO_OBJECTS, ("L5",), "R", "As the close, under every rule."),
            says="It cannot be said: there is no second object.",
        ),
    ),
    Case(
        "dispute",
        "vm-closed",
        "j",
        "kvm_irqfd_release, with an interrupt under way and a guest that still ends it",
        _rest(says="All are torn down, and the work is waited for.", grade="R"),
    ),
    Case(
        "dispute",
        "deassign",
        "k",
        "the irqfd deassigned while its interrupt is under way; not put into words in the thread",
        _rest(
            Verdict(ZOMBIES, ("S1", "S5"), "R", "The eoifd keeps the source, and the source the line, until an EOI."),
            says="Refused; or the line falls with the source; or the last of a GSI lowers the shared source.",
            grade="R",
        ),
    ),
    Case(
        "dispute",
        "eoifd-first",
        "l",
        "awilliam/qemu-vfio, ac8585b4ac: the order of QEMU's own INTx code, with an interrupt under way",
        _rest(says="Nothing to argue about: the irqfd lowers the line as it goes.", grade="E"),
    ),
    Case(
        "dispute",
        "resamplefd-closed",
        "i",
        "Documentation/virt/kvm/api.rst: closing the resamplefd does not disable the irqfd; VFIO sees the hang-up",
        (
            Verdict(
                (MERGED,),
                ("L6",),
                "E",
                "KVM signals a context that VFIO does not listen to any more: the mask that the interrupt left stays.",
            ),
        ),
        sources=None,
    ),
    Case(
        "dispute",
        "unmask",
        "-",
        "fef8f2b90edb (6.3): an unmask asks the resampler and clears IRR, while user space holds the line too",
        _rest(
            Verdict(
                (MERGED,), ("S8",), "R", "IRR is cleared, and the bit of the other source stays in the pin's bitmap."
            ),
            says="Kernels of that time deliver what is pending at the unmask.",
            grade="K",
        ),
    ),
    Case(
        "irqfd-life",
        "deassign",
        "k",
        "Documentation/virt/kvm/api.rst, KVM_IRQFD",
        (Verdict((MERGED,), (), "E", "One object: nothing to order."),),
    ),
    Case(
        "irqfd-life",
        "close",
        "b",
        "eventfd_release, irqfd_wakeup: POLLHUP",
        (Verdict((MERGED,), (), "E", "As a deassign, but asynchronous."),),
    ),
    Case(
        "irqfd-life",
        "two-removers",
        "b",
        "irqfd_is_active under irqfds.lock",
        (Verdict((MERGED, FOLLOWS), (), "E", "It is shut down once."),),
    ),
    Case(
        "irqfd-life",
        "for-ever",
        "k",
        "flush_workqueue, irqfd_shutdown: a device that interrupts for ever does not keep its irqfd from going",
        _rest(
            Verdict(ZOMBIES, ("S1", "S5"), "R", "As k: the eoifd keeps the source, and the source the line."),
            Verdict((FAILS,), ("L4",), "S", "The deassign is refused, so the irqfd is there for ever."),
            says="wqh.lock is queued for, and whoever waits at it gets it, however often the device signals.",
            grade="K",
        ),
    ),
    Case(
        "irqfd-life",
        "for-ever-close",
        "b",
        "eventfd_release, irqfd_wakeup: POLLHUP; the same with a close",
        _rest(
            Verdict((V5,), ("S1", "S1'", "S5"), "S", "As b: a zombie that nobody can name."),
            Verdict((FAILS, BUSY, REBINDS), ("S1", "S5"), "S", "As b: a zombie; closing the eoifd would remove it."),
            Verdict((HOLDS,), ("L4",), "S", "Its file is held, so the close is none: the irqfd is there for ever."),
            says="The shutdown queues for wqh.lock, and then nobody listens.",
            grade="K",
        ),
    ),
    Case(
        "irqfd-life",
        "for-ever-assign",
        "-",
        "kernel/locking: spin locks are queued, a mutex is handed to its first waiter (MUTEX_FLAG_HANDOFF, 4.10)",
        _rest(says="Others' calls take irqfds.lock and resampler_lock again and again, and nobody waits in vain."),
        sources=None,
    ),
    Case(
        "irqfd-life",
        "for-ever-neighbour",
        "-",
        "irqfd_resampler_ack, synchronize_srcu_expedited: a grace period is of the readers that there are",
        _rest(says="Who comes and goes on the GSI keeps no EOI from its device.", grade="R"),
        sources=None,
    ),
    Case(
        "shared-gsi",
        "early-eoi",
        "-",
        "irqfd_resampler_ack: de-assert once, then notify all",
        (Verdict((MERGED,), (), "E", "What a notification provokes is not lowered again."),),
        sources=None,
    ),
    Case(
        "shared-gsi",
        "unplug",
        "-",
        "irqfd_resampler_shutdown: only the last member lowers the line",
        (Verdict((MERGED,), (), "E", "The neighbour's interrupt survives."),),
        sources=None,
    ),
    *(
        Case(family, "for-ever", "-", ref, (Verdict((MERGED,), (), "E", says),), sources=None)
        for family, ref, says in (
            ("shared-gsi", "7a84428af7ca", "Each is served and unmasked again and again, and then all is quiet."),
            ("mask-eoi", "fef8f2b90edb (6.3)", "Whoever masks the pin meanwhile, the device is served and unmasked."),
        )
    ),
    *(
        Case("mask-eoi", scene, "-", ref, (Verdict((MERGED,), (), grade, says),), sources=None)
        for scene, ref, grade, says in (
            (
                "one-shot",
                "fef8f2b90edb (6.3)",
                "E",
                "The unmask asks the device, which asserts again if it still wants.",
            ),
            (
                "masked-by-another",
                "ioapic_write_indirect",
                "E",
                "A masked pin keeps its line; the unmask delivers or asks.",
            ),
            (
                "two-sources",
                "7a84428af7ca",
                "E",
                "The EOI lowers the resampler's source only; the other delivers again.",
            ),
            ("moved", "kvm_ioapic_update_eoi_one", "E", "The EOI is matched by vector, whichever CPU writes it."),
            (
                "other-vector",
                "82093AA, 3.2.4",
                "E",
                "A change to edge clears Remote IRR, as guests that have to do it know.",
            ),
            (
                "directed-eoi",
                "Intel SDM vol. 3, 11.8.5",
                "E",
                "Without a broadcast Remote IRR is the guest's to clear.",
            ),
            (
                "storm",
                "ioapic_lazy_update_eoi, eoi_inject",
                "E",
                "Postponed, not lost; and a mask or a low line is heard.",
            ),
        )
    ),
    *(
        Case("unplug", scene, "-", ref, (Verdict((MERGED,), (), grade, says),), sources=None)
        for scene, ref, grade, says in (
            ("golden", "vfio_intx_disable, hw/vfio/pci.c", "E", "The order that QEMU has."),
            (
                "any-order",
                "the same steps",
                "R",
                "What user space does in the wrong order is its loss, never the kernel's.",
            ),
            ("any-order-eoi", "the same steps", "R", "And the guest may end its interrupt between any two."),
            ("reset", "vfio_pci_reset", "E", "What the device asserts afterwards comes through."),
            ("neighbour", "irqfd_resampler_shutdown", "E", "Only the last member lowers the line."),
        )
    ),
    *(
        Case("reroute", scene, "-", ref, (Verdict((MERGED,), (), grade, says),), sources=None)
        for scene, ref, grade, says in (
            ("same", "kvm_set_irq_routing", "E", "The same table again is no event."),
            (
                "between-messages",
                "irqfd_update, irqfds.lock",
                "E",
                "Each signal arrives by the old route or the new one.",
            ),
            ("to-message", "irqfd_update, irqfds.lock", "E", "After the deassign nothing comes."),
            ("moved", "vfio_intx_update, hw/vfio/pci.c", "E", "The device is asked again on the new pin."),
            ("for-ever", "kvm_set_irq_routing", "E", "The same table is no event, and its grace periods end."),
        )
    ),
    Case("vm-close", "release", "j", "kvm_irqfd_release", _rest(says="All are torn down, and the work is waited for.")),
    Case(
        "vm-close",
        "any-order",
        "j",
        "kvm_irqfd_release, irqfd_wakeup: POLLHUP",
        _rest(
            Verdict((V5, FAILS, BUSY, REBINDS), ("S1",), "S", "A zombie between the irqfd's close and the VM's."),
            says="Nothing is left, and each is shut down once.",
        ),
    ),
    Case(
        "vm-close", "assign", "j", "kvm_irqfd_release", _rest(says="What is assigned to a VM that closes goes with it.")
    ),
    Case(
        "vm-close",
        "destroy",
        "-",
        "kvm_arch_destroy_vm: the irqchip's delayed works end before the CPUs are freed",
        (Verdict((MERGED,), (), "K", "The postponed delivery is cancelled first."),),
        sources=None,
    ),
    Case(
        "vm-close",
        "device",
        "j",
        "kvm_irqfd_release, vfio_intx_disable",
        (Verdict((MERGED,), (), "E", "VFIO's side is taken down after KVM's, and nothing is left of either."),),
        sources=None,
    ),
)
