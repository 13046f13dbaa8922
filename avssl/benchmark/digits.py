"""The digits benchmark: real handwritten digits with real spoken digits, paired by class only (there is no synchrony).

One seed of the main part is the whole way: AVID, AVID-CMA from it, in-batch InfoNCE beside, then features, mining,
retrieval and probes of each, next to random weights and hand-made features. The hard part takes away clips, gives some
of them foreign sounds or leaves speakers out, and trains each method for the same number of steps. The command is
`python tools/digits.py`.

What lives here: the settings, and what is measured of a run. What does not: the set (datasets/digits.py), the recipes
(configs/digits/).
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from avssl.checkpoint import LAST
from avssl.config import Config, load
from avssl.data.manifest import Manifest, read_manifest
from avssl.evaluate.classify import linear_predict
from avssl.evaluate.features import Extracted, clip_vectors
from avssl.evaluate.harness import accuracies
from avssl.evaluate.metrics import recall_figures
from avssl.evaluate.splits import read_splits
from avssl.files import whole_file
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.mining.agreement import RULES, agreement_precision, mine_agreement
from avssl.train import train
from avssl.transforms.audio import log_mel
from avssl.weights.load import Run, load_run

NUM_CLIPS = 2  # clips averaged per video wherever features are taken
SAMPLE_RATE = 16_000
FRAME_SIDE = 16  # of the hand-made picture feature
SOUND_PARTS = 8  # of the hand-made sound feature
MODALITIES = ("video", "audio", "both")


@dataclass(frozen=True)
class Setting:
    """One set to train on.

    make: arguments of datasets/digits.py.
    clips_per_video: per epoch, so that an epoch has 42 (speakers left out) to 63 steps.
    num_positives: size of the agreement sets, and of the sets whose precision is measured; below the size of a class.
    """

    make: tuple[str, ...]
    clips_per_video: int
    num_positives: int


HARD = {
    "300 clips": Setting(("--num-train", "300"), 27, 8),
    "1,000 clips": Setting(("--num-train", "1000"), 8, 24),
    "30 % foreign sounds": Setting(("--foreign", "0.3"), 3, 64),
    "60 % foreign sounds": Setting(("--foreign", "0.6"), 3, 64),
    "two speakers left out": Setting(("--held-out-speakers", "theo", "yweweler"), 3, 64),
}
HARD_METHODS = ("infonce", "avid", "avid_cma")
ABLATION_EPOCHS = {"avid": 8, "avid_cma": 3}
BASE = "the recipe"
ABLATIONS: dict[str, tuple[str, tuple[str, ...]]] = {  # method, and what is changed in its recipe of configs/digits/
    BASE: ("avid", ()),
    "heads without BatchNorm": ("avid", ("method.head_batch_norm=false",)),
    "learning rate 2e-4": ("avid", ("optim.lr=2e-4",)),
    "K = 1024": ("avid", ("method.num_negatives=1024",)),
    "temperature .07": ("avid", ("method.temperature=0.07",)),
    "bank momentum .9": ("avid", ("method.bank_momentum=0.9",)),
    "no crops, temperature .07": ("avid", ("data.min_crop_area=1.0", "method.temperature=0.07")),
    "half a second of sound": ("avid", ("data.audio_seconds=0.5",)),
    "closer to the published: rate 2e-4, K 1024, batch 64, temperature .07, plain heads, small crops, jitter": (
        "avid",
        (
            "optim.lr=2e-4",
            "method.num_negatives=1024",
            "data.batch_size=64",
            "method.temperature=0.07",
            "method.head_batch_norm=false",
            "data.min_crop_area=0.08",
            "data.jitter=[0.4,0.4,0.4,0.2]",
        ),
    ),
    "AVID-CMA from it: its recipe": ("avid_cma", ()),
    "AVID-CMA from it: 64 negatives within, weight 1, 32 positives, as published": (
        "avid_cma",
        ("method.num_negatives_within=64", "method.positives_within=1", "method.num_positives=32"),
    ),
}


def run_main(
    out: Path, manifest: Path, *, configs: Path, seed: int, overrides: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any] | None:
    """One seed of the whole way.

    Args:
        out: folder for this seed's runs; what is measured already is read from there.
        manifest: of all clips.
        configs: folder with avid.yaml, avid_cma.yaml and infonce.yaml.
        overrides: given to every training.
        say: prints what happens.

    Returns:
        {row of the table: figures as `measure` returns them}; None when a training was asked to stop.
    """
    since = time.perf_counter()
    num_positives = int(load(configs / "avid_cma.yaml").method["num_positives"])
    result: dict[str, Any] = {}
    for method in ("avid", "avid_cma", "infonce"):
        own = [f"data.manifest={manifest}", f"run.dir={out / method}", f"run.seed={seed}"]
        own += [f"model.init={out / 'avid'}"] if method == "avid_cma" else []
        config = load(configs / f"{method}.yaml", [*overrides, *own])
        done = train_and_measure(config, num_positives=num_positives, say=say)
        if done is None:
            return None
        result[method] = done
    clips = read_manifest(manifest)
    untrained = load_run(out / "avid", trained=False)
    result["random"] = remembered(out / "random.json", lambda: measure(untrained, clips, num_positives=num_positives))
    result["handmade"] = remembered(out / "handmade.json", lambda: {"linear": handmade_accuracy(clips)})
    say(f"seed {seed}: {time.perf_counter() - since:.0f} s")
    return result


def run_hard(
    out: Path, manifest: Path, setting: Setting, *, configs: Path, seed: int, overrides: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any] | None:  # fmt: skip
    """One seed of one hard setting: every method from random weights, for the same number of steps; AVID-CMA mines
    from the middle of the run on. Arguments and result as in `run_main`."""
    optim = load(configs / "avid.yaml", [*overrides, "run.dir=none"]).optim
    result: dict[str, Any] = {}
    for method in HARD_METHODS:
        own = [f"data.manifest={manifest}", f"run.dir={out / method}", f"run.seed={seed}"]
        own += [
            f"optim.epochs={optim.epochs}",
            f"optim.lr={optim.lr}",
            f"data.clips_per_video={setting.clips_per_video}",
        ]
        if method == "avid_cma":
            own += [f"method.mine_from_epoch={optim.epochs // 2}", "model.init=null"]
            own += [f"method.num_positives={setting.num_positives}"]
        config = load(configs / f"{method}.yaml", [*overrides, *own])
        done = train_and_measure(config, num_positives=setting.num_positives, say=say)
        if done is None:
            return None
        result[method] = done
    return result


def run_ablation(
    out: Path, manifest: Path, name: str, *, configs: Path, seed: int, overrides: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any] | None:  # fmt: skip
    """One row of ABLATIONS: a short training with something changed.

    Args:
        out: folder for all rows of this seed; AVID-CMA starts from the row BASE in it.
        name: of the row. The others, and the result, as in `run_main`; the key is `run`.
    """
    method, changed = ABLATIONS[name]
    if method == "avid_cma":
        base = run_ablation(out, manifest, BASE, configs=configs, seed=seed, overrides=overrides, say=say)
        if base is None:
            return None
    own = [f"data.manifest={manifest}", f"run.dir={out / folder_name(name)}", f"run.seed={seed}"]
    own += [f"model.init={out / folder_name(BASE)}"] if method == "avid_cma" else []
    num_positives = int(load(configs / "avid_cma.yaml").method["num_positives"])  # the same for all rows
    config = load(configs / f"{method}.yaml", [f"optim.epochs={ABLATION_EPOCHS[method]}", *overrides, *changed, *own])
    done = train_and_measure(config, num_positives=num_positives, say=say)
    return None if done is None else {"run": done}


def folder_name(setting: str) -> str:
    """A name for a folder: words and underscores."""
    return re.sub(r"[^\w.]+", "_", setting)


def train_and_measure(config: Config, *, num_positives: int, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Train, then `measure`; None when the training was asked to stop. What was measured already is read from the
    run's folder, after the trainer has seen that it is the same run. `train_seconds` is missing of a resumed run."""
    say(f"train {config.run.dir}")
    folder, since = Path(config.run.dir), time.perf_counter()
    resumed = (folder / LAST).exists()
    if not train(config):
        return None
    seconds = {} if resumed else {"train_seconds": time.perf_counter() - since}
    return remembered(
        folder / "figures.json",
        lambda: measure(load_run(folder), read_manifest(config.data.manifest), num_positives=num_positives) | seconds,
    )


