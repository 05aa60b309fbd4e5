"""What each sequence of the dispute should come to under each rule: written from the thread, before asking the model.

The sequences are those that the July 2012 thread on "[PATCH v5 2/4] kvm: KVM_EOIFD, an eventfd for EOIs" argues with,
or leaves open. This is data, not a copy of what the model does: it was committed before the model was first run
against it, and a later change of an expectation wants an ADR that says why. `vmm/dispute/page.py` puts the two side by
side, and docs/dispute.md says who is right where they differ.

A line of `steps` reads

    operation          | result | ids | line | signalled

The state is the one after the operation and all work that it queued. `ids` counts the irq source ids that were given
out dynamically. `line` names the GSIs that some source holds high, or is `low`. `signalled` names the eventfds to which
an EOI was reported in this step; `f1/f2` is "one of the two".

    I+ e1 g            assign e1 as a level irqfd of GSI g         I+ e1 g edge    the same, edge
    I+ e1 g e2         one object with resamplefd e2               I- e1 g         deassign
    E+ e2 e1           eoifd e2, bound to the irqfd that e1 names  E- e2 e1        deassign
    C e1               close(2)                                    D e1 e1b        dup(2)
    SIG e1             write(2) of 1 to it                         EOI g           the guest ends the interrupt of g
    VM                 the last reference to the VM goes

Eventfds are opened by their first mention. Evidence, per outcome: S stated in the thread; E read in the kernel's or
QEMU's source or commit text; K common knowledge of the kernel, not read again; R reconstructed: v5's text for this is
not known.
"""

from __future__ import annotations

from typing import Final, NamedTuple

V5: Final = "eoifd-v5"
FAILS: Final = "deassign-fails"
FOLLOWS: Final = "eoifd-follows-irqfd"
BUSY: Final = "assign-busy"
REBINDS: Final = "assign-rebinds"
HOLDS: Final = "eoifd-holds-file"
MERGED: Final = "resample"

POLICIES: Final = (V5, FAILS, FOLLOWS, BUSY, REBINDS, HOLDS, MERGED)
TWO_OBJECTS: Final = POLICIES[:-1]


class Outcome(NamedTuple):
    """What a sequence comes to under `policies`. No `steps`: the sequence cannot be said in their interface."""

    policies: tuple[str, ...]
    grade: str
    says: str
    steps: str = ""
    breaks: tuple[str, ...] = ()


class Row(NamedTuple):
    """A sequence, from a pool of `sources` dynamic source ids. `ref` is where the thread or the history has it."""

    name: str
    title: str
    ref: str
    outcomes: tuple[Outcome, ...]
    sources: int = 62
    eoifd_close: str = "deassigns"


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
