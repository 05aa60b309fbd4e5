"""SIGINT for processes that tests start."""

import signal


def hear_interrupts() -> None:
    """In a child, before exec: a shell's background job ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
