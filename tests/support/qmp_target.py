"""A machine that is only a run state, for tests of the monitor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.block_graph import BlockGraph
from vmm.chardev import Chardevs
from vmm.errors import DeviceNotFound, InUse, QmpError
from vmm.qmp.events import Events
from vmm.qmp.monitor import make_call
from vmm.qmp.session import Session
from vmm.qmp.target import CpuInfo, IrqChips, LedgerRow, MachineInfo, PropertyInfo, TypeInfo

if TYPE_CHECKING:
    from devices.pci.info import PciInfo
    from vmm.qmp.call import Call

DATA = Path(__file__).parents[1] / "conformance" / "data"
PACKAGE = "Debian 1:11.1.3+ds-1"


def transcript() -> list[dict[str, Any]]:
    with (DATA / "qemu-qmp-transcript.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def sent_bytes(raw: str) -> bytes:
    """What was really sent: the recording writes a byte FF as four characters."""
    return raw.encode("utf-8").replace(b"\\xff", b"\xff")


class FakeTarget:
    """Run states as QEMU's; devices are names. `accel`, `chips`, `pci_buses`, `rows`: what the queries answer."""

    def __init__(self, events: Events, status: str = "running", preconfig: bool = False) -> None:
        self.events = events
        self.run_state = status
        self.preconfig = preconfig
        self.name = ""
        self.uuid = "00000000-0000-0000-0000-000000000000"
        self.devices: dict[str, dict[str, object]] = {}
        self.objects: dict[str, dict[str, object]] = {}
        self.properties: dict[str, Any] = {"type": "fake"}
        self.quits = 0
        self.chips = IrqChips()
        self.pci_buses: list[PciInfo] = []
        self.cpu_infos: list[CpuInfo] = []
        self.rows: list[LedgerRow] = []
        self.chardevs = Chardevs()
        self.blocks = BlockGraph()
        self.actions: dict[str, str] = {}
        self.memory = bytes(range(256)) * 16
        self.nmis = 0

    def balloon(self) -> None:
        return None

    def status(self) -> str:
        return "prelaunch" if self.preconfig else self.run_state

    def accelerators(self) -> tuple[str, list[str]]:
        return "qtest", ["tcg", "mshv", "kvm", "qtest"]

    def kvm(self) -> tuple[bool, bool]:
        return False, True

    def exit_preconfig(self) -> None:
        self.preconfig = False
        self.events.emit("RESUME")

    def stop(self) -> None:
        if self.run_state == "running":
            self.run_state = "paused"
            self.events.emit("STOP")

    def cont(self) -> None:
        if self.run_state == "shutdown":
            raise QmpError("Resetting the Virtual Machine is required")
        if self.run_state != "running":
            self.run_state = "running"
            self.events.emit("RESUME")

    def reset(self) -> None:
        self.events.emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
        if self.run_state != "running":
            self.run_state = "prelaunch"

    def powerdown(self) -> None:
        self.events.emit("POWERDOWN")

    def quit(self) -> None:
        self.quits += 1
        self.events.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})

    def machines(self) -> list[MachineInfo]:
        return [MachineInfo("pc-i440fx-11.1", 255, alias="pc", is_default=True, acpi=True), MachineInfo("none")]

    def cpus(self) -> list[CpuInfo]:
        return self.cpu_infos

    def device_add(self, props: dict[str, object], from_text: bool) -> None:
        key = str(props.get("id"))
        if key in self.devices:
            raise InUse(f"Duplicate device ID '{key}'", key)
        self.devices[key] = {**props, "from_text": from_text}

    def device_del(self, id: str) -> None:
        if self.devices.pop(id, None) is None:
            raise DeviceNotFound(id)
        self.events.emit("DEVICE_DELETED", {"device": id, "path": f"/machine/peripheral/{id}"})

    def device_list_properties(self, typename: str) -> list[PropertyInfo]:
        if typename != "edu":
            raise DeviceNotFound(typename)
        return [PropertyInfo("addr", "str", "Slot and function", -1), PropertyInfo("dma_mask", "uint64")]

    def object_types(self) -> list[str]:
        return ["memory-backend-ram"]

    def object_add(self, qom_type: str, id: str, props: dict[str, object], from_text: bool) -> None:
        self.objects[id] = {"qom-type": qom_type, **props, "from_text": from_text}

    def object_del(self, id: str) -> None:
        if self.objects.pop(id, None) is None:
            raise QmpError(f"object '{id}' not found")

    def qom_list(self, path: str) -> list[PropertyInfo]:
        if path != "/machine":
            raise DeviceNotFound(path)
        return [PropertyInfo(name, "string") for name in (*self.properties, "unreadable")]

    def qom_get(self, path: str, name: str) -> Any:
        if name not in self.properties:
            raise QmpError(f"Property '{path}.{name}' not found")
        return self.properties[name]

    def qom_set(self, path: str, name: str, value: object) -> None:  # noqa: ARG002
        self.properties[name] = value

    def qom_list_types(self, implements: str | None, abstract: bool) -> list[TypeInfo]:
        types = [TypeInfo("edu", "pci-device"), TypeInfo("pci-device", "device", abstract=True)]
        return [info for info in types if implements in (None, "device", "pci-device") and abstract >= info.abstract]

    def qom_list_properties(self, typename: str) -> list[PropertyInfo]:
        return [PropertyInfo("type", "string"), *self.device_list_properties(typename)]

    def object_properties(self, qom_type: str) -> list[PropertyInfo]:
        return [PropertyInfo("size", "size"), PropertyInfo("share", "bool")] if qom_type in self.object_types() else []

    def command_line_options(self) -> list[dict[str, Any]]:
        return [{"option": "smp-opts", "parameters": [{"name": "cpus", "type": "number"}]}]

    def hotpluggable_cpus(self) -> list[dict[str, Any]]:
        raise QmpError("machine does not support hot-plugging CPUs")

    def ospm_status(self) -> list[dict[str, Any]]:
        return [{"slot-type": "CPU", "slot": "0", "source": 0, "status": 0}]

    def cpu_models(self) -> list[str]:
        return ["qemu64"]

    def memory_size(self) -> int:
        return len(self.memory)

    def read_memory(self, address: int, size: int) -> bytes:
        return self.memory[address : address + size]

    def memdevs(self) -> list[dict[str, Any]]:
        return []

    def inject_nmi(self) -> None:
        self.nmis += 1

    def set_action(self, event: str, action: str) -> None:
        self.actions[event] = action

    def pci(self) -> list[PciInfo]:
        return self.pci_buses

    def irqchips(self) -> IrqChips:
        return self.chips

    def view(self, name: str, argument: str) -> str:
        return f"{name} {argument}\n"

    def ledger(self) -> list[LedgerRow]:
        return self.rows


