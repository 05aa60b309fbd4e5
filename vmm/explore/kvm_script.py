#!/usr/bin/env python3
"""Plays an order of calls on the real /dev/kvm and prints what each comes to. Needs Python 3.10 on x86-64, no more.

    python3 FILE [TIMES]

The groups of calls come one after the other. A group with several threads is one in which calls overlap: which of them
is first is chance then, so the order is played TIMES times (1,000 unless told otherwise; else once).

Exit status: 0 the outcome of the story was seen, 1 it was not, 2 there is no KVM to ask.
"""

# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import collections
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
import threading
import time
from typing import Any

# What is played: begin
CASE: dict[str, Any] = {
    "story": "an example: assign, signal, take, EOI",
    "eventfds": [("e1", 0, False), ("e2", 0, False)],
    "irqfds": [],
    # Groups of threads of calls: who, what, and what it came to in the story (None: that is not known).
    "groups": [
        [[("user", "I+ e1 e2", "ok"), ("user", "SIG e1", "ok")]],
        [[("vcpu", "take", "ok"), ("vcpu", "EOI", "ok")]],
    ],
    # In the end; of eventfds the counters. What is not known is left out.
    "state": {"IRR": 0, "remote IRR": 0, "LAPIC IRR": 0, "LAPIC ISR": 0, "e1": 0, "e2": 1},
}
# What is played: end

GSI, VECTOR, CANARY_GSI = 5, 0x51, 4093
ENTRY = 0x8000 | VECTOR  # level-triggered, fixed, to APIC 0, unmasked
KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE, KVM_CREATE_VCPU, KVM_CREATE_IRQCHIP, KVM_RUN = (
    0xAE01,
    0xAE04,
    0xAE41,
    0xAE60,
    0xAE80,
)
KVM_GET_API_VERSION, KVM_SET_USER_MEMORY_REGION, KVM_IRQ_LINE = 0xAE00, 0x4020AE46, 0x4008AE61
KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, KVM_SET_GSI_ROUTING = 0xC208AE62, 0x8208AE63, 0x4008AE6A
KVM_IRQFD, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS = 0x4020AE76, 0x4090AE82, 0x8138AE83, 0x4138AE84
KVM_GET_LAPIC, KVM_SET_LAPIC = 0x8400AE8E, 0x4400AE8F
DEASSIGN, RESAMPLE = 1, 2
LAPIC_ISR, LAPIC_IRR, LAPIC_SVR, LAPIC_LINT0 = 0x100, 0x200, 0xF0, 0x350

# A guest that does one write for each KVM_RUN, in protected mode without paging:
#   1: mov ebx, [0x2000]; mov eax, [0x2004]; mov [ebx], eax; out 0x10, al; jmp 1b
CODE = bytes.fromhex("8b1d00200000 a104200000 8903 e610 ebef")
libc = ctypes.CDLL(None, use_errno=True)


