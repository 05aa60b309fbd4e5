"""The human monitor: commands for people, in QEMU's words and layout.

`run_hmp` runs one line and returns what it prints, lines ending in `\\n`. HUMAN is the table of commands; a program may
add its own (`HUMAN["info lapic"] = HumanCommand(...)`).

Ref: vectors qemu-qmp-transcript.jsonl, session `pc`, section `hmp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from devices.pci.info import UNMAPPED
from vmm.errors import VintxError
from vmm.qmp.target import set_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from devices.pci.info import PciDeviceInfo, PciRegionInfo
    from vmm.qmp.target import IrqChips, MachineTarget

    Run = Callable[["Line"], str]


class HumanCommand(NamedTuple):
    """A command. `params` is shown by help; one of the form `[x]` may be left out. The last takes the rest."""

    run: Run
    params: str
    help: str


class Line(NamedTuple):
    """What a command is given: the machine, the version object, and its parameters by name."""

    target: MachineTarget
    version: Mapping[str, Any]
    params: Mapping[str, str]


def run_hmp(target: MachineTarget, version: Mapping[str, Any], line: str) -> str:
    """Run one line; return its output. A line that is no command is answered, not raised."""
    words = line.split()
    if not words or words[0].startswith("#"):
        return ""
    name = words[0]
    rest = line.split(None, 1)[1].strip() if len(words) > 1 else ""
    if name == "?":
        name = "help"
    if name == "info":
        if not rest:
            return _help_info()
        name = f"info {words[1]}"
        rest = rest.split(None, 1)[1].strip() if len(words) > 2 else ""
    command = HUMAN.get(name)
    if command is None:
        return f"unknown command: '{name}'\n"
    params: dict[str, str] = {}
    declared = command.params.split()
    for place, word in enumerate(declared):
        value, _, more = rest.partition(" ") if place < len(declared) - 1 else (rest, "", "")
        if value:
            params[word.strip("[]")] = value
        elif not word.startswith("["):
            return f'{name}: string expected\nTry "help {name}" for more information\n'
        rest = more.strip()
    if rest and not declared:
        return f'{name}: extraneous characters at the end of line\nTry "help {name}" for more information\n'
    try:
        return command.run(Line(target, version, params))
    except VintxError as error:
        return f"Error: {error}\n"


# --- help --------------------------------------------------------------------------------------------------------


def _help_line(name: str, command: HumanCommand) -> str:
    return f"{name} {command.params} -- {command.help}\n"


def _help_info() -> str:
    return "".join(_help_line(name, HUMAN[name]) for name in sorted(HUMAN) if name.startswith("info "))


def _help(line: Line) -> str:
    name = line.params.get("command", "")
    if not name:
        every = "".join(_help_line(name, HUMAN[name]) for name in sorted(HUMAN) if not name.startswith("info "))
        return every + "info [subcommand] -- show various information about the system state\n"
    if name == "info":
        return _help_info()
    name = " ".join(name.split())
    return _help_line(name, HUMAN[name]) if name in HUMAN else f"unknown command: '{name}'\n"


# --- info --------------------------------------------------------------------------------------------------------

# Redirection entry, delivery mode field. Ref: 82093AA, 3.2.4, bits 10:8.
_DELIVERY_MODES = ("fixed", "lowest", "SMI", "...", "NMI", "INIT", "...", "extINT")


def _pins(bits: int) -> str:
    return "".join(f" {pin}" for pin in set_bits(bits)) or " (none)"


def format_pic(chips: IrqChips) -> str:
    """`info pic`: each IOAPIC with its redirection table, then the PICs."""
    text = []
    for chip in chips.ioapics:
        text.append(f"{chip.name}: ver=0x{chip.version:x} id=0x{chip.id:02x} sel=0x{chip.ioregsel:02x}\n")
        for pin, entry in enumerate(chip.entries):
            logical = bool(entry & 1 << 11)
            destination = entry >> 56 & (0xFF if logical else 0x0F)
            text.append(
                f"  pin {pin:<2} 0x{entry:016x} dest={destination:x} vec={entry & 0xFF:<3} "
                f"{'active-lo' if entry & 1 << 13 else 'active-hi'} {'level' if entry & 1 << 15 else 'edge ':<5} "
                f"{'masked' if entry & 1 << 16 else '':<6} {_DELIVERY_MODES[entry >> 8 & 7]:<6} "
                f"{'logical' if logical else 'physical'}\n"
            )
        text.append(f"  IRR     {_pins(chip.irr)}\n  Remote IRR{_pins(chip.remote_irr)}\n")
    for pic in chips.pics:
        text.append(
            f"{pic.name}: irr={pic.irr:02x} imr={pic.imr:02x} isr={pic.isr:02x} hprio={pic.priority_add} "
            f"irq_base={pic.irq_base:02x} rr_sel={int(pic.read_isr)} elcr={pic.elcr:02x} "
            f"fnm={int(pic.special_fully_nested)}\n"
        )
    return "".join(text)


def format_irq(chips: IrqChips) -> str:
    """`info irq`: how often each input was raised."""
    text = []
    for chip in chips.statistics:
        text.append(f"IRQ statistics for {chip.name}:\n")
        text += [f"{pin:2}: {count}\n" for pin, count in sorted(chip.counts.items()) if count]
    return "".join(text)


def _format_region(region: PciRegionInfo) -> str:
    digits = 4
    kind = "I/O"
    if region.kind == "memory":
        digits = 8
        kind = f"{64 if region.mem_type_64 else 32} bit {'prefetchable ' if region.prefetch else ''}memory"
    if region.address == UNMAPPED:
        return f"      BAR{region.bar}: {kind} (not mapped)\n"
    last = region.address + region.size - 1
    return f"      BAR{region.bar}: {kind} at 0x{region.address:0{digits}x} [0x{last:0{digits}x}].\n"


def _format_pci_device(device: PciDeviceInfo) -> list[str]:
    kind = device.class_desc or f"Class {device.class_code:04d}"
    text = [
        f"  Bus {device.bus:2}, device {device.slot:3}, function {device.function}:\n",
        f"    {kind}: PCI device {device.vendor:04x}:{device.device:04x}\n",
    ]
    if device.subsystem_vendor is not None and device.subsystem is not None:
        text.append(f"      PCI subsystem {device.subsystem_vendor:04x}:{device.subsystem:04x}\n")
    if device.irq_pin:
        text.append(f"      IRQ {device.irq}, pin {chr(ord('A') + device.irq_pin - 1)}\n")
    bridge = device.bridge
    if bridge is not None:
        text += [
            f"      BUS {bridge.number}.\n",
            f"      secondary bus {bridge.secondary}.\n",
            f"      subordinate bus {bridge.subordinate}.\n",
            f"      IO range [0x{bridge.io_range.base:04x}, 0x{bridge.io_range.limit:04x}]\n",
        ]
        for name, window in (
            ("memory", bridge.memory_range),
            ("prefetchable memory", bridge.prefetchable_range),
        ):
            text.append(f"      {name} range [0x{window.base:08x}, 0x{window.limit:08x}]\n")
    text += map(_format_region, device.regions)
    text.append(f'      id "{device.qdev_id}"\n')
    if bridge is not None:
        for behind in bridge.devices:
            text += _format_pci_device(behind)
    return text


def format_pci(target: MachineTarget) -> str:
    """`info pci`: every function with its ids, interrupt and BARs."""
    buses = target.pci()
    if not buses:
        return "PCI devices not supported\n"
    return "".join(line for bus in buses for device in bus.devices for line in _format_pci_device(device))


def _info_status(line: Line) -> str:
    status = line.target.status()
    if status == "running":
        return "VM status: running\n"
    return "VM status: paused\n" if status == "paused" else f"VM status: paused ({status})\n"


def _info_version(line: Line) -> str:
    qemu = line.version["qemu"]
    return f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}{line.version['package']}\n"


def _info_cpus(line: Line) -> str:
    return "".join(
        f"{'*' if place == 0 else ' '} CPU #{cpu.cpu_index}: thread_id={cpu.thread_id} "
        f"model={cpu.qom_type.removesuffix('-x86_64-cpu')}\n"
        for place, cpu in enumerate(line.target.cpus())
    )


def _info_kvm(line: Line) -> str:
    enabled, present = line.target.kvm()
    if not present:
        return "kvm support: not compiled\n"
    return f"kvm support: {'enabled' if enabled else 'disabled'}\n"


def _info_ledger(line: Line) -> str:
    return "".join(f"{row.owner}: {row.kind} {row.name}\n" for row in line.target.ledger()) or "(none)\n"


# --- commands ----------------------------------------------------------------------------------------------------


def _split_options(text: str, implied: str) -> dict[str, str]:
    """`driver,key=value,...` as properties; `,,` is a comma in a value."""
    props: dict[str, str] = {}
    for place, option in enumerate(text.replace(",,", "\0").split(",")):
        name, equals, value = option.replace("\0", ",").partition("=")
        if equals:
            props[name] = value
        elif place == 0:
            props[implied] = name
        elif name:
            props[name] = "on"
    return props


def _device_add(line: Line) -> str:
    props = _split_options(line.params["device"], "driver")
    if "driver" not in props:
        return "Error: Parameter 'driver' is missing\n"
    if props["driver"] in ("help", "?"):
        types = line.target.qom_list_types("device", abstract=False)
        return "".join(f'name "{info.name}"\n' for info in sorted(types, key=lambda info: info.name))
    if "help" in props or "?" in props:
        infos = sorted(line.target.device_list_properties(props["driver"]), key=lambda info: info.name)
        options = "".join(f"  {info.name}=<{info.type}>\n" for info in infos)
        return f"{props['driver']} options:\n{options}" if infos else f"There are no options for {props['driver']}.\n"
    line.target.device_add(dict(props), from_text=True)
    return ""


def _device_del(line: Line) -> str:
    line.target.device_del(line.params["device"])
    return ""


def _object_add(line: Line) -> str:
    props: dict[str, object] = dict(_split_options(line.params["object"], "qom-type"))
    qom_type, id_ = str(props.pop("qom-type", "")), str(props.pop("id", ""))
    if not qom_type or not id_:
        return f"Error: Parameter '{'id' if qom_type else 'qom-type'}' is missing\n"
    if qom_type not in line.target.object_types():
        return f"Error: Parameter 'qom-type' does not accept value '{qom_type}'\n"
    line.target.object_add(qom_type, id_, props, from_text=True)
    return ""


def _object_del(line: Line) -> str:
    line.target.object_del(line.params["id"])
    return ""


def _qom_list(line: Line) -> str:
    path = line.params.get("path")
    if path is None:
        return "/\n"
    return "".join(f"{info.name} ({info.type})\n" for info in line.target.qom_list(path))


def _qom_get(line: Line) -> str:
    from vmm.qmp.json_stream import dumps

    return dumps(line.target.qom_get(line.params["path"], line.params["property"]), pretty=True) + "\n"


def _view(name: str) -> Run:
    """A view of the machine's insides; all parameters are one argument."""
    return lambda line: line.target.view(name, line.params.get("args", ""))


