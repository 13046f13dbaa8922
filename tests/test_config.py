"""Configurations: what is merged, and what is refused with which words."""

import configparser
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from avssl.config import (
    Config,
    ConfigError,
    DataConfig,
    OptimConfig,
    Options,
    Positive,
    RunConfig,
    dumps,
    find_config,
    from_dict,
    load,
    loads,
    merge_options,
    with_overrides,
)
from avssl.files import shipped
from avssl.methods import import_method, method_options


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {manifest: m.parquet}\nrun: {dir: runs/x}\nmethod: {name: avid, cross: 1}\noptim: {lr: 1e-3}\n"
    )
    return file


def test_file_wins_over_defaults_and_overrides_win_over_the_file(path: Path) -> None:
    config = load(path, ["optim.lr=0.5", "data.jitter=[0, 0, 0, 0]", "method.within=1", "data.policy.silent=skip"])
    assert (config.optim.lr, config.optim.weight_decay, config.data.jitter) == (0.5, 1e-5, (0, 0, 0, 0))
    assert config.method == {"name": "avid", "cross": "1", "within": "1"}
    assert (config.data.policy.silent, config.data.policy.no_audio) == ("skip", "mask")
    assert load(path).optim.lr == 1e-3


def test_overrides_are_yaml_and_go_as_deep_as_keys_do(path: Path) -> None:
    config = load(path, ["method.parts={patch: {weight: 1}, near: {}}", "method.parts.patch.weight=2", "data.root="])
    assert config.method["parts"] == {"patch": {"weight": "2"}, "near": {}}
    assert list(loads(dumps(config)).method["parts"]) == ["patch", "near"]  # heads are drawn in this order
    assert config.data.root is None
    with pytest.raises(
        ConfigError, match=r"^method\.cross\.x: method\.cross=1 is no mapping of keys; set method\.cross"
    ):
        load(path, ["method.cross.x=1"])


def test_a_section_is_replaced_as_a_whole(path: Path) -> None:
    config = load(path, ["method={name: byol}", "method.momentum=0.9"])
    assert config.method == {"name": "byol", "momentum": "0.9"}


def test_a_base_lies_below_and_its_method_gives_way_to_another(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "lowest.yaml").write_text("data: {manifest: m, fps: 4, size: 32}\nmethod: {name: avid, within: 1}")
    (tmp_path / "deep" / "middle.yaml").write_text("base: ../lowest.yaml\ndata: {fps: 8}\nmethod: {cross: 2}")
    (tmp_path / "top.yaml").write_text("base: deep/middle.yaml\nrun: {dir: x}\noptim: {lr: 2}")
    config = load(tmp_path / "top.yaml", ["data.size=48"])
    assert (config.data.fps, config.data.size, config.optim.lr) == (8, 48, 2)
    assert config.method == {"name": "avid", "within": "1", "cross": "2"}
    assert loads(dumps(config)) == config  # flat
    (tmp_path / "other.yaml").write_text("base: top.yaml\nmethod: {name: byol}")
    assert load(tmp_path / "other.yaml").method == {"name": "byol"}
    (tmp_path / "named.yaml").write_text("base: top.yaml\nmethod: {name: avid, cross: 3}")
    assert load(tmp_path / "named.yaml").method == {"name": "avid", "within": "1", "cross": "3"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("base: gone.yaml", r"config .*gone\.yaml does not exist"),
        ("base: run.yaml", r"base=run\.yaml in config .*run\.yaml: expected the path of another YAML file"),
        ("base: back.yaml", r"base=run\.yaml in config .*back\.yaml: expected the path of another"),
        ("base: [a]", r"base=\[a\] in config .*: expected the path"),
        ("base: broken.yaml", r"config .*broken\.yaml must be a mapping of sections"),
        ("base: section.yaml\noptim: {lr: 1}", r"optim\.lr: optim=3 is no mapping of keys"),
    ],
)
def test_a_wrong_base_is_named(tmp_path: Path, text: str, message: str) -> None:
    for name, content in {"run": text, "back": "base: run.yaml", "broken": "[1]", "section": "optim: 3"}.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "text, value",
    [
        *((word, word) for word in ("2026_11_29", "12:30:00", "01", "no", "true", "1e3", "0x1F", "${run.dir}")),
        *((word, None) for word in ("null", "~", "")),
        *((f'"{word}"', word) for word in ("null", "~", "", "01")),
    ],
)
def test_words_stay_words(path: Path, text: str, value: str | None) -> None:
    config = load(path, [f"data.split={text}"])
    assert config.data.split == value
    assert loads(dumps(config)) == config


