"""Every `python ...` and `avssl ...` command of README.md and docs/ is run, page by page, on miniature data: the same
flags, sizes overridden. A command that stands on several pages is run once.

Tools run in this process, as importing torch anew for each of them would take longer than their work.
"""

import importlib.util
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from avssl.data.manifest import read_manifest
from avssl.data.tracks import write_tracks
from avssl.methods import METHODS
from tests.support.clips import make_clip, make_set
from tests.support.runs import TINY

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
FIRST = ("docs/guide.md", "README.md")  # their commands make what those of the other pages take for granted
PAGES = list(
    dict.fromkeys([*FIRST, *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))])
)
FENCED = r"^```%s\n(.*?)^```"
OWN_METHOD = "simsiam.py:SimSiam"  # a method of the user's own, from docs/methods.md
ONE_EPOCH = [*TINY, "optim.epochs=1", "optim.warmup_epochs=0", "method.in_batch_epochs=0"]
NUM_TRAIN, NUM_TEST = 24, 12
NOT_AVID = [line for line in ONE_EPOCH if not line.startswith("method.")]  # whose options those are
NOT_AVID += ["data.num_frames=3", "data.patch_size=32", "data.patch_grid=2"]
TUNED = ["optim.epochs=2", "method.warmup_epochs=1", "data.clips_per_video=1", "data.batch_size=4", "run.num_threads=1"]
TOY_SIZE = ["--train", "6", "--test", "4", "--actions-train", "3", "--actions-test", "2", "--workers", "1"]
RULES = ("consensus", "union", "video", "audio", "chance")


@dataclass(frozen=True)
class Miniature:
    """How a script of the pages is run here."""

    smaller: list[str]  # appended to its arguments: the last of two equal flags or keys wins
    check: Callable[[list[str], str], None]  # its arguments and what it printed -> looks at what came out


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def check_manifest(arguments: list[str], printed: str) -> None:
    if arguments[0] == "my_actions":
        assert read_manifest(option(arguments, "--out")).class_names == sorted(os.listdir("my_actions/train"))
        return
    assert pq.read_metadata(option(arguments, "--out")).num_rows == NUM_TRAIN + NUM_TEST
    assert "without audio" in printed


def check_copies(arguments: list[str], printed: str) -> None:
    num = pq.read_metadata(Path(arguments[0]) / "manifest.parquet").num_rows
    if "--dry-run" in arguments:
        assert f"{num} to prepare" in printed
        assert not Path(arguments[1]).exists()
    else:
        assert pq.read_metadata(Path(arguments[1]) / "manifest.parquet").num_rows == num


def check_run(arguments: list[str], printed: str) -> None:
    folder = Path(next(each.removeprefix("run.dir=") for each in arguments if each.startswith("run.dir=")))
    assert {"last.pt", "encoders.safetensors", "config.yaml", "log.jsonl", "tensorboard", "report.html"} <= set(
        os.listdir(folder)
    )


def check_report(arguments: list[str], printed: str) -> None:
    assert printed == f"report: {arguments[0]}/report.html\n"
    page = (Path(arguments[0]) / "report.html").read_text()
    assert "linear on my_clips/manifest.parquet" in page
    assert page.count('<img class="picture"') >= 2


def check_tracks(arguments: list[str], printed: str) -> None:
    known = pq.read_table(option(arguments, "--out")).column("id").unique()
    assert len(known) == NUM_TRAIN + NUM_TEST  # each with its tracks, or the reason why it has none
    assert f"of {NUM_TRAIN + NUM_TEST} clips" in printed
    # clips of a second are too short for tracks: what follows gets made ones
    hash = read_manifest(arguments[0]).hash
    made = {
        "track": 0,
        "times": [0.1, 0.7],
        "boxes": [[0.2, 0.2, 0.5, 0.5]] * 2,
        "confidence": [1.0] * 2,
        "reason": None,
    }
    rows = [made | {"id": id} for id in range(NUM_TRAIN + NUM_TEST)]
    write_tracks(option(arguments, "--out"), rows, manifest_hash=hash, options={})