class Kvm:
    """A VM with one CPU that runs guest code only to write a register."""

    def __init__(self) -> None:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        if fcntl.ioctl(kvm, KVM_GET_API_VERSION) != 12:
            raise OSError(errno.ENOTTY, "/dev/kvm is not KVM of API version 12")
        self.vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        self.memory = mmap.mmap(-1, 0x10000)
        self.view = (ctypes.c_char * 0x10000).from_buffer(self.memory)
        region = struct.pack("<IIQQQ", 0, 0, 0, 0x10000, ctypes.addressof(self.view))
        fcntl.ioctl(self.vm, KVM_SET_USER_MEMORY_REGION, region)
        fcntl.ioctl(self.vm, KVM_CREATE_IRQCHIP)
        self.cpu = fcntl.ioctl(self.vm, KVM_CREATE_VCPU, 0)
        self.run_area = mmap.mmap(self.cpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE))
        os.close(kvm)
        self.memory[0x1000 : 0x1000 + len(CODE)] = CODE
        sregs = bytearray(312)
        fcntl.ioctl(self.cpu, KVM_GET_SREGS, sregs)
        for n in range(6):  # cs ds es fs gs ss: flat, 4 GiB
            kind = (11, 1, 0, 1, 1, 0, 1, 0) if n == 0 else (3, 1, 0, 1, 1, 0, 1, 0)
            struct.pack_into("<QIH10B", sregs, 24 * n, 0, 0xFFFFFFFF, 8 if n == 0 else 16, *kind, 0, 0)
        struct.pack_into("<Q", sregs, 224, 0x11)  # cr0: protected mode
        fcntl.ioctl(self.cpu, KVM_SET_SREGS, sregs)
        fcntl.ioctl(self.cpu, KVM_SET_REGS, struct.pack("<18Q", *[0] * 16, 0x1000, 2))
        page = self.lapic()
        struct.pack_into("<I", page, LAPIC_SVR, 0x1FF)
        struct.pack_into("<I", page, LAPIC_LINT0, 0x10000)
        fcntl.ioctl(self.cpu, KVM_SET_LAPIC, page)
        self.route(GSI)
        self.write_entry(ENTRY)
        self.canary = os.eventfd(0, os.EFD_CLOEXEC)
        self.irqfd(self.canary, CANARY_GSI)

    def irqfd(self, fd: int, gsi: int, flags: int = 0, resamplefd: int = 0) -> None:
        packed = struct.pack("<4I16x", fd & 0xFFFFFFFF, gsi, flags, resamplefd & 0xFFFFFFFF)
        fcntl.ioctl(self.vm, KVM_IRQFD, packed)

    def route(self, pin: int) -> None:
        entries = [(GSI, 2, pin), (CANARY_GSI, 0, 7)]
        table = struct.pack("<II", len(entries), 0)
        for gsi, chip, number in entries:
            table += struct.pack("<4I2I24x", gsi, 1, 0, 0, chip, number)
        fcntl.ioctl(self.vm, KVM_SET_GSI_ROUTING, bytearray(table.ljust(1100, b"\0")))

    def chip(self, number: int) -> bytearray:
        state = bytearray(520)
        struct.pack_into("<I", state, 0, number)
        fcntl.ioctl(self.vm, KVM_GET_IRQCHIP, state)
        return state

    def lapic(self) -> bytearray:
        page = bytearray(1024)
        fcntl.ioctl(self.cpu, KVM_GET_LAPIC, page)
        return page

    def guest_writes(self, address: int, value: int) -> None:
        struct.pack_into("<II", self.memory, 0x2000, address, value)
        while libc.ioctl(self.cpu, ctypes.c_ulong(KVM_RUN), 0) < 0:
            if ctypes.get_errno() != errno.EINTR:
                raise OSError(ctypes.get_errno(), "KVM_RUN")
        reason = struct.unpack_from("<I", self.run_area, 8)[0]
        if reason != 2:
            raise RuntimeError(f"the guest left with exit {reason}")

    def write_entry(self, entry: int) -> None:
        self.guest_writes(0xFEC00000, 0x10 + 2 * GSI)
        self.guest_writes(0xFEC00010, entry)

    def settle(self) -> None:
        """Tear-downs are over, and injections that this CPU queued: the canary's, on the PIC, was queued after them."""
        self.irqfd(self.canary, CANARY_GSI + 1, DEASSIGN)
        os.write(self.canary, struct.pack("<Q", 1))
        until = time.monotonic() + 30
        while True:
            state = self.chip(0)
            if state[9] & 0x80 and not state[8] & 0x80:
                break
            if time.monotonic() > until:
                raise RuntimeError("an injection did not happen in 30 s")
            os.sched_yield()
        state[9] &= 0x7F
        fcntl.ioctl(self.vm, KVM_SET_IRQCHIP, state)

    def close(self) -> None:
        for fd in (self.canary, self.cpu, self.vm):
            if fd >= 0:
                os.close(fd)


