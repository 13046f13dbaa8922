"""Each command is reached as `avssl NAME`, `python -m avssl NAME` and tools/NAME.py."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from avssl import cli
from avssl.cli.common import warn_unread
from avssl.cli.train import main as train_command
from avssl.data.recipes.build import print_training
from avssl.methods import METHODS


def test_commands_tools_and_modules_are_the_same(repository: Path) -> None:
    tools = {path.stem for path in (repository / "tools").glob("*.py") if "avssl.cli" in path.read_text()}
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "common"}
    assert set(cli.COMMANDS) == tools == modules
    for name in cli.COMMANDS:
        assert f"from avssl.cli.{name} import main" in (repository / "tools" / f"{name}.py").read_text()


def test_help_lists_every_command_and_is_quick() -> None:
    code = "import sys; sys.argv = ['avssl', '--help']\nfrom avssl.cli import main\ntry: main()\n"
    code += "finally: assert not {'torch', 'numpy'} & set(sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  (\w+) +\w", shown.partition("commands:")[2], re.M) == [*cli.COMMANDS, *cli.SCRIPTS]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: avssl {name} ")
    assert importlib.import_module(f"avssl.cli.{name}").__doc__.splitlines()[0] in shown
    assert "Exit code: " in " ".join(shown.split())


def test_arguments_reach_the_command(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = str(tmp_path / "lost.parquet")
    assert cli.main(["check", lost, "--timeout", "3"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .*lost\.parquet does not exist.*\n", said)
    for command in (["-m", "avssl", "check"], ["tools/check.py"]):
        done = subprocess.run([sys.executable, *command, lost], cwd=repository, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, said)


def test_a_command_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tain"])
    assert "did you mean train? invalid choice: 'tain'" in capsys.readouterr().err


def test_an_evaluation_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["evaluate", "runs/toy", "--dataset", "toy"])
    assert "what to evaluate must follow runs/toy: one of knn, linear" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["evaluate", "runs/toy", "lineer", "--dataset", "toy"])
    assert "did you mean linear? invalid choice: 'lineer'" in capsys.readouterr().err


def test_train_asks_for_its_config_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train"])
    assert "the following arguments are required: config\n" in capsys.readouterr().err


@pytest.mark.parametrize("splits, more", [({"train", None}, []), ({None}, []), ({"test"}, ["data.split=null"])])
def test_a_command_that_follows_can_be_pasted(splits: set, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    print_training("my clips/it's.parquet", splits)
    title, _, command = capsys.readouterr().err.partition(": ")
    assert title == "next"
    words = ["data.manifest=my clips/it's.parquet", "run.dir=runs/my clips", *more]
    assert shlex.split(command) == ["avssl", "train", "toy/avid", *words]


def test_a_file_that_is_not_read_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert warn_unread({"a b.mp4": "/clips/a b.mp4: the file is empty", "c.mp4": "no audio"}) == 1
    assert capsys.readouterr().err == "not read: a b.mp4: the file is empty\nnot read: c.mp4: no audio\n"


def test_every_option_is_listed_with_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(section: str) -> list[str]:
        assert train_command(["--list-options", section]) == 0
        return capsys.readouterr().out.splitlines()

    for name, method in METHODS.items():
        keys = [re.match(r"[\w.]+", line)[0] for line in listed(name)]
        assert keys == [f"method.{key}" for key in method.Options.model_fields]
    assert "optim.lr_per_256=null  (a number of at least 0 or null): instead of lr" in "\n".join(listed("optim"))
    assert "data.policy.no_video=skip  (one of error, skip, mask): sound only" in listed("data")
    assert "data.manifest  (text): parquet of avssl scan or datasets; its rows are the instances" in listed("all")
    inherited = next(line for line in listed("avid_cma") if line.startswith("method.head_batch_norm="))
    assert inherited.endswith("normalize the heads' outputs over the batch: what keeps small sets from collapsing")
    assert train_command(["--list-options", "optin"]) == 2
    assert "did you mean optim" in capsys.readouterr().err