class Client:
    """A session with a fake machine at one end, and the parsed replies at the other."""

    def __init__(self, status: str = "running", preconfig: bool = False, pretty: bool = False) -> None:
        self.events = Events(lambda: 1_795_347_418_000_001)
        self.target = FakeTarget(self.events, status, preconfig)
        self.call: Call = make_call(self.target, PACKAGE)
        self.wire = b""
        self.spawned: list[Any] = []
        self.session = Session(self.call, self.events, self._write, self.spawned.append, pretty)
        self.session.greet()

    def _write(self, data: bytes) -> None:
        self.wire += data

    def replies(self) -> list[Any]:
        """What has come since the last look."""
        wire, self.wire = self.wire, b""
        assert wire.endswith(b"\r\n") or not wire
        return [json.loads(line) for line in wire.split(b"\r\n") if line]

    def negotiate(self, *capabilities: str) -> None:
        self.ask({"execute": "qmp_capabilities", "arguments": {"enable": list(capabilities)}})
        assert self.session.negotiated

    def ask(self, message: Any) -> list[Any]:
        """Send one message; the replies and events it led to."""
        self.replies()
        self.session.feed(json.dumps(message).encode())
        return self.replies()

    def error(self, message: Any) -> tuple[str, str]:
        """Send one message that is refused; class and description."""
        (reply,) = self.ask(message)
        return reply["error"]["class"], reply["error"]["desc"]

    def step(self) -> bool:
        """Let each command that takes its time go on to where it waits next; True if one has ended."""
        ended = False
        for work in list(self.spawned):
            try:
                work.send(None)
            except StopIteration:
                self.spawned.remove(work)
                ended = True
        return ended
