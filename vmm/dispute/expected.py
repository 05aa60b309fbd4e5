"""What each sequence of the dispute should come to under each rule: written from the thread, before asking the model.

The sequences are those that the July 2012 thread on "[PATCH v5 2/4] kvm: KVM_EOIFD, an eventfd for EOIs" argues with,
or leaves open. This is data, not a copy of what the model does: it was committed before the model was first run
against it, and a later change of an expectation wants an ADR that says why. `vmm/dispute/page.py` puts the two side by
side, and docs/dispute.md says who is right where they differ.

The notation is that of `vmm/dispute/row.py`; `expected_more.py` has the second half of the rows.
"""

from __future__ import annotations

from typing import Final

from vmm.dispute.expected_more import MORE
from vmm.dispute.row import BUSY, FAILS, FOLLOWS, HOLDS, MERGED, REBINDS, TWO_OBJECTS, V5, Outcome, Row

ROWS: Final = (
    Row(
        "a",
        "the thread's counter-example: deassign the irqfd, assign another one, close the eoifd; there is one source id",
        "M. S. Tsirkin, 18 Jul 2012: `assign irqfd, assign eoifd, deassign irqfd, assign irqfd2, close eoifd`",
        sources=1,
        outcomes=(
            Outcome(
                (V5, BUSY, REBINDS, HOLDS),
                "S",
                "The eoifd hangs on to the source id, so an assign can fail that has nothing to do with it.",
                """
                I+ e1 g | ok     | 1 | low |
                E+ e2 e1| ok     | 1 | low |
                I- e1 g | ok     | 1 | low |
                I+ e3 g | EFAULT | 1 | low |
                C e2    | ok     | 0 | low |
                """,
                breaks=("S1", "S20"),
            ),
            Outcome(
                (FAILS,),
                "S",
                "Deassign is refused. The id is in use by an irqfd that user space can see.",
                """
                I+ e1 g | ok     | 1 | low |
                E+ e2 e1| ok     | 1 | low |
                I- e1 g | EBUSY  | 1 | low |
                I+ e3 g | EFAULT | 1 | low |
                C e2    | ok     | 1 | low |
                """,
            ),
            Outcome(
                (FOLLOWS,),
                "S",
                "The eoifd goes with its irqfd, and the id with them.",
                """
                I+ e1 g | ok     | 1 | low |
                E+ e2 e1| ok     | 1 | low |
                I- e1 g | ok     | 0 | low |
                I+ e3 g | ok     | 1 | low |
                C e2    | ok     | 1 | low |
                """,
            ),
            Outcome(
                (MERGED,),
                "E",
                "One object; the source id is the same for all, so there is no pool to run dry.",
                """
                I+ e1 g e2 | ok  | 0 | low |
                I- e1 g    | ok  | 0 | low |
                I+ e3 g e4 | ok  | 0 | low |
                C e2       | ok  | 0 | low |
                """,
            ),
        ),
    ),
    Row(
        "a-plenty",
        "the same with ids to spare: the order works, and the leak is there all the same",
        "as above",
        outcomes=(
            Outcome(
                (V5, BUSY, REBINDS, HOLDS),
                "S",
                "A source id without an irqfd, until the eoifd is closed. Nobody notices.",
                """
                I+ e1 g | ok | 1 | low |
                E+ e2 e1| ok | 1 | low |
                I- e1 g | ok | 1 | low |
                I+ e3 g | ok | 2 | low |
                C e2    | ok | 1 | low |
                """,
                breaks=("S1",),
            ),
            Outcome(
                (FAILS,),
                "S",
                "Deassign is refused; both irqfds stay.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                I- e1 g | EBUSY | 1 | low |
                I+ e3 g | ok    | 2 | low |
                C e2    | ok    | 2 | low |
                """,
            ),
            Outcome(
                (FOLLOWS,),
                "S",
                "As with one id.",
                """
                I+ e1 g | ok | 1 | low |
                E+ e2 e1| ok | 1 | low |
                I- e1 g | ok | 0 | low |
                I+ e3 g | ok | 1 | low |
                C e2    | ok | 1 | low |
                """,
            ),
            Outcome(
                (MERGED,),
                "E",
                "As with one id.",
                """
                I+ e1 g e2 | ok  | 0 | low |
                I- e1 g    | ok  | 0 | low |
                I+ e3 g e4 | ok  | 0 | low |
                C e2       | ok  | 0 | low |
                """,
            ),
        ),
    ),
    Row(
        "a'",
        "the same eventfd assigned again while the eoifd still names it; then the eoifd is assigned again",
        'A. Williamson: "assign has a bug that it can allow re-assignment using an in-use eventfd"',
        outcomes=(
            Outcome(
                (V5, HOLDS),
                "S",
                "The irqfd has a new source, the eoifd listens on the old one: the EOI lowers nothing and tells "
                "nobody. The line is stuck, the device dead. (That a second eoifd of the same pair is EBUSY is R.)",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                I- e1 g | ok    | 1 | low |
                I+ e1 g | ok    | 2 | low |
                SIG e1  | ok    | 2 | g   |
                EOI g   | ok    | 2 | g   |
                E+ e2 e1| EBUSY | 2 | g   |
                EOI g   | ok    | 2 | g   |
                """,
                breaks=("S1", "S7"),
            ),
            Outcome(
                (FAILS,),
                "S",
                "Nothing was taken apart, so nothing can be put together wrongly.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                I- e1 g | EBUSY | 1 | low |
                I+ e1 g | EBUSY | 1 | low |
                SIG e1  | ok    | 1 | g   |
                EOI g   | ok    | 1 | low | e2
                E+ e2 e1| EBUSY | 1 | low |
                EOI g   | ok    | 1 | low |
                """,
            ),
            Outcome(
                (FOLLOWS,),
                "S",
                "The user has to assign the eoifd again, and can: then it works.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                I- e1 g | ok    | 0 | low |
                I+ e1 g | ok    | 1 | low |
                SIG e1  | ok    | 1 | g   |
                EOI g   | ok    | 1 | g   |
                E+ e2 e1| ok    | 1 | g   |
                EOI g   | ok    | 1 | low | e2
                """,
            ),
            Outcome(
                (BUSY,),
                "S",
                "The second assign is refused, as long as an eoifd names the eventfd.",
                """
                I+ e1 g | ok     | 1 | low |
                E+ e2 e1| ok     | 1 | low |
                I- e1 g | ok     | 1 | low |
                I+ e1 g | EBUSY  | 1 | low |
                SIG e1  | ok     | 1 | low |
                EOI g   | ok     | 1 | low |
                E+ e2 e1| ENODEV | 1 | low |
                EOI g   | ok     | 1 | low |
                """,
                breaks=("S1",),
            ),
            Outcome(
                (REBINDS,),
                "S",
                "The second assign takes up the source that the eoifd kept.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                I- e1 g | ok    | 1 | low |
                I+ e1 g | ok    | 1 | low |
                SIG e1  | ok    | 1 | g   |
                EOI g   | ok    | 1 | low | e2
                E+ e2 e1| EBUSY | 1 | low |
                EOI g   | ok    | 1 | low |
                """,
                breaks=("S1",),
            ),
            Outcome(
                (MERGED,),
                "E",
                "The resamplefd comes with the assign; it cannot be forgotten.",
                """
                I+ e1 g e2 | ok | 0 | low |
                I- e1 g    | ok | 0 | low |
                I+ e1 g e2 | ok | 0 | low |
                SIG e1     | ok | 0 | g   |
                EOI g      | ok | 0 | low | e2
                EOI g      | ok | 0 | low |
                """,
            ),
        ),
    ),
    Row(
        "a-",
        "the eoifd deassigned after its irqfd",
        'A. Williamson: "It can still be deassigned by passing irqfd=1"',
        outcomes=(
            Outcome(
                (V5, BUSY, REBINDS, HOLDS),
                "S",
                "It works, because the eoifd keeps the irqfd's context to be matched by, and the user has it open.",
                """
                I+ e1 g | ok | 1 | low |
                E+ e2 e1| ok | 1 | low |
                I- e1 g | ok | 1 | low |
                E- e2 e1| ok | 0 | low |
                """,
                breaks=("S1",),
            ),
            Outcome(
                (FAILS,),
                "S",
                "The eoifd has to go first; after that the irqfd can.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                I- e1 g | EBUSY | 1 | low |
                E- e2 e1| ok    | 1 | low |
                I- e1 g | ok    | 0 | low |
                """,
            ),
            Outcome(
                (FOLLOWS,),
                "R",
                "There is nothing left to deassign. ENOENT is a choice: what v5 gives here is not known.",
                """
                I+ e1 g | ok     | 1 | low |
                E+ e2 e1| ok     | 1 | low |
                I- e1 g | ok     | 0 | low |
                E- e2 e1| ENOENT | 0 | low |
                """,
            ),
            Outcome((MERGED,), "E", "There is no second object."),
        ),
    ),
    Row(
        "b",
        "the irqfd closed, not deassigned",
        'M. S. Tsirkin: "What if instead we close irqfd 1?"',
        outcomes=(
            Outcome(
                (V5, BUSY, REBINDS),
                "S",
                "Nobody can name the eoifd any more; its id is gone until it is closed itself.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                C e1    | ok    | 1 | low |
                E- e2 e1| EBADF | 1 | low |
                C e2    | ok    | 0 | low |
                """,
                breaks=("S1",),
            ),
            Outcome(
                (FAILS,),
                "S",
                "close(2) cannot be refused: as posted, and no longer the same as deassign.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                C e1    | ok    | 1 | low |
                E- e2 e1| EBADF | 1 | low |
                C e2    | ok    | 0 | low |
                """,
                breaks=("S1", "S3"),
            ),
            Outcome(
                (FOLLOWS,),
                "S",
                "Both are gone.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                C e1    | ok    | 0 | low |
                E- e2 e1| EBADF | 0 | low |
                C e2    | ok    | 0 | low |
                """,
            ),
            Outcome(
                (HOLDS,),
                "S",
                "The close does not reach the irqfd, which lives, and can be fired by whoever else has it, until the "
                "eoifd goes.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                C e1    | ok    | 1 | low |
                E- e2 e1| EBADF | 1 | low |
                C e2    | ok    | 0 | low |
                """,
                breaks=("S3",),
            ),
            Outcome(
                (MERGED,),
                "E",
                "The irqfd is gone, and its link in the resampler.",
                """
                I+ e1 g e2 | ok | 0 | low |
                C e1       | ok | 0 | low |
                C e2       | ok | 0 | low |
                """,
            ),
        ),
    ),
    Row(
        "b-dup",
        "the irqfd closed while a dup of it is open: not the last close, so not a close",
        "file semantics: POLLHUP comes with the last reference to the file",
        outcomes=(
            Outcome(
                TWO_OBJECTS,
                "E",
                "Nothing happens to the irqfd, and the dup names the eoifd as well as the first descriptor did.",
                """
                I+ e1 g   | ok | 1 | low |
                E+ e2 e1  | ok | 1 | low |
                D e1 e1b  | ok | 1 | low |
                C e1      | ok | 1 | low |
                E- e2 e1b | ok | 1 | low |
                C e1b     | ok | 0 | low |
                """,
            ),
            Outcome(
                (MERGED,),
                "E",
                "The same.",
                """
                I+ e1 g e2 | ok | 0 | low |
                D e1 e1b   | ok | 0 | low |
                C e1       | ok | 0 | low |
                SIG e1b    | ok | 0 | g   |
                EOI g      | ok | 0 | low | e2
                C e1b      | ok | 0 | low |
                """,
            ),
        ),
    ),
    Row(
        "c",
        "one eventfd for two GSIs",
        "the duplicate check of KVM_IRQFD looks at the context only",
        outcomes=(
            Outcome(
                (V5, HOLDS),
                "R",
                "EBUSY while the irqfd is assigned. After that the check does not see it, and case a' is open.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                I+ e1 h | EBUSY | 1 | low |
                I- e1 g | ok    | 1 | low |
                I+ e1 h | ok    | 2 | low |
                """,
                breaks=("S1",),
            ),
            Outcome(
                (FAILS,),
                "R",
                "EBUSY, and it stays EBUSY because deassign fails.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                I+ e1 h | EBUSY | 1 | low |
                I- e1 g | EBUSY | 1 | low |
                I+ e1 h | EBUSY | 1 | low |
                """,
            ),
            Outcome(
                (FOLLOWS,),
                "R",
                "EBUSY until it is deassigned, free after that.",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                I+ e1 h | EBUSY | 1 | low |
                I- e1 g | ok    | 0 | low |
                I+ e1 h | ok    | 1 | low |
                """,
            ),
            Outcome(
                (BUSY, REBINDS),
                "R",
                "EBUSY also after deassign: an eoifd names it (and a source cannot be taken to another GSI).",
                """
                I+ e1 g | ok    | 1 | low |
                E+ e2 e1| ok    | 1 | low |
                I+ e1 h | EBUSY | 1 | low |
                I- e1 g | ok    | 1 | low |
                I+ e1 h | EBUSY | 1 | low |
                """,
                breaks=("S1",),
            ),
            Outcome(
                (MERGED,),
                "E",
                "EBUSY until it is deassigned.",
                """
                I+ e1 g e2 | ok    | 0 | low |
                I+ e1 h e2 | EBUSY | 0 | low |
                I- e1 g    | ok    | 0 | low |
                I+ e1 h e2 | ok    | 0 | low |
                """,
            ),
        ),
    ),
    *MORE,
)
