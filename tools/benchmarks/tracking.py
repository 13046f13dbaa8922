"""Number of tracks found in synthetic scenes (avssl/evaluate/scenes.py), and how well they stay on a moving object.

python tools/benchmarks/tracking.py --scenes 40
"""

import collections
import sys
import time
from collections.abc import Sequence

import numpy as np
import stopwatch

from avssl.evaluate.scenes import Scene, make_scene
from avssl.mining.tracking import TRACKERS, FoundTrack, Options, Tracker, find_tracks, overlap

FPS = 15.0
ON_THING = 0.3  # IoU of the first box with the true box of a thing from which on the track is said to be on it
DEFINITIONS = {
    "on_thing": f"the first box overlaps the true box of a moving thing by an IoU of at least {ON_THING}",
    "iou": "mean over a track's frames of the IoU with the true box (what is seen) of the thing that its first box "
    "overlaps most, 0 where nothing of it is seen; mean over all kept tracks",
}


def benchmark_tracking(
    *, num_scenes: int, first_seed: int, tracker: Tracker, max_frames: int = 30
) -> dict[str, object]:
    """Track in made scenes of seeds first_seed, first_seed + 1, ... and compare with the truth.

    Returns:
        scenes, first_seed, tracker; scenes_with_track, tracks, mean_frames; on_thing and iou as in `definitions`, which
        are returned too; full_length, the tracks of max_frames frames, and iou_full_length, their iou; dropped_boxes
        {reason: boxes}, scenes_without_track {reason: scenes}; seconds_per_scene.

    Raises:
        ValueError: num_scenes is not positive.
    """
    if num_scenes < 1:
        raise ValueError(f"num_scenes is {num_scenes}, expected at least 1")
    options = Options(max_frames=max_frames, tracker=tracker)
    drops, without = collections.Counter(), collections.Counter()
    first, mean, lengths = [], [], []  # of each kept track
    num_with_track, seconds = 0, 0.0
    for seed in range(first_seed, first_seed + num_scenes):
        scene = make_scene(seed)
        begin = time.perf_counter()
        found = find_tracks(scene.frames, np.arange(len(scene.frames)) / FPS, options=options)
        seconds += time.perf_counter() - begin
        drops.update(found.drops)
        without.update([found.reason] if found.reason else [])
        num_with_track += bool(found.tracks)
        for track in found.tracks:
            overlaps = _overlaps(scene, track)
            first.append(overlaps[0])
            mean.append(overlaps.mean())
            lengths.append(len(overlaps))
    full = np.array(lengths) == max_frames
    return {
        "tracker": tracker,
        "scenes": num_scenes,
        "first_seed": first_seed,
        "scenes_with_track": num_with_track,
        "tracks": len(mean),
        "mean_frames": _mean(lengths),
        "on_thing": _mean(np.array(first) >= ON_THING),
        "iou": _mean(mean),
        "full_length": int(full.sum()),
        "iou_full_length": _mean(np.array(mean)[full]),
        "dropped_boxes": dict(drops),
        "scenes_without_track": dict(without),
        "seconds_per_scene": seconds / num_scenes,
        "definitions": DEFINITIONS,
    }


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _overlaps(scene: Scene, track: FoundTrack) -> np.ndarray:
    """(T,) IoU of each box of a track with the true box of its thing."""
    begin = round(track.times[0] * FPS)
    truth = scene.boxes[begin : begin + len(track.boxes)]  # (T, K, 4)
    thing = max(range(truth.shape[1]), key=lambda k: np.nan_to_num(overlap(track.boxes[0], truth[0, k])))
    return np.array([np.nan_to_num(overlap(box, true)) for box, true in zip(track.boxes, truth[:, thing], strict=True)])


def main() -> int:
    parser = stopwatch.command(__doc__)
    parser.add_argument("--scenes", dest="num_scenes", type=int, default=40, help="that are made (default: 40)")
    parser.add_argument("--tracker", choices=TRACKERS, default="kcf")
    parser.add_argument("--seed", dest="first_seed", type=int, default=1000, help="of the first scene (default: 1000)")
    return stopwatch.run(parser, benchmark_tracking, plan="{tracker} in {num_scenes} scenes from seed {first_seed} on")


if __name__ == "__main__":
    sys.exit(main())
