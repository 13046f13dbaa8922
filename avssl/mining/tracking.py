"""Tracks of moving patches in a clip, up to 30 frames long; `python -m avssl.mining.tracking` is a worker (workers.py).

Source: Wang & Gupta, "Unsupervised Learning of Visual Representations using Videos" (ICCV 2015), section 3: remove the
camera's motion, pick the box with the most moving points, follow it with KCF. Differs from Wang & Gupta:
  * Points: SURF points with improved dense trajectories there; here all pixels with dense flow (DIS), counted where the
    image changes more than the camera explains. An object covers a smaller fraction of all pixels than of SURF points,
    so at least 1 % must move, not 25 %. Above 75 %, as there, it is a cut, or camera motion that could not be removed.
  * Box: of fixed size there (227 of 448 x 600 pixels); here fitted to the moving region with most points. A track must
    cover some distance, be found again backwards, and ends where nothing moves in its box any more.
  * Length: 30 frames there; here up to 30, at least half of them, at 15 a second.

Letters: T frames, H x W pixels, P pairs of consecutive frames (T - 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import cv2
import numpy as np

from avssl.media.decode import VideoWindow, read_clip
from avssl.media.reader import DecodeError
from avssl.workers import serve

WARP_BACK = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

Tracker = Literal["kcf", "csrt"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)

# why a clip has no track, by the step at which the search ended
TOO_SHORT = "too short"  # fewer frames, without a cut between them, than half a track
NO_MOTION = "no motion"  # only the camera moves
TOO_MUCH_MOTION = "too much motion"  # everything moves: a cut, a shaking camera
NO_REGION = "no region"  # no connected moving region of a size for a box
LOST = "lost"  # by the tracker, before half a track
LEFT = "left the frame"
HARDLY_MOVES = "hardly moves"  # relative to the camera
INCONSISTENT = "not found backwards"  # tracked back from its last frame it ends elsewhere
REASONS = (TOO_SHORT, NO_MOTION, TOO_MUCH_MOTION, NO_REGION, LOST, LEFT, HARDLY_MOVES, INCONSISTENT)

MOVING_SPEED = 0.5 * 30 / 448  # short sides per second: 0.5 pixels a frame at 448 x 600 pixels and 30 frames a second
MOVING_PIXELS = 0.4  # of the file, per pair of frames at least: the precision of dense flow
CHANGE = 3.0  # gray levels of change, in the mean around a moving pixel, that the camera does not explain
MOVING_FRACTIONS = (0.01, 0.75)  # of the pixels
WINDOW = 227 / 448  # side of the square that is searched for most moving points, in short sides
REGION_SIDES = (0.08, 0.75)  # of a fitted box, in short sides
REGION_FILLED = 0.35  # fraction of a fitted box that moves, at least
START_STRIDE = 3  # frames from one possible start of a track to the next
TRIES = 6  # boxes that are followed, at most, per wanted track
STILL = 0.15  # fraction of moving pixels up to which a box is still; a track ends with the last frame above
VISIBLE = 0.6  # fraction of a box that stays in the frame
MIN_DISTANCE = 0.10  # of a box relative to the camera, in short sides
BACKWARD_OVERLAP = 0.5  # IoU of the first box and where tracking back ends
DISTINCT_OVERLAP = 0.3  # IoU with another track in the same frame from which on a box is the same object
PATCH = 32  # pixels of the patches that are compared for the confidence
KCF_FOUND = 0.3  # least response of KCF; at OpenCV's 0.5 it loses most objects that turn
GRID = 8  # pixels between points of the camera's fit


@dataclass(frozen=True)
class Options:
    """How clips are searched."""

    max_frames: int = 30  # T of a track; half of them are enough
    max_tracks: int = 2  # per clip
    # kcf (Wang & Gupta's; the box keeps its size) or csrt (three times slower; the size adapts)
    tracker: Tracker = "kcf"
    fps: float = 15.0  # frames per second that are read, at most
    short_side: int = 240  # pixels to which the frames are scaled
    max_seconds: float = 10.0  # read of a clip, from its beginning

    def __post_init__(self) -> None:
        if self.max_frames < 2 or self.max_tracks < 1:
            raise ValueError(
                f"max_frames={self.max_frames} must be at least 2 and max_tracks={self.max_tracks} at least 1"
            )
        if self.min_frames > self.fps * self.max_seconds:
            raise ValueError(
                f"max_frames={self.max_frames}: a track of at least half of them needs more than the "
                f"{round(self.fps * self.max_seconds)} frames that are read of a clip: ask for fewer"
            )
        if self.tracker not in TRACKERS:
            raise ValueError(f"tracker={self.tracker!r} must be one of {', '.join(TRACKERS)}")

    @property
    def min_frames(self) -> int:
        return max(2, -(-self.max_frames // 2))


@dataclass(frozen=True)
class FoundTrack:
    """One followed box."""

    times: np.ndarray  # (T,) seconds
    boxes: np.ndarray  # (T, 4) top, left, height, width as fractions of the upright frame, inside it
    confidence: np.ndarray  # (T,) in [0, 1]: correlation of the patch with the first, in gray values


@dataclass(frozen=True)
class Found:
    """Result for a clip."""

    tracks: list[FoundTrack]  # best first
    reason: str  # why there are none, or ""
    drops: list[str] = field(default_factory=list)  # why each tracked box was rejected


@dataclass(frozen=True)
class Motion:
    """Between two frames."""

    camera: np.ndarray  # (3, 3) homography from the first frame to the second by camera motion alone
    own: np.ndarray  # (H, W, 2) x, y pixels of flow minus camera motion
    moving: np.ndarray  # (H, W) bool, where this is more than noise


@dataclass(frozen=True)
class Start:
    """A box (left, top, width, height) in pixels to follow from frame `frame` to before `end`."""

    frame: int
    end: int
    box: tuple[int, int, int, int]
    num_points: float


def track_clip(path: str, *, start: float, end: float, size: tuple[int, int], options: Options) -> Found:
    """Find the tracks of a clip from second `start` to `end`, upright frames of `size` (H, W). Raises DecodeError."""
    scale = options.short_side / min(size)
    seconds = max(min(end - start, options.max_seconds), 1 / options.fps)
    height, width = (round(pixels * scale) for pixels in size)
    window = VideoWindow(start, seconds, options.fps, size=(height, width))
    (frames,), _ = read_clip(path, video=[window])
    # frames are repeated where the file has fewer than requested, and from the first on after its end
    new = frames.times > np.maximum.accumulate(np.concatenate([[-np.inf], frames.times[:-1]]))
    return find_tracks(frames.data[new], frames.times[new], options=options, scale=max(scale, 1.0))


def find_tracks(frames: np.ndarray, times: np.ndarray, *, options: Options, scale: float = 1.0) -> Found:
    """Find what moves relative to the camera and track it.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        times: (T,) seconds, rising.
        options: max_frames, max_tracks and tracker are used.
        scale: of the frames against those of the file; motion too small to be seen there does not count.
    """
    if len(frames) < options.min_frames:
        return Found([], TOO_SHORT)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # boxes fit better than with FAST: IoU .82, .70

    def motion(i: int, j: int) -> Motion:
        return _motion(flow, gray[i], gray[j], abs(times[j] - times[i]), scale)

    motions = [motion(i, i + 1) for i in range(len(gray) - 1)]
    starts = _starts(motions, motion, options)
    if isinstance(starts, str):
        return Found([], starts)

    tracks: list[tuple[Start, np.ndarray]] = []  # boxes (T, 4) left, top, width, height in pixels
    drops: list[str] = []
    for start in starts:
        if len(tracks) == options.max_tracks or len(tracks) + len(drops) == TRIES * options.max_tracks:
            break
        if any(_is_same(start.frame, np.array([start.box]), known.frame, others) for known, others in tracks):
            continue
        boxes = _follow_both_ways(frames, start, motions, options)
        if isinstance(boxes, str):
            drops.append(boxes)
        elif not any(_is_same(start.frame, boxes, known.frame, others) for known, others in tracks):
            tracks.append((start, boxes))
    reason = "" if tracks else max(drops, key=REASONS.index)
    return Found([_as_track(gray, times, start.frame, boxes) for start, boxes in tracks], reason, drops)


# ---- motion


def _motion(flow: cv2.DISOpticalFlow, first: np.ndarray, second: np.ndarray, seconds: float, scale: float) -> Motion:
    """Flow from one gray frame (H, W) to another, without camera motion."""
    height, width = first.shape
    moved = flow.calc(first, second, None)  # (H, W, 2) x, y
    rows, columns = np.mgrid[GRID // 2 : height : GRID, GRID // 2 : width : GRID]
    points = np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(np.float32)
    goals = points + moved[rows, columns].reshape(-1, 2)
    camera, _ = cv2.findHomography(points, goals, cv2.RANSAC, ransacReprojThreshold=1.0)
    if camera is None:
        camera = np.eye(3)
    everywhere = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    by_camera = cv2.perspectiveTransform(everywhere, camera) - everywhere  # (H, W, 2)
    own = moved - by_camera
    least = max(MOVING_SPEED * min(height, width) * seconds, MOVING_PIXELS * scale)
    # flow is unreliable without texture; there the camera alone explains the second frame as well
    back = cv2.warpPerspective(second, camera, (width, height), flags=WARP_BACK, borderMode=cv2.BORDER_REPLICATE)
    change = cv2.blur(cv2.absdiff(first, back).astype(np.float32), (GRID + 1, GRID + 1))
    return Motion(camera, own, (np.linalg.norm(own, axis=2) > least) & (change > CHANGE))


def _starts(motions: list[Motion], motion: Callable[[int, int], Motion], options: Options) -> list[Start] | str:
    """Boxes to track, those with most moving points first, or why there are none."""
    fractions = np.array([motion.moving.mean() for motion in motions])  # (P,)
    least, most = MOVING_FRACTIONS
    reason = TOO_MUCH_MOTION if (fractions > most).any() else TOO_SHORT
    starts: list[Start] = []
    for begin, end in _runs(fractions <= most, options.min_frames - 1):  # pairs; frames begin to end, end included
        reason = max(reason, NO_MOTION, key=REASONS.index)
        for i in range(begin, end - options.min_frames + 2, START_STRIDE):
            if fractions[i] < least:
                continue
            reason = NO_REGION
            own, moving = motions[i].own, motions[i].moving
            if (
                i > begin
            ):  # motion in both directions of time excludes background that appears or disappears at the edges
                moving = moving & motion(i, i - 1).moving
            last = min(i + options.max_frames, end + 1)
            weight = (last - i) / options.max_frames
            starts += [
                Start(i, last, box, num_points * weight)
                for box, num_points in _regions(own, moving, options.max_tracks)
            ]
    return sorted(starts, key=lambda start: -start.num_points) or reason


def _runs(mask: np.ndarray, least: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of each run of at least `least` True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if end - begin >= least:
            yield begin, end


def _regions(own: np.ndarray, moving: np.ndarray, num: int) -> Iterator[tuple[tuple[int, int, int, int], int]]:
    """Up to `num` boxes (left, top, width, height) around connected motion, each with its number of points."""
    short_side = min(moving.shape)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    mask = cv2.morphologyEx(moving.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    for _ in range(num):
        inside = _busiest_window(mask, round(WINDOW * short_side))
        if not inside.any():
            return
        _, labels, stats, _ = cv2.connectedComponentsWithStats(inside)
        typical = np.median(own[labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()], axis=0)  # (2,)
        # flow is blurred at the edge of an object: half of its speed is reached there
        alike = np.linalg.norm(own - typical, axis=2) < np.linalg.norm(typical) / 2
        fitted = cv2.morphologyEx((alike & (mask > 0)).astype(np.uint8), cv2.MORPH_OPEN, kernel)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(fitted)
        counts = np.bincount(labels[inside > 0], minlength=len(stats))
        counts[0] = 0
        label = counts.argmax()
        mask[cv2.dilate(inside if label == 0 else (labels == label).astype(np.uint8), kernel) > 0] = 0
        left, top, width, height, num_points = stats[label].tolist()
        least, most = (limit * short_side for limit in REGION_SIDES)
        fits = least <= min(height, width) and max(height, width) <= most
        if label and fits and num_points > REGION_FILLED * height * width:
            yield (left, top, width, height), num_points


def _busiest_window(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask (H, W) uint8, cleared outside the window of side x side pixels with most of its points."""
    sums = cv2.integral(mask)  # (H + 1, W + 1)
    counts = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    row, column = np.unravel_index(counts.argmax(), counts.shape)
    inside = np.zeros_like(mask)
    window = (slice(row, row + side), slice(column, column + side))
    inside[window] = mask[window]
    return inside


