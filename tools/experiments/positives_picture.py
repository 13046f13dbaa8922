"""One picture of three kinds of positives of one clip: its neighbor in time, its tracked patch, its agreement set.

    python tools/experiments/positives_picture.py runs/positives/joint/seed0 --tracks runs/positives/tracks.parquet \\
        --out docs/positives.png

Exit code: 0 done, 2 wrong call.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import experiment
import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from PIL import Image
from torch import nn

from avssl.data.manifest import Manifest, read_manifest
from avssl.data.tracks import Track, read_tracks
from avssl.files import atomic_write, check_writable
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.methods.base import Method
from avssl.methods.neighbour import Neighbour
from avssl.mining.agreement import minable, mine_agreement
from avssl.training.checkpoint import CheckpointError
from avssl.transforms.audio import log_mel
from avssl.weights.load import Run, load_run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WIDTH, DPI = 10.0, 120  # inches, and pixels per inch
RATE = 16_000  # of the shown audio
NUM_FRAMES = 3  # of a clip that are shown
TRACK_FRAMES = 4
PATCH = 128  # pixels of a shown patch
MEMBERS = ("nearest", "2nd nearest", "3rd nearest", "4th nearest")  # of an agreement set
REFERENCE, POSITIVE, OTHER = "#2b5fb3", "#2a8a4a", "#c0392b"  # colors


@dataclass(frozen=True)
class Like:
    """A clip beside the reference: row of the manifest, cosines of video and of audio."""

    id: int
    video: float
    audio: float


@dataclass(frozen=True)
class Shown:
    """What is drawn. near: seconds within which a neighbor is a positive, None = in the whole video; starts of the
    clip, its neighbor and a far one; the track; the clips of the agreement set, best first, and one that looks similar
    but sounds different."""

    id: int
    near: float | None
    seconds: float  # of a clip
    starts: tuple[float, float, float]
    track: Track
    members: list[Like]
    lookalike: Like


def draw_positives(
    path: Path, tracks: Path, out: Path, *, id: int | None = None, seed: int = 0, max_seconds: float | None = None
) -> dict[str, Any]:
    """Write the picture as PNG.

    Args:
        path: run of method joint or avid_cma, or its checkpoint.
        tracks: table of tracks of the run's clips.
        out: the file to write.
        id: row of the manifest; None = drawn among the clips with track and agreement set.
        seed: of the draw.
        max_seconds: to a neighbor that is a positive; None = as in the run.

    Returns:
        id, path and label of the clip, starts, members and lookalike as in `Shown`.

    Raises:
        ValueError: the run has no memory banks, or another manifest; no clip, or not this one, has a track and a set.
        DecodeError: a clip cannot be read.
    """
    run = load_run(path)
    manifest = read_manifest(run.config.data.manifest, root=run.config.data.root)
    if manifest.hash != run.manifest_hash:
        raise CheckpointError(f"{run.path} belongs to another manifest than {run.config.data.manifest}: train anew")
    shown = choose(run, manifest, tracks, id=id, seed=seed, max_seconds=max_seconds)
    figure = plt.figure(figsize=(WIDTH, 7.9), facecolor="white")
    time, tracking, agreement = figure.subfigures(3, 1, height_ratios=[2.1, 2.05, 2.95])
    draw_time(time, manifest, shown)
    draw_track(tracking, manifest, shown)
    draw_agreement(agreement, manifest, shown)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
        with Image.open(temporary) as drawn:
            few = drawn.convert("RGB").quantize(256)  # a third of the bytes, for a little banding
        few.save(temporary, format="png", optimize=True)
    plt.close(figure)
    names = {name: str(manifest.column(name)[shown.id]) for name in ("path", "label")}
    likes = {"members": [vars(each) for each in shown.members], "lookalike": vars(shown.lookalike)}
    return {"id": shown.id, **names, "starts": list(shown.starts), **likes}


# ---- what is shown


def banks_of(method: Method) -> nn.ModuleDict:
    """The memory banks {video, audio} of a method, or of the first part of joint that has some.

    Raises:
        ValueError: there are none.
    """
    for each in (method, *getattr(method, "parts", {}).values()):
        if len(each.banks):
            return each.banks
    raise ValueError(
        f"method {type(method).__name__} has no memory banks, which agreement is mined from: give "
        "a run of method avid_cma, or of joint with it as a part"
    )


def choose(
    run: Run, manifest: Manifest, tracks: Path, *, id: int | None, seed: int, max_seconds: float | None
) -> Shown:
    """What to show of one clip; arguments and errors as in `draw_positives`."""
    banks = {name: bank for name, bank in banks_of(run.method).items()}
    known = read_tracks(tracks, manifest_hash=manifest.hash)
    valid = minable(video=banks["video"].valid, audio=banks["audio"].valid, rule="consensus").cpu()  # (N,)
    usable = [row for row in valid.nonzero().squeeze(1).tolist() if known.of(row)]
    if id is None and not usable:
        raise ValueError(f"no clip that {run.path} learned agreement from has a track in {tracks}: mine tracks of them")
    if id is not None and id not in usable:
        raise ValueError(
            f"clip {id} has no {'track' if 0 <= id < len(valid) and valid[id] else 'agreement set'}: choose another "
            f"--id{f', such as {usable[0]}' if usable else ''}"
        )
    row = int(np.random.default_rng(seed).choice(usable)) if id is None else id
    video, audio = (banks[name].z.cpu().float() for name in ("video", "audio"))  # (N, D)
    near, seconds = neighbor_seconds(run.method), run.config.data.num_frames / run.config.data.fps
    near = near if max_seconds is None else max_seconds
    members, lookalike = likes(video, audio, valid, row)
    begin, end = manifest.bounds("video")[row].tolist()
    far = max(end - begin - seconds, 0.0)  # from the first clip to the last
    starts = (begin, begin + min(0.35 * far, far if near is None else 0.8 * near), begin + far)
    return Shown(row, near, seconds, starts, known.of(row)[0], members, lookalike)


def neighbor_seconds(method: Method) -> float | None:
    """max_seconds of the method's temporal neighbors, None where it has none or sets no limit."""
    parts = [each for each in getattr(method, "parts", {}).values() if isinstance(each, Neighbour)]
    return parts[0].options.max_seconds if parts else None


