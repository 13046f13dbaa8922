"""What keeps each method from collapsing does: without it the rank of the embedding falls to a quarter or less."""

import collapse
import pytest

STEPS = {"byol": 120, "simsiam": 320, "swav": 120, "simclr": 80}  # fewer than the picture's where fewer show it


@pytest.mark.slow
@pytest.mark.parametrize("name", collapse.ROWS)
def test_a_method_collapses_without_what_prevents_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "STEPS", STEPS[name])
    monkeypatch.setattr(collapse, "EVERY", STEPS[name])  # the first and the last are measured
    whole, *others = (line[-1] for line in collapse.curves([name])[name].values())
    assert others
    assert max(others) <= whole / 4
