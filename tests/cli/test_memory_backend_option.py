"""`-machine memory-backend=`: RAM in an object that other processes can map."""

import pytest

from vmm.cli.system import main

OBJECT = "memory-backend-memfd,id=m0,size=16M"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["-machine", "pc,memory-backend=m1", "-object", OBJECT], "memory-backend=m1: no -object"),
        (["-machine", "pc,memory-backend=m0", "-object", "rng-builtin,id=m0"], "memory-backend=m0: no -object"),
        (["-machine", "pc,memory-backend=m0", "-object", OBJECT, "-m", "32M"], "memory backend 'm0' has 16777216"),
        (["-machine", "pc,memory-backend=m0", "-object", "memory-backend-memfd,id=m0"], "Parameter 'size' is missing"),
        (
            ["-machine", "pc,memory-backend=m0", "-object", "memory-backend-memfd,id=m0,size=5000"],
            "must be multiple of 0x1000",
        ),
    ],
)
def test_backend_that_cannot_be_the_ram_is_refused_by_name(capsys, argv, complaint):
    assert main(["-accel", "qtest", "-display", "none", *argv]) == 1
    assert complaint in capsys.readouterr().err
