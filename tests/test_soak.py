"""The short version of the soak; `make soak` runs the long one."""

import pytest
from soak import soak


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_that_is_struck_every_few_seconds_ends_as_if_nothing_had_happened(tmp_path):
    figures = soak(tmp_path, trials=4, seed=1, every=2.0, steps=300, most=1000.0, striking=30.0, least=2)
    assert figures["trials"] == 4 and set(figures["states"]) == {"done", "diverged"}
    assert figures["struck"] >= 2 and figures["drivers"] >= 2
