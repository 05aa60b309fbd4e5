"""Every message of the battery has a good end: an error reply, or a connection that is closed cleanly."""

from pathlib import Path

import pytest

from support.malformed import ALL, BATTERY, CONNECTIONS, IdioLike, outcome, reference
from support.vfio_user import RawClient, open_fds, serving

PAGE = Path(__file__).parents[2] / "docs/vfio-user-malformed.md"


def rows():
    """The table of the page: {message: (ours, the reference server's)}."""
    lines = PAGE.read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0].replace("\\|", "|"): (row[1], row[2]) for row in cells[1:]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(IdioLike(), tmp_path_factory.mktemp("battery")) as made:
        yield made


@pytest.fixture(scope="module")
def documented():
    return rows()


@pytest.mark.parametrize("name", ALL)
def test_message_ends_as_the_page_says_and_the_server_lives_on(server, documented, name):
    before = open_fds()
    found = outcome(server, name)
    assert found == documented[name][0]
    client = RawClient(server)
    assert client.is_served()
    client.close()
    assert open_fds() == before


def test_page_lists_every_message_beside_what_the_reference_server_does(documented):
    assert {name: theirs for name, (_, theirs) in documented.items()} == reference()
    assert set(documented) == set(ALL)
    assert len(BATTERY) + len(CONNECTIONS) > 115
    assert len(ALL) > 130
