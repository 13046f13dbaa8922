"""Whether what was read out of a bad file lies at its time: by what a clip shows and sounds, and by a plain decode.

    python -m tests.rigs.judge  (a worker of hostile.py: a file per line in, its verdict per line out, both JSON)

Two judges: `Shown` knows the clip that a file was before it was damaged (damage.py); `Likeness` knows nothing and
compares with a plain decode of the file from beginning to end alone.

A frame with another number than the one that belongs to its time can be three things. The file itself may say so
(its timestamps are damaged, or another file's piece was put in): then the plain decode has the same number at that
time, and no reader can know better. It may be concealed damage: a decoder shows an old frame where it lost one, or
builds on a wrong one. Or the reader gave the time of another frame, which is the error that is looked for. An error
of time moves all that follows, and it happens to whole frames too: so it is one if the plain decode shows the right
frame at that time, or if three frames in a row, all different, are off by the same time. The rest is concealed.
An AVI has no timestamps at all: its index is its clock, and a copy whose index is damaged has none that could be right.
The same holds for the part of an MP4 with a damaged index that the plain decode, which breaks off before, never sees.

Sound is heard in pieces of a quarter second: each that is recognized must lie within 5 ms of its time, in the clip or
in the plain decode; within 0.1 s where timestamps of the file go back and forth, as those of recorders do that wobble.

Letters: T frames, n samples.
"""

import functools
import itertools
import math
import re
import resource
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from avssl.data.sampling import draw_windows
from avssl.files import digest
from avssl.media.audio import to_mono
from avssl.media.decode import Frames, Samples, read_clip
from avssl.media.probe import Probe, probe
from avssl.media.reader import (
    OPEN_SECONDS,
    SAMPLE_RATES,
    TIME_TOLERANCE,
    WOBBLE_SECONDS,
    DecodeError,
    Reader,
    frame_duration,
)
from avssl.media.upright import Orientation, Orientations
from avssl.windows import AudioWindow, Span, VideoWindow
from avssl.workers import serve
from tests.rigs.damage import FPS, SIZE, Clip, Ear, likeness, read_numbers

SAME_TIME = 0.003  # seconds: two ticks of a Matroska clock
SAME_SOUND = 0.005  # seconds by which sound may be off
PIECE_SECONDS = 0.25  # of audio that is judged at once
MAX_RESUMED = 3  # times that the plain decode goes on behind a damaged place
AVI = "avi"
REFORMATTER = VideoReformatter()  # one of its own would stay with each frame
RUN = 3  # different frames in a row that are off by the same time
MAX_PLAIN_SECONDS = 40.0  # of a long file that the plain decode looks at, whatever its times say
SAME_GRAY, OTHER_GRAY = 8.0, 20.0  # mean difference of frames that are, or are not, the same
NUM_CLIPS = 6  # read of a file, drawn as training draws them
READ_FPS, NUM_FRAMES, AUDIO_SECONDS, SAMPLE_RATE, OFFSET_SECONDS = 16, 8, 1.0, 24_000, 0.25


@dataclass
class Counts:
    """Counts of frames and pieces of audio by what was found, and descriptions of errors."""

    right: int = 0
    as_in_file: int = 0  # another time than the clip's, but the one that the damaged file gives
    damaged: int = 0  # beyond recognition
    concealed: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plain:
    """All that decodes of a file in its order, without a seek.

    Args:
        times: (T,) seconds of the frames as they came.
        frames: (T, 64, 96, 3) uint8.
        sound: (second, sample rate, (n,) float32) of each packet's sound.
    """

    times: np.ndarray
    frames: np.ndarray
    sound: list[tuple[float, int, np.ndarray]]

    def heard(self, start: float, duration: float, *, last_wins: bool) -> tuple[np.ndarray, int] | None:
        """Sound of a window and its rate; where two packets claim one time, the first or the last of them."""
        near = [each for each in self.sound if start - len(each[2]) / each[1] < each[0] < start + duration]
        if not near:
            return None
        rate = near[0][1]
        placed: list[tuple[int, np.ndarray]] = []
        following = math.inf
        for seconds, its_rate, mono in near:
            first = round((seconds - start) * rate)
            if abs(first - following) < SAME_TIME * rate:  # timestamps are rounded to ticks
                first = following
            following = first + len(mono)
            if its_rate == rate:
                placed.append((first, mono))
        values = np.zeros(round(duration * rate), dtype=np.float32)
        for first, mono in placed if last_wins else reversed(placed):
            low, high = max(first, 0), min(first + len(mono), len(values))
            if low < high:
                values[low:high] = mono[low - first : high - first]
        return values, rate

    @functools.cached_property
    def wobbles(self) -> bool:
        """Whether timestamps of the sound come back after a step: no reader can tell that from recorders whose stamps
        wobble around a line, to which WOBBLE_SECONDS are left."""
        anchors, elapsed = [], 0.0
        for seconds, rate, mono in self.sound:
            anchors.append(seconds - elapsed)
            elapsed += len(mono) / rate
        falls = np.maximum.accumulate(anchors) - np.array(anchors) if anchors else np.zeros(1)
        return bool(falls.max() > SAME_TIME)