def _print(line: Line) -> str:
    from vmm.qmp.machine_views import number

    text = line.params["expression"]
    letter = "x"
    if text.startswith("/"):
        start, _, text = text.partition(" ")
        letter = start[1:2] or "x"
    value = number(text)
    shown = {
        "x": f"{value:#x}",
        "d": str(value - (1 << 64) if value >> 63 else value),
        "u": str(value),
        "o": f"0{value:o}",
    }
    if letter not in shown:
        return f"p: invalid char in format: '{letter}'\n"
    return shown[letter] + "\n"


def _info_chardev(line: Line) -> str:
    return "".join(f"{each.id}: filename={each.filename}\n" for each in reversed(line.target.chardevs.values()))


def _info_block(line: Line) -> str:
    text = []
    for row in line.target.blocks.query_drives():
        inserted = row["inserted"]
        name = row["device"] or inserted["node-name"]
        text.append(f"{name}: {inserted['file']} ({inserted['drv']}{', read-only' if inserted['ro'] else ''})\n")
        if "qdev" in row:
            text.append(f"    Attached to:      {row['qdev']}\n")
        text.append("    Cache mode:       writeback\n")
    return "".join(text)


def _info_memdev(line: Line) -> str:
    return "".join(
        f"memory backend: {row['id']}\n  size:  {row['size']}\n  merge: {str(row['merge']).lower()}\n"
        f"  dump: {str(row['dump']).lower()}\n  prealloc: {str(row['prealloc']).lower()}\n"
        f"  share: {str(row['share']).lower()}\n  policy: {row['policy']}\n  host nodes:\n\n"
        for row in line.target.memdevs()
    )