def remembered(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of long work, done once and kept as JSON."""
    if not path.exists():
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(work(), indent=1) + "\n")
    return json.loads(path.read_text())


def measure(run: Run, manifest: Manifest, *, num_positives: int) -> dict[str, Any]:
    """What a run has learned.

    Returns:
        linear and knn: accuracy of the trunks' features {video, audio, both} on the test split, learned from the
        training clips whose sound is their own (a foreign sound has no right label); precision: share of mined
        positives with a picture of the same class {rule} among all training clips' embeddings; recall: as
        `recall_figures`, of the test clips' embeddings.
    """
    (split,) = read_splits(manifest)
    rows = np.union1d(split.train, split.test)
    vectors = clip_vectors(run, manifest, rows, num_clips=NUM_CLIPS, progress="features")
    own_sound = ~manifest.column("foreign").astype(bool)
    learned = dataclasses.replace(split, train=split.train[own_sound[split.train]])
    linear, knn = (accuracies(protocol, vectors, manifest, learned) for protocol in ("logistic", "knn"))
    found = vectors.videos()
    train, test = (found.take(np.isin(found.ids, ids)) for ids in (split.train, split.test))
    return {
        "linear": {modality: figure["mean"] for modality, figure in linear.items()},
        "knn": {modality: figure["mean"] for modality, figure in knn.items()},
        "precision": mined_precision(train, manifest, k=num_positives),
        "recall": recall_of(test, manifest),
    }


def mined_precision(found: Extracted, manifest: Manifest, *, k: int) -> dict[str, float]:
    """How often a positive mined from embeddings shares the class of its clip, by rule."""
    video, audio = (torch.from_numpy(found.embedding[name]) for name in ("video", "audio"))
    targets, valid = torch.from_numpy(manifest.targets()[found.ids]), torch.from_numpy(found.has("both"))
    return {
        rule: agreement_precision(mine_agreement(video, audio, k=k, rule=rule, valid=valid).ids, targets)
        for rule in RULES
    }


def recall_of(found: Extracted, manifest: Manifest) -> dict[str, float]:
    """Recall across modalities among the clips with picture and sound."""
    found = found.take(found.has("both"))
    return recall_figures(found.embedding["video"], found.embedding["audio"], manifest.targets()[found.ids])


def handmade_accuracy(manifest: Manifest) -> dict[str, float]:
    """Linear probes on features that nothing learned: the pixels of one frame, a coarse log-mel spectrogram."""
    (split,) = read_splits(manifest)
    rows = {"train": split.train, "test": split.test}
    features = {split: handmade_features(manifest, ids) for split, ids in rows.items()}
    targets = {split: manifest.targets()[ids] for split, ids in rows.items()}
    accuracy = {}
    for name in MODALITIES:
        train, test = (
            np.concatenate([features[split][m] for m in ("video", "audio") if name in (m, "both")], axis=1)
            for split in ("train", "test")
        )
        predicted, _ = linear_predict(train, targets["train"], test)
        accuracy[name] = float((predicted == targets["test"]).mean())
    return accuracy


def handmade_features(manifest: Manifest, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The first frame in grey at 16 x 16 pixels, and 64 log-mel bands averaged over 8 equal parts of the sound:
    {video: (n, 256), audio: (n, 512)} float32."""
    pictures, sounds = [], []
    for row in tqdm(ids, desc="hand-made features", unit="video", mininterval=1):
        start, end = float(manifest.column("video_start")[row]), float(manifest.column("video_end")[row])
        frames, samples = read_clip(
            manifest.path(int(row)),
            video=[VideoWindow(start, 0.04, 25.0)],
            audio=[AudioWindow(start, max(end - start, 0.1), SAMPLE_RATE)],
        )
        grey = cv2.cvtColor(frames[0].data[0], cv2.COLOR_RGB2GRAY)
        pictures.append(cv2.resize(grey, (FRAME_SIDE, FRAME_SIDE), interpolation=cv2.INTER_AREA).ravel() / 255)
        sound = torch.from_numpy(samples[0].data)[None]
        bands = log_mel(sound, sample_rate=SAMPLE_RATE, n_fft=512, hop_seconds=0.01, num_mels=64)[0, 0].numpy()
        sounds.append(np.concatenate([part.mean(axis=0) for part in np.array_split(bands, SOUND_PARTS)]))
    return {"video": np.stack(pictures).astype(np.float32), "audio": np.stack(sounds).astype(np.float32)}


def table_of(results: Sequence[dict[str, Any]], rows: dict[str, str], columns: dict[str, tuple[str, str]]) -> str:
    """A Markdown table of means and standard deviations over seeds.

    Args:
        results: one per seed, as `run_main` returns them.
        rows: {heading: key of the result}.
        columns: {heading: (group, figure)}.
    """
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for heading, key in rows.items():
        cells = []
        for group, name in columns.values():
            values = [result[key][group][name] for result in results if name in result[key].get(group, {})]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "")
        lines.append(f"| {heading} | {' | '.join(cells)} |")
    return "\n".join(lines)