def likes(video: torch.Tensor, audio: torch.Tensor, valid: torch.Tensor, row: int) -> tuple[list[Like], Like]:
    """The clips that agree most with a row, best first, and among the 5 % that look most like it the one whose look
    and sound differ most.

    Args:
        video: memory bank (N, D).
        audio: memory bank (N, D).
        valid: (N,) bool, rows with both.
    """
    num = min(len(MEMBERS), int(valid.sum()) - 1)
    if num < 2:
        raise ValueError(f"{int(valid.sum())} clips with video and audio are too few for a set: expected at least 3")
    found = mine_agreement(video, audio, k=num, rule="consensus", valid=valid)
    members = found.ids[row][found.score[row].argsort(descending=True)]  # (k,)
    look, sound = video @ video[row], audio @ audio[row]  # (N,)
    others = valid.clone()
    others[row] = False
    alike = others & (look >= look[others].quantile(0.95))
    lookalike = int((look - sound).masked_fill(~alike, -torch.inf).argmax())
    as_like = [Like(each, float(look[each]), float(sound[each])) for each in [*members.tolist(), lookalike]]
    return as_like[:-1], as_like[-1]


# ---- drawing


def draw_time(figure: SubFigure, manifest: Manifest, shown: Shown) -> None:
    """Three clips of the video, some frames each, over the video's time."""
    begin, end = manifest.bounds("video")[shown.id].tolist()
    limit = "of one video" if shown.near is None else f"of one video, at most {shown.near:g} s apart,"
    _heading(figure, f"Time: clips {limit} are positives")
    apart = [start - shown.starts[0] for start in shown.starts]
    is_far = shown.near is not None and apart[2] > shown.near
    far = "too far, no positive" if is_far else "positive too"
    titles = ("clip", f"{apart[1]:.1f} s later: positive", f"{apart[2]:.1f} s later: {far}")
    colors = (REFERENCE, POSITIVE, OTHER if is_far else POSITIVE)
    grid = figure.add_gridspec(
        2, 11, height_ratios=[10, 2.2], width_ratios=[1, 1, 1, 0.25] * 2 + [1, 1, 1], **_margins(0.14)
    )
    line = figure.add_subplot(grid[1, :])
    for number, (start, title, color) in enumerate(zip(shown.starts, titles, colors, strict=True)):
        seconds = start + shown.seconds * np.arange(NUM_FRAMES) / NUM_FRAMES
        axes = [figure.add_subplot(grid[0, 4 * number + i]) for i in range(NUM_FRAMES)]
        for axis, second, frame in zip(axes, seconds, _frames(manifest, shown.id, seconds), strict=True):
            _show(axis, frame, color)
            axis.set_xlabel(f"{second:.1f} s", fontsize=8, labelpad=2)
        axes[1].set_title(title, fontsize=9.5, color=color, pad=5)
        line.barh(2 - number, shown.seconds, left=start, color=color, height=0.8)
    line.set(xlim=(begin, max(end, shown.starts[2] + shown.seconds)), ylim=(-0.7, 2.7), yticks=[])
    line.tick_params(labelsize=7, length=2, pad=1)
    line.xaxis.set_major_formatter("{x:g} s")
    line.spines[["top", "right", "left"]].set_visible(False)


