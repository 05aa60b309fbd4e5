"""memory-backend-ram over QMP: QEMU's own test of object-add's failures, and what QOM shows."""

import pytest
from qemu.qmp import ExecuteError

RAM = "memory-backend-ram"


def test_object_is_made_shown_and_deleted(vm):
    guest = vm("none", accel="qtest")
    before = guest.machine.ledger.snapshot()
    guest.qmp("object-add", qom_type=RAM, id="ram1", size=1 << 20)
    assert guest.qmp("qom-get", path="/objects/ram1", property="size") == 1 << 20
    assert {"name": "ram1", "type": f"child<{RAM}>"} in guest.qmp("qom-list", path="/objects")
    assert len(guest.machine.objects["ram1"].memory) == 1 << 20
    guest.qmp("object-del", id="ram1")
    assert guest.machine.ledger.snapshot() == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "Parameter 'size' is missing"),
        ({"size": 0}, "can't create backend with size 0"),
        ({"size": "1048576"}, "Parameter 'size' expects uint64"),
        ({"sized": 1048576}, "Property 'memory-backend-ram.sized' not found"),
        ({"size": 1 << 62}, "cannot set up guest memory 'ram1': Cannot allocate memory"),
    ],
)
def test_refused_object_leaves_its_id_free(vm, arguments, complaint):
    guest = vm("none", accel="qtest")
    with pytest.raises(ExecuteError) as caught:
        guest.qmp("object-add", qom_type=RAM, id="ram1", **arguments)
    assert str(caught.value) == complaint
    guest.qmp("object-add", qom_type=RAM, id="ram1", size=4096)
    with pytest.raises(ExecuteError, match="duplicate property 'ram1'"):
        guest.qmp("object-add", qom_type=RAM, id="ram1", size=4096)
