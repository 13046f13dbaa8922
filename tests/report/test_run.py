"""tools/report.py as a user calls it, and the page at the end of a training: whole, of one file, true to the run."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from avssl.config import Config, from_dict, with_overrides
from avssl.data.manifest import Manifest, read_manifest, write_manifest
from avssl.logs import read_log
from avssl.mining.agreement import agreement_precision, chance_precision
from avssl.report.clips import Vectors, reference_clips, vectors_of_banks
from avssl.training.checkpoint import load_checkpoint
from avssl.training.loop import train
from avssl.training.session import SESSIONS, read_sessions
from avssl.weights.load import load_run
from tests.support.runs import CMA, SMALL, TINY, Call, config

pytestmark = pytest.mark.slow
SECTIONS = ["In short", "Neighbors", "Training", "Agreement sets", "Evaluation", "Clips", "What ran", "Configuration"]
SECTIONS += ["Words"]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Looks at the nesting, collects headings, ids, and the cells of tables by caption."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.images: list[dict[str, str]] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str]]) -> None:
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.images += [given] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def looked_at(path: Path) -> tuple[str, Page]:
    """The source of a page and the page, which must be whole and ask for nothing else."""
    source = path.read_text()
    page = Page(source)
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)|url\(["']?([^"')]*)""", source)
    assert all((one or two).startswith(("data:", "#")) for one, two in links)
    assert not re.search(r"https?://|@import|<script|<link", source)
    assert len(set(page.ids)) == len(page.ids)
    assert all(image["alt"] for image in page.images)
    return source, page


def row(source: str, name: str) -> list[str]:
    """The cells of the first line of any table that has this name."""
    line = re.search(rf'<th scope="row">{re.escape(name)}</th>(.*?)</tr>', source)
    assert line, name
    return re.findall(r"<td[^>]*>(.*?)</td>", line[1])


