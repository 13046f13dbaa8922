"""Wrong use and broken surroundings, called as a user calls: one sentence with the way out, and nothing lost.

Tools run in this process, as importing torch anew for each call would take longer than the call.
"""

import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avssl.data.manifest import Manifest, read_manifest
from avssl.files import folder_lock
from avssl.logs import read_log
from avssl.retrieval.store import read_store
from avssl.training.checkpoint import load_checkpoint
from avssl.training.loop import train
from tests.support.clips import make_clip, make_set
from tests.support.runs import CMA, TINY, Call, Outcome, config, equal_models

pytestmark = pytest.mark.slow


@pytest.fixture
def train_call(call: Call, clip_set: Manifest, tmp_path: Path) -> Call:
    """tools/train.py with an empty config, the tiny sizes and the overrides given, which win."""

    def train_call(folder: Path, *overrides: str) -> Outcome:
        (tmp_path / "empty.yaml").write_text("{}\n")
        common = [f"data.manifest={clip_set.root / 'manifest.parquet'}", f"run.dir={folder}", *TINY]
        return call("tools/train.py", tmp_path / "empty.yaml", *common, *overrides)

    return train_call


@pytest.fixture(scope="module")
def finished(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of two epochs; not to be changed by tests."""
    folder = tmp_path_factory.mktemp("wrong_use") / "run"
    assert train(config(clip_set, folder))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may harm."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB that a test may fill up or set read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs (the limit on file sizes is tested without)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fill(folder: Path, *, spare: int) -> Path:
    """Leave `spare` bytes; a file system hands out whole blocks."""
    free = os.statvfs(folder)
    (folder / "filler").write_bytes(b"x" * (free.f_bavail * free.f_frsize - spare))
    return folder / "filler"


def read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


# ---- configurations


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["optim.lrr=1"], r"unknown key optim\.lrr in .*: did you mean lr\?"),
        (["method.temprature=1"], r"unknown key temprature in method avid: did you mean temperature\?"),
        (["method.name=avvid"], r"method\.name=avvid is unknown: did you mean avid"),
        (["method.name=zzz"], r"method\.name=zzz is unknown: known: avid, "),
        (["data.manifest=."], r"manifest \. is a folder: name the file in it, such as manifest\.parquet"),
        (["method=avid"], r"method=avid in .*: expected a mapping with a name, such as \{name: avid\}"),
        (["method.name.x=1"], r"method=\{.*x: 1.*\} in .*: expected a mapping with a name"),
        (["model.video=r2plus1d"], r"model\.video=r2plus1d is not an encoder: did you mean"),
        (["data.size=large"], r"data\.size=large in .*: expected a whole number of at least 1, such as 224"),
        (
            ["data.batch_size=4000"],
            r"12 usable videos x data\.clips_per_video=2 are fewer than .*batch_size=4000: lower",
        ),
        (["data.batch_size=0"], r"data\.batch_size=0 in .*: expected a whole number of at least 1"),
        (["run.checkpoint_every=0"], r"run\.checkpoint_every=0 in .*: expected a whole number of at least 1"),
        (["optim.epochs=0"], r"optim\.epochs=0 in .*: expected a whole number of at least 1"),
        (["optim.accumulate=3"], r"optim\.accumulate=3 does not divide the 4 clips .*batch_size=4: choose a divisor"),
        (["data.policy.silent=drop"], r"data\.policy\.silent=drop in .*: expected one of error, skip, mask"),
        (["data.policy.no_audio=error"], r"1 clips of data\.split=train are without audio, first .*mp4: fix"),
        (["data.split=vall"], r"no usable clip with data\.split=vall in .*: .*set data\.split=null"),
        (
            ["data.manifest=none.parquet"],
            r"manifest none\.parquet does not exist: write it with avssl scan",
        ),
        (["data.root=none"], r"the folder of its clips does not exist: none; name the right one as root"),
        (["model.init=none"], r"checkpoint none does not exist: give the folder of a run"),
        (["optim.lr"], r"override 'optim\.lr' is not of the form section\.key=value"),
        (["optim.lr=[1, 2"], r"override 'optim\.lr=\[1, 2' cannot be read: .*fix the YAML"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_written(
    train_call: Call, tmp_path: Path, overrides: list[str], message: str
) -> None:
    train_call(tmp_path / "new", *overrides).refused(message)
    assert not (tmp_path / "new").exists()


def test_random_vectors_are_not_mined(train_call: Call, run: Path, tmp_path: Path) -> None:
    """A run of AVID to start from, or epochs of AVID before: then there is something to mine."""
    first = [*CMA, "method.mine_from_epoch=0", "run.max_steps=1"]
    message = r"method\.mine_from_epoch=0 would mine random vectors: start from .*AVID \(model\.init=RUN\), or"
    train_call(tmp_path / "new", *first).refused(message)
    assert not (tmp_path / "new").exists()
    assert "stopped and saved at step 1" in train_call(tmp_path / "new", *first, f"model.init={run}").err


@pytest.mark.parametrize("num_positives", [10, 32])  # of 11 usable clips with audio; 10 would leave no negative
def test_more_positives_than_clips_are_refused(train_call: Call, tmp_path: Path, num_positives: int) -> None:
    done = train_call(tmp_path / "new", *CMA, f"method.num_positives={num_positives}")
    done.refused(
        rf"method\.num_positives={num_positives}, but 11 usable clips have both video and audio: expected 1 to 9"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["optim.lr=0.5"], r"optim\.lr=0\.5, but the run in .* was started with 0\.0002: .*choose another run\.dir"),
        (["data.policy.silent=skip"], r"data\.policy\.silent=skip, but the run in .* was started with mask: .*choose"),
        (["run.seed=1"], r"run\.seed=1, but the run in .* was started with 0"),
        (["run.resume=never"], r"run\.resume=never, but .*last\.pt holds a run already: choose another run\.dir"),
        (["optim.lrr=1"], r"unknown key optim\.lrr"),
        (CMA, r"method\.engine=auto, but the run in .* was started with None"),
    ],
)
def test_a_run_is_left_alone_by_a_wrong_call(train_call: Call, run: Path, overrides: list[str], message: str) -> None:
    before = contents(run)
    train_call(run, *overrides).refused(message)
    assert contents(run) == before


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch executed']", "!!python/name:os.system", "!include other.yaml"]
)
def test_tags_in_yaml_are_not_executed(
    train_call: Call, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tags.yaml").write_text(f"run:\n  dir: {tag}\n")
    message = r"could not determine a constructor for the tag .*{}: write plain values, tags are not executed"
    call("tools/train.py", "tags.yaml", "data.manifest=m").refused(message.format("in line 2"))
    train_call(tmp_path / "new", f"optim.lr={tag}").refused(message.format(""))
    assert sorted(os.listdir(tmp_path)) == ["empty.yaml", "tags.yaml"]


@pytest.mark.parametrize(
    "text, message",
    [
        (b"- data\n- model\n", "must be a mapping of sections"),
        (b"optim: {lr: 1}\noptim: {lr: 2}\n", "found duplicate key optim in line 2: fix the YAML there"),
        (b"optim:\n\tlr: 1\n", "in line 2: fix the YAML there"),
        (b"optim: \xff\n", "cannot be read: 'utf-8' codec .*expected a text file in UTF-8 with YAML"),
        (b"optim: {lr: '${nothing}'}\n", r"optim\.lr=\$\{nothing\} in .*: expected a number of at least 0"),
    ],
)
def test_a_file_that_is_no_config_is_refused(call: Call, tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "run.yaml").write_bytes(text)
    call("tools/train.py", tmp_path / "run.yaml", "data.manifest=m", f"run.dir={tmp_path / 'x'}").refused(message)


# ---- clips and manifests


def test_a_manifest_of_other_clips_is_refused(train_call: Call, call: Call, run: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", num_train=8, num_test=0).root / "manifest.parquet"
    before = contents(run)
    message = r"belongs to another manifest than .*other.*use the manifest it was trained on, or start another run"
    train_call(run, f"data.manifest={other}").refused(message)
    call("tools/mine.py", run, "--manifest", other, "--k", 2, "--out", tmp_path / "sets.parquet").refused(message)
    assert contents(run) == before
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "sets.parquet").exists()


def test_an_empty_folder_costs_no_manifest(call: Call, clip_set: Manifest, tmp_path: Path) -> None:
    (tmp_path / "not_mounted").mkdir()
    manifest = shutil.copy(clip_set.root / "manifest.parquet", tmp_path / "manifest.parquet")
    done = call("tools/scan.py", tmp_path / "not_mounted", "--out", manifest)
    done.refused(r"no clip of .*not_mounted is usable: is ROOT right\?.*manifest\.parquet is left as it is", code=1)
    assert len(read_manifest(manifest, root=clip_set.root)) == len(clip_set)


def test_a_folder_without_audio_is_told_and_not_trained_on(train_call: Call, call: Call, tmp_path: Path) -> None:
    for number in range(3):
        make_clip(tmp_path / "silent" / f"{number}.mp4", 0, number, sound=False)
    manifest = tmp_path / "silent" / "manifest.parquet"
    made = call("tools/scan.py", tmp_path / "silent", "--out", manifest, "--workers", 1)
    assert made.code == 0  # good for evaluation
    assert re.search("no usable clip of .*silent has audio, .*: train on clips with audio", made.err)
    assert "next: avssl train" not in made.err
    done = train_call(tmp_path / "new", f"data.manifest={manifest}", "data.split=null")
    done.refused("no clip of this split has both video and audio, .*: check the manifest's summary")
    assert not (tmp_path / "new").exists()


def test_clips_that_are_gone_are_told_and_found_again(
    train_call: Call, call: Call, finished: Path, clip_set: Manifest, tmp_path: Path
) -> None:
    clips = Path(shutil.copytree(clip_set.root, tmp_path / "clips"))
    manifest = shutil.copy(clips / "manifest.parquet", tmp_path / "manifest.parquet")
    for path in clips.rglob("*.mp4"):
        path.rename(path.with_suffix(".moved"))
    new = [f"data.manifest={manifest}", f"data.root={clips}"]
    train_call(tmp_path / "new", *new).refused(r"no file of the batch could be read .*is data\.root right\?", code=1)
    few = ["--workers", 0, "--num-clips", 1]
    evaluated = ["tools/evaluate.py", finished, "knn", "--dataset", clips / "manifest.parquet", *few, "--num-crops", 1]
    evaluated += ["--cache", tmp_path / "vectors"]
    call(*evaluated).refused(r"no train clip of split could be read \(first: .*\): is .*clips the folder of the clips")
    extracted = ["tools/embed.py", finished, manifest, "--root", clips, "--out", tmp_path / "embeddings", *few]
    call(*extracted).refused(r"none of the first 18 clips could be read .*name the right one with --root")
    for path in clips.rglob("*.moved"):
        path.rename(path.with_suffix(".mp4"))
    assert call(*evaluated).code == 0
    assert call(*extracted).out.startswith("18 clips, 16 with sound, 0 not read")


def test_a_refused_extraction_claims_no_folder_and_a_corrected_root_is_kept(
    call: Call, finished: Path, clip_set: Manifest, tmp_path: Path
) -> None:
    right = Path(shutil.copytree(clip_set.root, tmp_path / "right"))
    (tmp_path / "wrong").mkdir()
    out, few = tmp_path / "embeddings", ["--workers", 0, "--split", "test"]
    extracted = ["tools/embed.py", finished, right / "manifest.parquet", "--out", out, *few]
    call(*extracted, "--root", tmp_path / "wrong").refused(r"none of the first 6 clips could be read .*--root")
    assert call(*extracted, "--num-clips", 1).code == 0  # nothing was claimed for 3
    moved = right.rename(tmp_path / "moved")
    extracted[2] = moved / "manifest.parquet"
    assert call(*extracted, "--num-clips", 1).code == 0
    assert read_store(out).meta.root == str(moved)
    path = read_store(out).path(0)
    found = call("tools/search.py", out, "--query", moved / path, "--k", 5, "--json")
    assert path not in [each["path"] for each in json.loads(found.out)["neighbors"]]
    with folder_lock(out):
        call(*extracted, "--num-clips", 1).refused(rf"process {os.getpid()} on .* writes to .*embeddings: wait for it")


def test_a_folder_that_another_process_writes_to_is_refused(
    train_call: Call, call: Call, run: Path, tmp_path: Path
) -> None:
    before = contents(run)
    message = rf"process {os.getpid()} on .* writes to {{}}: wait for it or end it"
    with folder_lock(run), folder_lock(tmp_path / "weights"):
        train_call(run).refused(message.format(run))
        call("tools/convert.py", run, "--to", tmp_path / "weights").refused(message.format(tmp_path / "weights"))
    assert contents(run) == before
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    "name, values, found",
    [
        ("path", range(18), "path is of int64, expected string: write"),
        ("start", ["x"] * 18, "start is of string, expected double: write"),
        ("label", [b"x"] * 18, "label is of binary"),
        ("has_audio", [1] * 18, "has_audio is of int64, expected bool: write"),
        ("width", [2.5] * 18, "width is of double, expected int32: write"),
        ("status", [["ok"]] * 18, "status is of list"),
        ("damaged_at", ["x"] * 18, "damaged_at is of string, expected double: write"),
    ],
)
def test_columns_of_another_type_are_refused(
    train_call: Call, clip_set: Manifest, tmp_path: Path, name: str, values: list, found: str
) -> None:
    table = clip_set.table
    if name in table.column_names:
        table = table.set_column(table.column_names.index(name), name, pa.array(list(values)))
    else:
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, tmp_path / "odd.parquet")
    message = rf"manifest .*odd\.parquet: the column {found}"
    train_call(tmp_path / "new", f"data.manifest={tmp_path / 'odd.parquet'}").refused(message)


def test_columns_as_pandas_writes_them_are_read(clip_set: Manifest, tmp_path: Path) -> None:
    table = clip_set.table
    for name, type_ in (("path", pa.large_string()), ("width", pa.int64()), ("duration", pa.float32())):
        table = table.set_column(table.column_names.index(name), name, table.column(name).cast(type_))
    table = table.set_column(table.column_names.index("label"), "label", table.column("label").dictionary_encode())
    pq.write_table(table, tmp_path / "odd.parquet")
    read = read_manifest(tmp_path / "odd.parquet", root=clip_set.root)
    assert read.hash == clip_set.hash
    assert read.table.schema.types == clip_set.table.schema.types


def test_a_damaged_manifest_is_refused(train_call: Call, clip_set: Manifest, tmp_path: Path) -> None:
    whole = (clip_set.root / "manifest.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    done = train_call(tmp_path / "new", f"data.manifest={tmp_path / 'half.parquet'}")
    done.refused(r"half\.parquet is no parquet file that can be read: write it with avssl scan")


def test_more_neighbors_than_clips_are_refused(call: Call, run: Path, clip_set: Manifest, tmp_path: Path) -> None:
    sets, embeddings = tmp_path / "sets.parquet", tmp_path / "embeddings"
    call("tools/mine.py", run, "--k", 11, "--out", sets).refused("k is 11, but .* only 10 others: lower k")
    call("tools/mine.py", run, "--k", 0, "--out", sets).refused("k is 0, expected at least 1")
    assert not sets.exists()
    mined = call("tools/mine.py", run, "--k", 10, "--out", sets)
    assert (mined.code, mined.err) == (0, "note: 10 positives of 11 clips are mostly chance: try --k 1\n")
    extracted = [run, clip_set.root / "manifest.parquet", "--out", embeddings, "--workers", 0, "--num-clips", 1]
    assert call("tools/embed.py", *extracted).code == 0
    for by, others in (("cosine", 17), ("agreement", 15)):
        asked = ["--query", 0, "--by", by, "--k"]
        done = call("tools/search.py", embeddings, *asked, others + 1)
        done.refused(rf"k={others + 1}, but these embeddings hold {others} other clips .*: give 1 to {others}")
        assert len(call("tools/search.py", embeddings, *asked, others).out.splitlines()) == 1 + others


# ---- checkpoints


def test_a_checkpoint_cut_in_half_is_refused_everywhere(
    train_call: Call, call: Call, run: Path, clip_set: Manifest, tmp_path: Path
) -> None:
    whole = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(whole[: len(whole) // 2])
    before, manifest = contents(run), clip_set.root / "manifest.parquet"
    message = r"last\.pt cannot be used, it is damaged or cut short: put a whole copy in its place, or move it away"
    train_call(run).refused(message)
    train_call(tmp_path / "new", f"model.init={run}").refused(message)
    call("tools/mine.py", run, "--out", tmp_path / "sets.parquet").refused(message)
    call("tools/embed.py", run, manifest, "--out", tmp_path / "embeddings").refused(message)
    call("tools/evaluate.py", run, "knn", "--dataset", manifest).refused(message)
    assert contents(run) == before
    assert sorted(os.listdir(tmp_path)) == ["empty.yaml", "run"]


# ---- the disk


def test_a_full_disk_stops_the_run_which_then_continues_bit_equal(
    train_call: Call, small_disk: Path, finished: Path
) -> None:
    run = small_disk / "run"
    assert "stopped and saved at step 5" in train_call(run, "run.max_steps=5", "run.checkpoint_every=2").err
    log = (run / "log.jsonl").read_text()
    filler = fill(small_disk, spare=3 * 64 * 1024)  # room for the log and the config, not for another checkpoint
    done = train_call(run, "run.checkpoint_every=2")
    words = r"run/.* cannot be written \(No space left on device\): free space there or choose another folder; "
    done.refused(words + r"the last good checkpoint is .*last\.pt at step 5; the same command continues", code=1)
    assert load_checkpoint(run)["step"] == 5
    assert not list(run.rglob(".*"))
    assert (run / "log.jsonl").read_text().startswith(log)
    filler.unlink()
    assert train_call(run, "run.checkpoint_every=2").code == 0
    assert equal_models(run / "last.pt", finished / "last.pt")
    assert [line["step"] for line in read_log(run / "log.jsonl")] == list(range(1, 13))


def test_a_disk_that_is_full_from_the_start_costs_nothing(train_call: Call, small_disk: Path) -> None:
    run = small_disk / "run"
    assert train_call(run, "run.max_steps=5").code == 1
    before = contents(run)
    fill(small_disk, spare=0)
    train_call(run).refused(r"run\.dir=.*run: .*config\.yaml cannot be written \(No space left on device\): free space")
    assert contents(run) == before


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(train_call: Call, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        done = train_call(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    done.refused(r"cannot be written \(File too large\): .*; no checkpoint was written yet; the same command", code=1)
    assert not list((tmp_path / "new").glob(".*"))
    assert train_call(tmp_path / "new").code == 0


def test_what_cannot_be_written_is_told_before_the_work(
    train_call: Call, call: Call, small_disk: Path, finished: Path, clip_set: Manifest
) -> None:
    run, out = Path(shutil.copytree(finished, small_disk / "run")), small_disk / "out"
    before = contents(small_disk)
    read_only(small_disk)
    message = r"cannot be written \(Read-only file system\): choose a folder that you may write to"
    manifest = clip_set.root / "manifest.parquet"
    train_call(small_disk / "new").refused(r"run\.dir=.*new: .*" + message)
    train_call(run).refused(r"run\.dir=.*run: .*" + message)
    call("tools/mine.py", finished, "--k", 2, "--out", out).refused(message)
    call("tools/embed.py", finished, manifest, "--out", out).refused(message)
    evaluated = [finished, "knn", "--dataset", manifest, "--json", out]
    call("tools/evaluate.py", *evaluated).refused(message)
    call("tools/scan.py", clip_set.root, "--out", out).refused(message)
    call("datasets/toy.py", out, "--train", 2, "--test", 2).refused(message)
    call("tools/benchmarks/mining.py", "--n", 50, "--k", 2, "--json", out).refused(message)
    assert contents(small_disk) == before


def test_files_and_folders_where_others_belong_are_told(
    train_call: Call, call: Call, finished: Path, clip_set: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    train_call(tmp_path / "file").refused(r"run\.dir=.*file: .* cannot be written \(File exists\): choose another")
    call("tools/mine.py", finished, "--k", 2, "--out", tmp_path / "folder").refused(r"folder .*\(Is a directory\)")
    extracted = [finished, clip_set.root / "manifest.parquet", "--out", tmp_path / "file"]
    call("tools/embed.py", *extracted).refused(r"file cannot be written \(File exists\)")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_evaluation_on_a_full_disk_is_told_and_leaves_nothing(
    call: Call, small_disk: Path, finished: Path, clip_set: Manifest
) -> None:
    evaluated = [finished, "linear", "--dataset", clip_set.root, "--workers", 0, "--num-clips", 2]
    evaluated += ["--num-crops", 1, "--no-baseline", "--cache", small_disk / "vectors"]
    filler = fill(small_disk, spare=40_000)
    call("tools/evaluate.py", *evaluated).refused(r"cannot be written \(No space left.*--cache names another folder")
    assert not [path for path in (small_disk / "vectors").rglob("*") if path.name != ".lock"]
    filler.unlink()


def test_an_extraction_on_a_full_disk_continues_when_there_is_space(
    call: Call, small_disk: Path, finished: Path, clip_set: Manifest
) -> None:
    extracted = [finished, clip_set.root / "manifest.parquet", "--out", small_disk / "embeddings"]
    extracted += ["--workers", 0, "--num-clips", 1]
    filler = fill(small_disk, spare=8192)
    call("tools/embed.py", *extracted).refused(r"shard-00000\..* cannot be written \(No space left on device\): free")
    filler.unlink()
    assert call("tools/embed.py", *extracted).code == 0
    assert not list(small_disk.rglob(".*"))
