"""Clips without audio and audio-only files, 0 %, 30 % and 100 % of a set: what trains, what is refused, and what is
kept out of memory banks, sets, search results and metrics, and counted instead.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from experiment import accuracies
from torch import nn

from avssl.config import Config, from_dict
from avssl.data.check import build_table
from avssl.data.dataset import ClipDataset, collate
from avssl.data.manifest import Manifest
from avssl.data.sampling import Key
from avssl.evaluate.harness import count_missing
from avssl.evaluate.splits import Split, read_splits
from avssl.logs import read_log
from avssl.methods import METHODS, build_method
from avssl.methods.avid import AVID
from avssl.methods.base import Method
from avssl.mining.agreement import minable
from avssl.objectives.contrast import nce, similarity
from avssl.retrieval.search import find_row, query_of_row, search
from avssl.retrieval.store import Store, StoreError, read_store
from avssl.retrieval.write import write_store
from avssl.structs import Batch, Embedded, Instances, Progress
from avssl.training.checkpoint import load_checkpoint
from avssl.training.loop import train
from avssl.weights.features import ClipVectors, clip_vectors
from avssl.weights.load import load_run
from tests.support.clips import make_clip, make_set, make_sound
from tests.support.contract import batch_of
from tests.support.runs import CMA, Call, config
from tests.support.tiny import LinearEncoder, encode, vector_batch

pytestmark = pytest.mark.slow
MODALITIES = ("video", "audio")
OTHER = {"video": "audio", "audio": "video"}
NUM = 40
EVERY = torch.ones(NUM, dtype=torch.bool)
SMALL = {
    "num_negatives": 12, "num_negatives_within": 6, "hidden_dim": 16, "embedding_dim": 8, "num_positives": 3,
    "mine_every": 1, "head_batch_norm": True,
}  # fmt: skip
CMA_ONLY = ("num_positives", "mine_every")
RECIPES = {  # method, its options, and the modalities that it can learn from alone
    "avid": ("avid", {}, ()),
    "avid within": ("avid", {"within": 1.0}, MODALITIES),
    "avid_cma": ("avid_cma", {}, ()),
    "avid_cma within": ("avid_cma", {"within": 1.0}, ()),
    "avid_cma video": ("avid_cma", {"rule": "video"}, ("video",)),
    "avid_cma audio": ("avid_cma", {"rule": "audio", "within": 1.0}, ("audio",)),
    "infonce": ("infonce", {}, ()),
    "simclr": ("simclr", {"views": "video+audio"}, ()),
}


def instances(missing: str, fraction: float) -> Instances:
    """A set in which this fraction of the clips lacks one modality."""
    lacks = torch.arange(NUM) % 10 < 10 * fraction
    return Instances(EVERY, **{f"has_{modality}": ~lacks if modality == missing else EVERY for modality in MODALITIES})


def build(recipe: str, given: Instances) -> Method:
    name, options, _ = RECIPES[recipe]
    method_class = METHODS[name]
    small = {option: value for option, value in SMALL.items() if option in method_class.Options.model_fields}
    torch.manual_seed(0)
    encoders = nn.ModuleDict({modality: LinearEncoder() for modality in MODALITIES})
    return method_class(method_class.Options(**small | options), encoders, instances=given, seed=0)


def drawn_batch(given: Instances, step: int) -> Batch:
    ids = torch.randperm(NUM, generator=torch.Generator().manual_seed(step))[:16]
    return vector_batch(ids, step=step, has_audio=given.has_audio[ids], has_video=given.has_video[ids])


def test_every_method_is_covered() -> None:
    both = {name for name, method in METHODS.items() if set(method.modalities) == set(MODALITIES)}
    assert {name for name, _, _ in RECIPES.values()} >= both - {"joint"}  # its parts do as they do alone


@pytest.mark.parametrize(
    "fraction, missing", [(0.0, "audio"), (0.3, "audio"), (1.0, "audio"), (0.3, "video"), (1.0, "video")]
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_set_trains_or_is_refused_with_the_fix(recipe: str, fraction: float, missing: str) -> None:
    given = instances(missing, fraction)
    if fraction == 1 and OTHER[missing] not in RECIPES[recipe][2]:
        with pytest.raises(ValueError, match=r"no clip of this split has .*method\.within=1") as refusal:
            build(recipe, given)
        assert "\n" not in str(refusal.value)
        return
    torch.set_num_threads(1)
    method = build(recipe, given)
    banks = dict(getattr(method, "banks", nn.ModuleDict()).items())
    before = {view: bank.z.clone() for view, bank in banks.items()}
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    losses = []
    for number in range(30):
        if number % 10 == 0:
            method.on_epoch(number // 10)
        step = method(drawn_batch(given, number), Progress(number // 10, number, 30))
        optimizer.zero_grad()
        step.loss.backward()
        for name, parameter in method.named_parameters():
            if not parameter.requires_grad:
                continue
            assert parameter.grad is not None, name  # or DDP would hang
            assert parameter.grad.isfinite().all(), name
            if fraction == 1 and f".{missing}." in name:
                assert not parameter.grad.any(), name
        optimizer.step()
        method.after_step(step, Progress(number // 10, number, 30))
        losses.append(float(step.loss.detach()))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    lacks = ~given.usable[missing]
    for view, bank in banks.items():
        moved = (bank.z != before[view]).any(dim=1)
        assert torch.equal(moved, ~lacks if view == missing else EVERY), view
    if banks:
        assert method.log_z.isfinite()
    if hasattr(method, "sets"):
        inside = minable(**given.usable, rule=method.options.rule)
        assert torch.equal((method.sets >= 0).all(dim=1), inside)
        assert inside[method.sets[method.sets >= 0]].all()


def scored(method: Method, batch: Batch) -> dict[str, tuple[Embedded, torch.Tensor]]:
    """{term: its query and its loss}, each with gradient to embeddings of its own."""
    result = {}
    ask = encode(method, batch)
    raw = {modality: ask(modality) for modality in MODALITIES}
    ids = method.draw(batch.ids, Progress(0, 0, 1))
    for number in range(8):
        leaves = {modality: raw[modality].detach().requires_grad_() for modality in MODALITIES}
        video, audio = (method.embed(modality, leaves[modality], batch) for modality in MODALITIES)
        term = method.terms(video, audio, batch.ids)[number]
        negatives = ids[term.bank][:, : term.num_negatives]
        columns = method.banks[term.bank].lookup(torch.cat([term.positives, negatives], dim=1))
        positive, empty = term.rule(term.query, columns), columns.ids < 0
        nce(similarity(term.query, columns), positive, log_z=torch.zeros(()), ignore=empty).backward()
        result[term.name] = {
            modality: leaf.grad if leaf.grad is not None else torch.zeros(1) for modality, leaf in leaves.items()
        }
    return result


@pytest.mark.parametrize("missing", MODALITIES)
def test_a_clip_without_one_modality_moves_only_the_terms_of_the_other(missing: str) -> None:
    given, modality = instances(missing, 0.3), OTHER[missing]
    torch.manual_seed(0)
    method_class = METHODS["avid_cma"]
    options = method_class.Options(
        num_negatives=12, num_positives=3, embedding_dim=8, within=1.0, positives_cross=1.0, rule=modality
    )
    method = method_class(options, nn.ModuleDict({s: LinearEncoder() for s in MODALITIES}), instances=given, seed=0)
    method.on_epoch(0)
    ids = torch.arange(12)
    batch = vector_batch(ids, has_audio=given.has_audio[ids], has_video=given.has_video[ids])
    lacks = ~given.usable[missing][ids]
    gradients = scored(method, batch)
    assert set(gradients) == {f"{p}{a[0]}2{b[0]}" for p in ("", "pos_") for a in MODALITIES for b in MODALITIES}
    for name, by_modality in gradients.items():
        own = f"{modality[0]}2{modality[0]}"
        query = {"v": "video", "a": "audio"}[name[-3]]
        reaches = by_modality[query].abs().sum(dim=1) > 0  # (B,)
        if name.endswith(own):
            assert reaches.all(), name
        elif name.startswith("pos_") and query == modality:  # against those of its set that have the other modality
            members = method.sets[ids]
            assert torch.equal(reaches, ((members >= 0) & given.usable[missing][members]).any(dim=1)), name
        elif name.startswith("pos_"):
            assert not reaches[lacks].any(), name
        else:
            assert torch.equal(reaches, ~lacks), name


@pytest.mark.parametrize("missing", MODALITIES)
def test_published_towers_learn_from_one_side_alone(missing: str) -> None:
    """With BatchNorm, over a batch whose other modality is zeros as the dataset gives them."""
    torch.set_num_threads(1)
    num = 16  # of batch_of
    every = torch.ones(num, dtype=torch.bool)
    flags = {f"has_{modality}": torch.full((num,), modality != missing) for modality in MODALITIES}
    given = {
        "data": {"manifest": "none"},
        "model": {"video_depth": 10, "video_width": 0.125, "audio_width": 0.125},
        "method": {"name": "avid", "within": 1.0, **{k: v for k, v in SMALL.items() if k not in CMA_ONLY}},
        "run": {"dir": "none"},
    }
    method = build_method(from_dict(given, source="test"), Instances(every, **flags)).train()
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    losses = []
    for number in range(20):
        batch = batch_of(method, number)
        zeros = {missing: torch.zeros_like(getattr(batch, missing)[missing])}
        step = method(dataclasses.replace(batch, **flags, **{missing: zeros}), Progress(0, number, 20))
        optimizer.zero_grad()
        step.loss.backward()
        assert all(p.grad.isfinite().all() for p in method.parameters())
        assert not any(p.grad.any() for p in method.encoders[missing].parameters())
        optimizer.step()
        method.after_step(step, Progress(0, number, 20))
        losses.append(float(step.loss.detach()))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]), losses


# ---- files


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """12 and 6 clips of which 4 and 4 are silent, and 2 audio-only files in each split."""
    return make_set(tmp_path_factory.mktemp("mixed"), silent=4, sound_only=2)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_set(tmp_path_factory.mktemp("silent"), num_train=8, num_test=4, silent=8)


@pytest.fixture(scope="module")
def run(mixed: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with the audio-only files, which the manifest's status admits only when they are asked for."""
    folder = tmp_path_factory.mktemp("runs") / "mixed"

    def everything(manifest: Manifest, settings: Config) -> Instances:
        rows = (manifest.usable(settings.data.split), manifest.has_audio, manifest.has_video)
        return Instances(*(torch.from_numpy(each.copy()) for each in rows))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avssl.training.setup.usable_instances", everything)
        assert train(config(mixed, folder, *CMA, "method.within=1"))
    return folder


