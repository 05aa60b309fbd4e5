"""vfio-user: a PCI device in one process, the machine that has it in another, a UNIX socket between them.

    protocol    every message, as a declaration
    stream      bytes and descriptors to messages; no socket
    transport   the one place that touches a socket
    dma         the client's memory as a device sees it
    interrupts  INTx as a level made of edges
    endpoint    a PCI function that answers messages
    server      the loop that serves one
    client      the machine's side

Ref: QEMU docs/interop/vfio-user.rst; docs/vfio-user.md
"""
