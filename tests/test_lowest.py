"""The lowest versions that pyproject.toml allows, which `make test-lowest` installs."""

import pytest
from lowest import all_lowest, lowest


def test_every_dependency_has_a_lowest_version():
    assert {"torch", "numpy", "ray[tune]", "mlflow"} <= {pinned.partition("==")[0] for pinned in all_lowest()}


def test_a_dependency_without_one_is_named():
    assert lowest("ray[tune]>=2.54,<3") == "ray[tune]==2.54"
    with pytest.raises(ValueError, match="'numpy' has no lowest version"):
        lowest("numpy")
