"""The real KVM for tests marked `kvm`; where the probe finds it no oracle they skip with its reason.

With VINTX_KVM=required they fail instead: for machines that are known to have one.
"""

import os

import pytest

from vmm.kernel.hostkvm import HostKvm
from vmm.kernel.hostkvm_probe import probed


@pytest.fixture(scope="session")
def kvm():
    if not probed().oracle:
        if os.environ.get("VINTX_KVM") == "required":
            pytest.fail(f"VINTX_KVM=required, and the probe says: {probed().reason}")
        pytest.skip(probed().reason)
    with HostKvm() as opened:
        yield opened
