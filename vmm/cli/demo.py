"""`vintx demo`: the main job, from outside. A guest is booted, two devices are hot-plugged over QMP with QEMU's client,
each raises its level interrupts, the road of one of them is printed, both are unplugged while their lines are high, and
the ledger must be what it was before.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import guest_images
from vmm.cli.process import MachineProcess, program

if TYPE_CHECKING:
    import argparse

    Row = tuple[str, str, str]

DEVICES = {
    "e0": ("edu", {"driver": "edu", "id": "e0", "addr": "4"}),
    "v0": ("vfio-pci (irqfd, resample)", {"driver": "vfio-pci", "id": "v0", "x-host-object": "h0", "addr": "5"}),
}
TRACED_AS = {"e0": "e0", "v0": "h0"}
"""Behind vfio-pci it is the host's device that interrupts."""
STATIONS: dict[str, str | tuple[str, str]] = {
    "pci_set_intx": ("{device} raises INTx", "{device} lowers INTx: the guest acknowledged"),
    "vfio_intx_interrupt": "VFIO masks {device} and signals the trigger eventfd",
    "kvm_irqfd_inject": "irqfd asserts GSI {gsi}",
    "kvm_set_irq": ("irq source {source} of GSI {gsi} is high", "irq source {source} of GSI {gsi} is low"),
    "pic_set_irq": ("PIC pin {pin} is high", "PIC pin {pin} is low"),
    "ioapic_set_irq": ("IOAPIC pin {pin} is high", "IOAPIC pin {pin} is low"),
    "apic_deliver_irq": "message for CPU {dest}: vector {vector_num:#x}",
    "apic_accept_irq": "IRR of CPU {cpu}: vector {vector:#x}",
    "ioapic_set_remote_irr": "remote IRR of pin {pin} set",
    "cpu_takes_interrupt": "CPU {cpu} takes vector {vector:#x}",
    "apic_acknowledge": "IRR to ISR: vector {vector:#x}",
    "apic_eoi": "EOI of vector {vector:#x}",
    "ioapic_eoi_broadcast": "the EOI reaches the IOAPIC",
    "kvm_ack_irq": "ack notifiers of GSI {gsi}",
    "kvm_resample": "resampler of GSI {gsi} signals {members} resamplefd",
    "vfio_intx_unmask": "VFIO unmasks {device}",
    "ioapic_clear_remote_irr": "remote IRR of pin {pin} clear: the next one may come",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx demo`."""
    parser.add_argument("-n", type=int, default=1000, metavar="N", help="interrupts for each device (default 1000)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="keep the trace (JSON lines) in FILE")


def run(arguments: argparse.Namespace) -> int:
    """0 only if everything held."""
    if arguments.n < 1:
        print("vintx demo: -n takes a positive number", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="vintx-demo-") as folder:
        trace = arguments.trace or Path(folder) / "trace.jsonl"
        return asyncio.run(_demo(arguments.n, trace, Console(highlight=False, soft_wrap=True)))


async def _ledger(vm: MachineProcess) -> list[Row]:
    return sorted((r["owner"], r["kind"], r["name"]) for r in await vm.qmp("x-query-ledger"))


async def _demo(count: int, trace: Path, console: Console) -> int:
    began = time.perf_counter()
    verdicts: dict[str, list[str]] = {}
    argv = [program(), "-M", "pc", "-m", "32", "-nodefaults", "-display", "none"]
    argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-trace", f"*,file={trace}"]
    argv += ["-kernel", str(guest_images.path("hotplug")), "-append", f"n={count} hold"]
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        step = progress.add_task("booting the guest `hotplug`")
        async with MachineProcess(argv) as vm:
            await vm.line("^hotplug: ready")
            before = await _ledger(vm)
            console.print(f"guest ready {vm.first_output or 0:.2f} s after exec; {len(before)} rows in the ledger")
            await vm.qmp("object-add", qom_type="vfio-host-device", id="h0", driver="edu")
            roads: dict[str, list[dict[str, Any]]] = {}
            for name, (title, properties) in DEVICES.items():
                progress.update(step, description=f"{title}: {count} level interrupts")
                faults = verdicts[name] = []
                slot = int(properties["addr"])
                await vm.qmp("device_add", **properties)
                match = await vm.line(rf"^hotplug: slot {slot} handled (\d+) spurious (\d+)")
                if (int(match[1]), int(match[2])) != (count, 0):
                    faults.append(f"handled {match[1]} of {count}, spurious {match[2]}")
                await vm.line(rf"^hotplug: slot {slot} line held high")
                pin = int((await vm.line(rf"^hotplug: add slot {slot} pin (\d+)"))[1])
                chips = await vm.qmp("x-query-irqchip")
                if not chips["ioapics"][0]["irr"] >> pin & 1:
                    faults.append(f"pin {pin} is not high")
                console.print(f"{name}: {title} in slot {slot}, pin {pin}: {match[1]} interrupts, line left high")
                roads[name] = _road(trace, TRACED_AS[name])
            for name, (title, _) in DEVICES.items():
                progress.update(step, description=f"{title}: unplug with its line high")
                await vm.qmp("device_del", id=name)
                await vm.deleted(name)
            await vm.qmp("object-del", id="h0")
            after = await _ledger(vm)
            for row in sorted(set(after) ^ set(before)) + [r for r in set(after) if after.count(r) != before.count(r)]:
                verdicts.setdefault(row[0], []).append(f"ledger differs: {row[1]} {row[2]}")
            chips = await vm.qmp("x-query-irqchip")
            high = chips["ioapics"][0]["irr"]
    for name, road in roads.items():
        _print_road(console, name, DEVICES[name][0], road, verdicts[name])
    if high:
        verdicts["v0"].append(f"pins left high: {high:#x}")
    took = time.perf_counter() - began
    console.print(f"\nledger before and after: {len(before)} and {len(after)} rows; {took:.1f} s in all", style="bold")
    for name, (title, _) in DEVICES.items():
        held = f"{count} of {count} interrupts, none spurious; unplugged with its line high; nothing left behind"
        console.print(f"{name} ({title}): " + ("OK: " + held if not verdicts[name] else "; ".join(verdicts[name])))
    others = [text for name, texts in verdicts.items() if name not in DEVICES for text in texts]
    for text in others:
        console.print(text)
    return int(any(verdicts.values()))


def _road(trace: Path, device: str) -> list[dict[str, Any]]:
    """The events of one interrupt, from the device's rise to the last one before its next rise.

    Of all of them the one in the middle: the guest is in its stride, and nothing else went on.
    """
    roads: list[list[dict[str, Any]]] = []
    with trace.open(encoding="utf-8") as stream:
        for text in stream:
            if not text.endswith("\n"):
                break  # being written
            event = json.loads(text)
            if event["event"] == "pci_set_intx" and event["device"] == device and event["level"]:
                if not event["disabled"]:
                    roads.append([])
                    roads[-1].append(event)
            elif roads and event["event"] in STATIONS:
                roads[-1].append(event)
    return roads[len(roads) // 2] if roads else []


def _print_road(console: Console, name: str, title: str, road: list[dict[str, Any]], faults: list[str]) -> None:
    if not road:
        faults.append("no interrupt in the trace")
        return
    console.print(f"\nthe road of one interrupt of {name} ({title}):", style="bold")
    start = road[0]["t"]
    for event in road:
        what = STATIONS[event["event"]]
        fields = {k: int(v) if isinstance(v, bool) else v for k, v in event.items()}
        text = what[not event.get("level", True)] if isinstance(what, tuple) else what
        console.print(
            f"  {(event['t'] - start) / 1000:7.1f} µs  {event['event']:<24} {text.format(**fields)}",
            markup=False,
            soft_wrap=True,
        )