# ---- tracking


def _follow_both_ways(frames: np.ndarray, start: Start, motions: list[Motion], options: Options) -> np.ndarray | str:
    """Boxes (T, 4) in pixels inside the frame, from the start on, or why they are no track."""
    height, width = frames.shape[1:3]
    boxes, reason = _follow(frames[start.frame : start.end], start.box, options.tracker)
    if len(boxes) < options.min_frames:
        return reason
    moving = [_moving_fraction(motions[start.frame + i - 1].moving, boxes[i]) > STILL for i in range(1, len(boxes))]
    boxes = boxes[: 1 + len(moving) - moving[::-1].index(True)] if True in moving else boxes[:1]
    if len(boxes) < options.min_frames:
        return HARDLY_MOVES
    cameras = [motion.camera for motion in motions[start.frame : start.frame + len(boxes) - 1]]
    if _distance(boxes, cameras) < MIN_DISTANCE * min(height, width):
        return HARDLY_MOVES
    back, _ = _follow(frames[start.frame : start.frame + len(boxes)][::-1], boxes[-1], options.tracker)
    if len(back) < len(boxes) or overlap(back[-1], boxes[0]) < BACKWARD_OVERLAP:
        return INCONSISTENT
    return np.array([_clip(box, height, width) for box in boxes])


