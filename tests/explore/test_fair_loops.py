"""The fair-loop search against the definition of a fair loop, on small graphs."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.errors import UsageError
from vmm.explore.liveness import ACTOR, AT_LOCK, MOST, OWED, Graph

ACTORS = 3
CLAIMS = (0, OWED, OWED | AT_LOCK)


@st.composite
def graphs(draw):
    """Of each state, whether the goal is true, and by actor: what it may claim there and where it leads."""
    count = draw(st.integers(1, 5))
    edge = st.tuples(st.sampled_from(CLAIMS), st.integers(0, count - 1))
    state = st.tuples(
        st.sampled_from((False, False, False, True)), st.dictionaries(st.integers(0, ACTORS - 1), edge, max_size=ACTORS)
    )
    return draw(st.lists(state, min_size=count, max_size=count))


@st.composite
def queues(draw):
    """The same with somebody who can have a lock here and there, and reaches the goal, the last state, by it."""
    count = draw(st.integers(2, 6))
    others = st.tuples(st.sampled_from((0, OWED)), st.integers(0, count - 2))
    states = [(False, draw(st.dictionaries(st.integers(1, 2), others, min_size=1))) for _ in range(count - 1)]
    for _, edges in states:
        if draw(st.booleans()):
            edges[0] = OWED | AT_LOCK, count - 1
    return [*states, (True, {})]


def searched(states):
    graph = Graph(1, ACTORS)
    for reached, edges in states:
        graph.state((reached,))
        for actor, (claim, target) in sorted(edges.items()):
            graph.edge(actor | claim, target)
    return graph.lasso(0)


def is_fair(visits):
    """Of a loop, as (edges of a state, who acts there): by the words of the two promises."""
    for actor in range(ACTORS):
        if actor in [acts for _, acts in visits]:
            continue
        claims = [edges[actor][0] if actor in edges else 0 for edges, _ in visits]
        if all(claim & OWED for claim in claims) or any(claim & AT_LOCK for claim in claims):
            return False
    return True


def can_reach(states, subset, source):
    found, fresh = set(), [source]
    while fresh:
        fresh = [
            t for s in fresh for _, t in states[s][1].values() if t in subset and t not in found and not found.add(t)
        ]
    return found


def first_fair_state(states):
    """The smallest state on a fair loop without the goal: of all sets of states, those that one loop can visit and
    nothing else, taking each step that stays among them. (Fewer steps of the same states are no fairer.)
    """
    dull = [n for n, (reached, _) in enumerate(states) if not reached]
    firsts = []
    for size in range(1, len(dull) + 1):
        for subset in combinations(dull, size):
            if all(can_reach(states, subset, s) == set(subset) for s in subset):
                visits = [
                    (states[s][1], actor) for s in subset for actor, (_, t) in states[s][1].items() if t in subset
                ]
                if is_fair(visits):
                    firsts.append(min(subset))
    return min(firsts, default=None)


@settings(max_examples=600)
@given(st.one_of(graphs(), queues()))
def test_search_finds_a_loop_exactly_if_some_set_of_states_has_a_fair_one(states):
    first = first_fair_state(states)
    ends = [n for n, (reached, edges) in enumerate(states) if not (reached or any(c & OWED for c, _ in edges.values()))]
    lasso = searched(states)
    if lasso is None:
        assert first is None
        assert ends == []
    elif lasso.cycle:
        assert lasso.start == first
        assert all(first < end for end in ends)
    else:
        assert lasso.start == ends[0]
        assert first is None or first >= ends[0]


@settings(max_examples=600)
@given(st.one_of(graphs(), queues()))
def test_loop_that_is_told_is_a_fair_run_by_itself(states):
    lasso = searched(states)
    if lasso is None or not lasso.cycle:
        return
    at = lasso.start
    visits = []
    for actor in lasso.cycle:
        reached, edges = states[at]
        assert not reached
        visits.append((edges, actor))
        at = edges[actor][1]
    assert at == lasso.start
    assert is_fair(visits)


def test_graph_has_no_room_for_more_actors_than_an_edge_can_name():
    assert MOST == ACTOR + 1 == 64
    Graph(1, MOST)
    with pytest.raises(UsageError, match="64 actors; this one has 65"):
        Graph(1, MOST + 1)