def check_sets(arguments: list[str], printed: str) -> None:
    assert pq.read_metadata(option(arguments, "--out")).num_rows == NUM_TRAIN + NUM_TEST
    assert all(rule in printed for rule in RULES)


def check_embeddings(arguments: list[str], printed: str) -> None:
    assert any(Path(option(arguments, "--out")).glob("*.npy"))
    assert f"{NUM_TRAIN + NUM_TEST} clips" in printed


def check_neighbors(arguments: list[str], printed: str) -> None:
    lines = printed.splitlines()
    assert len(lines) == 1 + int(option(arguments, "--k"))
    assert all(line.endswith(".mp4") for line in lines[1:])


def check_accuracy(arguments: list[str], printed: str) -> None:
    heading, *lines = printed.splitlines()[1:]
    assert heading.split()[:3] == ["n", "chance", "random"]  # for free beside every figure
    ways = {found[1] for line in lines if (found := re.match(r"(\w+).*\d\.\d{3} \(", line))}
    assert ways >= ({"video"} if "my_actions" in printed else {"video", "audio"})
    if "--json" in arguments:
        assert json.loads(Path(option(arguments, "--json")).read_text())["protocol"] == arguments[1]


def check_tuned(arguments: list[str], printed: str) -> None:
    assert re.search(r"^video +\d+(?: \w)? +[01]\.\d+ +[01]\.\d+ \(.*\) +[01]\.\d+ \(", printed, re.MULTILINE)
    out = Path(option(arguments, "--out"))
    assert {"trained", "random"} == set(os.listdir(out / "split"))


def check_weights(arguments: list[str], printed: str) -> None:
    folder = Path(option(arguments, "--to"))
    assert {"encoders.safetensors", "config.json", "README.md"} <= set(os.listdir(folder))


def check_predicted(arguments: list[str], printed: str) -> None:
    name, *lines = printed.splitlines()
    assert name == arguments[1]
    assert 1 <= len(lines) <= (int(option(arguments, "--top")) if "--top" in arguments else 5)
    assert all(re.fullmatch(r" [01]\.\d{3}  \w+", line) for line in lines)


def check_toy(arguments: list[str], printed: str) -> None:
    for name, rows in (("toy", 10), ("toy_actions", 5)):
        assert pq.read_metadata(Path(arguments[0]) / name / "manifest.parquet").num_rows == rows


def check_benchmark(arguments: list[str], printed: str) -> None:
    (row,) = json.loads(printed)["rows"]
    assert row["tiles_recall"] == row["tiles_proven"] == row["flat_recall"] == 1
    assert min(row["dense_seconds"], row["tiles_seconds"], row["ivf_seconds"]) > 0


