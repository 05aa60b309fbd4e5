"""balloon, announce-self and set_link over QMP, on a machine with the devices."""

from __future__ import annotations

import pytest
from qemu.qmp import ExecuteError

from vmm.netdev import HubPort

MEBIBYTE = 1 << 20


def guest_with(vm, *devices, **config):
    return vm("pc", accel="qtest", trace=False, ram_size=32 * MEBIBYTE, devices=list(devices), **config)


def test_balloon_tells_what_it_has_and_takes_a_target(vm):
    guest = guest_with(vm, {"driver": "virtio-balloon", "id": "b0"})
    assert guest.qmp("query-balloon") == {"actual": 32 * MEBIBYTE}
    guest.qmp("balloon", value=24 * MEBIBYTE)
    assert guest.machine.device("b0").config_bytes()[:4] == (2048).to_bytes(4, "little")
    for wrong in (0, -5):
        with pytest.raises(ExecuteError, match="expects a size"):
            guest.qmp("balloon", value=wrong)


def test_balloon_statistics_are_a_property(vm):
    guest = guest_with(vm, {"driver": "virtio-balloon", "id": "b0"})
    stats = guest.qmp("qom-get", path="/machine/peripheral/b0", property="guest-stats")
    assert stats["last-update"] == 0
    assert len(stats["stats"]) == 16


def test_without_a_balloon_it_is_not_active(vm):
    guest = guest_with(vm)
    for command, arguments in (("query-balloon", {}), ("balloon", {"value": MEBIBYTE})):
        with pytest.raises(ExecuteError, match="No balloon device has been activated") as caught:
            guest.qmp(command, **arguments)
        assert caught.value.error_class == "DeviceNotActive"


class Listener:
    """A second port of the hub."""

    def __init__(self, hub):
        self.frames = []
        self.port = HubPort("listener", hub)
        self.port.connect(self)

    def can_take_frame(self):
        return True

    def take_frame(self, frame):
        self.frames.append(frame)

    def link_changed(self, up):
        self.frames.append(up)


@pytest.fixture
def network(vm):
    hub: list[HubPort] = []
    guest = guest_with(
        vm,
        {"driver": "virtio-net-pci", "id": "n0", "netdev": "h0", "mac": "52:54:00:00:00:01"},
        netdevs={"h0": HubPort("h0", hub)},
    )
    return guest, Listener(hub)


def announce(guest, **arguments):
    guest.qmp("announce-self", **{"initial": 1, "max": 2, "rounds": 1, "step": 1} | arguments)


def test_announcement_comes_as_often_as_asked_for(network):
    guest, listener = network
    announce(guest, rounds=3)
    guest.wait_for(lambda: len(listener.frames) == 3, "three frames")
    assert {frame[12:14] for frame in listener.frames} == {b"\x80\x35"}
    assert {frame[6:12].hex(":") for frame in listener.frames} == {"52:54:00:00:00:01"}


def test_no_rounds_end_what_was_begun_under_that_id(network):
    guest, listener = network
    announce(guest, initial=100_000, max=100_000, rounds=1000, id="a")
    announce(guest, rounds=0, id="b")
    assert len(guest.machine.announcer._timers) == 1
    announce(guest, rounds=0, id="a")
    assert guest.machine.announcer._timers == {}
    assert len(listener.frames) == 1


def test_only_the_named_cards_announce_themselves(network):
    guest, listener = network
    announce(guest, interfaces=["other"])
    assert listener.frames == []
    announce(guest, interfaces=["other", "n0"])
    assert len(listener.frames) == 1


@pytest.mark.parametrize(("name", "value"), [("initial", 0), ("max", 100_001), ("rounds", 1001), ("step", -1)])
def test_pace_out_of_range_is_refused(network, name, value):
    with pytest.raises(ExecuteError, match=f"'announce-{name}' expects a value between"):
        announce(network[0], **{name: value})


@pytest.mark.parametrize("name", ["h0", "n0"])
def test_link_is_set_by_card_or_back_end(network, name):
    guest, listener = network
    guest.qmp("set_link", name=name, up=False)
    announce(guest)
    assert listener.frames == []
    guest.qmp("set_link", name=name, up=True)
    announce(guest)
    assert len(listener.frames) == 1
    with pytest.raises(ExecuteError, match="Device 'n9' not found") as caught:
        guest.qmp("set_link", name="n9", up=True)
    assert caught.value.error_class == "DeviceNotFound"


def test_card_is_plugged_with_its_back_end_and_both_go(network):
    guest, listener = network
    hub = listener.port.hub
    guest.machine.netdevs["h0"].number = 5
    before = guest.machine.ledger.snapshot()
    guest.qmp("netdev_add", type="hubport", id="h1", hubid=5)
    assert guest.machine.netdevs["h1"].hub is hub
    guest.machine.start()
    guest.qmp("device_add", driver="virtio-net-pci", id="n1", netdev="h1", addr="7")
    announce(guest, interfaces=["n1"])
    assert len(listener.frames) == 1
    with pytest.raises(ExecuteError, match="netdev 'h1' is in use by a device"):
        guest.qmp("netdev_del", id="h1")
    guest.qmp("device_del", id="n1")
    guest.machine.ports.write(0xAE08, 4, 1 << 7)
    guest.qmp("netdev_del", id="h1")
    assert [port.id for port in hub] == ["h0", "listener"]
    assert guest.machine.ledger.difference(before) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": "hubport", "id": "h0", "hubid": 0}, "Duplicate ID 'h0' for netdev"),
        ({"type": "user", "id": "u"}, "does not accept value 'user'"),
        ({"type": "hubport", "id": "u"}, "'hubid' is missing"),
        ({"type": "hubport", "id": "u", "hubid": -1}, "'hubid' expects a number"),
        ({"type": "socket", "id": "u"}, "exactly one of listen=, connect=, fd="),
    ],
)
def test_wrong_back_end_is_refused(network, arguments, message):
    guest, _ = network
    with pytest.raises(ExecuteError, match=message):
        guest.qmp("netdev_add", **arguments)
    assert list(guest.machine.netdevs) == ["h0"]


def test_back_end_that_is_not_there_cannot_be_removed(network):
    with pytest.raises(ExecuteError, match="Device 'h9' not found") as caught:
        network[0].qmp("netdev_del", id="h9")
    assert caught.value.error_class == "DeviceNotFound"