@pytest.fixture(scope="module")
def store(run: Path, mixed: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = mixed.root / "manifest.parquet"
    folder = tmp_path_factory.mktemp("store") / "e"
    return write_store(folder, load_run(run), mixed, manifest_path=path, num_clips=2)


def test_a_manifest_says_which_side_can_be_used(mixed: Manifest) -> None:
    sounds = np.array([path.endswith(".mp3") for path in mixed.column("path")])
    assert mixed.usable().all()
    assert np.array_equal(mixed.has_video, ~sounds)
    assert np.array_equal(mixed.valid(), ~sounds)
    assert mixed.has_audio[sounds].all()
    assert (int(mixed.usable("test").sum()), int(mixed.valid("test").sum()), int(mixed.has_audio.sum())) == (8, 6, 14)


@pytest.mark.parametrize("num_eval_clips", [None, 3])
def test_a_file_of_sound_alone_is_a_sample_with_windows_inside_its_track(
    tmp_path: Path, num_eval_clips: int | None
) -> None:
    make_sound(tmp_path / "long.wav", 1, 0, seconds=4.0)
    make_sound(tmp_path / "short.mp3", 0, 1, seconds=0.2)
    make_clip(tmp_path / "clip.mp4", 0, 0)
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    names = ["broken.wav", "clip.mp4", "long.wav", "short.mp3"]
    manifest = Manifest(build_table(tmp_path, [{"path": name} for name in names], num_workers=1), tmp_path)
    assert manifest.usable().tolist() == [False, True, True, True]
    data = config(manifest, tmp_path / "run").data
    dataset = ClipDataset(manifest, data, AVID.views, num_eval_clips=num_eval_clips)
    starts = []
    for clip in range(3):
        batch = collate([dataset[Key(0, row, clip)] for row in range(4)])
        assert batch.ids.tolist() == [-1, 1, 2, 3]
        assert batch.has_video.tolist() == [False, True, False, False]
        assert batch.has_audio.tolist() == [False, True, True, True]
        assert len(batch.errors) == 1
        assert re.search(r"broken\.wav: the manifest marks it unreadable", batch.errors[0])
        assert not batch.video["video"][2:].any()
        assert batch.video["video"][1].any()
        assert (batch.audio["audio"][1:].abs().amax(dim=1) > 0.1).all()
        assert batch.padded["audio"].tolist() == [False, False, False, True]
        starts.append(float(batch.start["audio"][2]))
        again = dataset[Key(0, 2, clip)]
        assert np.array_equal(again.audio["audio"], batch.audio["audio"][2].numpy())
    assert min(starts) >= 0
    assert max(starts) <= 4.0 - data.audio_seconds + 1e-6
    assert len(set(starts)) == 3
    if num_eval_clips:
        assert np.diff(starts) == pytest.approx([3.5 / 3] * 2)


def test_nothing_is_read_of_a_row_in_quarantine(mixed: Manifest, tmp_path: Path) -> None:
    status = ["quarantined" if row < 2 else value for row, value in enumerate(mixed.column("status"))]
    column = mixed.table.column_names.index("status")
    manifest = Manifest(mixed.table.set_column(column, "status", [status]), mixed.root)
    assert not manifest.usable()[:2].any()
    sample = ClipDataset(manifest, config(mixed, tmp_path / "run").data, AVID.views)[Key(0, 0, 0)]
    assert (sample.id, sample.has_audio, sample.has_video) == (-1, False, False)
    assert "marks it quarantined" in sample.error


def test_a_run_says_what_its_clips_lack(run: Path, mixed: Manifest) -> None:
    lines = [line for line in read_log(run / "log.jsonl") if "loss" in line]
    shares = {name: np.mean([line[f"frac_{name}"] for line in lines]) for name in ("no_audio", "no_video")}
    assert shares["no_audio"] == pytest.approx(4 / 14, abs=0.02)
    assert shares["no_video"] == pytest.approx(2 / 14, abs=0.02)
    model = load_checkpoint(run)["model"]
    start = load_run(run, trained=False).method.banks
    for modality, has in (("video", mixed.has_video), ("audio", mixed.has_audio)):
        wanted = torch.from_numpy(mixed.usable("train") & has)
        assert torch.equal(model[f"banks.{modality}.valid"], wanted)
        assert torch.equal((model[f"banks.{modality}.z"] != start[modality].z).any(dim=1), wanted)  # bit for bit
    both = mixed.usable("train") & mixed.has_video & mixed.has_audio
    assert np.array_equal((model["sets"] >= 0).any(dim=1).numpy(), both)


def test_an_answer_has_the_side_asked_for(store: Store) -> None:
    has = store.has
    assert (len(store), int(has["video"].sum()), int(has["audio"].sum()), store.errors) == (22, 18, 14, {})
    for modality in MODALITIES:
        lengths = store.vectors[modality].take(np.arange(len(store))).norm(dim=1)
        assert np.allclose(lengths, has[modality], atol=1e-5)
    for row in range(len(store)):
        query = query_of_row(store, row)
        assert set(query.vectors) == {modality for modality in MODALITIES if has[modality][row]}
        for source in MODALITIES:
            for target in MODALITIES:
                others = int(has[target].sum()) - int(has[target][row])
                if not has[source][row]:
                    words = rf"has no {source}, so nothing can be found from it: search from {OTHER[source]}"
                    with pytest.raises(ValueError, match=words):
                        search(store, query, way=f"{source[0]}2{target[0]}", k=1)
                    continue
                found = [entry.row for entry in search(store, query, way=f"{source[0]}2{target[0]}", k=others)]
                assert sorted(found) == [i for i in np.flatnonzero(has[target]) if i != row]
        if has["video"][row] and has["audio"][row]:
            found = [entry.row for entry in search(store, query, way="agreement", k=9)]
            assert sorted(found) == [i for i in np.flatnonzero(has["video"] & has["audio"]) if i != row]
            with pytest.raises(ValueError, match="hold 9 other clips to choose from"):
                search(store, query, way="agreement", k=10)
        else:
            with pytest.raises(ValueError, match=r"has no (audio|video), so nothing"):
                search(store, query, way="agreement", k=1)


def test_embeddings_of_an_earlier_version_are_told(store: Store, run: Path, mixed: Manifest, tmp_path: Path) -> None:
    write_store(tmp_path / "e", load_run(run), mixed, manifest_path=Path("m"), num_clips=1, split="test")
    shard = tmp_path / "e" / "shard-00000.parquet"
    pq.write_table(pq.read_table(shard).drop_columns("has_video"), shard)
    with pytest.raises(StoreError, match=r"written by an earlier version.*: delete that folder and run avssl embed"):
        read_store(tmp_path / "e")


def vectors_of(run: Path, manifest: Manifest) -> tuple[ClipVectors, Split]:
    (split,) = read_splits(manifest)
    return clip_vectors(load_run(run), manifest, np.arange(len(manifest)), num_clips=1), split


def test_evaluation_skips_and_counts_what_has_not_the_side(run: Path, mixed: Manifest) -> None:
    vectors, split = vectors_of(run, mixed)
    result = accuracies("knn", vectors, mixed, split)
    assert set(result) == {"video", "audio", "both"}
    counts = [count_missing([(vectors, rows)]) for rows in (split.train, split.test)]
    assert [each["clips"] for each in counts] == [14, 8]
    assert [each["without_audio"] for each in counts] == [4, 4]
    assert [each["without_video"] for each in counts] == [2, 2]
    for name in ("video", "audio", "both"):  # as if the others were not there
        has = vectors.has(name)
        alone = accuracies(
            "knn", vectors, mixed, Split("split", *(rows[has[rows]] for rows in (split.train, split.test)))
        )
        assert alone[name]["mean"] == result[name]["mean"]
    mute = split.train[~vectors.has_audio[split.train]]
    blind = split.test[~vectors.has_video[split.test]]
    with pytest.raises(ValueError, match="have no modality in common"):
        accuracies("knn", vectors, mixed, Split("split", mute, blind))


def test_tools_take_files_of_sound_alone(
    call: Call,
    run: Path,
    mixed: Manifest,
    store: Store,
    tmp_path: Path,
) -> None:
    path, out = mixed.root / "manifest.parquet", tmp_path / "e"
    few = ("--workers", 0, "--num-clips", 1)
    done = call("tools/embed.py", run, path, "--out", out, *few)
    assert done.out.startswith("22 clips, 14 with sound (4 of them without video), 0 not read")
    assert re.search(r"--query \d+ --from audio --to video", done.err)
    make_sound(tmp_path / "song.mp3", 1, 5)
    asked = ["tools/search.py", out, "--query", tmp_path / "song.mp3", "--k", 14, "--json"]
    found = json.loads(call(*asked, "--from", "audio", "--to", "audio").out)["neighbors"]
    assert sum(entry["path"].endswith(".mp3") for entry in found) == 4
    found = json.loads(call(*asked, "--from", "audio", "--to", "video").out)["neighbors"]
    assert not [entry for entry in found if entry["path"].endswith(".mp3")]
    call(*asked).refused(r"song\.mp3 has no video, so nothing can be found from it: search from audio")
    call(*asked, "--by", "agreement").refused("has no video")
    asked[3] = find_row(store, next(p for p in store.table.column("path").to_pylist() if p.endswith(".mp3")))
    assert call(*asked, "--from", "audio", "--to", "audio", "--k", 3).code == 0
    done = call("tools/evaluate.py", run, "knn", "--dataset", path, *few, "--num-crops", 1)
    assert "4 of 8 test clips without audio, 2 of 8 test clips without video: counted as wrong" in done.out
    mined = json.loads(call("tools/mine.py", run, "--k", 3, "--out", tmp_path / "s", "--json").out)
    assert mined["rows"] == {"consensus": 8, "union": 8, "video": 12, "audio": 10}


def test_a_wholly_silent_set_trains_searches_and_is_evaluated_by_its_frames(
    call: Call,
    silent: Manifest,
    tmp_path: Path,
) -> None:
    assert not silent.has_audio.any()

    def trained(name: str, *overrides: str) -> Path:
        assert train(config(silent, tmp_path / name, *overrides))
        return tmp_path / name

    for refused in ([], CMA):
        with pytest.raises(ValueError, match=r"no clip of this split has both video and audio.*method\.within=1"):
            train(config(silent, tmp_path / "refused", *refused))
    spread = "method.head_batch_norm=true"
    avid = trained("avid", "method.within=1", "optim.epochs=2", spread)
    losses = [line["loss"] for line in read_log(avid / "log.jsonl") if "loss" in line]
    assert np.isfinite(losses).all()
    cma = trained("cma", *CMA, "method.rule=video", spread, f"model.init={avid}")
    state, start = (load_checkpoint(folder)["model"] for folder in (cma, avid))
    assert torch.equal(state["banks.audio.z"], start["banks.audio.z"])
    assert state["log_z"].isfinite()
    lines = read_log(cma / "log.jsonl")
    assert "video_rank" in lines[-1]
    assert "audio_rank" not in lines[-1]  # no audio, nothing to collapse
    sets = tmp_path / "sets.parquet"
    call("tools/mine.py", cma, "--k", 2, "--out", sets).refused(
        r"has both video and audio, which --rule consensus needs: use --rule video"
    )
    assert call("tools/mine.py", cma, "--k", 2, "--rule", "video", "--out", sets).code == 0
    vectors, split = vectors_of(cma, silent)
    assert set(accuracies("knn", vectors, silent, split)) == {"video"}
    assert [count_missing([(vectors, rows)])["without_audio"] for rows in (split.train, split.test)] == [8, 4]
    found = write_store(tmp_path / "e", load_run(cma), silent, manifest_path=Path("m"), num_clips=1)
    query = query_of_row(found, 0)
    assert len(search(found, query, way="v2v", k=11)) == 11
    with pytest.raises(ValueError, match="hold no other clips"):
        search(found, query, way="v2a", k=1)