@pytest.fixture(scope="module")
def cma(clip_set: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AVID-CMA that mined twice and was stopped and continued once."""
    folder = tmp_path_factory.mktemp("runs") / "cma"
    settings = [*CMA, "optim.epochs=3"]
    assert not train(config(clip_set, folder, *settings, "run.max_steps=8"))
    assert train(config(clip_set, folder, *settings))
    return folder


def test_the_page_of_a_run(cma: Path, clip_set: Manifest, call: Call) -> None:
    done = call("tools/report.py", cma)
    assert (done.code, done.out) == (0, f"report: {cma / 'report.html'}\n")
    source, page = looked_at(cma / "report.html")
    assert page.headings == SECTIONS
    assert row(source, "Method") == ["avid_cma"]
    assert row(source, "Steps") == ["18 of 18, 3 epochs wanted"]
    assert row(source, "Resumed") == ["yes, it was started 2 times"]
    assert row(source, "method.num_negatives") == ["8", "1024"]
    assert row(source, "all") == ["12", "6", "", ""]
    assert row(source, "without audio")[:3] == ["1", "1", "mask"]
    assert f"torch {torch.__version__}" in row(source, "0")[3]
    assert "12 clips of data.split=train were trained on. The manifest has 18 rows" in source
    losses = [line["loss"] for line in read_log(cma / "log.jsonl") if "loss" in line]
    first, low, high, last, num = row(source, "loss")
    assert [float(first), float(last)] == pytest.approx([losses[0], losses[-1]], rel=1e-3)
    assert [float(low), float(high)] == pytest.approx([min(losses), max(losses)], rel=1e-3)
    assert int(num) == 18
    assert len(page.images) == 2 * 5  # both classes have a reference; three neighbors in two sides each with it
    assert source.count("<svg") >= 10
    assert "No results yet" in source


def test_figures_of_the_sets_are_those_of_their_definitions(cma: Path, clip_set: Manifest) -> None:
    first, second = (line for line in read_log(cma / "log.jsonl") if "mining/exact" in line)
    assert "mining/overlap" not in first
    sets = load_checkpoint(cma)["model"]["sets"]  # of the second
    targets = torch.from_numpy(clip_set.targets())
    pairs = [(i, j) for i in range(18) for j in sets[i].tolist() if j >= 0]
    assert second["mining/precision"] == pytest.approx(np.mean([bool(targets[i] == targets[j]) for i, j in pairs]))
    assert second["mining/precision"] == agreement_precision(sets, targets)
    mined = (sets >= 0).any(dim=1)
    assert second["mining/chance"] == chance_precision(targets, mined)
    assert 0 <= second["mining/overlap"] <= 1


def without_labels(manifest: Manifest, folder: Path) -> Manifest:
    """The same rows and files without a label."""
    table = manifest.table
    place = table.column_names.index("label")
    none = table.column("label").to_pylist()
    empty = table.set_column(place, "label", [[None for _ in none]])
    write_manifest(folder / "manifest.parquet", empty.cast(table.schema), root=manifest.root)
    return read_manifest(folder / "manifest.parquet")


def test_labels_are_told_to_the_log_alone(cma: Path, clip_set: Manifest, tmp_path: Path, call: Call) -> None:
    blind = without_labels(clip_set, tmp_path)
    assert blind.class_names == []
    assert train(
        config(blind, tmp_path / "run", f"data.manifest={tmp_path / 'manifest.parquet'}", *CMA, "optim.epochs=3")
    )
    states = [load_checkpoint(run) for run in (cma, tmp_path / "run")]
    assert all(torch.equal(value, states[1]["model"][name]) for name, value in states[0]["model"].items())
    assert not any("precision" in name for line in read_log(tmp_path / "run" / "log.jsonl") for name in line)
    assert call("tools/report.py", tmp_path / "run").code == 0
    source, _ = looked_at(tmp_path / "run" / "report.html")
    assert "No precision: the clips have no labels" in source
    assert "; no labels." in source
    assert row(source, "Resumed") == ["no, it ran in one piece"]
    assert source.count("<h3>Reference ") == 3


def without_options_of_avid(manifest: Manifest, folder: Path, method: list[str]) -> Config:
    """The tiny config for another method."""
    lines = [f"data.manifest={manifest.root / 'manifest.parquet'}", f"run.dir={folder}"]
    lines += [line for line in TINY if not line.startswith("method.")]
    return from_dict(with_overrides({}, [*lines, *method]), source="test")


@pytest.mark.parametrize(
    "method, heading",
    [
        (["method.name=infonce", "method.hidden_dim=16"], "Positive by agreement"),
        (["method.name=neighbour", "method.hidden_dim=16"], "Near in video"),
    ],
)
def test_runs_without_memories(method: list[str], heading: str, clip_set: Manifest, tmp_path: Path, call: Call) -> None:
    assert train(without_options_of_avid(clip_set, tmp_path / "run", method))
    assert call("tools/report.py", tmp_path / "run").code == 0
    source, page = looked_at(tmp_path / "run" / "report.html")
    assert "Agreement sets" not in page.headings
    assert "one clip of each of 12 videos, extracted for this page" in source or "of each of 11 videos" in source
    assert heading in source
    assert len(page.images) >= 6
    gone = shutil.copytree(clip_set.root, tmp_path / "gone")
    for path in gone.rglob("*.mp4"):
        path.write_bytes(b"gone")
    assert call("tools/report.py", tmp_path / "run", "--root", gone).code == 0
    source, page = looked_at(tmp_path / "run" / "report.html")
    assert "Fewer than three clips can be compared" in source
    assert page.images == []


def test_evaluations_of_the_run_are_shown(cma: Path, clip_set: Manifest, tmp_path: Path, call: Call) -> None:
    run = shutil.copytree(cma, tmp_path / "run")
    dataset = ("--dataset", clip_set.root / "manifest.parquet")
    (run / "evaluations").mkdir()
    assert call("tools/evaluate.py", run, "knn", *dataset, *SMALL, "--json", run / "evaluations" / "knn.json").code == 0
    result = json.loads((run / "evaluations" / "knn.json").read_text())
    (run / "other.json").write_text(json.dumps(result | {"weights_hash": "0"}))
    (run / "notes.json").write_text("{}")
    assert call("tools/report.py", run, "--out", tmp_path / "page.html").code == 0
    source, page = looked_at(tmp_path / "page.html")
    figure = result["scores"]["video"]
    low, high = figure["interval"]
    assert row(source, "video")[3] == f"{figure['mean']:.3f} ({low:.3f} to {high:.3f})"
    assert row(source, "video")[:2] == [str(figure["num"]), f"{figure['chance']:.3f}"]
    assert "random init" in source
    assert any(image["alt"].startswith("Confusions: knn") for image in page.images)
    assert "other.json is left out: it is a result of other weights" in source
    assert "notes.json is left out: it is no result" in source
    call("tools/report.py", run, "--evaluations", run / "other.json")
    assert "other.json is left out" not in (run / "report.html").read_text()
    call("tools/report.py", run, "--evaluations", run / "notes.json").refused("notes.json is no result")


def test_neighbours_in_embeddings(cma: Path, clip_set: Manifest, tmp_path: Path, call: Call) -> None:
    manifest = clip_set.root / "manifest.parquet"
    options = ("--workers", "0", "--num-clips", "1")
    assert call("tools/embed.py", cma, manifest, "--out", tmp_path / "e", *options).code == 0
    out = ("--out", tmp_path / "page.html")
    assert call("tools/report.py", cma, "--embeddings", tmp_path / "e", *out).code == 0
    assert f"the embeddings in {tmp_path / 'e'}" in (tmp_path / "page.html").read_text()
    call("tools/report.py", cma, "--embeddings", tmp_path / "none", *out).refused("holds no embeddings")


def test_a_moved_manifest_and_wrong_use(cma: Path, clip_set: Manifest, tmp_path: Path, call: Call) -> None:
    call("tools/report.py", tmp_path).refused("does not exist: give the folder of a run")
    call("tools/report.py", cma, "--out", "/proc/no/page.html").refused("cannot be written")
    call("tools/report.py", cma, "--manifest", tmp_path / "m.parquet").refused("m.parquet does not exist")
    fewer = pq.read_table(clip_set.root / "manifest.parquet").slice(0, 4)
    write_manifest(tmp_path / "fewer.parquet", fewer, root=clip_set.root)
    call("tools/report.py", cma, "--manifest", tmp_path / "fewer.parquet").refused("belongs to another manifest")
    moved = shutil.copytree(clip_set.root, tmp_path / "clips")
    run = tmp_path / "run"
    assert train(config(read_manifest(moved / "manifest.parquet"), run, "optim.epochs=1"))
    moved.rename(tmp_path / "elsewhere")
    done = call("tools/report.py", run)
    assert done.code == 0
    assert "manifest.parquet does not exist" in done.err
    assert "say --manifest and --root" in done.err
    source, page = looked_at(run / "report.html")
    assert page.images == []
    assert "No clips are shown, as the manifest cannot be used" in source
    assert "Loss over steps" in source
    assert call("tools/report.py", run, "--manifest", tmp_path / "elsewhere" / "manifest.parquet").code == 0
    assert looked_at(run / "report.html")[1].images


def test_a_clip_that_cannot_be_read_says_so(cma: Path, clip_set: Manifest, tmp_path: Path, call: Call) -> None:
    moved = shutil.copytree(clip_set.root, tmp_path / "clips")
    for path in moved.rglob("*.mp4"):
        path.write_bytes(b"gone")
    out = tmp_path / "page.html"
    assert call("tools/report.py", cma, "--manifest", moved / "manifest.parquet", "--out", out).code == 0
    source, page = looked_at(out)
    assert page.images == []
    assert source.count("<figure><p>") == 10


def test_training_ends_with_a_page(
    clip_set: Manifest, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    command = ["tools/train.py", tmp_path / "empty.yaml", f"data.manifest={clip_set.root / 'manifest.parquet'}"]
    done = call(*command, *TINY, f"run.dir={tmp_path / 'stopped'}", "run.max_steps=2")
    assert done.code == 1
    assert not (tmp_path / "stopped" / "report.html").exists()
    done = call(*command, *TINY, f"run.dir={tmp_path / 'run'}")
    assert done.code == 0
    assert f"report: {tmp_path / 'run' / 'report.html'}" in done.err
    looked_at(tmp_path / "run" / "report.html")

    def broken(*given: object, **named: object) -> None:
        raise KeyError("anything")

    monkeypatch.setattr("avssl.report.run.training_parts", broken)
    done = call(*command, *TINY, f"run.dir={tmp_path / 'unlucky'}")
    assert done.code == 0
    assert "no report was written ('anything'); to try again: avssl report" in done.err
    assert (tmp_path / "unlucky" / "last.pt").exists()
    assert not (tmp_path / "unlucky" / "report.html").exists()


def test_starts_of_a_run_are_noted(cma: Path, clip_set: Manifest, tmp_path: Path) -> None:
    assert [each["first_step"] for each in read_sessions(cma)] == [0, 8]
    assert read_sessions(tmp_path) == []
    run = shutil.copytree(cma, tmp_path / "run")
    lines = [json.loads(line) for line in (run / SESSIONS).read_text().splitlines()]
    assert lines[0]["versions"].keys() >= {"avssl", "Python", "torch", "pyav", "FFmpeg"}
    assert train(config(clip_set, run, *CMA, "optim.epochs=3"))  # complete already
    assert [each["first_step"] for each in read_sessions(run)] == [0, 8, 18]


def test_references_and_their_neighbors() -> None:
    """Row 10: 11 and 15 are alike in both, 12 in picture only, 13 in sound only."""
    near, far = [1.0, 0.0], [-1.0, 0.0]
    less, least = [0.8, 0.6], [0.6, 0.8]
    z = {"video": [near, near, near, far, far, less], "audio": [near, less, far, near, far, least]}
    vectors = Vectors(
        ids=np.array([10, 11, 12, 13, 14, 15]),
        z={side: torch.tensor(each) for side, each in z.items()},
        has=dict.fromkeys(z, torch.ones(6, dtype=torch.bool)),
        source="",
    )
    targets = np.full(16, -1)
    shown = {clips[0].row: clips for clips in reference_clips(vectors, targets, num=6).values()}
    found = {clip.role: (clip.row, clip.note) for clip in shown[10]}
    assert found["Looks alike, sounds different"] == (
        12,
        "cosine: video 1.00 (nearest 40 %), audio -1.00 (nearest 100 %)",
    )
    assert found["Sounds alike, looks different"] == (
        13,
        "cosine: video -1.00 (nearest 100 %), audio 1.00 (nearest 20 %)",
    )
    assert [clip.role for clip in shown[10][1:3]] == ["Positive by agreement"] * 2
    assert [clip.row for clip in shown[10][1:3]] == [11, 15]
    assert shown[10][1].note == "cosine: video 1.00 (nearest 40 %), audio 0.80 (nearest 40 %)"
    assert all(len({clip.row for clip in clips}) == len(clips) for clips in shown.values())
    targets[10:] = 0
    assert len(reference_clips(vectors, targets)) == 1  # of one class
    few = vectors.at(np.arange(16) < 12)
    assert few.ids.tolist() == [10, 11]
    assert reference_clips(few, targets) == {}
    silent = Vectors(vectors.ids, vectors.z, vectors.has | {"audio": torch.zeros(6, dtype=torch.bool)}, "")
    assert all(clip.role == "Near in video" for clip in reference_clips(silent, targets)["Reference 1"][1:])


def test_memories_are_those_of_the_run(cma: Path) -> None:
    vectors = vectors_of_banks(load_run(cma).method)
    model = load_checkpoint(cma)["model"]
    assert torch.equal(vectors.z["video"], model["banks.video.z"])
    assert int(vectors.has["audio"].sum()) == 11
