"""The second half of `vmm/dispute/expected.py`, from d on; see there."""

from __future__ import annotations

from typing import Final

from vmm.dispute.row import BUSY, FAILS, FOLLOWS, HOLDS, MERGED, REBINDS, TWO_OBJECTS, V5, Outcome, Row

MORE: Final = (
    Row(
        "d",
        "the eventfd assigned again, as an edge irqfd",
        'M. S. Tsirkin: "you also would need to protect against someone binding an irqfd that is not level"',
        outcomes=(
            Outcome(
                (V5, HOLDS),
                "S",
                "It pulses the user's source. The eoifd is still registered on the GSI; that it is not told of an EOI "
                "that is not its own is due to the asserted filter alone (R).",
                """
                I+ e1 g      | ok | 1 | low |
                E+ e2 e1     | ok | 1 | low |
                I- e1 g      | ok | 1 | low |
                I+ e1 g edge | ok | 1 | low |
                SIG e1       | ok | 1 | low |
                EOI g        | ok | 1 | low |
                """,
                breaks=("S1",),
            ),
            Outcome(
                (FAILS,),
                "S",
                "It is a level irqfd still.",
                """
                I+ e1 g      | ok    | 1 | low |
                E+ e2 e1     | ok    | 1 | low |
                I- e1 g      | EBUSY | 1 | low |
                I+ e1 g edge | EBUSY | 1 | low |
                SIG e1       | ok    | 1 | g   |
                EOI g        | ok    | 1 | low | e2
                """,
            ),
            Outcome(
                (FOLLOWS,),
                "S",
                "No eoifd is left.",
                """
                I+ e1 g      | ok | 1 | low |
                E+ e2 e1     | ok | 1 | low |
                I- e1 g      | ok | 0 | low |
                I+ e1 g edge | ok | 0 | low |
                SIG e1       | ok | 0 | low |
                EOI g        | ok | 0 | low |
                """,
            ),
            Outcome(
                (BUSY, REBINDS),
                "S",
                "Has to be refused whatever the flavour, or the hole stays open. (For a rule that rebinds: R.)",
                """
                I+ e1 g      | ok    | 1 | low |
                E+ e2 e1     | ok    | 1 | low |
                I- e1 g      | ok    | 1 | low |
                I+ e1 g edge | EBUSY | 1 | low |
                SIG e1       | ok    | 1 | low |
                EOI g        | ok    | 1 | low |
                """,
                breaks=("S1",),
            ),
            Outcome(
                (MERGED,),
                "E",
                "Nothing is left of the first.",
                """
                I+ e1 g e2   | ok | 0 | low |
                I- e1 g      | ok | 0 | low |
                I+ e1 g edge | ok | 0 | low |
                SIG e1       | ok | 0 | low |
                EOI g        | ok | 0 | low |
                """,
            ),
        ),
    ),
    Row(
        "d'",
        "another, edge irqfd on the GSI of a bound pair",
        'M. S. Tsirkin: "... binding an irqfd that is not level to same GSI": raised, not agreed',
        outcomes=(
            Outcome(
                TWO_OBJECTS,
                "R",
                "The pulse is ORed with the level source, which keeps the line high until its own EOI.",
                """
                I+ e1 g      | ok | 1 | low |
                E+ e2 e1     | ok | 1 | low |
                I+ e9 g edge | ok | 1 | low |
                SIG e1       | ok | 1 | g   |
                SIG e9       | ok | 1 | g   |
                EOI g        | ok | 1 | low | e2
                """,
            ),
            Outcome(
                (MERGED,),
                "E",
                "Edge and resample irqfds may share a GSI.",
                """
                I+ e1 g e2   | ok | 0 | low |
                I+ e9 g edge | ok | 0 | low |
                SIG e1       | ok | 0 | g   |
                SIG e9       | ok | 0 | g   |
                EOI g        | ok | 0 | low | e2
                """,
            ),
        ),
    ),
    Row(
        "e",
        "the counter-example as a loop, three source ids to give out",
        "what the counter-example comes to in a VMM that plugs and unplugs",
        sources=3,
        outcomes=(
            Outcome(
                (V5, BUSY, REBINDS, HOLDS),
                "S",
                "Out of ids with no irqfd in sight. (ENODEV for an irqfd that is not there is R.)",
                """
                I+ e1 g  | ok     | 1 | low |
                E+ f1 e1 | ok     | 1 | low |
                I- e1 g  | ok     | 1 | low |
                I+ e2 g  | ok     | 2 | low |
                E+ f2 e2 | ok     | 2 | low |
                I- e2 g  | ok     | 2 | low |
                I+ e3 g  | ok     | 3 | low |
                E+ f3 e3 | ok     | 3 | low |
                I- e3 g  | ok     | 3 | low |
                I+ e4 g  | EFAULT | 3 | low |
                E+ f4 e4 | ENODEV | 3 | low |
                I- e4 g  | ok     | 3 | low |
                """,
                breaks=("S1", "S20"),
            ),
            Outcome(
                (FAILS,),
                "S",
                "Stops at the first deassign; the pool is used up by irqfds that are there.",
                """
                I+ e1 g  | ok     | 1 | low |
                E+ f1 e1 | ok     | 1 | low |
                I- e1 g  | EBUSY  | 1 | low |
                I+ e2 g  | ok     | 2 | low |
                E+ f2 e2 | ok     | 2 | low |
                I- e2 g  | EBUSY  | 2 | low |
                I+ e3 g  | ok     | 3 | low |
                E+ f3 e3 | ok     | 3 | low |
                I- e3 g  | EBUSY  | 3 | low |
                I+ e4 g  | EFAULT | 3 | low |
                E+ f4 e4 | ENODEV | 3 | low |
                I- e4 g  | ok     | 3 | low |
                """,
            ),
            Outcome(
                (FOLLOWS,),
                "S",
                "Never fails.",
                """
                I+ e1 g  | ok | 1 | low |
                E+ f1 e1 | ok | 1 | low |
                I- e1 g  | ok | 0 | low |
                I+ e2 g  | ok | 1 | low |
                E+ f2 e2 | ok | 1 | low |
                I- e2 g  | ok | 0 | low |
                I+ e3 g  | ok | 1 | low |
                E+ f3 e3 | ok | 1 | low |
                I- e3 g  | ok | 0 | low |
                I+ e4 g  | ok | 1 | low |
                E+ f4 e4 | ok | 1 | low |
                I- e4 g  | ok | 0 | low |
                """,
            ),
            Outcome(
                (MERGED,),
                "E",
                "No dynamic ids.",
                """
                I+ e1 g f1 | ok | 0 | low |
                I- e1 g    | ok | 0 | low |
                I+ e2 g f2 | ok | 0 | low |
                I- e2 g    | ok | 0 | low |
                I+ e3 g f3 | ok | 0 | low |
                I- e3 g    | ok | 0 | low |
                I+ e4 g f4 | ok | 0 | low |
                I- e4 g    | ok | 0 | low |
                """,
            ),
        ),
    ),
    Row(
        "f",
        "an eoifd before its irqfd",
        "the eoifd learns its GSI and source from the irqfd",
        outcomes=(
            Outcome(
                TWO_OBJECTS,
                "R",
                "There is nothing to bind to. That it fails follows from the ABI; ENODEV is a choice.",
                """
                E+ e2 e1 | ENODEV | 0 | low |
                I+ e1 g  | ok     | 1 | low |
                """,
            ),
            Outcome((MERGED,), "E", "There is no second object."),
        ),
    ),
    Row(
        "g",
        "an eoifd on an edge irqfd",
        "`if (!source) { ret = -EINVAL; goto fail; }` in the patch that the thread quotes",
        outcomes=(
            Outcome(
                TWO_OBJECTS,
                "S",
                "An edge irqfd has no source id of its own.",
                """
                I+ e1 g edge | ok     | 0 | low |
                E+ e2 e1     | EINVAL | 0 | low |
                """,
            ),
            Outcome((MERGED,), "E", "There is no second object."),
        ),
    ),
    Row(
        "h",
        "two eoifds on one irqfd",
        "follows from an asserted flag that belongs to the source",
        outcomes=(
            Outcome(
                TWO_OBJECTS,
                "R",
                "The first to be called clears the flag; the other one is never told.",
                """
                I+ e1 g  | ok | 1 | low |
                E+ f1 e1 | ok | 1 | low |
                E+ f2 e1 | ok | 1 | low |
                SIG e1   | ok | 1 | g   |
                EOI g    | ok | 1 | low | f1/f2
                """,
                breaks=("S7",),
            ),
            Outcome(
                (MERGED,),
                "E",
                "Two irqfds on one GSI are the nearest: all that are on the GSI are told, idle ones too.",
                """
                I+ e1 g f1 | ok | 0 | low |
                I+ e3 g f2 | ok | 0 | low |
                SIG e1     | ok | 0 | g   |
                EOI g      | ok | 0 | low | f1 f2
                """,
            ),
        ),
    ),
    Row(
        "i",
        "the eoifd closed first",
        'A. Williamson: "it will still get de-assigned if they close the eoifd"',
        outcomes=(
            Outcome(
                TWO_OBJECTS,
                "S",
                "The irqfd stays, and nobody lowers what it asserts, until it is deassigned itself.",
                """
                I+ e1 g  | ok | 1 | low |
                E+ e2 e1 | ok | 1 | low |
                C e2     | ok | 1 | low |
                SIG e1   | ok | 1 | g   |
                EOI g    | ok | 1 | g   |
                I- e1 g  | ok | 0 | low |
                """,
            ),
            Outcome(
                (MERGED,),
                "E",
                "Closing a resamplefd does nothing: the line falls, and an eventfd is signalled that nobody can read.",
                """
                I+ e1 g e2 | ok | 0 | low |
                C e2       | ok | 0 | low |
                SIG e1     | ok | 0 | g   |
                EOI g      | ok | 0 | low | e2
                I- e1 g    | ok | 0 | low |
                """,
            ),
        ),
    ),
    Row(
        "i-ignored",
        "the eoifd closed first, where nobody watches for that",
        "said of v5 when v6 was posted: a close did nothing until the VM went",
        eoifd_close="ignored",
        outcomes=(
            Outcome(
                (V5, BUSY, REBINDS, HOLDS),
                "K",
                "The line is lowered, and an eventfd is signalled that nobody can read. After the irqfd the id is lost "
                "until the VM goes: no descriptor names the eoifd.",
                """
                I+ e1 g  | ok | 1 | low |
                E+ e2 e1 | ok | 1 | low |
                C e2     | ok | 1 | low |
                SIG e1   | ok | 1 | g   |
                EOI g    | ok | 1 | low | e2
                I- e1 g  | ok | 1 | low |
                VM       | ok | 0 | low |
                """,
                breaks=("S1", "S3"),
            ),
            Outcome(
                (FAILS,),
                "R",
                "The irqfd can never be deassigned again.",
                """
                I+ e1 g  | ok    | 1 | low |
                E+ e2 e1 | ok    | 1 | low |
                C e2     | ok    | 1 | low |
                SIG e1   | ok    | 1 | g   |
                EOI g    | ok    | 1 | low | e2
                I- e1 g  | EBUSY | 1 | low |
                VM       | ok    | 0 | low |
                """,
                breaks=("S3",),
            ),
            Outcome(
                (FOLLOWS,),
                "R",
                "It goes with the irqfd, as if it had been open.",
                """
                I+ e1 g  | ok | 1 | low |
                E+ e2 e1 | ok | 1 | low |
                C e2     | ok | 1 | low |
                SIG e1   | ok | 1 | g   |
                EOI g    | ok | 1 | low | e2
                I- e1 g  | ok | 0 | low |
                VM       | ok | 0 | low |
                """,
                breaks=("S3",),
            ),
            Outcome((MERGED,), "E", "See i: a resamplefd's close is always ignored."),
        ),
    ),
    Row(
        "j",
        "the VM goes with both assigned and the line high",
        "kvm_irqfd_release",
        outcomes=(
            Outcome(
                TWO_OBJECTS,
                "R",
                "Both are torn down, and the work is waited for.",
                """
                I+ e1 g  | ok | 1 | low |
                E+ e2 e1 | ok | 1 | low |
                SIG e1   | ok | 1 | g   |
                VM       | ok | 0 | low |
                """,
            ),
            Outcome(
                (MERGED,),
                "E",
                "All irqfds are deactivated, and the work is waited for.",
                """
                I+ e1 g e2 | ok | 0 | low |
                SIG e1     | ok | 0 | g   |
                VM         | ok | 0 | low |
                """,
            ),
        ),
    ),
    Row(
        "k",
        "the irqfd deassigned while its line is high",
        "what the two objects and the source between them come to; not put into words in the thread",
        outcomes=(
            Outcome(
                (V5, BUSY, REBINDS, HOLDS),
                "R",
                "The eoifd keeps the source, and the source keeps the line: it is high without an irqfd, until an EOI.",
                """
                I+ e1 g  | ok | 1 | low |
                E+ e2 e1 | ok | 1 | low |
                SIG e1   | ok | 1 | g   |
                I- e1 g  | ok | 1 | g   |
                EOI g    | ok | 1 | low | e2
                """,
                breaks=("S1", "S5"),
            ),
            Outcome(
                (FAILS,),
                "R",
                "Refused; the EOI ends the interrupt.",
                """
                I+ e1 g  | ok    | 1 | low |
                E+ e2 e1 | ok    | 1 | low |
                SIG e1   | ok    | 1 | g   |
                I- e1 g  | EBUSY | 1 | g   |
                EOI g    | ok    | 1 | low | e2
                """,
            ),
            Outcome(
                (FOLLOWS,),
                "R",
                "The line falls with the source. The EOI is reported to nobody: there will be no more indications.",
                """
                I+ e1 g  | ok | 1 | low |
                E+ e2 e1 | ok | 1 | low |
                SIG e1   | ok | 1 | g   |
                I- e1 g  | ok | 0 | low |
                EOI g    | ok | 0 | low |
                """,
            ),
            Outcome(
                (MERGED,),
                "E",
                "The last irqfd of a GSI lowers the shared source as it leaves.",
                """
                I+ e1 g e2 | ok | 0 | low |
                SIG e1     | ok | 0 | g   |
                I- e1 g    | ok | 0 | low |
                EOI g      | ok | 0 | low |
                """,
            ),
        ),
    ),
    Row(
        "l",
        "the order of QEMU's own INTx code: the eoifd first, then the irqfd",
        "awilliam/qemu-vfio, ac8585b4ac",
        outcomes=(
            Outcome(
                TWO_OBJECTS,
                "E",
                "Nothing to argue about.",
                """
                I+ e1 g  | ok | 1 | low |
                E+ e2 e1 | ok | 1 | low |
                SIG e1   | ok | 1 | g   |
                EOI g    | ok | 1 | low | e2
                E- e2 e1 | ok | 1 | low |
                I- e1 g  | ok | 0 | low |
                """,
            ),
            Outcome(
                (MERGED,),
                "E",
                "One call.",
                """
                I+ e1 g e2 | ok | 0 | low |
                SIG e1     | ok | 0 | g   |
                EOI g      | ok | 0 | low | e2
                I- e1 g    | ok | 0 | low |
                """,
            ),
        ),
    ),
)
