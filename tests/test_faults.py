"""The short form of `make faults`: one fault of each kind, and a few random kills."""

import pytest

from tests.faults.faults import FAULTS, SHORT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SHORT)
def test_a_run_survives(trial, name):
    outcomes = list(FAULTS[name](trial))
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    assert not failures
    assert sum(outcome.survived for outcome in outcomes) > 0
