"""Decoding a whole clip to find what is missing, damaged or unusual; `python -m avssl.media.inspect` is a worker."""

import hashlib
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import av.container
import av.stream
import numpy as np
from av.codec.context import Flags2

from avssl.files import digest
from avssl.media.audio import to_mono
from avssl.media.prepare import read_record, with_source
from avssl.media.probe import (
    SILENCE,
    Probe,
    counted_rate,
    examine,
    find_holes,
    missing_audio,
    missing_video,
    shape,
    stated_rate,
)
from avssl.media.quirks import Jump, first_jump, in_ticks, on_one_clock, second_file
from avssl.media.reader import MAX_IDLE, MAX_RESUMED, DecodeError, Reader, frame_duration, logged_errors, num_behind
from avssl.media.streams import is_decodable, name_track
from avssl.workers import serve

CUT_SECONDS = 0.2  # headers of intact files claim up to 0.05 s too much (rounding, padding of the last packet)
UNEVEN = 0.25  # deviation from the median frame distance, as a fraction of it: 1 ms clocks round 60 per second
UNEVEN_FRACTION = 0.01  # of the distances; a single odd one in a long clip is no variable rate
BROADCAST = ("mpegts", "mpeg")  # cut out of a stream anywhere: the first frames lack their references


@dataclass(frozen=True)
class Inspection(Probe):
    """Facts of one file after decoding all of it: those of `Probe`, with times of decoded content, and damage."""

    cut_off_at: float | None = None  # second at which decodable content ends, if the header claims more, else None
    claimed_end: float | None = None  # second at which it ends by the header; None unless cut off
    # second of the first damage that a decoder noticed, or None; PCM and VP8 notice none
    damaged_at: float | None = None
    jump_at: float | None = None  # second at which another file begins, of several joined ones, or times go back; None
    num_lost: int = 0  # packets behind it that are not read
    variable_rate: bool | None = None  # the distance of the frames varies; None without frames
    further_tracks: str | None = None  # names of tracks that are not read, see streams.py
    digest: str = ""  # of all decoded video and audio, the same in any container; "" = nothing could be decoded


def inspect(path: str | Path) -> Inspection:
    """Decode a whole file and return its facts; never raises for a bad file, as `probe`."""
    found, record = Inspection(**examine(path, _read_facts)), read_record(path)
    return with_source(found, record) if record else found


class _Track:
    """One track while it is decoded from beginning to end."""

    def __init__(self, stream: av.stream.Stream) -> None:
        self.stream = stream
        self.starts: list[float] = []  # seconds of the frames, as decoded
        self.end = -math.inf
        self.damage: list[float] = []  # seconds of packets and frames
        self.digest = hashlib.blake2b(digest_size=16)
        self._following = 0.0
        self._has_time = False

    def feed(self, packet: av.Packet, seconds: float) -> None:
        """Decode the packet at `seconds`."""
        if packet.is_corrupt:
            self.damage.append(seconds)
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError, EOFError):
            self.damage.append(seconds)
            return
        for frame in frames:
            ticks = frame.pts if frame.pts is not None else frame.dts
            start = self._following if ticks is None else float(ticks * frame.time_base)
            if ticks is not None and not self._has_time:  # those before were counted from 0
                self.starts = [each + start - self._following for each in self.starts]
                self._has_time = True
            self._following = start + frame_duration(frame, self.stream)
            if frame.is_corrupt:
                self.damage.append(start)
            self.take(frame, start, packet)

    def take(self, frame: av.VideoFrame | av.AudioFrame, start: float, packet: av.Packet) -> None:
        raise NotImplementedError

    def first_damage(self, jumps: Sequence[Jump]) -> float | None:
        """Second of the first damage. The seam of joined files is none, nor are bytes behind the last frame, as the
        tag of an MP3 is.
        """
        damage = [each for each in self.damage if all(abs(each - jump.second) > CUT_SECONDS for jump in jumps)]
        reaches_far = max(damage, default=-math.inf) > self.end + CUT_SECONDS
        return min((second for second in damage if reaches_far or second < self.end), default=None)


class _Video(_Track):
    def __init__(self, stream: av.stream.Stream) -> None:
        super().__init__(stream)
        self.shape: dict | None = None

    def take(self, frame: av.VideoFrame, start: float, packet: av.Packet) -> None:
        self.shape = self.shape or shape(frame)
        self.starts.append(start)
        self.end = max(self.end, start + frame_duration(frame, self.stream))
        self.digest.update(_digest(frame))

    def facts(self, damaged_at: float | None) -> dict:
        starts = sorted(set(self.starts))
        whole = [start for start in starts if damaged_at is None or start < damaged_at]
        return self.shape | {
            "status": "ok",
            "video_start": starts[0],
            "video_end": self.end,
            "duration": self.end - starts[0],
            "fps": stated_rate(self.stream) or counted_rate(starts),
            "variable_rate": _varies(whole, float(self.stream.time_base)),
        }