NOTHING = Plain(np.empty(0), np.empty((0, *SIZE, 3), dtype=np.uint8), [])


def decode_plainly(path: Path) -> Plain:
    """What a simple program sees: every packet in the order of the file, each frame with its own timestamp."""
    times, frames, sound = [], [], []
    passed = Counter()  # seconds by track
    turned = Orientations()
    try:
        with av.open(f"file:{path}", metadata_errors="replace", timeout=OPEN_SECONDS) as container:
            tracks = [container.streams[i] for i in _tracks(path)]
            for track in tracks:
                track.codec_context.thread_count = 1
            if not tracks:  # or all others would be decoded
                return NOTHING
            following = {track.index: 0.0 for track in tracks}  # for a frame without a timestamp
            for track, frame in _frames(container, tracks):
                is_picture = isinstance(frame, av.VideoFrame)
                if not is_picture and not SAMPLE_RATES[0] <= frame.sample_rate <= SAMPLE_RATES[1]:
                    continue
                seconds = following[track.index] if frame.time is None else frame.time
                following[track.index] = seconds + frame_duration(frame, track)
                passed[track.index] += frame_duration(frame, track)
                if passed[track.index] > MAX_PLAIN_SECONDS:
                    continue
                if is_picture:
                    picture = _small(frame, turned.of(frame))  # raises for pixels that nothing can convert
                    times.append(seconds)
                    frames.append(picture)
                else:
                    sound.append((seconds, frame.sample_rate, to_mono(frame)))
    except (av.error.FFmpegError, ValueError):
        pass  # what came before it stands
    return Plain(np.array(times), np.array(frames, dtype=np.uint8).reshape(-1, *SIZE, 3), sound)


def _tracks(path: Path) -> list[int]:
    """Numbers of the tracks that are read; that they are the right ones is seen in undamaged clips (`truth_of`)."""
    try:
        with Reader(path) as reader:
            return [track.index for track in (reader.video, reader.audio) if track is not None]
    except DecodeError:
        return []


def _frames(
    container: av.container.InputContainer, tracks: Sequence[av.stream.Stream]
) -> Iterator[tuple[av.stream.Stream, av.VideoFrame | av.AudioFrame]]:
    for _ in range(MAX_RESUMED):
        try:
            for packet in container.demux(*tracks):
                for frame in _decoded(packet):
                    yield packet.stream, frame
            return
        except (av.error.FFmpegError, IndexError):  # a damaged place, or a packet of a stream that PyAV does not know
            continue


def _decoded(packet: av.Packet) -> list[av.VideoFrame | av.AudioFrame]:
    try:
        return packet.decode()
    except (av.error.FFmpegError, ValueError, EOFError):
        return []


def _small(frame: av.VideoFrame, turned: Orientation) -> np.ndarray:
    """(64, 96, 3) uint8, upright."""
    width, height = turned.size(*SIZE[::-1])
    small = REFORMATTER.reformat(frame, width=width, height=height, format="rgb24", threads=1)
    return turned.upright(small.to_ndarray())


@dataclass(frozen=True)
class Truth:
    """Where everything lies in an undamaged clip, as JSON carries it.

    Args:
        first_number: of the first frame.
        times: seconds of the frames.
        seconds: of the tone.
        falls: the tone does.
        sound_start: second at which the tone begins on the clock of the file.
        index: see `index_digest`.
    """

    first_number: int
    times: list[float]
    seconds: float
    falls: bool
    sound_start: float
    index: str


