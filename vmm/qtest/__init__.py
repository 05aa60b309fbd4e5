"""The qtest protocol: a test program drives a machine, one line a command, through `-qtest`.

    vintx-system-x86_64 -machine pc -accel qtest -qtest unix:q.sock,server=on,wait=on
    > inb 0x71
    < OK 0x0039

QEMU's own test programs (tests/qtest) speak it, unmodified. Under `-accel qtest` no instruction runs and time moves
only by `clock_step` and `clock_set`; under another engine the guest runs on beside the test and those two are not
there. `server` has the commands, `space` how they reach ports and memory, `intercept` the IRQ lines.

Ref: QEMU, docs/devel/testing/qtest.rst; vectors qemu-qmp-transcript.jsonl, session qtest-protocol.
"""

from vmm.qtest.server import QtestServer

__all__ = ["QtestServer"]