def bit(page: bytearray, register: int) -> int:
    return page[register + VECTOR // 32 * 16 + VECTOR % 32 // 8] >> VECTOR % 8 & 1


class Play:
    """The order, once."""

    def __init__(self) -> None:
        self.cpus = sorted(os.sched_getaffinity(0))
        self.kvm = Kvm()
        self.fds = {}
        self.results: dict[int, str] = {}  # by the identity of a call
        for name, count, semaphore in CASE["eventfds"]:
            self.fds[name] = os.eventfd(count, os.EFD_CLOEXEC | os.EFD_NONBLOCK | semaphore * os.EFD_SEMAPHORE)
        for name, gsi, resamplefd in CASE["irqfds"]:
            self.assign(name, resamplefd, gsi)

    def assign(self, name: str, resamplefd: str, gsi: int = GSI) -> None:
        flags = RESAMPLE if resamplefd else 0
        self.kvm.irqfd(self.fds[name], gsi, flags, self.fds[resamplefd] if resamplefd else 0)

    def call(self, call: tuple[str, str, str | None]) -> None:
        kind, *words = call[1].split()
        try:
            self.act(kind, words)
            self.results[id(call)] = "ok"
        except OSError as error:
            self.results[id(call)] = errno.errorcode.get(error.errno or 0, str(error))

    def act(self, kind: str, words: list[str]) -> None:
        kvm = self.kvm
        if kind == "I+":
            self.assign(words[0], "" if words[1:] in ([], ["edge"]) else words[1])
        elif kind == "I-":
            kvm.irqfd(self.fds[words[0]], GSI, DEASSIGN)
        elif kind == "C":
            fd, self.fds[words[0]] = self.fds[words[0]], -1
            os.close(fd)
        elif kind == "SIG":
            os.write(self.fds[words[0]], struct.pack("<Q", 1))
        elif kind == "VM":
            fd, kvm.vm = kvm.vm, -1
            os.close(fd)
        elif kind == "line":
            fcntl.ioctl(kvm.vm, KVM_IRQ_LINE, struct.pack("<II", GSI, int(words[0])))
        elif kind == "take":
            self.take()
        elif kind == "EOI":
            kvm.guest_writes(0xFEE000B0, 0)
        elif kind == "route":
            kvm.route(int(words[-1]))
        else:
            kvm.write_entry(ENTRY | (kind == "mask") << 16)

    def take(self) -> None:
        """The interrupt acknowledge cycle, from outside: IRR to ISR. EAGAIN if none comes within a second."""
        until = time.monotonic() + 1
        while time.monotonic() < until:
            page = self.kvm.lapic()
            if bit(page, LAPIC_IRR):
                place, mask = VECTOR // 32 * 16 + VECTOR % 32 // 8, 1 << VECTOR % 8
                page[LAPIC_IRR + place] ^= mask
                page[LAPIC_ISR + place] |= mask
                fcntl.ioctl(self.kvm.cpu, KVM_SET_LAPIC, page)
                return
        raise OSError(errno.EAGAIN, "no interrupt")

    def settle(self) -> None:
        """An injection is queued on the CPU of who wrote the eventfd."""
        if self.kvm.vm < 0:
            return
        for cpu in self.cpus:
            os.sched_setaffinity(0, {cpu})
            self.kvm.settle()
        os.sched_setaffinity(0, self.cpus)

    def run(self) -> None:
        for group in CASE["groups"]:
            start = threading.Barrier(len(group))
            threads = [threading.Thread(target=self.together, args=(start, calls)) for calls in group[1:]]
            for thread in threads:
                thread.start()
            self.together(start, group[0])
            for thread in threads:
                thread.join()
            self.settle()

    def together(self, start: threading.Barrier, calls: list[tuple[str, str, str | None]]) -> None:
        start.wait()
        for call in calls:
            if start.parties > 1:
                time.sleep(int.from_bytes(os.urandom(2), "little") * 3e-9)
            self.call(call)

    def state(self) -> dict[str, int]:
        found = {}
        if self.kvm.vm >= 0:
            chip, page = self.kvm.chip(2), self.kvm.lapic()
            found["IRR"] = struct.unpack_from("<I", chip, 24)[0] >> GSI & 1
            found["remote IRR"] = struct.unpack_from("<Q", chip, 32 + 8 * GSI)[0] >> 14 & 1
            found["LAPIC IRR"], found["LAPIC ISR"] = bit(page, LAPIC_IRR), bit(page, LAPIC_ISR)
        for name, fd in self.fds.items():
            if fd >= 0:
                try:
                    found[name] = os.eventfd_read(fd)
                except BlockingIOError:
                    found[name] = 0
        return found

    def close(self) -> None:
        for fd in self.fds.values():
            if fd >= 0:
                os.close(fd)
        self.kvm.close()


def main() -> int:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    times = times or (1000 if any(len(group) > 1 for group in CASE["groups"]) else 1)
    calls = [call for group in CASE["groups"] for thread in group for call in thread]
    print(CASE["story"])
    outcomes: collections.Counter[Any] = collections.Counter()
    for _ in range(times):
        try:
            play = Play()
        except OSError as error:
            print(f"no KVM to ask: {error}")
            return 2
        play.run()
        outcomes[tuple(play.results[id(call)] for call in calls), tuple(play.state().items())] += 1
        play.close()
    seen = False
    for (results, state), count in outcomes.most_common():
        print(f"\n{count} of {times} times:")
        same = True
        rows = [(f"{who}: {what}", result, wanted) for (who, what, wanted), result in zip(calls, results, strict=True)]
        rows += [(name, value, CASE["state"].get(name)) for name, value in state]
        for name, value, wanted in rows:
            differs = wanted is not None and value != wanted
            same = same and not differs
            print(f"  {name:<32} {value}{f'   (in the story: {wanted})' if differs else ''}")
        seen = seen or same
    print(f"\nThe outcome of the story was {'' if seen else 'not '}seen.")
    return 0 if seen else 1


if __name__ == "__main__":
    sys.exit(main())