class _Audio(_Track):
    """Decoded with the samples that the container hides at both ends: they count for the digest only."""

    def __init__(self, stream: av.stream.Stream) -> None:
        super().__init__(stream)
        stream.codec_context.flags2 |= Flags2.skip_manual.value
        self.is_audible = False
        self.sample_rate: int | None = None
        self.spans: list[tuple[float, float]] = []  # seconds of the pieces
        self._hidden, self._padding = 0, 0  # samples to leave out: from here on, and at the end of the next frame

    def feed(self, packet: av.Packet, seconds: float) -> None:
        if packet.has_sidedata("skip_samples"):
            self._hidden, self._padding = struct.unpack_from("<II", bytes(packet.get_sidedata("skip_samples")))
        super().feed(packet, seconds)

    def take(self, frame: av.AudioFrame, start: float, packet: av.Packet) -> None:
        values = frame.to_ndarray()
        # by samples and not by channels: containers cut the same PCM into packets of other lengths
        self.digest.update(np.ascontiguousarray(values.T if frame.format.is_planar else values))
        first = frame.samples if packet.is_discard else min(self._hidden, frame.samples)
        last = frame.samples - self._padding
        self._hidden, self._padding = max(self._hidden - frame.samples, 0), 0
        if first >= last:
            return
        self.sample_rate = self.sample_rate or frame.sample_rate
        self.starts.append(start + first / frame.sample_rate)
        self.spans.append((self.starts[-1], start + last / frame.sample_rate))
        self.end = max(self.end, self.spans[-1][1])
        self.is_audible = self.is_audible or bool(np.abs(to_mono(frame)[first:last]).max(initial=0) > SILENCE)

    def facts(self) -> dict:
        if not self.starts:
            return {"reason": "the audio track cannot be decoded"}
        return {
            "audio_start": min(self.starts),
            "audio_end": self.end,
            "sample_rate": self.sample_rate,
            "has_audio": self.is_audible,
            "reason": "" if self.is_audible else "the audio track is silent",
        }


def _read_facts(reader: Reader) -> dict:
    """The fields of an Inspection, except size and content key."""
    video = None if reader.video is None else _Video(reader.video)
    audio = None if reader.audio is None else _Audio(reader.audio)
    tracks = [track for track in (video, audio) if track is not None]
    if not tracks:
        return missing_audio(reader) | missing_video(reader)
    others_end = _decode(reader, tracks)
    if video is not None and not video.starts:
        raise DecodeError(reader.path, "no frame of the video track can be decoded")
    ends = [(end, claimed) for end, claimed in _claims(reader, tracks, others_end) if end < claimed - CUT_SECONDS]
    cut_off_at, claimed_end = min(ends, default=(None, None))
    found = [second for track in tracks if (second := track.first_damage(reader.jumps)) is not None]
    damaged_at = min(found, default=None)
    if cut_off_at is not None and damaged_at is not None and damaged_at > cut_off_at - CUT_SECONDS:
        cut_off_at, damaged_at = min(cut_off_at, damaged_at), None  # the packet that was cut through
    digests = b"".join(track.digest.digest() for track in tracks if track.starts)
    others = {*reader.container.streams.video, *reader.container.streams.audio} - {track.stream for track in tracks}
    further = [name_track(each) for each in sorted(filter(is_decodable, others), key=lambda each: each.index)]
    facts = missing_audio(reader) if audio is None else audio.facts()
    facts |= missing_video(reader) if video is None else video.facts(damaged_at)
    return facts | {
        "cut_off_at": cut_off_at,
        "claimed_end": claimed_end,
        "damaged_at": damaged_at,
        "further_tracks": ", ".join(further) or None,
        "holes": find_holes([] if video is None else video.starts, [] if audio is None else audio.spans),
        **_jump(reader, tracks),
        "digest": digest(digests) if digests else "",
    }


def _jump(reader: Reader, tracks: list[_Track]) -> dict:
    if reader.jumps:  # the files are read one behind the other, as far as their codecs are the same
        is_last = reader.jumps[-1].shift is None
        lost = num_behind(reader.path, reader.jumps[-1].position) if is_last else 0
        return {"jump_at": reader.jumps[-1 if is_last else 0].second, "num_lost": lost}
    position = second_file(reader.path, reader.container.format.name)
    if position is not None:
        return {"jump_at": max(track.end for track in tracks), "num_lost": num_behind(reader.path, position)}
    found = []
    for track in tracks:
        starts = np.array(track.starts)
        first = first_jump(starts)
        if first is not None:
            latest = np.maximum.accumulate(starts)
            found.append((float(latest[first - 1]), int((starts[1:] <= latest[:-1]).sum())))
    return {"jump_at": min(found)[0], "num_lost": sum(num for _, num in found)} if found else {}