KNOWN = {
    "tools/scan.py": Miniature(["--workers", "1"], check_manifest),
    "datasets/toy.py": Miniature(TOY_SIZE, check_toy),
    "tools/prepare.py": Miniature(["--workers", "1"], check_copies),
    "tools/train.py": Miniature(ONE_EPOCH, check_run),
    "tools/report.py": Miniature([], check_report),
    "tools/track.py": Miniature(["--workers", "1"], check_tracks),
    "tools/mine.py": Miniature(["--k", "4"], check_sets),
    "tools/embed.py": Miniature(["--workers", "0", "--num-clips", "1"], check_embeddings),
    "tools/search.py": Miniature([], check_neighbors),
    "tools/evaluate.py": Miniature(["--workers", "0", "--num-clips", "1", "--num-crops", "1"], check_accuracy),
    "tools/evaluate.py finetune": Miniature([*TUNED, "--workers", "0", "--num-clips", "1"], check_tuned),
    "tools/evaluate.py --table": Miniature([], check_accuracy),
    "tools/convert.py": Miniature([], check_weights),
    "tools/predict.py": Miniature(["--num-clips", "1"], check_predicted),
    "tools/benchmarks/mining.py": Miniature(["--n", "600", "--k", "4", "--threads", "1"], check_benchmark),
}
DRY = ("tools/experiments/", "tools/benchmarks/")  # here with --dry-run, unless in KNOWN; tests/tools runs them
OWN_TESTS = {  # run in miniature by a test of their own; here only their options are looked at
    ("tests/rigs/chaos.py",): "tests/rigs/test_chaos.py",
    ("tools/check.py",): "tests/test_check_tool.py",
    ("tests/rigs/hostile.py",): "tests/rigs/test_hostile.py",
    ("tools/track.py", "clips/manifest.parquet"): "tests/test_track_tool.py",
    ("tools/evaluate.py", "runs/mine/avid_cma", "propagate"): "tests/evaluate/test_propagate.py",
    ("tools/browse.py",): "tests/browser/test_browse_tool.py",
    ("tools/experiments/demo.py", "--quick"): "tests/test_wheel.py",
    ("tools/convert.py", "checkpoint.pth.tar"): "tests/test_convert_tool.py",
    ("tools/convert.py", "X3D_S.pyth"): "tests/test_convert_tool.py",
    ("tools/convert.py", "SLOW_8x8_R50.pkl"): "tests/test_convert_tool.py",
    ("tools/convert.py", "torchvision:r2plus1d_18"): "tests/test_convert_tool.py",
    ("tools/convert.py", "runs/mine/avid_cma", "--to", "weights/mine", "--onnx"): "tests/test_convert_tool.py",
}
NOT_RUN = ("make", "torchrun", "pip")  # torchrun: tests/test_train.py starts several processes


