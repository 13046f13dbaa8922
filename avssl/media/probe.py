"""Facts of a media file for one row of the manifest; `python -m avssl.media.probe` is a worker (see workers.py)."""

import io
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import av
import av.stream
import numpy as np

from avssl.files import digest
from avssl.media import shards
from avssl.media.audio import to_mono
from avssl.media.reader import EMPTY, MISSING, DecodeError, Reader, file_problem, frame_duration
from avssl.media.streams import is_cover, is_decodable
from avssl.media.upright import orientation
from avssl.workers import serve

SILENCE = 1 / 32768  # a peak up to one step of 16-bit audio is digital silence
BLOCK_BYTES = 65536
PLAUSIBLE_FPS = 120
HOLE_SECONDS = 2.0  # without anything in any track: content does not pause for longer
MAX_SCANNED_BYTES = 64 << 20  # of a file whose packets are all looked at; only the doctor finds holes of a larger one

# timeout and crashed are set by the pool
Status = Literal["ok", "missing", "empty", "unreadable", "no_video", "timeout", "crashed"]


@dataclass(frozen=True)
class Probe:
    """Facts of one file; None = not known. Times are seconds on the container's clock, see decode.py."""

    size: int = 0  # bytes
    content_key: str = ""  # see `content_key`
    duration: float | None = None  # seconds of video, video_end - video_start
    fps: float | None = None  # average frames per second
    width: int | None = None  # pixels of the upright frame, after `rotation`
    height: int | None = None
    rotation: int | None = None  # degrees counterclockwise that turn the stored frame upright, after mirroring
    video_start: float | None = None  # when the first frame in the file begins
    video_end: float | None = None  # when the last frame in the file ends
    audio_start: float | None = None  # likewise of the audio
    audio_end: float | None = None
    has_audio: bool = False  # some sample is louder than digital silence
    sample_rate: int | None = None  # Hz of the stored audio
    holes: Sequence[tuple[float, float]] | None = None  # pauses of the whole file, seconds; None = not looked for
    status: Status = "unreadable"  # ok = frames can be read
    reason: str = ""  # why the status is not ok, or why there is no audio; empty otherwise


def probe(path: str | Path) -> Probe:
    """Facts of a file; never raises for a bad file, which `status` and `reason` describe.

    The first frame is decoded, audio up to the first sample that is not silent, and the end of both tracks is taken
    from the packets, because the header of a damaged or cut file is wrong.
    """
    return Probe(**examine(path, _read_facts))


def examine(path: str | Path, read_facts: Callable[[Reader], dict]) -> dict:
    """Fields of `Probe` of one file: size, content key, what `read_facts` returns of the opened file, or the error."""
    path = Path(path)
    problem = file_problem(path)
    if problem not in (None, EMPTY):
        return {"status": "missing" if problem == MISSING else "unreadable", "reason": problem}
    try:
        known = {"size": shards.locate(path).size, "content_key": content_key(path)}
    except OSError as error:
        return {"status": "unreadable", "reason": f"the file cannot be opened ({error.strerror})"}
    if not known["size"]:
        return known | {"status": "empty", "reason": EMPTY}
    try:
        with Reader(path) as reader:
            return known | read_facts(reader)
    except DecodeError as error:
        return known | {"status": "unreadable", "reason": error.reason}
    except av.error.FFmpegError as error:
        return known | {"status": "unreadable", "reason": f"the file cannot be decoded ({error.strerror})"}


