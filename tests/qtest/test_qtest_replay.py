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


# INTx: which I/O APIC pin INTA# of each slot reaches. Ref: vectors qemu-intx-paths.json, pc

EDU_BAR = 0xE000_0000
RAISE, ACKNOWLEDGE = 0x60, 0x64
PIIX3 = 1 << 3


def config_address(devfn, register):
    return f"outl 0xcf8 {1 << 31 | devfn << 8 | register:#x}"


def irq_lines(lines):
    assert lines[-1] == "OK"
    return [[line.split()[1], int(line.split()[2])] for line in lines[:-1]]


class Edu:
    """An edu in a slot, with its registers where a guest would put them."""

    def __init__(self, link, slot):
        self.link = link
        self.devfn = slot << 3
        self.bar = EDU_BAR + (slot << 20)
        for register, value in ((0x10, self.bar), (0x04, 0x2)):
            self.config(register, value)

    def config(self, register, value):
        self.link(config_address(self.devfn, register))
        return irq_lines(self.link.lines(f"outl 0xcfc {value:#x}"))

    def read(self, register, width="b"):
        self.link(config_address(self.devfn, register))
        return self.link.value(f"in{width} 0xcfc")

    def line(self, up):
        return irq_lines(self.link.lines(f"writel {self.bar + (RAISE if up else ACKNOWLEDGE):#x} 1"))


def pc_with_edus(*slots):
    link = LocalLink(devices=tuple({"driver": "edu", "addr": f"{slot:x}"} for slot in slots))
    assert link("irq_intercept_in ioapic") == "OK"
    return link, {slot: Edu(link, slot) for slot in slots}


def route_pirqs(link):
    link(config_address(PIIX3, 0x60))
    for port, irq in enumerate((10, 11, 5, 9)):
        assert link(f"outb {0xCFC + port:#x} {irq}") == "OK"


@pytest.mark.parametrize("routed", [False, True])
def test_intx_of_every_slot_reaches_the_recorded_pin(routed):
    recorded = INTX["pc"]["routed" if routed else "reset"]
    link, edus = pc_with_edus(*(int(slot) for slot in recorded))
    link(config_address(PIIX3, 0x60))
    assert link.value("inl 0xcfc") == 0x8080_8080
    if routed:
        route_pirqs(link)
    seen = {}
    for slot, edu in edus.items():
        row = {"pin": edu.read(0x3D), "raise_": edu.line(True), "intx_status": bool(edu.read(0x06, "w") & 8)}
        row |= {"disable": edu.config(0x04, 0x402), "reenable": edu.config(0x04, 0x002), "lower": edu.line(False)}
        seen[str(slot)] = row
    link.close()
    assert seen == recorded
    assert len(seen) == 30


def test_two_devices_on_one_pirq_are_ored():
    link, edus = pc_with_edus(4, 8)
    route_pirqs(link)
    seen = [edus[4].line(True), edus[8].line(True), edus[4].line(False), edus[8].line(False)]
    link.close()
    assert seen == INTX["pc"]["shared 4+8: raise a, raise b, lower a, lower b"]


# The sessions of the transcript that concern what there is.

OTHER_VALUES = {
    "inb 0x71": "the time of day of the recording",
    "inw 0x70": "the time of day of the recording",
    "clock_step": "both edges of QEMU's 8254 are timers; of ours only the rising one",
    "clock_step 100": "counts on from there",
    "clock_set 5": "says where the clock is",
}
"""Commands whose replies have another value in vintx, and why; OK or FAIL is the same."""


def recorded(session):
    """(command, lines of the reply) of a session, in order; (QMP command,) where one came between."""
    rows = []
    for text in (DATA / "qemu-qmp-transcript.jsonl").read_text().splitlines():
        row = json.loads(text)
        if row["sess"] != session:
            continue
        if row["dir"] == ">":
            rows.append((row["raw"],))
        if row["dir"] == "qtest":
            command, _, reply = row["raw"].partition(" -> ")
            if rows and len(rows[-1]) == 2 and rows[-1][0] == command and rows[-1][1][-1].startswith("IRQ"):
                rows[-1][1].append(reply)
            else:
                rows.append((command, [reply]))
    assert rows
    return rows


def test_recorded_protocol_session_gets_the_same_replies():
    link = LocalLink()
    compared = 0
    for command, *reply in recorded("qtest-protocol"):
        if command.startswith("{"):
            continue
        got = link.lines(command)
        if command in OTHER_VALUES:
            assert got[0].split()[0] == reply[0][0].split()[0], command
            continue
        assert got == reply[0], command
        compared += 1
    link.close()
    assert compared == 34


def test_recorded_local_apic_session_gets_the_same_replies():
    link = LocalLink()
    lapic = link.machine.processors.all[0].lapic
    # QEMU's local APIC takes a message while it is software-disabled; ours does not, as KVM's.
    lapic.mmio_write(0xF0, 4, 0x1FF)
    for command, *reply in recorded("lapic-qtest"):
        if not command.startswith("{"):
            assert link.lines(command) == reply[0], command
    link.close()
    assert lapic.svr == 0x1FF
    assert lapic.irr == 1 << 0x41


def test_recorded_hotplug_session_gets_the_same_irq_lines_and_values():
    link = LocalLink(ram_size=128 << 20)
    machine = link.machine
    compared = 0
    for command, *reply in recorded("pc-acpi-gpe"):
        if command.startswith("{"):
            request = json.loads(command)
            arguments = request.get("arguments", {})
            if request["execute"] == "device_add":
                machine.device_add(arguments)
            elif request["execute"] == "device_del":
                device = machine.peripherals.get(arguments["id"])
                if device is not None and device.life.phase.value == "realized":  # QEMU refused the others
                    machine.device_del(arguments["id"])
            continue
        # An IRQ line that a monitor command caused came at once; the recording shows it with the next reply.
        got = link.backend.take().decode().splitlines() + link.lines(command)
        assert got == reply[0], (compared, command)
        compared += 1
    link.close()
    assert compared == 45
