"""The human monitor: its text, against what QEMU printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from devices.pci.info import PciBridgeInfo, PciDeviceInfo, PciInfo, PciRangeInfo, PciRegionInfo
from support.qmp_target import Client, transcript
from vmm.qmp.target import (
    CpuInfo,
    IoapicInfo,
    IrqChips,
    IrqStatistics,
    LapicInfo,
    LedgerRow,
    PicInfo,
)

AT_RESET = IrqChips(
    ioapics=(IoapicInfo("ioapic0", 0x20, 0, 0, 0, (0x10000,) * 24),),
    pics=(PicInfo("pic1"), PicInfo("pic0")),
    lapics=(LapicInfo(0, 0, irr=1 << 0x41),),
    statistics=(IrqStatistics("ioapic", {0: 1}), IrqStatistics("isa-i8259", {0: 1, 3: 0})),
)


def recorded(session: str, section: str, command: str) -> Any:
    """What QEMU returned for a command; `command` is part of the line that was sent."""
    lines = [line for line in transcript() if (line["sess"], line["sec"]) == (session, section)]
    sent = next(place for place, line in enumerate(lines) if line["dir"] == ">" and command in line["raw"])
    reply = next(line for line in lines[sent:] if line["dir"] == "<")
    return json.loads(reply["raw"])["return"]


def as_range(window: dict[str, int]) -> PciRangeInfo:
    return PciRangeInfo(window["base"], window["limit"])


def as_device(info: dict[str, Any]) -> PciDeviceInfo:
    """The dataclass for a function in a recorded `query-pci`."""
    bridge = None
    if "pci_bridge" in info:
        bus = info["pci_bridge"]["bus"]
        windows = (as_range(bus[name]) for name in ("io_range", "memory_range", "prefetchable_range"))
        behind = tuple(map(as_device, info["pci_bridge"].get("devices", ())))
        bridge = PciBridgeInfo(bus["number"], bus["secondary"], bus["subordinate"], *windows, behind)
    regions = tuple(
        PciRegionInfo(
            r["bar"], r["type"], r["size"], r["address"], r.get("prefetch", False), r.get("mem_type_64", False)
        )
        for r in info["regions"]
    )
    return PciDeviceInfo(
        info["bus"],
        info["slot"],
        info["function"],
        info["id"]["vendor"],
        info["id"]["device"],
        info["class_info"]["class"],
        info["class_info"].get("desc", ""),
        info["id"].get("subsystem-vendor"),
        info["id"].get("subsystem"),
        info.get("irq", 0),
        info["irq_pin"],
        info["qdev_id"],
        regions,
        bridge,
    )


@pytest.fixture
def client() -> Client:
    client = Client()
    client.negotiate()
    return client


def hmp(client: Client, line: str) -> str:
    reply = client.ask({"execute": "human-monitor-command", "arguments": {"command-line": line}})[-1]
    return str(reply["return"])


def test_info_pic_of_chips_at_reset_is_as_recorded(client: Client) -> None:
    client.target.chips = AT_RESET
    assert hmp(client, "info pic") == recorded("pc", "hmp", '"info pic"')


def test_x_query_interrupt_controllers_and_irq_are_as_recorded(client: Client) -> None:
    client.target.chips = AT_RESET
    for command in ("x-query-interrupt-controllers", "x-query-irq"):
        (reply,) = client.ask({"execute": command})
        assert reply["return"] == recorded("pc", "query", f'"{command}"')
    assert hmp(client, "info irq") == recorded("pc", "hmp", '"info irq"')


def test_info_pic_shows_a_level_entry_with_its_destination_and_pending_pins(client: Client) -> None:
    entries = [0x10000] * 24
    entries[9] = 0x0000_0000_0000_C041
    entries[11] = 0x0300_0000_0000_E931
    client.target.chips = IrqChips((IoapicInfo("ioapic0", 0x11, 1, 0x10, 1 << 5 | 1 << 11, tuple(entries)),))
    lines = hmp(client, "info pic").split("\r\n")
    assert lines[0] == "ioapic0: ver=0x11 id=0x01 sel=0x10"
    assert lines[10] == "  pin 9  0x000000000000c041 dest=0 vec=65  active-hi level        fixed  physical"
    assert lines[12] == "  pin 11 0x030000000000e931 dest=3 vec=49  active-lo level        lowest logical"
    assert lines[25:27] == ["  IRR      5 11", "  Remote IRR 9 11"]


def test_query_pci_gives_back_what_qemu_reported(client: Client) -> None:
    buses = recorded("pc", "query-pci-after", "query-pci")
    client.target.pci_buses = [PciInfo(bus["bus"], tuple(map(as_device, bus["devices"]))) for bus in buses]
    (reply,) = client.ask({"execute": "query-pci"})
    assert reply["return"] == buses


def test_info_pci_prints_each_function_as_qemu_does(client: Client) -> None:
    buses = recorded("pc", "query-pci-after", "query-pci")
    client.target.pci_buses = [PciInfo(bus["bus"], tuple(map(as_device, bus["devices"]))) for bus in buses]
    ours = hmp(client, "info pci").split("  Bus ")
    # Between the two recordings a few functions went away; every one that stayed is printed the same.
    theirs = recorded("pc", "hmp", '"info pci"').split("  Bus ")
    assert len(theirs) > 25
    assert set(theirs) <= set(ours)


def test_info_pci_shows_where_bars_are_mapped(client: Client) -> None:
    regions = (PciRegionInfo(0, "memory", 0x1000, 0xFEBF0000), PciRegionInfo(1, "io", 0x40, 0xC000))
    client.target.pci_buses = [
        PciInfo(0, (PciDeviceInfo(0, 3, 0, 0x1B36, 5, 0xFF, regions=regions, irq=11, irq_pin=2),))
    ]
    text = hmp(client, "info pci")
    assert "      IRQ 11, pin B\r\n" in text
    assert "      BAR0: 32 bit memory at 0xfebf0000 [0xfebf0fff].\r\n" in text
    assert "      BAR1: I/O at 0xc000 [0xc03f].\r\n" in text


@pytest.mark.parametrize(
    "line", ["info status", "info version", "info uuid", "info name", "info kvm", "nosuch", "info nosuch"]
)
def test_simple_line_is_answered_as_recorded(client: Client, line: str) -> None:
    assert hmp(client, line) == recorded("pc", "hmp", f'"{line}"')


@pytest.mark.parametrize(
    ("status", "text"),
    [("paused", "paused"), ("prelaunch", "paused (prelaunch)"), ("shutdown", "paused (shutdown)")],
)
def test_info_status_of_a_stopped_machine_says_why(client: Client, status: str, text: str) -> None:
    client.target.run_state = status
    assert hmp(client, "  info   status  ") == f"VM status: {text}\r\n"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", ""),
        ("# remark", ""),
        ("stop now", 'stop: extraneous characters at the end of line\r\nTry "help stop" for more information\r\n'),
        ("device_del", 'device_del: string expected\r\nTry "help device_del" for more information\r\n'),
        ("device_del nosuch", "Error: Device 'nosuch' not found\r\n"),
        ("device_add id=x", "Error: Parameter 'driver' is missing\r\n"),
        ("object_add memory-backend-ram", "Error: Parameter 'id' is missing\r\n"),
        ("object_add bogus,id=x", "Error: Parameter 'qom-type' does not accept value 'bogus'\r\n"),
        ("help nosuch", "unknown command: 'nosuch'\r\n"),
        ("device_add help", 'name "edu"\r\n'),
        ("device_add edu,help", "edu options:\r\n  addr=<str>\r\n  dma_mask=<uint64>\r\n"),
        ("qom-get /machine type", '"fake"\r\n'),
        ("info ledger", "(none)\r\n"),
        ("info pci", "PCI devices not supported\r\n"),
    ],
)
def test_line_gives_the_text(client: Client, line: str, text: str) -> None:
    assert hmp(client, line) == text


def test_device_add_line_becomes_properties_of_text(client: Client) -> None:
    assert hmp(client, "device_add edu,id=e0,multifunction,path=a,,b=c") == ""
    assert client.target.devices["e0"] == {
        "driver": "edu",
        "id": "e0",
        "multifunction": "on",
        "path": "a,b=c",
        "from_text": True,
    }
    assert hmp(client, "device_del e0") == ""
    assert client.target.devices == {}


def test_object_add_line_becomes_an_object_of_text(client: Client) -> None:
    assert hmp(client, "object_add memory-backend-ram,id=m0,size=1M") == ""
    assert client.target.objects == {"m0": {"qom-type": "memory-backend-ram", "size": "1M", "from_text": True}}
    assert hmp(client, "object_del m0") == ""
    assert client.target.objects == {}


def test_help_names_every_command_and_info_every_subject(client: Client) -> None:
    assert {"stop", "cont", "device_add", "info", "quit"} <= {
        line.split()[0] for line in hmp(client, "help").splitlines()
    }
    assert hmp(client, "info") == hmp(client, "help info")
    assert "info pic  -- " in hmp(client, "info")
    assert hmp(client, "? stop") == "stop  -- stop the guest\r\n"


def test_life_of_a_machine_goes_through_lines_as_through_commands(client: Client) -> None:
    events = []
    client.events.subscribe(lambda message: events.append(message["event"]))
    for line in ("stop", "cont", "system_reset", "system_powerdown", "quit"):
        assert hmp(client, line) == ""
    assert events == ["STOP", "RESUME", "RESET", "POWERDOWN", "SHUTDOWN"]


def test_info_cpus_and_ledger_list_what_there_is(client: Client) -> None:
    client.target.cpu_infos = [CpuInfo(n, f"/machine/unattached/device[{n}]", "qemu64-x86_64-cpu", 77) for n in (0, 1)]
    client.target.rows = [LedgerRow("e0", "irq", "pin 11")]
    assert hmp(client, "info cpus").splitlines() == [
        "* CPU #0: thread_id=77 model=qemu64",
        "  CPU #1: thread_id=77 model=qemu64",
    ]
    assert hmp(client, "info ledger") == "e0: irq pin 11\r\n"
