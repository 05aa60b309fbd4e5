"""x-irqfd-*, x-eoifd-*, x-eventfd-*, x-vfio-set-irqs and x-point-*: the dispute by hand, with a guest on top."""

from __future__ import annotations

import pytest
from qemu.qmp import ExecuteError

import guest_images
from vmm import order

GSI = 11


def machine(vm, policy="eoifd-v5", **config):
    return vm("pc", options={"irqfd-policy": policy}, accel="qtest", trace=False, **config)


def eventfd(guest, **arguments):
    return guest.qmp("x-eventfd-open", **arguments)["fd"]


def bound(guest, gsi=GSI):
    e, f = eventfd(guest, name="e"), eventfd(guest, name="f")
    assert guest.qmp("x-irqfd-assign", fd=e, gsi=gsi, level=True) == {}
    assert guest.qmp("x-eoifd-assign", fd=f, irqfd=e) == {}
    return e, f


def refused(guest, match, command, **arguments):
    with pytest.raises(ExecuteError, match=match):
        guest.qmp(command, **arguments)


def count(guest, fd):
    return guest.machine.files.file(fd).ctx.count


# The thread's sequences, with a guest


def driven(vm, policy):
    """A guest that has driven an edu through ten interrupts and left its pin unmasked."""
    guest = vm("pc", kernel=guest_images.path("hotplug"), append="n=10", options={"irqfd-policy": policy}, trace=False)
    guest.wait_serial("hotplug: ready")
    guest.qmp("device_add", driver="edu", id="e0", addr="4")
    pin = int(guest.wait_serial(r"add slot 4 pin (\d+)").group(1))
    guest.wait_serial("slot 4 handled 10 spurious 0")
    return guest, pin


def test_pair_by_hand_interrupts_the_guest_and_hears_its_eoi(vm):
    guest, pin = driven(vm, "eoifd-v5")
    e, f = bound(guest, pin)
    for n in range(1, 4):
        guest.qmp("x-eventfd-signal", fd=e)
        guest.wait_for(lambda n=n: count(guest, f) == n, "an EOI")
    assert guest.qmp("x-eventfd-read", fd=f) == {"count": 3}
    refused(guest, "EAGAIN", "x-eventfd-read", fd=f)
    assert not guest.machine.ioapic.irr >> pin & 1


def test_same_eventfd_assigned_again_is_a_stuck_line_in_the_guest_under_v5_and_not_where_it_is_taken_up(vm):
    guest, pin = driven(vm, "eoifd-v5")
    e, f = bound(guest, pin)
    guest.qmp("x-irqfd-deassign", fd=e, gsi=pin)
    guest.qmp("x-irqfd-assign", fd=e, gsi=pin, level=True)
    guest.qmp("x-eventfd-signal", fd=e)
    guest.wait_serial(f"hotplug: pin {pin} stuck high")
    refused(guest, "EAGAIN", "x-eventfd-read", fd=f)
    assert guest.qmp("x-query-irqchip")["ioapics"][0]["irr"] >> pin & 1

    other, pin = driven(vm, "assign-rebinds")
    e, f = bound(other, pin)
    other.qmp("x-irqfd-deassign", fd=e, gsi=pin)
    other.qmp("x-irqfd-assign", fd=e, gsi=pin, level=True)
    other.qmp("x-eventfd-signal", fd=e)
    other.wait_for(lambda: count(other, f) == 1, "an EOI")
    assert "stuck" not in other.serial


def test_counter_example_leaves_a_source_id_behind(vm):
    guest = machine(vm)
    e, f = bound(guest)
    assert guest.qmp("x-query-irqfds")["sources"] == [0, 1]
    guest.qmp("x-irqfd-deassign", fd=e, gsi=GSI)
    assert guest.qmp("x-query-irqfds")["sources"] == [0, 1]
    assert guest.qmp("x-eoifd-deassign", fd=f, irqfd=e) == {}
    state = guest.qmp("x-query-irqfds")
    assert (state["sources"], state["irqfds"], state["eoifds"]) == ([0], [], [])


# Errors


def test_what_the_kernel_refuses_is_told_with_its_errno(vm):
    guest = machine(vm)
    e, f = bound(guest)
    other = eventfd(guest)
    for match, command, arguments in [
        ("^EBUSY: ", "x-irqfd-assign", {"fd": e, "gsi": GSI, "level": True}),
        ("^EBADF: ", "x-irqfd-assign", {"fd": 99, "gsi": GSI}),
        ("^EBADF: ", "x-irqfd-deassign", {"fd": -1, "gsi": GSI}),
        ("^EINVAL: .*give 'level'", "x-irqfd-assign", {"fd": other, "gsi": GSI, "resamplefd": f}),
        ("exclude each other", "x-irqfd-assign", {"fd": other, "gsi": GSI, "resamplefd": f, "level": True}),
        ("^ENODEV: ", "x-eoifd-assign", {"fd": other, "irqfd": other}),
        ("^ENOENT: ", "x-eoifd-deassign", {"fd": other, "irqfd": e}),
        ("^EBADF: ", "x-eventfd-signal", {"fd": 99}),
        ("^EINVAL: ", "x-eventfd-signal", {"fd": e, "value": (1 << 64) - 1}),
        ("^EINVAL: ", "x-eventfd-signal", {"fd": 0}),
        ("^EINVAL: ", "x-eventfd-dup", {"fd": 0}),
        ("^EINVAL: ", "x-eventfd-close", {"fd": 0}),
        ("missing", "x-irqfd-assign", {"fd": e}),
        ("uint32", "x-irqfd-assign", {"fd": e, "gsi": -1}),
    ]:
        refused(guest, match, command, **arguments)
    sleeping = eventfd(guest, nonblock=False)
    refused(guest, "^EDEADLK: ", "x-eventfd-read", fd=sleeping)


