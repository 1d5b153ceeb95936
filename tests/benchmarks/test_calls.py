"""The number of calls inside the package does not grow."""

import pytest

from benchmarks.calls import CASES, walk_of

MOST = {  # calls, changes of file: lower them with the counts, and raise them with a reason
    "call_and_ladj of one block": (98, 49),
    # one estimate serves both blocks, and each asks which estimator is chosen
    "log_prob of two blocks": (297, 172),
}


@pytest.mark.parametrize("case", CASES)
def test_the_way_is_no_longer_than_it_was(case):
    walk = walk_of(CASES[case]())
    calls, changes = MOST[case]
    assert 0 < walk.calls <= calls
    assert 0 < walk.changes <= changes


def test_walk_counts_the_frames_of_the_package_alone():
    from pyro_resflow.linearization import resolve_event_dim

    walk = walk_of(lambda: [resolve_event_dim(None, 1), resolve_event_dim(None, 2)])
    assert dict(walk.functions) == {("linearization.py", "resolve_event_dim"): 2}
    assert (walk.calls, walk.files, walk.changes, walk.depth) == (2, 1, 0, 1)