def _decode(reader: Reader, tracks: list[_Track]) -> float:
    """Feed every packet to its track; return when the packets of other tracks end (-inf: none). Raises DecodeError."""
    wanted = {track.stream.index: track for track in tracks}
    skips_start = reader.container.format.name in BROADCAST
    latest, others_end, idle = 0.0, -math.inf, 0  # latest: the end of the packets so far
    has_skipped, num_messages = False, 0
    with logged_errors() as messages:
        for packet in _packets(reader):
            logged = any(name == reader.container.format.name for _, name, _ in messages[num_messages:])
            has_skipped, num_messages = has_skipped or packet is None or logged, len(messages)
            if packet is None:
                continue
            if packet.has_sidedata("encryption_info"):
                raise DecodeError(reader.path, f"the {packet.stream.type} track is encrypted")
            ticks = packet.pts if packet.pts is not None else packet.dts
            seconds = latest if ticks is None else float(ticks * packet.time_base)
            end = seconds + float((packet.duration or 0) * packet.time_base)
            track = wanted.get(packet.stream.index)
            if track is None:
                others_end = max(others_end, end)
                continue
            if packet.size == 0 and ticks is not None:
                continue  # in AVI: show the frame before again; a decoder takes it for the end
            if has_skipped and packet.size:  # something follows, so this was not merely the end
                track.damage.append(latest)
                has_skipped = False
            end_before = track.end
            track.feed(packet, seconds)
            if skips_start and not track.starts:
                track.damage.clear()
            latest = max(latest, end)
            idle = 0 if track.end > end_before else idle + 1
            if idle > MAX_IDLE:
                break
    return others_end


def _packets(reader: Reader) -> Iterator[av.Packet | None]:
    """All packets and the empty ones that end each track; None where damaged data is skipped."""
    num_damaged = 0
    while num_damaged < MAX_RESUMED:
        try:
            yield from on_one_clock(in_ticks(reader.container.demux(), reader.container), reader.jumps)
            return
        except IndexError:  # see reader.py
            continue
        except (av.error.FFmpegError, ValueError):
            num_damaged += 1
            yield None


def _claims(reader: Reader, tracks: list[_Track], others_end: float) -> list[tuple[float, float]]:
    """(true end, claimed end) of each track, or of the file if its header has one duration; estimates of FFmpeg are no
    claim."""
    container = reader.container
    tracks = [track for track in tracks if track.starts]
    name = container.format.name
    if name.startswith("mov,"):
        stated = [(track.end, track.stream) for track in tracks if track.stream.duration]
        return [(end, float(((each.start_time or 0) + each.duration) * each.time_base)) for end, each in stated]
    if name == "avi":  # FFmpeg corrects the durations of a cut AVI, but not the number of frames
        videos = [track for track in tracks if track.stream is reader.video and track.stream.average_rate]
        return [(track.end, float(track.stream.frames / track.stream.average_rate)) for track in videos]
    if name in ("matroska,webm", "flv", "asf") and container.duration:
        return [(max(others_end, *(track.end for track in tracks)), container.duration / av.time_base)]
    return []


def _varies(starts: list[float], tick: float) -> bool:
    """Whether frames, whose times are rounded to ticks, have no constant rate."""
    distances = np.diff(starts)
    if len(distances) < 2:
        return False
    median = np.median(distances)
    uneven = np.abs(distances - median) > max(UNEVEN * median, 1.5 * tick)
    return bool(uneven.mean() > UNEVEN_FRACTION)


def _digest(frame: av.VideoFrame) -> bytes:
    """A fast digest of the pixels; 4 bytes per plane."""
    if len(frame.planes) != len(frame.format.components):  # several channels in one plane
        return zlib.crc32(frame.to_ndarray(format="rgb24")).to_bytes(4)
    digests = []
    for plane, component in zip(frame.planes, frame.format.components, strict=True):
        num_bytes = plane.width * ((component.bits + 7) // 8)
        rows = np.frombuffer(plane, np.uint8, count=plane.height * plane.line_size).reshape(plane.height, -1)
        digests.append(zlib.crc32(np.ascontiguousarray(rows[:, :num_bytes])))  # without row padding
    return struct.pack(f"<{len(digests)}I", *digests)


if __name__ == "__main__":
    serve(lambda path: asdict(inspect(path)))
