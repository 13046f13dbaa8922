"""Configurations: what is merged, and what is refused with which words."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from avssl.config import Config, ConfigError, dumps, load, loads, merge_options


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {manifest: m.parquet}\nrun: {dir: runs/x}\nmethod: {name: avid, cross: 1}\noptim: {lr: 1e-3}\n"
    )
    return file


def test_file_wins_over_defaults_and_overrides_win_over_the_file(path: Path) -> None:
    config = load(path, ["optim.lr=0.5", "data.jitter=[0, 0, 0, 0]", "method.within=1"])
    assert (config.optim.lr, config.optim.weight_decay, config.data.jitter) == (0.5, 1e-5, [0, 0, 0, 0])
    assert config.method == {"name": "avid", "cross": 1, "within": 1}
    assert load(path).optim.lr == 1e-3


def test_text_round_trip(path: Path) -> None:
    config = load(path)
    assert loads(dumps(config)) == config


@pytest.mark.parametrize(
    "override, message",
    [
        ("optim.lrr=1", r"unknown key optim\.lrr in .*run\.yaml: did you mean lr\?"),
        ("nothing.at=1", r"unknown key nothing in .*known keys: data, model, method, optim, run"),
        ("optim.lr=fast", r"optim\.lr in .*run\.yaml: Value 'fast' .*could not be converted to Float"),
        ("optim=3", r"optim in .* must be a mapping of keys, not 3"),
        ("data.spectrogram=mel", r"data\.spectrogram=mel in .*expected one of avid, log_mel"),
        ("run.device=tpu", r"run\.device=tpu in .*expected one of auto, cpu, cuda"),
        ("lr", r"override 'lr' is not of the form section\.key=value"),
    ],
)
def test_wrong_keys_and_values_are_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(path, [override])


def test_required_keys_and_files(path: Path, tmp_path: Path) -> None:
    path.write_text("method: {name: avid}\n")
    with pytest.raises(ConfigError, match=r"data\.manifest, run\.dir not set in .*run\.yaml"):
        load(path)
    with pytest.raises(ConfigError, match=r"nothing\.yaml does not exist"):
        load(tmp_path / "nothing.yaml")
    path.write_text("data: [1, 2\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path)


def test_options_of_a_method_are_checked_against_its_dataclass() -> None:
    @dataclass
    class Options:
        temperature: float = 0.1
        names: list[str] = field(default_factory=list)

    assert merge_options(Options, {"temperature": 1}, where="method x") == Options(1.0)
    with pytest.raises(ConfigError, match=r"unknown key temprature in method x: did you mean temperature\?"):
        merge_options(Options, {"temprature": 1}, where="method x")


def test_defaults_need_only_two_keys() -> None:
    config = loads("data: {manifest: m}\nrun: {dir: x}")
    assert config.method == {"name": "avid"}
    assert isinstance(config, Config)