def test_merged_rule_takes_a_resamplefd_and_has_no_eoifd(vm):
    guest = machine(vm, "resample")
    e, f = eventfd(guest), eventfd(guest)
    refused(guest, "EINVAL.*give 'resamplefd'", "x-irqfd-assign", fd=e, gsi=GSI, level=True)
    refused(guest, "^ENOTTY: ", "x-eoifd-assign", fd=f, irqfd=e)
    guest.qmp("x-irqfd-assign", fd=e, gsi=GSI, resamplefd=f)
    (irqfd,) = guest.qmp("x-query-irqfds")["irqfds"]
    assert (irqfd["fds"], irqfd["resamplefds"], irqfd["gsi"]) == ([e], [f], GSI)


def test_close_is_of_what_these_commands_opened_and_a_dup_keeps_the_irqfd(vm):
    guest = machine(vm, "eoifd-follows-irqfd")
    e, _ = bound(guest)
    dup = guest.qmp("x-eventfd-dup", fd=e)["fd"]
    guest.qmp("x-eventfd-close", fd=e)
    assert len(guest.qmp("x-query-irqfds")["irqfds"]) == 1
    guest.qmp("x-eventfd-close", fd=dup)
    state = guest.qmp("x-query-irqfds")
    assert (state["irqfds"], state["eoifds"], state["sources"]) == ([], [], [0])
    own = guest.machine.files.eventfd(name="its own")
    refused(guest, "^EPERM: .*the machine's", "x-eventfd-close", fd=own)


def test_machine_without_an_irqchip_has_eventfds_and_refuses_irqfds(vm):
    guest = vm("none")
    fd = guest.qmp("x-eventfd-open")["fd"]
    refused(guest, "^EINVAL: .*irqchip none", "x-irqfd-assign", fd=fd, gsi=10)
    assert guest.qmp("x-query-irqfds")["irqfds"] == []


# VFIO


def test_host_device_by_hand_masks_at_its_interrupt_and_is_unmasked_by_the_eoi(vm):
    guest, pin = driven(vm, "eoifd-v5")
    guest.qmp("object-add", qom_type="vfio-host-device", id="h0", driver="edu")
    e, f = bound(guest, pin)
    guest.qmp("x-vfio-set-irqs", id="h0", action="trigger", fd=e)
    guest.qmp("x-vfio-set-irqs", id="h0", action="unmask", fd=f)
    intx = guest.machine.objects["h0"]._handle.intx
    for _ in range(3):
        guest.qmp("x-vfio-set-irqs", id="h0", action="mask")
        assert intx.ctx.masked
        guest.qmp("x-vfio-set-irqs", id="h0", action="trigger")
        guest.wait_for(lambda: not intx.ctx.masked, "an EOI, and what it unmasks")
    assert count(guest, f) == 0  # VFIO took the events
    refused(guest, "^ENOTTY: ", "x-vfio-set-irqs", id="h0", action="mask", fd=f)
    refused(guest, "^EBADF: ", "x-vfio-set-irqs", id="h0", action="trigger", fd=99)
    refused(guest, "^EINVAL: ", "x-vfio-set-irqs", id="h0", action="trigger", start=1)
    refused(guest, "exclude", "x-vfio-set-irqs", id="h0", action="trigger", fd=e, data=1)
    refused(guest, "object-add", "x-vfio-set-irqs", id="nobody", action="mask")
    refused(guest, "in use by 'monitor'", "device_add", driver="vfio-pci", id="v0", x_host_object="h0")
    assert guest.qmp("x-vfio-set-irqs", id="h0", action="trigger", count=0) == {}


# Points


def test_eoifd_held_after_its_look_up_is_born_an_orphan_under_v5(vm):
    guest = machine(vm)
    e, f = eventfd(guest), eventfd(guest)
    guest.qmp("x-irqfd-assign", fd=e, gsi=GSI, level=True)
    guest.qmp("x-point-hold", point="eoifd.assign.looked-up")
    held = guest.qmp("x-eoifd-assign", fd=f, irqfd=e)
    assert (held["state"], held["point"]) == ("held", "eoifd.assign.looked-up")
    assert guest.qmp("x-irqfd-deassign", fd=e, gsi=GSI) == {}
    (came,) = guest.qmp("x-point-release", point="eoifd.assign.looked-up")
    assert (came["state"], came["command"], "error" in came) == ("done", "x-eoifd-assign", False)
    state = guest.qmp("x-query-irqfds")
    assert (len(state["irqfds"]), len(state["eoifds"]), state["sources"]) == (0, 1, [0, 1])


