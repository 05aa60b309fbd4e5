"""The real KVM for tests marked `kvm`; where the probe finds it no oracle they skip with its reason."""

import pytest

from vmm.kernel.hostkvm import HostKvm
from vmm.kernel.hostkvm_probe import probed


@pytest.fixture(scope="session")
def kvm():
    if not probed().oracle:
        pytest.skip(probed().reason)
    with HostKvm() as opened:
        yield opened