PROBE = {
    **{f"linear {name}": ("linear", name) for name in MODALITIES},
    **{f"kNN {name}": ("knn", name) for name in MODALITIES},
}
PRECISION = {rule: ("precision", rule) for rule in RULES}
RECALL = {
    f"{direction} {level} R@{k}": ("recall", f"{direction}{infix}_r{k}")
    for level, infix in (("class", ""), ("instance", "_instance"))
    for direction in ("v2a", "a2v")
    for k in (1, 5)
}
MAIN_ROWS = {
    "AVID": "avid",
    "AVID-CMA, from it": "avid_cma",
    "in-batch InfoNCE": "infonce",
    "random weights": "random",
    "hand-made features": "handmade",
}
HARD_COLUMNS = {
    **{f"linear {name}": ("linear", name) for name in MODALITIES},
    "consensus": ("precision", "consensus"),
    "v2a class R@1": ("recall", "v2a_r1"),
    "a2v class R@1": ("recall", "a2v_r1"),
}


def main_tables(results: Sequence[dict[str, Any]]) -> str:
    """The three tables of the main part, chance below the last."""
    chance = results[0]["avid"]["recall"]
    trained = {
        name: ", ".join(f"{r[key]['train_seconds']:.0f}" for r in results if "train_seconds" in r[key])
        for name, key in MAIN_ROWS.items()
        if key in ("avid", "avid_cma", "infonce")
    }
    mined = {name: key for name, key in MAIN_ROWS.items() if key != "handmade"}
    return "\n\n".join(
        [
            table_of(results, MAIN_ROWS, PROBE),
            table_of(results, mined, PRECISION),
            table_of(results, mined, RECALL),
            "chance of recall: " + ", ".join(f"{k} {v:.3f}" for k, v in chance.items() if k.startswith("chance")),
            "seconds of training: " + "; ".join(f"{name} {seconds}" for name, seconds in trained.items()),
        ]
    )


def ablation_table(results: dict[str, Sequence[dict[str, Any]]]) -> str:
    """A row for each thing changed."""
    columns = {name: PROBE[name] for name in ("linear video", "linear audio")} | {
        name: HARD_COLUMNS[name] for name in ("consensus", "v2a class R@1")
    }
    blocks = [table_of(seeds, {name: "run"}, columns) for name, seeds in results.items()]
    return "\n".join([blocks[0], *(block.splitlines()[2] for block in blocks[1:])])


def hard_table(results: dict[str, Sequence[dict[str, Any]]]) -> str:
    """One block of rows for each setting."""
    names = {"infonce": "in-batch InfoNCE", "avid": "AVID", "avid_cma": "AVID-CMA"}
    blocks = [
        table_of(seeds, {f"{setting}: {names[m]}": m for m in HARD_METHODS}, HARD_COLUMNS)
        for setting, seeds in results.items()
    ]
    return "\n".join([blocks[0], *("\n".join(block.splitlines()[2:]) for block in blocks[1:])])
