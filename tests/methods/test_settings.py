"""Settings of the patch method and of the walk that cannot work are refused before anything is read."""

import pytest

from avssl.config import from_dict
from avssl.methods import build_method
from tests.support.tiny import everything


@pytest.mark.parametrize(
    "method, message",
    [
        ({"name": "patch", "tracks": "t", "temperature": 0.0}, r"method\.temperature=0\.0: expected a positive number"),
        ({"name": "walk", "temperature": -1.0}, r"method\.temperature=-1\.0: expected a positive number"),
        ({"name": "walk", "dropout": 1.0}, r"method\.dropout=1\.0: expected a share of links"),
    ],
)
def test_settings_that_cannot_work_are_refused(method: dict, message: str) -> None:
    config = from_dict({"data": {"manifest": "m"}, "run": {"dir": "r"}, "method": method}, source="test")
    with pytest.raises(ValueError, match=message):
        build_method(config, everything(4))
