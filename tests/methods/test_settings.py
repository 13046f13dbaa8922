"""Settings of the patch method and of the walk that cannot work are refused before anything is read."""

import pytest

from avssl.config import from_dict
from avssl.methods import build_method
from tests.support.tiny import everything


@pytest.mark.parametrize(
    "method, message",
    [
        (
            {"name": "patch", "tracks": "t", "temperature": 0.0},
            r"temperature=0\.0 in method patch: expected a number above 0",
        ),
        ({"name": "walk", "temperature": -1.0}, r"temperature=-1\.0 in method walk: expected a number above 0"),
        ({"name": "walk", "dropout": 1.0}, r"dropout=1\.0 in method walk: expected a number of at least 0 and below 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(method: dict, message: str) -> None:
    config = from_dict({"data": {"manifest": "m"}, "run": {"dir": "r"}, "method": method}, source="test")
    with pytest.raises(ValueError, match=message):
        build_method(config, everything(4))
