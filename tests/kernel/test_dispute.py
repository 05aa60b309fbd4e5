"""The dispute's sequences: what was expected of each, what the model does, and the page and command that show both."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from vmm.cli.vintx import main
from vmm.dispute import page, table
from vmm.dispute.expected import ROWS
from vmm.dispute.row import POLICIES, TWO_OBJECTS
from vmm.dispute.stage import GSIS, Stage, play
from vmm.errors import ConfigError, UsageError
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.invariants import holding
from vmm.kernel.policies import policy

PAGE = Path(__file__).parents[2] / "docs" / "dispute.md"


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_each_sequence_comes_to_what_was_expected_under_each_rule(row):
    found = {name: table.cell(row, name) for name in POLICIES}
    assert {name: cell.differences for name, cell in found.items() if cell and cell.differences} == {}
    assert all(cell is None or cell.expected for cell in found.values())


@pytest.mark.parametrize("name", TWO_OBJECTS)
def test_flag_and_clear_irq_come_to_the_same_in_every_row(name):
    for row in ROWS:
        close = f"eoifd-close={row.eoifd_close}"
        flag = table.cell(row, f"{name}:{close}:deassert=asserted-flag")
        clear = table.cell(row, f"{name}:{close}:deassert=clear-irq")
        assert (flag and flag.came) == (clear and clear.came)


def test_every_row_says_what_happens_under_every_rule_with_its_evidence():
    for row in ROWS:
        named = [name for outcome in row.outcomes for name in outcome.policies]
        assert sorted(named) == sorted(POLICIES), row.name
        assert all(set(outcome.grade) <= set("SEKR") and outcome.says for outcome in row.outcomes)


def test_wrong_expectation_is_reported():
    row = ROWS[0]
    outcome = row.outcomes[0]
    wrong = outcome.steps.replace("EFAULT | 1", "ok     | 2").replace("| low |", "| g | f", 1)
    broken = row._replace(outcomes=(outcome._replace(steps=wrong, breaks=()), *row.outcomes[1:]))
    cell = table.cell(broken, "eoifd-v5")
    assert cell is not None
    assert cell.differences == [
        "I+ e1 g: line low, not g; signalled nobody, not f",
        "I+ e3 g: EFAULT, not ok; 1 ids, not 2",
        "breaks S1 S20, not nothing",
    ]


def test_page_in_docs_is_what_the_model_does():
    assert PAGE.read_text() == page.markdown(), "run: vintx dispute --markdown > docs/dispute.md"


# The command


def test_counter_example_fails_with_one_source_id_and_works_with_two(capsys):
    assert main(["dispute", "--row", "a", "--policy", "eoifd-v5"]) == 0
    one = capsys.readouterr().out
    assert main(["dispute", "--row", "a", "--policy", "eoifd-v5", "--sources", "2"]) == 0
    two = capsys.readouterr().out
    assert "I+ e3 g       EFAULT  1 ids" in one
    assert "I+ e3 g       ok      2 ids" in two
    assert "breaks S20" in one
    assert "breaks S20" not in two
    assert "breaks S1:" in two


def test_json_has_each_step_of_one_rule(capsys):
    assert main(["dispute", "--row", "a'", "--policy", "eoifd-v5", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["policy"], found["grade"], found["breaks"]) == ("eoifd-v5", "S", ["S1", "S7"])
    assert found["steps"][5]["operation"] == "EOI g"
    assert (found["steps"][5]["line"], found["steps"][5]["signalled"]) == (["g"], [])
    assert "S7" in found["steps"][5]["broken"]


def test_rule_with_options_is_played_without_an_expectation(capsys):
    assert main(["dispute", "--row", "i", "--policy", "eoifd-v5:eoifd-close=ignored"]) == 0
    assert "told e2" in capsys.readouterr().out
    assert main(["dispute", "--row", "d'", "--policy", "assign-busy:edge-on-gsi=refused"]) == 0
    assert "I+ e9 g edge  EBUSY" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "z"], "there are a, a-plenty"),
        (["--policy", "v5"], "there are eoifd-v5"),
        (["--policy", "eoifd-v5:eoifd-close=maybe"], "eoifd-close is ignored or deassigns"),
        (["--policy", "resample:deassert=clear-irq", "--row", "a"], "has no options"),
        (["--sources", "65"], "65 source ids"),
        (["--sources", "-1"], "-1 source ids"),
        (["--markdown", "--row", "a"], "leave out"),
    ],
)
def test_wrong_command_line_is_refused_and_told_what_there_is(arguments, message, capsys):
    assert main(["dispute", *arguments]) == 1
    assert message in capsys.readouterr().err


# The stage


@pytest.mark.parametrize("operation", ["", "X e1", "I+ e1", "I+ e1 q", "EOI", "EOI z", "SIG", "D e1"])
def test_operation_that_is_none_is_refused(operation):
    with pytest.raises(UsageError):
        Stage("eoifd-v5").do(operation)


def test_name_that_is_taken_is_no_name_for_a_dup():
    stage = Stage("eoifd-v5")
    stage.do("I+ e1 g")
    with pytest.raises(UsageError, match="taken"):
        stage.do("D e1 e1")


def test_descriptor_that_was_closed_is_ebadf():
    came = play(["I+ e1 g", "C e1", "C e1", "SIG e1", "I- e1 g", "I+ e1 g"], "eoifd-v5")
    assert [step.result for step in came] == ["ok", "ok", *["EBADF"] * 4]
    assert all(not step.broken for step in came)


# Options of the rules


def test_options_are_read_and_wrong_ones_refused():
    assert policy("eoifd-v5:eoifd-close=deassigns").notices_close
    assert not policy("eoifd-v5").notices_close
    assert policy("assign-busy").notices_close
    assert policy("assign-busy:deassert=clear-irq").clears_irq
    for text in ("eoifd-v5:deassert", "eoifd-v5:deassert=x", "eoifd-v5:edge-on-gsi=refused", "nothing", "resample:a=b"):
        with pytest.raises(ConfigError):
            policy(text)
    with pytest.raises(ConfigError, match="once"):
        policy("eoifd-v5:deassert=clear-irq:deassert=clear-irq")


@pytest.mark.parametrize(("deassert", "raised"), [("asserted-flag", False), ("clear-irq", True)])
def test_gsi_routed_away_while_high_tells_flag_and_chip_apart(deassert, raised):
    stage = Stage(f"eoifd-v5:deassert={deassert}")
    for operation in ("I+ e1 g", "E+ e2 e1", "SIG e1"):
        stage.do(operation)
    gsi = GSIS["g"]
    stage.vm.set_gsi_routing([Route.irqchip(gsi, KVM_IRQCHIP_IOAPIC, gsi + 2)])
    stage.do("SIG e1", check=False)
    assert bool(holding(stage.vm, gsi)) == raised


def test_edge_irqfd_may_be_kept_off_the_gsi_of_a_pair():
    stage = Stage("assign-busy:edge-on-gsi=refused")
    for operation in ("I+ e1 g", "E+ e2 e1"):
        stage.do(operation)
    assert stage.do("I+ e9 g edge").result == errno.errorcode[errno.EBUSY]
    assert stage.do("I+ e9 h edge").result == "ok"