def draw_track(figure: SubFigure, manifest: Manifest, shown: Shown) -> None:
    """Frames of the track with its box, then the patch in the first and in the last one."""
    _heading(figure, "Tracking: frames of one tracked patch are positives")
    chosen = np.linspace(0, len(shown.track.times) - 1, TRACK_FRAMES).round().astype(int)
    times, boxes = shown.track.times[chosen], shown.track.boxes[chosen]
    frames = _frames(manifest, shown.id, times)
    grid = figure.add_gridspec(1, TRACK_FRAMES + 3, width_ratios=[1] * TRACK_FRAMES + [0.35, 1, 1], **_margins(0.1))
    for i, (frame, box, second) in enumerate(zip(frames, boxes, times, strict=True)):
        axis = figure.add_subplot(grid[0, i])
        _show(axis, frame, "#999999")
        color = REFERENCE if i == 0 else POSITIVE
        top, left, height, width = box * np.tile(frame.shape[:2], 2)
        axis.add_patch(plt.Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor="white", lw=5))
        axis.add_patch(plt.Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=color, lw=2.4))
        axis.set_xlabel(f"{second:.1f} s", fontsize=8, labelpad=2)
    for column, number, title, color in ((-2, 0, "first patch", REFERENCE), (-1, -1, "last patch: positive", POSITIVE)):
        axis = figure.add_subplot(grid[0, column])
        _show(axis, _cut(frames[number], boxes[number]), color)
        axis.set_title(title, fontsize=9.5, color=color, pad=5)
        axis.set_xlabel(f"{times[number]:.1f} s", fontsize=8, labelpad=2)