def _no_output(run: Callable[[MachineTarget], None]) -> Run:
    def command(line: Line) -> str:
        run(line.target)
        return ""

    return command


HUMAN: dict[str, HumanCommand] = {
    "help": HumanCommand(_help, "[command]", "show the help of one command, or of all"),
    "stop": HumanCommand(_no_output(lambda target: target.stop()), "", "stop the guest"),
    "cont": HumanCommand(_no_output(lambda target: target.cont()), "", "let the guest run"),
    "system_reset": HumanCommand(_no_output(lambda target: target.reset()), "", "reset the machine"),
    "system_powerdown": HumanCommand(_no_output(lambda target: target.powerdown()), "", "press the power button"),
    "quit": HumanCommand(_no_output(lambda target: target.quit()), "", "end the monitor's process"),
    "device_add": HumanCommand(_device_add, "device", "plug a device: driver[,prop=value][,...]"),
    "device_del": HumanCommand(_device_del, "device", "ask for a device to be unplugged, by id or path"),
    "object_add": HumanCommand(_object_add, "object", "make an object: qom-type,id=name[,prop=value][,...]"),
    "object_del": HumanCommand(_object_del, "id", "delete an object"),
    "qom-list": HumanCommand(_qom_list, "[path]", "list an object's properties"),
    "qom-get": HumanCommand(_qom_get, "path property", "print a property"),
    "i": HumanCommand(_view("i"), "args", "read a port: /fmt addr"),
    "o": HumanCommand(_view("o"), "args", "write a port: /fmt addr value"),
    "p": HumanCommand(_print, "expression", "print the value of an expression: [/fmt] expression"),
    "x": HumanCommand(_view("x"), "args", "show memory by virtual address: /fmt addr"),
    "xp": HumanCommand(_view("xp"), "args", "show memory by physical address: /fmt addr"),
    "nmi": HumanCommand(_no_output(lambda target: target.inject_nmi()), "", "an NMI to every vCPU"),
    "info accel": HumanCommand(lambda _line: "", "", "show accelerator statistics"),
    "info block": HumanCommand(_info_block, "", "show block devices"),
    "info chardev": HumanCommand(_info_chardev, "", "show the character devices"),
    "info lapic": HumanCommand(_view("lapic"), "[args]", "show a local APIC: apic-id"),
    "info memdev": HumanCommand(_info_memdev, "", "show memory backends"),
    "info mtree": HumanCommand(_view("mtree"), "[args]", "show who answers where: -f for the flat view"),
    "info qom-tree": HumanCommand(_view("qom-tree"), "[args]", "show the object tree: path"),
    "info qtree": HumanCommand(_view("qtree"), "", "show the devices on their buses"),
    "info registers": HumanCommand(_view("registers"), "[args]", "show the CPU's registers: -a for all CPUs"),
    "info cpus": HumanCommand(_info_cpus, "", "show the vCPUs"),
    "info irq": HumanCommand(lambda line: format_irq(line.target.irqchips()), "", "show interrupt counts"),
    "info kvm": HumanCommand(_info_kvm, "", "show whether KVM is in use"),
    "info ledger": HumanCommand(_info_ledger, "", "show the resources that are held, and by whom"),
    "info name": HumanCommand(lambda line: f"{line.target.name}\n" if line.target.name else "", "", "show the name"),
    "info pci": HumanCommand(lambda line: format_pci(line.target), "", "show the PCI devices"),
    "info pic": HumanCommand(lambda line: format_pic(line.target.irqchips()), "", "show IOAPICs and PICs"),
    "info status": HumanCommand(_info_status, "", "show whether the guest runs"),
    "info uuid": HumanCommand(lambda line: f"{line.target.uuid}\n", "", "show the UUID"),
    "info version": HumanCommand(_info_version, "", "show the version"),
}