def test_same_window_is_closed_where_the_eoifd_follows_its_irqfd(vm):
    guest = machine(vm, "eoifd-follows-irqfd")
    e, f = eventfd(guest), eventfd(guest)
    guest.qmp("x-irqfd-assign", fd=e, gsi=GSI, level=True)
    guest.qmp("x-point-hold", point="eoifd.assign.looked-up")
    guest.qmp("x-eoifd-assign", fd=f, irqfd=e)
    guest.qmp("x-irqfd-deassign", fd=e, gsi=GSI)
    (came,) = guest.qmp("x-point-release", point="eoifd.assign.looked-up")
    assert came["error"].startswith("ENODEV: ")
    assert guest.qmp("x-query-irqfds")["sources"] == [0]


def test_deassign_waits_for_a_shutdown_that_is_held_and_goes_on_with_it(vm):
    guest = machine(vm)
    e, f = eventfd(guest), eventfd(guest)
    for fd in (e, f):
        guest.qmp("x-irqfd-assign", fd=fd, gsi=GSI, level=True)
    guest.qmp("x-point-hold", point="irqfd.shutdown.unhook")
    first = guest.qmp("x-eventfd-close", fd=e)
    assert (first["state"], first["point"]) == ("held", "irqfd.shutdown.unhook")
    guest.qmp("x-eventfd-signal", fd=f)
    rows = {row["name"]: row for row in guest.qmp("x-query-points")}
    assert [op["command"] for op in rows["irqfd.shutdown.unhook"]["operations"]] == ["x-eventfd-close"]
    second = guest.qmp("x-irqfd-deassign", fd=f, gsi=GSI)
    assert second["state"] in ("held", "waiting")
    came = guest.qmp("x-point-release", point="irqfd.shutdown.unhook")
    assert [(op["command"], op["state"]) for op in came] == [("x-eventfd-close", "done"), ("x-irqfd-deassign", "done")]
    state = guest.qmp("x-query-irqfds")
    assert (state["irqfds"], state["sources"]) == ([], [0])


def test_assign_held_with_its_file_in_hand_survives_the_close_and_hangs_up_at_the_end(vm):
    guest = machine(vm)
    e = eventfd(guest)
    guest.qmp("x-point-hold", point="irqfd.assign.fput")
    assert guest.qmp("x-irqfd-assign", fd=e, gsi=GSI, level=True)["state"] == "held"
    guest.qmp("x-eventfd-close", fd=e)
    assert len(guest.qmp("x-query-irqfds")["irqfds"]) == 1
    guest.qmp("x-point-release", point="irqfd.assign.fput")
    state = guest.qmp("x-query-irqfds")
    assert (state["irqfds"], state["sources"]) == ([], [0])
    guest.qmp("x-irqfd-assign", fd=eventfd(guest), gsi=GSI, level=True)  # nobody is held there any more
    assert len(guest.qmp("x-query-irqfds")["irqfds"]) == 1
    refused(guest, "is not held", "x-point-release", point="irqfd.assign.fput")


@pytest.mark.parametrize(
    ("point", "match"),
    [
        ("eoifd.ack", "cannot be held in the running machine: it is reached from a vCPU"),
        ("irqfd.assign.listed", "SRCU read section"),
        ("irqfd.wakeup.drained", "spin lock"),
        ("no.such.point", "there is no point 'no.such.point'; there are eoifd.ack"),
    ],
)
def test_point_that_cannot_be_held_is_refused_with_the_reason(vm, point, match):
    guest = machine(vm)
    refused(guest, match, "x-point-hold", point=point)
    refused(guest, "is not held", "x-point-release", point=point)


def test_hook_is_gone_while_an_operation_is_held(vm):
    guest = machine(vm)
    e = eventfd(guest)
    guest.qmp("x-point-hold", point="files.fget")
    guest.qmp("x-irqfd-assign", fd=e, gsi=GSI)
    assert (order.hook, order.wait, order.actor) == (None, None, 0)
    (came,) = guest.qmp("x-point-release", point="files.fget")
    assert came["state"] == "done"
    assert (order.hook, order.wait, order.actor) == (None, None, 0)


def test_machine_may_end_with_an_operation_held(vm):
    guest = machine(vm)
    e = eventfd(guest)
    for point in ("irqfd.assign.fput", "eventfd.write"):
        guest.qmp("x-point-hold", point=point)
    assert guest.qmp("x-irqfd-assign", fd=e, gsi=GSI, level=True)["state"] == "held"
    assert guest.qmp("x-eventfd-signal", fd=e)["point"] == "eventfd.write"
    guest.qmp("quit")
    assert guest.wait_exit() == 0
    assert not guest.machine.kvm.gsis.notifiers
