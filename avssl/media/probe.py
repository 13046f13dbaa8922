"""What a file holds and whether it can be read: the facts of one row of the manifest.

python -m avssl.media.probe        (a worker: one JSON string, the path, per line in; one JSON object per line out)
"""

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import av
import av.stream
import numpy as np

from avssl.files import digest
from avssl.media.audio import to_mono
from avssl.media.reader import EMPTY, MISSING, DecodeError, Reader, file_problem, frame_duration, is_cover
from avssl.workers import serve

SILENCE = 1 / 32768  # a peak up to one step of 16-bit sound is digital silence
BLOCK_BYTES = 65536
PLAUSIBLE_FPS = 120

# timeout and crashed are given by the pool, which outlives the worker
Status = Literal["ok", "missing", "empty", "unreadable", "no_video", "timeout", "crashed"]


@dataclass(frozen=True)
class Probe:
    """Facts of one file; None = not known. Times are seconds on the container's clock, see decode.py.

    Args:
        size: bytes.
        content_key: digest of the size and of three blocks, see `content_key`.
        duration: seconds of picture, video_end - video_start.
        fps: average frames per second.
        width, height: pixels of the upright picture, after `rotation`.
        rotation: degrees counterclockwise by which the stored picture is turned: 0, 90, 180 or 270.
        video_start, video_end: when the first frame begins and the last one that is in the file ends.
        audio_start, audio_end: the same for the sound.
        has_audio: some sample is louder than digital silence.
        sample_rate: Hz of the sound as stored.
        status: ok = frames can be read.
        reason: in plain words, why the status is not ok, or why there is no sound; empty otherwise.
    """

    size: int = 0
    content_key: str = ""
    duration: float | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    audio_start: float | None = None
    audio_end: float | None = None
    has_audio: bool = False
    sample_rate: int | None = None
    status: Status = "unreadable"
    reason: str = ""


def probe(path: str | Path) -> Probe:
    """Find out what a file holds; never raises for a bad file, but says so in `status` and `reason`.

    The first frame is decoded, sound is decoded until the first sample that is not silent, and the end of both tracks
    is looked for in the packets, because what a damaged or cut file says about its duration is not true.
    """
    return Probe(**examine(path, _look))


def examine(path: str | Path, look: Callable[[Reader], dict]) -> dict:
    """Facts of one file, as a mapping of fields of `Probe`: its bytes, what `look` finds in it, or why it cannot.

    Args:
        path: any name; a file that is bad or not there is told in status and reason.
        look: gets the opened file.
    """
    path = Path(path)
    problem = file_problem(path)
    if problem not in (None, EMPTY):
        return {"status": "missing" if problem == MISSING else "unreadable", "reason": problem}
    try:
        known = {"size": path.stat().st_size, "content_key": content_key(path)}
    except OSError as error:
        return {"status": "unreadable", "reason": f"the file cannot be opened ({error.strerror})"}
    if not known["size"]:
        return known | {"status": "empty", "reason": EMPTY}
    try:
        with Reader(path) as reader:
            return known | look(reader)
    except DecodeError as error:
        return known | {"status": "unreadable", "reason": error.reason}
    except av.error.FFmpegError as error:
        return known | {"status": "unreadable", "reason": f"the file cannot be decoded ({error.strerror})"}


def content_key(path: str | Path) -> str:
    """A fast digest (32 hex digits) of the size and of the first, middle and last 64 KiB: it tells clips apart and
    notices a file that was exchanged, but not a change elsewhere in a big file."""
    blocks = []
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        for offset in (0, (size - BLOCK_BYTES) // 2, size - BLOCK_BYTES):
            file.seek(max(offset, 0))
            blocks.append(file.read(BLOCK_BYTES))
    return digest(size, *blocks)


def without_picture(reader: Reader) -> dict:
    """Status and reason of a file without a video track that can be decoded."""
    if any(not is_cover(stream) for stream in reader.container.streams.video):
        return {"status": "unreadable", "reason": "no decoder exists for the video track"}
    return {"status": "no_video", "reason": "the file has no video track"}


def without_sound(reader: Reader) -> dict:
    """The reason why a file has no sound track that can be decoded."""
    there = bool(reader.container.streams.audio)
    return {"reason": "no decoder exists for the sound track" if there else "the file has no sound track"}


def shape(frame: av.VideoFrame) -> dict:
    """Size and rotation of the upright picture. Raises FFmpegError when its kind of pixels cannot be converted."""
    frame.reformat(format="rgb24", threads=1)
    rotation = round(frame.rotation / 90) % 4 * 90
    width, height = (frame.height, frame.width) if rotation % 180 else (frame.width, frame.height)
    return {"width": width, "height": height, "rotation": rotation}


def stated_rate(stream: av.stream.Stream) -> float | None:
    """Average frames per second by the header, unless it gives its clock (1000 in FLV) instead of a rate."""
    rate = stream.average_rate
    return float(rate) if rate and rate <= PLAUSIBLE_FPS else None


def counted_rate(starts: Iterable[float]) -> float | None:
    """Average frames per second by the seconds of all frames, in any order."""
    seconds = set(starts)
    return (len(seconds) - 1) / (max(seconds) - min(seconds)) if len(seconds) > 1 else None


def _look(reader: Reader) -> dict:
    picture = _picture(reader)
    return _sound(reader) | picture  # why there is no picture matters more than why there is no sound


def _picture(reader: Reader) -> dict:
    if reader.video is None:
        return without_picture(reader)
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


def _sound(reader: Reader) -> dict:
    """Facts of the sound, with a reason if there is none."""
    if reader.audio is None:
        return without_sound(reader)
    end = reader.end_seconds("audio")
    frames = reader.frames_from("audio", -np.inf)
    start, first = next(frames, (None, None))
    if first is None:
        return {"reason": "the sound track cannot be decoded"}
    heard = any(
        np.abs(to_mono(frame)).max(initial=0) > SILENCE for _, frame in itertools.chain([(start, first)], frames)
    )
    facts = {
        "audio_start": start,
        "audio_end": max(end or start, start + frame_duration(first, reader.audio)),
        "sample_rate": first.sample_rate,
        "has_audio": heard,
    }
    return facts if heard else facts | {"reason": "the sound track is silent"}


if __name__ == "__main__":
    serve(lambda path: asdict(probe(path)))