def _follow(frames: np.ndarray, box: Sequence[int], name: Tracker) -> tuple[np.ndarray, str]:
    """Boxes (n, 4), n <= T, until the end or until the box is lost or leaves the frame, and which of the two."""
    tracker = _make_tracker(name)
    boxes = [np.array(box)]
    tracker.init(np.ascontiguousarray(frames[0, ..., ::-1]), tuple(int(value) for value in box))
    for frame in frames[1:]:
        found, box = tracker.update(np.ascontiguousarray(frame[..., ::-1]))
        if not found:
            return np.array(boxes), LOST
        clipped = _clip(box, *frame.shape[:2])
        if clipped[2:].prod() <= VISIBLE * box[2] * box[3]:
            return np.array(boxes), LEFT
        boxes.append(np.array(box))
    return np.array(boxes), ""


def _make_tracker(name: Tracker) -> cv2.Tracker:
    if name == "csrt":
        return cv2.TrackerCSRT_create()
    settings = cv2.TrackerKCF_Params()
    settings.detect_thresh = KCF_FOUND
    return cv2.TrackerKCF_create(settings)


def _distance(boxes: np.ndarray, cameras: list[np.ndarray]) -> float:
    """Largest distance in pixels of boxes (T, 4) from where the camera alone would have moved the first."""
    centers = (boxes[:, :2] + boxes[:, 2:] / 2).astype(float)
    by_camera, distances = centers[0], []
    for camera, center in zip(cameras, centers[1:], strict=True):
        by_camera = cv2.perspectiveTransform(by_camera[None, None], camera)[0, 0]
        distances.append(np.linalg.norm(center - by_camera))
    return max(distances)