def index_digest(path: Path) -> str:
    """Of the times and places in the index of an AVI or MP4, by which packets are timed there; "" for other files."""
    try:
        with av.open(f"file:{path}", metadata_errors="replace", timeout=OPEN_SECONDS) as container:
            name = container.format.name[:3]
            if name not in (AVI, "mov"):
                return ""
            found = [[(entry.pos, entry.timestamp) for entry in stream.index_entries] for stream in container.streams]
            clocks = [(str(stream.time_base), stream.start_time) for stream in container.streams]
    except av.error.FFmpegError:
        return ""
    return name + digest((found, clocks))


def truth_of(clip: Clip) -> Truth:
    """What a plain decode finds in an undamaged clip: containers and codecs shift what is put into them."""
    plain = decode_plainly(clip.path)
    numbers = read_numbers(plain.frames)
    expected = list(range(clip.first_number, clip.first_number + clip.num_frames))
    assert numbers == expected, f"{clip.path}: the writer lost pictures"
    start = plain.times.min() + 1.0
    heard, rate = (decode_plainly(clip.steady) if clip.steady else plain).heard(start, 0.5, last_wins=True)
    found = Ear(clip.seconds, falls=clip.falls).locate(heard, rate)
    assert found is not None, f"{clip.path}: the tone is not recognized"
    times = np.sort(plain.times).tolist()
    return Truth(clip.first_number, times, clip.seconds, clip.falls, start - found, index_digest(clip.path))


class Shown:
    """Judges by the numbers and the tone of a known clip.

    Args:
        truth: of the clip that was damaged.
        others: of those of which pieces may be in it: a frame that came with its own time is at the right one.
        plain: decode of the damaged file.
        index: digest of the index of the damaged file, see `index_digest`.
        shifts: seconds that a joined file moves the times of its parts by: each with what the file shows before that.
    """

    def __init__(
        self, truth: Truth, others: Sequence[Truth], plain: Plain, *, index: str, shifts: Sequence[float] = ()
    ) -> None:
        self.truth = truth
        self.shifts = (0.0, *shifts)
        self.clock_lost = index != truth.index
        self.all_times = {
            each.first_number + i: seconds for each in (truth, *others) for i, seconds in enumerate(each.times)
        }
        self.counts = Counts()
        self.plain_times = plain.times
        self.plain_numbers = np.array(read_numbers(plain.frames), dtype=int)
        self.plain = plain
        self.ear = Ear(truth.seconds, falls=truth.falls)

    def pictures(self, frames: Frames, wanted: np.ndarray) -> None:
        suspects: list[tuple[float, int]] = []  # (second, number)
        for seconds, number in dict.fromkeys(zip(frames.times.tolist(), read_numbers(frames.data), strict=True)):
            at_time = [
                number
                for shift in self.shifts
                for number in self.plain_numbers[np.abs(self.plain_times + shift - seconds) < SAME_TIME].tolist()
            ]
            if number < 0:
                self.counts.damaged += 1
            elif self._belongs(number, seconds):
                self.counts.right += 1
            elif number in at_time or self._is_unknown(at_time):
                self.counts.as_in_file += 1
            elif any(self._belongs(other, seconds) for other in at_time):
                self.counts.wrong.append(f"number {number} at {seconds:.3f} s, where the file shows {at_time}")
            else:
                suspects.append((seconds, number))
        self.counts.concealed += len(suspects)
        _check_runs(suspects, self.counts)
        _check_order(frames, wanted, self.plain_times, self.counts)

    def sound(self, samples: Samples, sample_rate: int) -> None:
        length = round(PIECE_SECONDS * sample_rate)
        for first in range(0, len(samples.data) - length + 1, length):
            heard, start = samples.data[first : first + length], samples.start + first / sample_rate
            expected = start - self.truth.sound_start
            reach = SAME_SOUND + (WOBBLE_SECONDS if self.plain.wobbles else 0.0)
            if self.ear.locate(heard, sample_rate, near=expected, reach=reach) is not None:
                self.counts.right += 1
                continue
            found = self.ear.locate(heard, sample_rate)
            if found is None:
                self.counts.damaged += 1
            elif self._is_unknown(plainly := list(self._plainly(start))) or any(
                abs(found - other) < reach for other in plainly
            ):
                self.counts.as_in_file += 1
            else:
                self.counts.wrong.append(f"sound of {found:.3f} s at {expected:.3f} s")

    def _plainly(self, start: float) -> Iterator[float]:
        """What second of the tone the plain decode has there."""
        for shift, last_wins in itertools.product(self.shifts, (True, False)):
            heard = self.plain.heard(start - shift, PIECE_SECONDS, last_wins=last_wins)
            found = None if heard is None else self.ear.locate(*heard)
            if found is not None:
                yield found

    def _is_unknown(self, plainly: Sequence[object]) -> bool:
        """Whether nothing in the file tells the time right: its index is another than the clip's and, if it has
        timestamps besides, the plain decode broke off and has nothing there."""
        return self.clock_lost and (self.truth.index.startswith(AVI) or not plainly)

    def _belongs(self, number: int, seconds: float) -> bool:
        return abs(self.all_times.get(number, math.inf) - seconds) < SAME_TIME


