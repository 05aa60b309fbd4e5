"""Recordings of QEMU replayed through the qtest protocol: the I/O APIC, INTx paths, and the protocol's own session."""

import json
import re
from pathlib import Path

import pytest

from devices.apic_bus import ApicDeliverIrq
from devices.ioapic import MASKED, PINS
from support.qtest_link import LocalLink, ProcessLink
from vmm.trace import Recording

DATA = Path(__file__).parent.parent / "conformance" / "data"
IOAPIC = json.loads((DATA / "qemu-ioapic.json").read_text())
INTX = json.loads((DATA / "qemu-intx-paths.json").read_text())
BASE = 0xFEC0_0000
PARTS = [("ioapic_version_0x20", 0x20, 92), ("ioapic_version_0x11", 0x11, 11)]


def commands(op):
    """An operation of the recording as qtest commands, and what makes its value of their replies."""
    name, *a = op

    def sel(register):
        return f"writel {BASE:#x} {register:#x}"

    def win(value):
        return f"writel {BASE + 0x10:#x} {value:#x}"

    read = f"readl {BASE + 0x10:#x}"
    if name == "sel":
        return [sel(a[0])]
    if name == "win":
        return [win(a[0])]
    if name == "rwin":
        return [read]
    if name == "w":
        return [f"write{a[0]} {BASE + a[1]:#x} {a[2]:#x}"]
    if name == "r":
        return [f"read{a[0]} {BASE + a[1]:#x}"]
    if name == "lo":
        return [sel(0x10 + 2 * a[0]), win(a[1])]
    if name == "hi":
        return [sel(0x11 + 2 * a[0]), win(a[1])]
    if name == "rte":
        return [sel(0x11 + 2 * a[0]), win(a[1] >> 32), sel(0x10 + 2 * a[0]), win(a[1] & 0xFFFF_FFFF)]
    if name == "rrte":
        return [sel(0x11 + 2 * a[0]), read, sel(0x10 + 2 * a[0]), read]
    if name == "irq":
        return [f"set_irq_in ioapic unnamed-gpio-in {a[0]} {a[1]}"]
    if name == "isa":
        return [f"outb {0x2000 + a[0]:#x} {a[1]}"]
    if name == "eoi":
        return [f"writel {BASE + 0x40:#x} {a[0]:#x}"]
    if name == "eoin":
        return [f"writel {BASE + 0x40:#x} {a[0]:#x}"] * a[1]
    if name == "out":
        return [f"outb {a[0]:#x} {a[1]:#x}"]
    if name == "in":
        return [f"inb {a[0]:#x}"]
    assert name == "clock", name
    return [f"clock_step {a[0]}"]


def value_of(op, replies):
    """The value that the operation read, of the replies to its commands."""
    values = [int(reply.split()[1], 0) for reply in replies if reply != "OK"]
    if op[0] == "clock" or not values:
        return None
    return values[0] << 32 | values[1] if op[0] == "rrte" else values[0]


def grouped(messages):
    """Equal messages in a row, more than three of them, as [message, count]: how the recording has them."""
    out = []
    run = []
    for message in [*messages, None]:
        if run and message != run[0]:
            out += [[run[0], len(run)]] if len(run) > 3 else run
            run = []
        if message is not None:
            run.append(message)
    return out


@pytest.mark.parametrize(("part", "version", "count"), PARTS)
def test_recorded_ioapic_sequences_give_the_same_values_state_and_messages(part, version, count):
    link = LocalLink(devices=({"driver": "pc-testdev"},), globals=[("ioapic", "version", str(version))])
    trace = Recording()
    link.machine.trace.listen(trace, "apic_deliver_irq")
    chip = link.machine.ioapic
    differences = []
    for sequence in IOAPIC[part]:
        link.machine.reset()
        expected = {"irr": 0, "id": 0, "sel": 0}
        entries = [MASKED] * PINS
        for number, step in enumerate(sequence["steps"]):
            op = step["op"]
            trace.clear()
            value = None
            if op == ["reset"]:
                link.machine.reset()
            else:
                raw = link.raw("".join(f"{c}\n" for c in commands(op)).encode()).decode().splitlines()
                value = value_of(op, raw)
            sent = [
                [e.dest, e.dest_mode, e.delivery_mode, e.vector_num, e.trigger_mode] for e in trace.of(ApicDeliverIrq)
            ]
            for pin, entry in step.get("c", {}).items():
                entries[int(pin)] = int(entry, 16)
            expected.update({key: step[key] for key in expected if key in step})
            got = (value, grouped(sent), list(chip.redir), {"irr": chip.irr, "id": chip.id, "sel": chip.ioregsel})
            wanted = (step.get("v"), step.get("d", []), entries, expected)
            if got != wanted:
                differences.append((sequence["name"], number, op, got, wanted))
                break
    link.close()
    assert differences == []
    assert len(IOAPIC[part]) == count


def final_state(link):
    """What a guest reads from every register, with IOREGSEL put back."""
    registers = [0, 1, 2, *range(0x10, 0x10 + 2 * PINS)]
    lines = [f"readl {BASE:#x}"]
    for register in registers:
        lines += [f"writel {BASE:#x} {register:#x}", f"readl {BASE + 0x10:#x}"]
    link.send("".join(f"{line}\n" for line in lines).encode())
    replies = [link.reply()[-1] for _ in lines]
    select = int(replies[0].split()[1], 0)
    assert link(f"writel {BASE:#x} {select:#x}") == "OK"
    values = [int(reply.split()[1], 0) for reply in replies[2::2]]
    entries = [hex(values[i] | values[i + 1] << 32) for i in range(3, len(values), 2)]
    return {"sel": select, "id": values[0], "ver": values[1], "arb": values[2], "rte": entries}


def monitor_irr(link):
    """The IRR as the human monitor shows it."""
    found = re.search(r"IRR\s+(.*)", link.human("info pic").replace("\r", ""))
    assert found
    return 0 if "none" in found[1] else sum(1 << int(pin) for pin in found[1].split())


@pytest.mark.parametrize(("part", "version", "count"), PARTS)
def test_recorded_ioapic_sequences_over_the_sockets_end_in_the_same_state(tmp_path, part, version, count):
    link = ProcessLink(tmp_path, "-device", "pc-testdev", "-global", f"ioapic.version={version}", "-m", "16")
    differences = []
    for sequence in IOAPIC[part]:
        link.execute("system_reset")
        for step in sequence["steps"]:
            op = step["op"]
            if op == ["reset"]:
                link.execute("system_reset")
                continue
            lines = commands(op)
            link.send("".join(f"{line}\n" for line in lines).encode())
            value = value_of(op, [link.reply()[-1] for _ in lines])
            if value != step.get("v"):
                differences.append((sequence["name"], op, value))
        if final_state(link) != sequence["final_mmio"] or monitor_irr(link) != sequence["final_irr"]:
            differences.append((sequence["name"], "end"))
    status = link.end()
    link.close()
    assert differences == []
    assert (status, len(IOAPIC[part])) == (0, count)