@pytest.mark.parametrize("word", ["on", "1:30", "1e3", "2026_11_29", "take #2", "#5", "C#", "+1", ".5", "=", "a=b"])
def test_names_stay_as_they_were_written_everywhere(path: Path, word: str) -> None:
    keys = ["run.dir", "data.manifest", "data.root", "data.split", "model.init", "method.parts.patch.tracks"]
    config = load(path, [f"{key}={word}" for key in keys])
    found = [config.run.dir, config.data.manifest, config.data.root, config.data.split, config.model.init]
    assert [*found, config.method["parts"]["patch"]["tracks"]] == [word] * len(keys)
    path.write_text(f"run: {{dir: {word!r}}}\ndata: {{manifest: {word!r}}}\n")
    assert load(path).run.dir == word


def test_every_path_begins_at_home(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    keys = ["run.dir", "data.manifest", "data.root", "model.video_weights", "model.audio_weights", "model.init"]
    sections = ("run: {dir: ~/x}", "data: {manifest: ~/x, root: ~/x}", "model: {init: ~/x, video_weights: ~/x}")
    for lines, text in (([f"{key}=~/x" for key in keys], "{}"), ([], "\n".join(sections))):
        path.write_text(text)
        config = load(path, [*lines, "data.split=~x~", "model.audio_weights=~/x", "method={name: patch, tracks: ~/x}"])
        found = [config.run.dir, config.data.manifest, config.data.root]
        found += [config.model.video_weights, config.model.audio_weights, config.model.init]
        assert found == ["/home/me/x"] * 6
        assert method_options(config)["tracks"] == "/home/me/x"
        assert config.data.split == "~x~"
        assert loads(dumps(config)) == config
    joint = load(path, ["method={name: joint, parts: {patch: {tracks: ~/x}, infonce: {}}}"])
    assert method_options(joint)["parts"]["patch"]["tracks"] == "/home/me/x"
    with pytest.raises(ConfigError, match=r"there is no file ~/none\.py"):
        import_method("~/none.py:Mine")


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "${SECRET}", "$SECRET", "${oc.env:SECRET,x}", "$(SECRET)"])
def test_nothing_is_read_from_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A foreign YAML or checkpoint would take it along into what is exported."""
    monkeypatch.setenv("SECRET", "token")
    path.write_text(f"run: {{dir: '{text}'}}\ndata: {{manifest: '{text}', split: '{text}'}}\nmethod: {{x: '{text}'}}")
    for config in (load(path), load(path, [f"data.root={text}"]), loads(dumps(load(path)))):
        assert "token" not in dumps(config)
        assert (config.run.dir, config.data.split, config.method["x"]) == (text, text, text)


def test_text_is_read_as_its_field_says(path: Path) -> None:
    lines = ["run.log_every=1e3", "run.seed=0012", "optim.lr=1e-3", "optim.nesterov=on", "run.channels_last=FALSE"]
    config = load(path, [*lines, "optim.milestones=[1, 2e1]", "optim.clip_norm=null", "run.max_steps=12.0"])
    assert (config.run.log_every, config.run.seed, config.optim.lr, config.run.max_steps) == (1000, 12, 1e-3, 12)
    assert (config.optim.nesterov, config.run.channels_last) == (True, False)
    assert (config.optim.milestones, config.optim.clip_norm) == ((1, 20), None)


def test_text_round_trip(path: Path) -> None:
    config = load(path)
    assert loads(dumps(config)) == config
    for lr in (0.1 + 0.2, 5e-324, 1.7976931348623157e308, 1 / 3):
        changed = config.replace(optim=config.optim.replace(lr=lr), method={"temperature": lr, "on": True, "no": None})
        again = loads(dumps(changed))
        assert again == changed
        assert again.optim.lr == float(again.method["temperature"]) == lr


@pytest.mark.parametrize(
    "override, message",
    [
        ("optim.lrr=1", r"unknown key optim\.lrr in .*run\.yaml or the overrides: did you mean lr\b"),
        (
            "data.policy.silnt=skip",
            r"unknown key data\.policy\.silnt in .* or the overrides: did you mean silent\?",
        ),
        ("nothing.at=1", r"unknown key nothing in .*known keys: data, model, method, optim, run; .* is method.nothing"),
        ("batch_size=8", r"unknown key batch_size in .*: did you mean data\.batch_size\?"),
        ("batchsize=8", r"unknown key batchsize in .*: did you mean data\.batch_size\?"),
        ("temperature=8", r"unknown key temperature in .*; an option of the method is method\.temperature"),
        ("model.lr=8", r"unknown key model\.lr in .*: did you mean optim\.lr\?"),
        ("data.silent=8", r"unknown key data\.silent in .*: did you mean data\.policy\.silent\?"),
        (
            "optim.lr=fast",
            r"optim\.lr=fast in .* or the overrides: expected a number of at least 0, such as 0\.0002$",
        ),
        ("optim.lr=true", r"optim\.lr=true in .*: expected a number"),
        ("optim.lr=inf", r"optim\.lr=inf in .*: expected a finite number"),
        ("optim.lr=.nan", r"optim\.lr=\.nan in .*: expected a number"),
        ("optim.lr=", r"optim\.lr=null in .*: expected a number"),
        ("run.seed=true", r"run\.seed=true in .*: expected a whole number of at least 0"),
        ("run.log_every=1.5", r"run\.log_every=1\.5 in .*: expected a whole number of at least 1, such as 20"),
        ("run.compile=2", r"run\.compile=2 in .*: expected true or false"),
        ("run.dir=null", r"run\.dir=null in .*: expected text"),
        ("run.dir=[a]", r"run\.dir=\[a\] in .*: expected text"),
        ("optim.clip_norm=0", r"optim\.clip_norm=0 in .*: expected a number above 0 or null"),
        ("data.fps=-1", r"data\.fps=-1 in .*: expected a number of at least 0\.01, such as 16"),
        ("data.pixel_mean=[1, 1]", r"data\.pixel_mean=\[1, 1\] in .*: expected a list of 3, each a number$"),
        ("data.jitter=[0, 0, 0, 0.6]", r"data\.jitter=\[0, 0, 0, 0\.6\] in .*: .*, a number from 0 to 0\.5$"),
        ("data.blur=2", r"data\.blur=2 in .*: expected a number from 0 to 1"),
        ("optim=3", r"optim in .* must be a mapping of keys, not 3"),
        ("data.spectrogram=mel", r"data\.spectrogram=mel in .*expected one of avid, log_mel"),
        ("run.device=tpu", r"run\.device=tpu in .*expected one of auto, cpu, cuda"),
        ("lr", r"override 'lr' is not of the form section\.key=value"),
        ("optim..lr=1", r"override 'optim\.\.lr=1' is not of the form section\.key=value"),
    ],
)
def test_wrong_keys_and_values_are_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        load(path, [override])
    assert "\n" not in str(raised.value)


def test_required_keys_and_files(path: Path, tmp_path: Path) -> None:
    path.write_text("method: {name: avid}\n")
    with pytest.raises(
        ConfigError, match=r"data\.manifest, run\.dir not set in .*run\.yaml: give it in the file or as"
    ):
        load(path)
    with pytest.raises(ConfigError, match=r"nothing\.yaml does not exist"):
        load(tmp_path / "nothing.yaml")
    path.write_text("data: [1, 2\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path)
    path.write_text("run:\n  dir: x\n  dir: y\n")
    with pytest.raises(ConfigError, match="found duplicate key dir in line 3"):
        load(path)


class Small(Options):
    temperature: Positive = 0.1
    names: tuple[Literal["a", "b"], ...] = ()
    sizes: Annotated[tuple[int, ...] | None, Field(min_length=1)] = None


def test_options_of_a_method_are_checked_against_its_class() -> None:
    assert merge_options(Small, {"temperature": "1", "names": ["a"]}, where="method x") == Small(
        temperature=1.0, names=("a",)
    )
    assert Small(sizes=["1e1"]).sizes == (10,)
    with pytest.raises(ConfigError, match=r"unknown key temprature in method x: did you mean temperature\?"):
        merge_options(Small, {"temprature": 1}, where="method x")
    with pytest.raises(
        ConfigError, match=r"names=\[a, c\] in method x: expected a list of any length, each one of a, b"
    ):
        merge_options(Small, {"names": ["a", "c"]}, where="method x")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: OptimConfig(lr=-1), r"^lr=-1 in OptimConfig: expected a number of at least 0, such as 0\.0002$"),
        (lambda: OptimConfig().replace(lr=True), r"^lr=true in OptimConfig: expected a number"),
        (lambda: OptimConfig().replace(rate=1), r"^unknown key rate in OptimConfig"),
        (lambda: RunConfig(seed=1), r"^dir not set in RunConfig"),
        (
            lambda: Config(data={"policy": {"short": "no"}}, run={}),
            r"^data\.policy\.short=no in Config: expected one of",
        ),
        (
            lambda: DataConfig(manifest="m", crop_aspect=[2, 1]),
            r"data\.crop_aspect=\[2\.0, 1\.0\] must be the smallest",
        ),
    ],
)
def test_objects_are_checked_like_files(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_options_are_values() -> None:
    one, two = (DataConfig(manifest="m", jitter=[0.4, 0.4, 0.4, 0.1]) for _ in range(2))
    assert hash(one) == hash(two)
    assert one.replace(size=32) == DataConfig(manifest="m", jitter=(0.4, 0.4, 0.4, 0.1), size=32)
    with pytest.raises(ValueError, match="frozen"):
        one.size = 32


def test_defaults_need_only_two_keys() -> None:
    config = loads("data: {manifest: m}\nrun: {dir: x}")
    assert config.method == {"name": "avid"}
    assert isinstance(config, Config)
    assert config == from_dict(with_overrides({}, ["data.manifest=m", "run.dir=x"]), source="test")


def test_configs_that_come_along_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = Path(__file__).parents[1] / "configs" / "toy" / "avid.yaml"
    for name in ("toy/avid", "toy/avid.yaml", "configs/toy/avid.yaml"):
        assert find_config(name) == known
    assert load("toy/avid").method["name"] == "avid"
    own = tmp_path / "toy" / "avid.yaml"
    own.parent.mkdir()
    own.write_text("method: {name: infonce}\ndata: {manifest: x}\nrun: {dir: y}\n")
    assert load("toy/avid.yaml").method["name"] == "infonce"  # a file of one's own comes first
    with pytest.raises(ConfigError, match=r"toy/avdi does not exist: did you mean toy/avid\? .* or a name such as"):
        load("toy/avdi")
    for other in ("toy/infonce.yml", "configs/toy/avid.backup"):
        with pytest.raises(ConfigError, match="does not exist"):
            load(other)


SHIPPED = {"configs": "configs", "datasets": "datasets", "experiments": "tools/experiments"}


def test_the_wheel_carries_every_package_and_its_folders() -> None:
    root, parser = Path(__file__).parents[1], configparser.ConfigParser()
    parser.read(root / "setup.cfg")
    listed = set(parser["options"]["packages"].split())
    code = {path.parent.relative_to(root) for path in (root / "avssl").rglob("*.py")}
    assert listed == {".".join(folder.parts) for folder in code} | {f"avssl.{name}" for name in SHIPPED}
    mapped = dict(line.split(" = ") for line in parser["options"]["package_dir"].strip().splitlines())
    assert mapped == {f"avssl.{name}": folder for name, folder in SHIPPED.items()}
    assert {name: shipped(name) for name in SHIPPED} == {name: root / folder for name, folder in SHIPPED.items()}
