"""-preconfig: the machine waits for x-exit-preconfig."""

import pytest

from support.qtest_link import ProcessLink


@pytest.mark.parametrize(("arguments", "state"), [((), "running"), (("-S",), "prelaunch")])
def test_machine_waits_for_x_exit_preconfig_and_heeds_s(tmp_path, arguments, state):
    link = ProcessLink(tmp_path, "-machine", "pc", "-m", "16", "-preconfig", *arguments)
    assert link.execute("query-status") == {"status": "prelaunch", "running": False}
    with pytest.raises(AssertionError, match="permitted only after machine initialization has completed"):
        link.execute("query-cpus-fast")
    assert link.execute("x-exit-preconfig") == {}
    assert link.execute("query-status") == {"status": state, "running": state == "running"}
    assert len(link.execute("query-cpus-fast")) == 1
    with pytest.raises(AssertionError, match="permitted only before machine initialization"):
        link.execute("x-exit-preconfig")
    assert link.end() == 0
    link.close()
    assert ("RESUME" in link.events) == (state == "running")