def blocks(page: str, language: str) -> list[str]:
    return re.findall(FENCED % language, (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands_of(page: str) -> list[list[str]]:
    """The words of every command in a page's bash blocks, in order; `avssl x` as `python tools/x.py`, `-m tests.rigs.x`
    as `tests/rigs/x.py`.
    """
    text = re.sub(r"-m tests\.rigs\.(\w+)", r"tests/rigs/\1.py", "".join(blocks(page, "bash")))
    text = re.sub(r"^avssl datasets (\w+)", r"python datasets/\1.py", text, flags=re.MULTILINE)
    text = re.sub(r"^avssl demo", "python tools/experiments/demo.py", text, flags=re.MULTILINE)
    text = re.sub(r"^avssl (\w+)", r"python tools/\1.py", text, flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def all_commands() -> list[list[str]]:
    """Those of all pages, each once."""
    return [list(words) for words in dict.fromkeys(tuple(words) for page in PAGES for words in commands_of(page))]


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_only_where_they_are_run(page: str) -> None:
    text = re.sub(FENCED % "bash", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\bpython3? (?!tools/NAME\.py)\S+\.py|\bpython3? -m", text)


def test_the_first_page_is_one_screen_and_part_of_the_guide() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    guide = commands_of("docs/guide.md")
    first = [words for words in commands_of("README.md") if words[0] == "python" and not words[1].startswith(DRY)]
    places = [guide.index(words) for words in first]
    assert len(places) == 6
    assert places == sorted(places)


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "datasets/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(FENCED % r"\w*", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)  # code
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, target


def test_every_command_is_known() -> None:
    commands = all_commands()
    assert {words[0] for words in commands} == {"python", *NOT_RUN}
    known = {key.split()[0] for key in KNOWN}
    called = {words[1] for words in commands if words[0] == "python" and not is_dry(words)}
    assert called == {*known, *(key[0] for key in OWN_TESTS)}
    for words in commands:
        if words[0] == "torchrun":
            assert words[3:7] == ["-m", "avssl", "train", "toy/avid"]


def own_test(words: list[str]) -> tuple[str, ...] | None:
    """The key in OWN_TESTS of a command, if it has one."""
    return next((key for key in OWN_TESTS if tuple(words[1 : 1 + len(key)]) == key), None)


def is_dry(words: list[str]) -> bool:
    """Whether a command measures or compares at length; that of mining without sizes is run at a small one."""
    if words[0] != "python" or not words[1].startswith(DRY) or own_test(words):
        return False
    return words[1] not in KNOWN or "--n" in words


def test_experiments_and_benchmarks_say_what_they_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in filter(is_dry, all_commands()):
        assert call(words[1], [*words[2:], "--dry-run"], monkeypatch) == 0
        assert all(line.startswith("would ") for line in capsys.readouterr().out.splitlines()), words


def test_commands_with_tests_of_their_own_use_options_that_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [(words, key) for words in all_commands() if (key := own_test(words))]
    assert {key for _, key in found} == set(OWN_TESTS)
    for words, key in found:
        text, name = (ROOT / OWN_TESTS[key]).read_text(), Path(key[0]).stem
        assert re.search(rf'\b{name}(\.py)?"|{name} import main', text), key
        with pytest.raises(SystemExit):
            call(key[0], ["--help"], monkeypatch)
        printed = capsys.readouterr().out
        assert all(word in printed for word in words if word.startswith("--")), words


def make_actions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of toy_actions in FOLDER/{train,test}/<motion>, without a manifest."""
    spec = importlib.util.spec_from_file_location("toy", ROOT / "datasets" / "toy.py")
    toy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy", toy)  # its dataclasses look their module up
    spec.loader.exec_module(toy)
    for split in ("train", "test"):
        for clip in toy.action_clips(split, 12, seed=0):
            toy.make_clip(clip, root=folder, seed=0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the pages take for granted: clips, one more clip, the method of docs/methods.md, and the
    repository's configs.
    """
    make_set(tmp_path / "my_clips", num_train=NUM_TRAIN, num_test=NUM_TEST)
    (tmp_path / "my_clips" / "manifest.parquet").unlink()
    make_clip(tmp_path / "another_clip.mp4", 1, 999)
    make_actions(tmp_path / "my_actions", monkeypatch)
    (method,) = [block for block in blocks("docs/methods.md", "python") if "class SimSiam(Method)" in block]
    (tmp_path / OWN_METHOD.partition(":")[0]).write_text(method)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    METHODS.pop(OWN_METHOD, None)


def test_commands_and_code_of_the_pages(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = set()
    for words in all_commands():
        without_numbers = re.sub(r"\d+", "", shlex.join(words))
        if words[0] in NOT_RUN or own_test(words) or is_dry(words) or without_numbers in done:
            continue
        done.add(without_numbers)
        script = words[1]
        assert script in KNOWN, f"a page runs {script}, which this test does not know: add it to KNOWN"
        miniature = next((KNOWN[key] for word in words[2:] if (key := f"{script} {word}") in KNOWN), KNOWN[script])
        is_avid = script != "tools/train.py" or "avid" in words[2]
        arguments = [*words[2:], *(miniature.smaller if is_avid else NOT_AVID)]
        capsys.readouterr()
        code = call(script, arguments, monkeypatch)
        printed = capsys.readouterr()
        assert code == 0, f"{shlex.join(words)}: exit code {code}\n{printed.err[-2000:]}"
        miniature.check(words[2:], printed.out)
    for page in ("README.md", "docs/guide.md", "docs/weights.md"):
        (block,) = blocks(page, "python")
        known: dict[str, Any] = {}
        exec(block.replace("clip.mp4", "another_clip.mp4"), known)
        assert {modality: len(each) for modality, each in known["found"].features.items()} == {
            "video": 1,
            "audio": 1,
        }, page


def call(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a script of the repository as `python script arguments` would, and return its exit code."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # worker processes import it anew by this name
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments])
    spec.loader.exec_module(module)
    return module.main()