def _check_runs(suspects: list[tuple[float, int]], counts: Counts) -> None:
    """Three different frames one after the other, all off by the same time, are no concealed damage."""
    run = 1
    for (before, old), (seconds, number) in itertools.pairwise(suspects):
        moved = number != old and abs((seconds - before) * FPS - (number - old)) < 0.1
        run = run + 1 if moved else 1
        if run == RUN:
            counts.wrong.append(
                f"numbers up to {number} at {seconds:.3f} s in a row, which the file does not show there"
            )


def _check_order(frames: Frames, wanted: np.ndarray, plain_times: np.ndarray, counts: Counts) -> None:
    """No picture may come from after the second that it is for, unless the file begins later."""
    for seconds, second in zip(frames.times, wanted, strict=True):
        if seconds > second + TIME_TOLERANCE and len(plain_times) and plain_times[0] < second:
            counts.wrong.append(f"the picture of {seconds:.3f} s for {second:.3f} s")
            return


class Likeness:
    """Judges any file by its plain decode: what is returned must look and sound like that at the same time, or at least
    not clearly like another time of it."""

    def __init__(self, plain: Plain) -> None:
        self.counts = Counts()
        self.plain = plain
        self.gray = plain.frames.astype(np.float32).mean(axis=-1)

    def pictures(self, frames: Frames, wanted: np.ndarray) -> None:
        for seconds, picture in zip(frames.times, frames.data, strict=True):
            if not len(self.gray) or seconds > self.plain.times.max() + SAME_TIME:
                self.counts.damaged += 1
                continue
            off = np.abs(self.gray - picture.astype(np.float32).mean(axis=-1)).mean(axis=(1, 2))  # (T,)
            there = off[np.abs(self.plain.times - seconds) < SAME_TIME].min(initial=math.inf)
            if there < SAME_GRAY or there <= off.min():
                self.counts.right += 1
            elif off.min() < 1 and there > OTHER_GRAY:
                other = self.plain.times[off.argmin()]
                self.counts.wrong.append(f"the picture of {other:.3f} s at {seconds:.3f} s")
            else:
                self.counts.concealed += 1
        _check_order(frames, wanted, self.plain.times, self.counts)

    def sound(self, samples: Samples, sample_rate: int) -> None:
        length = round(PIECE_SECONDS * sample_rate)
        for first in range(0, len(samples.data) - length + 1, length):
            heard, start = samples.data[first : first + length], samples.start + first / sample_rate
            self._piece(heard, start, sample_rate)

    def _piece(self, heard: np.ndarray, start: float, sample_rate: int) -> None:
        plainly = self.plain.heard(start - PIECE_SECONDS, 3 * PIECE_SECONDS, last_wins=True)
        if plainly is None or np.linalg.norm(heard) < 1e-3 * math.sqrt(len(heard)):
            self.counts.damaged += 1
            return
        wide, rate = plainly
        # at the rate of the plain decode, by straight lines: good enough to find a lag
        piece = np.interp(np.arange(round(PIECE_SECONDS * rate)) / rate, np.arange(len(heard)) / sample_rate, heard)
        alike = likeness(wide, piece, least=1e-6 * len(piece))
        middle, reach = round(PIECE_SECONDS * rate), max(1, round(SAME_SOUND * rate))
        there, best = alike[middle - reach : middle + reach + 1].max(), int(alike.argmax())
        if there > Ear.ALIKE:
            self.counts.right += 1
        elif alike[best] > Ear.ALIKE and there < alike[best] - 0.2:
            self.counts.wrong.append(f"sound {(middle - best) / rate:+.3f} s off at {start:.3f} s")
        else:
            self.counts.damaged += 1