def draw_agreement(figure: SubFigure, manifest: Manifest, shown: Shown) -> None:
    """The clip, its agreement set and a look-alike: middle frame over spectrogram."""
    _heading(figure, "Agreement: clips that look and sound alike are positives")
    cells = [(shown.id, "clip", "similarity to it:", REFERENCE)]
    cells += [(each.id, name, _cosines(each), POSITIVE) for name, each in zip(MEMBERS, shown.members, strict=False)]
    cells.append((shown.lookalike.id, "looks alike only", _cosines(shown.lookalike), OTHER))
    ratios = [1, 0.12, *[1] * len(shown.members), 0.12, 1]
    grid = figure.add_gridspec(
        2, len(ratios), height_ratios=[2.2, 1], width_ratios=ratios, **_margins(0.13, hspace=0.06)
    )
    columns = [i for i, ratio in enumerate(ratios) if ratio == 1]
    for column, (row, title, words, color) in zip(columns, cells, strict=True):
        above, below = (figure.add_subplot(grid[i, column]) for i in range(2))
        middle = float(manifest.bounds("video")[row].mean())
        _show(above, _frames(manifest, row, [middle])[0], color)
        above.set_anchor("S")
        above.set_title(title, fontsize=9.5, color=color, pad=5)
        below.imshow(_spectrogram(manifest, row), origin="lower", aspect="auto", cmap="magma")
        below.set(xticks=[], yticks=[])
        below.set_xlabel(words, fontsize=8.5, labelpad=4)
        if row == shown.id:
            above.set_ylabel("video", fontsize=8.5)
            below.set_ylabel("audio", fontsize=8.5)


def _heading(figure: SubFigure, text: str) -> None:
    figure.text(0.012, 0.985, text, fontsize=12, fontweight="bold", va="top", color="#1a1a1a")


def _margins(bottom: float, *, hspace: float = 0.3) -> dict[str, float]:
    return {"left": 0.03, "right": 0.988, "top": 0.84, "bottom": bottom, "wspace": 0.08, "hspace": hspace}


def _show(axis: Axes, picture: np.ndarray, color: str) -> None:
    axis.imshow(picture, interpolation="bilinear")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=2)


def _cosines(like: Like) -> str:
    return f"video {like.video:.2f}\naudio {like.audio:.2f}"


def _frames(manifest: Manifest, row: int, seconds: Iterable[float]) -> list[np.ndarray]:
    """(H, W, 3) uint8 at each of these seconds."""
    frames, _ = read_clip(manifest.path(row), video=[VideoWindow(float(second), 1.0, 1.0) for second in seconds])
    return [each.data[0] for each in frames]


def _cut(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What lies in a box (4,) top, left, height, width, fractions of the frame; square, as encoders get it."""
    top, left, height, width = box * np.tile(frame.shape[:2], 2)
    patch = frame[int(top) : int(np.ceil(top + height)), int(left) : int(np.ceil(left + width))]
    return cv2.resize(patch, (PATCH, PATCH), interpolation=cv2.INTER_LINEAR)


def _spectrogram(manifest: Manifest, row: int) -> np.ndarray:
    """(64, S) log-mel bands of a clip's whole audio."""
    start, end = manifest.bounds("audio")[row].tolist()
    _, samples = read_clip(manifest.path(row), audio=[AudioWindow(start, max(end - start, 0.1), RATE)])
    waveform = torch.from_numpy(samples[0].data)[None]
    return log_mel(waveform, sample_rate=RATE, n_fft=512, hop_seconds=0.01, num_mels=64)[0, 0].T.numpy()


def main() -> int:
    parser = experiment.command(__doc__, run="folder of a run of method joint or avid_cma")
    parser.add_argument("--tracks", type=Path, required=True, help="table of tracks of the run's clips")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--id", type=int, help="row of the manifest (default: drawn by --seed)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--max-seconds", type=float, help="to a neighbor that is a positive (default: the run's)")
    return experiment.run(parser, draw, plan=lambda given: [f"draw a clip of {given.run}: {given.out}"])


def draw(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The clip that is shown, and a line with the path of the picture."""
    if (given.max_seconds is not None and not given.max_seconds > 0) or given.seed < 0:
        raise ValueError(f"--max-seconds {given.max_seconds} must be above 0, and --seed {given.seed} at least 0")
    check_writable(given.out)
    options = {"id": given.id, "seed": given.seed, "max_seconds": given.max_seconds}
    shown = draw_positives(given.run, given.tracks, given.out, **options)
    return shown, f"{given.out}: clip {shown['id']}, {shown['path']}"


if __name__ == "__main__":
    sys.exit(main())