def _moving_fraction(moving: np.ndarray, box: np.ndarray) -> float:
    """Fraction of the pixels of a box (left, top, width, height) that move."""
    left, top, width, height = _clip(box, *moving.shape)
    return float(moving[top : top + height, left : left + width].mean())


def _is_same(first: int, boxes: np.ndarray, other_first: int, others: np.ndarray) -> bool:
    """Whether boxes (n, 4) from frame `first` on and others (m, 4) overlap in the first frame of both."""
    i = max(first, other_first)
    if i >= min(first + len(boxes), other_first + len(others)):
        return False
    return overlap(boxes[i - first], others[i - other_first]) > DISTINCT_OVERLAP


def _clip(box: Sequence[int], height: int, width: int) -> np.ndarray:
    """The part of a box (left, top, width, height) inside the frame."""
    begin = np.clip(box[:2], 0, [width, height])
    return np.concatenate([begin, np.clip(np.add(box[:2], box[2:]), 0, [width, height]) - begin])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (position, size)."""
    begin, end = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    common = np.clip(end - begin, 0, None).prod()
    return float(common / (a[2:].prod() + b[2:].prod() - common))


def _as_track(gray: list[np.ndarray], times: np.ndarray, first: int, boxes: np.ndarray) -> FoundTrack:
    """Boxes in pixels -> fractions, with times and confidence."""
    height, width = gray[0].shape
    patches = []
    for i, (left, top, box_width, box_height) in enumerate(boxes):
        patch = gray[first + i][top : top + box_height, left : left + box_width]
        patch = cv2.resize(patch, (PATCH, PATCH), interpolation=cv2.INTER_AREA).astype(np.float64)
        patches.append((patch - patch.mean()) / (patch.std() + 1e-6))
    confidence = np.clip([(patch * patches[0]).mean() for patch in patches], 0, 1)
    fractions = boxes[:, [1, 0, 3, 2]] / [height, width, height, width]
    return FoundTrack(times[first : first + len(boxes)], fractions, confidence)


def _run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `track_clip` -> tracks and reason, or `unread`: why the file cannot be read."""
    cv2.setNumThreads(1)
    try:
        found = track_clip(**job | {"size": tuple(job["size"]), "options": Options(**job["options"])})
    except DecodeError as error:
        return {"unread": error.reason}
    tracks = [{name: values.tolist() for name, values in asdict(track).items()} for track in found.tracks]
    return {"tracks": tracks, "reason": found.reason}


if __name__ == "__main__":
    serve(_run_job)