def content_key(path: str | Path) -> str:
    """A fast digest (32 hex digits) of the size and of the first, middle and last 64 KiB of a file."""
    blocks = []
    with io.BufferedReader(shards.open_part(path)) as file:
        size = file.seek(0, os.SEEK_END)
        for offset in (0, (size - BLOCK_BYTES) // 2, size - BLOCK_BYTES):
            file.seek(max(offset, 0))
            blocks.append(file.read(BLOCK_BYTES))
    return digest(size, *blocks)


def missing_video(reader: Reader) -> dict:
    """Status and reason of a file without a decodable video track."""
    if any(not is_cover(stream) for stream in reader.container.streams.video):
        return {"status": "unreadable", "reason": "no decoder exists for the video track"}
    return {"status": "no_video", "reason": "the file has no video track"}


def missing_audio(reader: Reader) -> dict:
    """Reason of a file without a decodable audio track."""
    streams = reader.container.streams.audio
    if any(map(is_decodable, streams)):
        return {"reason": "the audio tracks belong to another program than the video"}
    return {"reason": "no decoder exists for the audio track" if streams else "the file has no audio track"}


def shape(frame: av.VideoFrame) -> dict:
    """Size and rotation of the upright frame. Raises FFmpegError when its pixel format cannot be converted."""
    frame.reformat(format="rgb24", threads=1)
    turned = orientation(frame)
    width, height = turned.size(frame.width, frame.height)
    return {"width": width, "height": height, "rotation": 90 * turned.turns}


def stated_rate(stream: av.stream.Stream) -> float | None:
    """Average frames per second by the header, unless that is its clock (1000 in FLV)."""
    rate = stream.average_rate
    return float(rate) if rate and rate <= PLAUSIBLE_FPS else None


def counted_rate(starts: Iterable[float]) -> float | None:
    """Average frames per second from the times of all frames, in any order."""
    seconds = set(starts)
    return (len(seconds) - 1) / (max(seconds) - min(seconds)) if len(seconds) > 1 else None


def _read_facts(reader: Reader) -> dict:
    video = _video_facts(reader)
    facts = _audio_facts(reader) | video  # the reason of missing video matters more
    if reader.size > MAX_SCANNED_BYTES:
        return facts
    times = {kind: list(reader.packet_times(kind)) for kind in ("video", "audio") if getattr(reader, kind) is not None}
    return facts | {"holes": find_holes([start for start, _ in times.get("video", [])], times.get("audio", []))}


def find_holes(video: Sequence[float], audio: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Seconds in which nothing is in any track. A frame is shown until the next one, unless that is unusually far.

    Args:
        video: starts of the frames.
        audio: (start, end) of each piece.
    """
    starts = np.unique(np.asarray(video, dtype=np.float64))
    distances = np.diff(starts)
    usual = float(np.median(distances)) if len(distances) else 0.0
    is_far = distances > max(HOLE_SECONDS, 3 * usual)
    ends = np.append(np.where(is_far, starts[:-1] + usual, starts[1:]), starts[-1:] + usual)
    spans = np.array(sorted([*zip(starts, ends, strict=True), *audio])).reshape(-1, 2)
    covered = np.maximum.accumulate(spans[:, 1])
    after = np.flatnonzero(spans[1:, 0] - covered[:-1] > HOLE_SECONDS)
    return [(float(covered[i]), float(spans[i + 1, 0])) for i in after]


def _video_facts(reader: Reader) -> dict:
    if reader.video is None:
        return missing_video(reader)
    end = reader.end_seconds("video")
    start, frame = next(reader.frames_from("video", -np.inf), (None, None))
    if frame is None:
        raise DecodeError(reader.path, "no frame of the video track can be decoded")
    end = max(end or start, start + frame_duration(frame, reader.video))
    return shape(frame) | {
        "duration": end - start,
        "fps": stated_rate(reader.video) or counted_rate(second for second, _ in reader.packet_times("video")),
        "video_start": start,
        "video_end": end,
        "status": "ok",
    }


def _audio_facts(reader: Reader) -> dict:
    if reader.audio is None:
        return missing_audio(reader)
    end = reader.end_seconds("audio")
    frames = reader.frames_from("audio", -np.inf)
    start, first = next(frames, (None, None))
    if first is None:
        return {"reason": "the audio track cannot be decoded"}
    is_audible = any(
        np.abs(to_mono(frame)).max(initial=0) > SILENCE for _, frame in itertools.chain([(start, first)], frames)
    )
    facts = {
        "audio_start": start,
        "audio_end": max(end or start, start + frame_duration(first, reader.audio)),
        "sample_rate": first.sample_rate,
        "has_audio": is_audible,
    }
    return facts if is_audible else facts | {"reason": "the audio track is silent"}


if __name__ == "__main__":
    serve(lambda path: asdict(probe(path)))