# ---- a worker


def read_as_training_does(path: str | Path, judge: Shown | Likeness, *, seed: int) -> tuple[str, str]:
    """Probe a file, read windows with the times that the manifest would hold, and show them to the judge.

    Returns:
        "read" and "", or "refused" and why.
    """
    facts = probe(path)
    if facts.status not in ("ok", "no_video") or (facts.status == "no_video" and facts.audio_start is None):
        return "refused", facts.reason
    try:
        for video, audio in _calls(facts, np.random.default_rng(seed)):
            frames, samples = read_clip(path, video=video, audio=audio)
            for window, read in zip(video, frames, strict=True):
                if window.crop is None:
                    judge.pictures(read, window.start + np.arange(NUM_FRAMES) / READ_FPS)
            for read in samples:
                judge.sound(read, SAMPLE_RATE)
    except DecodeError as error:
        return "refused", error.reason
    return "read", ""


def _calls(facts: Probe, rng: np.random.Generator) -> Iterator[tuple[list[VideoWindow], list[AudioWindow]]]:
    """Windows of each call of `read_clip`: clips as training draws them, two views each; then past both ends; then all
    at once."""
    video = None if facts.status == "no_video" else Span(facts.video_start, facts.video_end)
    audio = None if facts.audio_start is None else Span(facts.audio_start, facts.audio_end)
    seconds = NUM_FRAMES / READ_FPS
    lengths = {
        "video_seconds": seconds,
        "audio_seconds": AUDIO_SECONDS,
        "max_offset_seconds": OFFSET_SECONDS,
    }
    starts = [draw_windows(rng, video, audio, **lengths) for _ in range(NUM_CLIPS)]
    first, last = min((video or audio).start, (audio or video).start), max((video or audio).end, (audio or video).end)
    starts += [(first - 0.7, first - 0.7), (last - 0.3, last - 0.3), (last + 1, last + 1)]
    everything: tuple[list[VideoWindow], list[AudioWindow]] = ([], [])
    for picture, sound in starts:
        top, left = (float(value) for value in rng.uniform(0, 0.3, size=2))
        crops = [] if video is None else [None, (top, left, 0.6, 0.7)]
        windows = [VideoWindow(picture, seconds, READ_FPS, crop, SIZE) for crop in crops]
        follows = 0 if windows else None
        sounds = [] if audio is None else [AudioWindow(sound, AUDIO_SECONDS, SAMPLE_RATE, follows)]
        yield windows, sounds
        everything[0].extend(windows[:1])
        everything[1].extend(AudioWindow(sound, AUDIO_SECONDS, SAMPLE_RATE) for _ in sounds)
    yield everything


def examine(job: dict[str, Any]) -> dict[str, Any]:
    """The verdict on one file.

    Args:
        job: path, seed; truths: the fields of `Truth` of the clip that it was and of those that pieces may come from,
            or none for a file of which nothing is known.

    Returns:
        verdict, reason, seconds (of reading), peak_bytes (of this process so far), counts of frames and pieces.
    """
    path = Path(job["path"])
    plain = decode_plainly(path)
    truths = [Truth(**truth) for truth in job["truths"]]
    if truths:
        judge = Shown(truths[0], truths[1:], plain, index=index_digest(path), shifts=_shifts(path))
    else:
        judge = Likeness(plain)
    since = time.perf_counter()
    try:
        verdict, reason = read_as_training_does(path, judge, seed=job["seed"])
    except Exception as error:  # what nobody thought of is what this looks for
        place = traceback.extract_tb(error.__traceback__)[-1]
        verdict, reason = "other", f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
    if judge.counts.wrong and verdict != "other":
        verdict, reason = "wrong", "; ".join(judge.counts.wrong[:5])
    return {
        "verdict": verdict,
        "reason": reason,
        "seconds": time.perf_counter() - since,
        "peak_bytes": peak_bytes(),
        "counts": {name: value for name, value in asdict(judge.counts).items() if name != "wrong"},
    }


def _shifts(path: Path) -> list[float]:
    try:
        with Reader(path) as reader:
            return [jump.shift for jump in reader.jumps]
    except DecodeError:
        return []


def peak_bytes() -> int:
    """The most memory that this process ever had. Linux tells it of a process alone; getrusage has what its parent had
    when it started this one."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    serve(examine)
