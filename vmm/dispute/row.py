"""A row of the dispute: a sequence, and what it comes to under each rule.

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
