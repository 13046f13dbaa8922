"""A contact sheet of the pretext tasks: what the encoder gets to see of one clip, and the label it has to find.

    python tools/experiments/pretext_picture.py data/toy/manifest.parquet --out docs/pretext.png

Exit code: 0 done, 2 wrong call.
"""

import argparse
import sys
from pathlib import Path

import experiment
import matplotlib
import numpy as np
import torch
from torch import Tensor

from avssl.config import DataConfig
from avssl.data.dataset import ClipDataset, collate
from avssl.data.manifest import read_manifest
from avssl.data.sampling import Key
from avssl.files import atomic_write, check_writable
from avssl.objectives.permutations import distant_permutations
from avssl.transforms.pretext import NUM_ROTATIONS, AudioSpeed, Segments, Speed
from avssl.transforms.views import View, apply_views

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLUMNS, SIDE = 12, 0.8  # pictures of a row, and inches of each
JITTER = {"jitter": (0.4, 0.4, 0.4, 0.1), "gray": 0.3}


def views_of(size: int, tile: int) -> tuple[View, ...]:
    tiles = {"size": 3 * (tile + 6), "patch_size": tile, **JITTER}
    return (
        View("rotation", recipe="rotation", changes=JITTER),
        View("tiles", recipe="tiles", changes=tiles),
        View("order", recipe=Segments(3, 0.5), changes={"size": size, "num_frames": 4}),
        View("speed", recipe=Speed((1, 2, 3)), changes=JITTER),
        View("sound", recipe=AudioSpeed((1, 2, 3))),
    )


def rows_of(view: View, x: Tensor, params: dict[str, Tensor], *, draw: int) -> list[tuple[str, list[np.ndarray]]]:
    """(what the label says, pictures) of the rows that show a view of clips: x as the encoder takes it."""
    label = params["label"].tolist() if "label" in params else []
    match view.name:
        case "rotation":
            first = [label.index(turn) for turn in range(NUM_ROTATIONS) if turn in label]
            return [("rotation: by 0, 90, 180, 270 degrees", [frame(x[i, :, t]) for i in first for t in (0, 2, 4)])]
        case "tiles":
            pairs = [frame(x[draw, tile, :, 0]) for other in (0, 1, 2, 3, 5, 6) for tile in (4, other)]
            (order,) = distant_permutations(9, 2, first=draw)[1:]
            shuffled = [frame(x[draw, tile, :, 0]) for tile in order.tolist()]
            return [
                ("position: the middle tile, then the one above left (0), above (1), ...", pairs),
                (f"jigsaw: tiles {' '.join(map(str, order))}", shuffled),
            ]
        case "order":
            order = distant_permutations(3, 6)[3].tolist()
            shown = [frame(x[draw, part, :, t]) for part in order for t in range(4)]
            return [(f"order: segments {' '.join(map(str, order))}", shown)]
        case "speed":
            first = [label.index(speed) for speed in range(3) if speed in label]
            shown = [frame(x[i, :, t]) for i in first for t in range(4)]
            return [("speed: four frames at 1, 2 and 3 times the speed, each in colors of its own", shown)]
        case _:
            first = [label.index(speed) for speed in range(3) if speed in label]
            return [
                ("speed of a sound: at 1, 2 and 3 times, at its own pitch", [x[i, 0].T.numpy()[::-1] for i in first])
            ]


def frame(x: Tensor) -> np.ndarray:
    """(3, H, W) of any scale -> (H, W, 3) in [0, 1]."""
    low, high = x.amin(), x.amax()
    return ((x - low) / (high - low).clamp(min=1e-6)).permute(1, 2, 0).numpy()


def draw(given: argparse.Namespace) -> tuple[dict[str, str], str]:
    manifest = read_manifest(given.manifest)
    check_writable(given.out)
    data = DataConfig(
        manifest="",
        size=64,
        num_frames=8,
        fps=8,
        audio_seconds=0.8,
        sample_rate=16000,
        spectrogram="log_mel",
        num_mels=64,
    )
    views = views_of(64, 32)
    usable = [row for row in manifest.usable().nonzero()[0].tolist() if manifest.has_audio[row]]
    clips = ClipDataset(manifest, data, views, seed=given.seed)
    batch = collate([clips[Key(epoch, usable[given.row], 0)] for epoch in range(24)])  # one clip, drawn 24 times
    params = batch.params
    batch = apply_views(batch, views, data)
    seen = {**batch.video, **batch.audio}
    rows = [row for view in views for row in rows_of(view, seen[view.name], params[view.name], draw=given.seed)]
    figure = plt.figure(figsize=(COLUMNS * SIDE, len(rows) * (SIDE + 0.3)), dpi=80)
    for part, (text, pictures) in zip(np.atleast_1d(figure.subfigures(len(rows), 1)), rows, strict=True):
        part.suptitle(text, fontsize=8, x=0.01, ha="left")
        axes = part.subplots(1, max(len(pictures), COLUMNS if len(pictures) > 3 else len(pictures)), squeeze=False)[0]
        part.subplots_adjust(left=0.01, right=0.99, top=0.78, bottom=0.02, wspace=0.05)
        for axis in axes:
            axis.set_axis_off()
        for axis, picture in zip(axes, pictures, strict=False):
            axis.imshow(picture, aspect="equal" if picture.ndim == 3 else "auto", cmap="magma")
    with atomic_write(given.out) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)
    return {"picture": str(given.out)}, f"written: {given.out}"


def main() -> int:
    parser = experiment.command(__doc__, manifest="manifest.parquet of clips with sound, of 3 s or more")
    parser.add_argument("--row", type=int, default=0, help="which of the usable clips (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("pretext.png"), help="picture (default: pretext.png)")
    return experiment.run(parser, draw, plan=lambda given: [f"draw {given.out}"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
