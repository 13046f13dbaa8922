"""Thumbnails, spectrograms and playable previews of clips for the web page.

    python -m avssl.media.preview        (a worker, see workers.py; `_run_job` says what a job is)

A clip is a file or a part of one, (start, end): of a job in seconds from the beginning of the file, as a manifest has
them; else on the container's clock.
"""

import contextlib
import heapq
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.stream
import numpy as np
from PIL import Image

from avssl.files import WriteError, atomic_write
from avssl.media.audio import mono_frame, resample_stream, without_gaps
from avssl.media.prepare import FULL, Resizer, encode_video, peek
from avssl.media.reader import TIME_TOLERANCE, DecodeError, Reader, Track, error_text, frame_duration
from avssl.media.shards import is_inside, open_part
from avssl.media.streams import is_cover
from avssl.windows import beginning
from avssl.workers import serve

VERSION = 2  # of the files written: another one makes all of them anew
Part = tuple[float, float] | None  # seconds; None = the whole file

POSTER_SIDE, JPEG_QUALITY = 256, 80

SPECTROGRAM_SECONDS = 30.0
SPECTROGRAM_RATE = 16_000  # Hz: half of it is the top of the image
NUM_STEPS, NUM_MELS = 256, 64  # width and height in pixels
WINDOW = 1024  # samples of one Fourier transform
STRIDE = 256  # samples from one transform to the next, at most
RANGE_DB = 70.0  # from the darkest to the brightest color
COLORS = (  # magma of matplotlib, dark to bright, as hex RGB
    "000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf"
)

PREVIEW_SECONDS = 60.0
PREVIEW_SIDE = 320  # pixels of the shorter side, at most
PREVIEW_FPS = 30
MAX_WORK_SECONDS = 40.0  # then a preview ends where it is: a short one is better than none
ENCODER = {"preset": "veryfast", "tune": "fastdecode", "profile": "baseline", "crf": "28"}
AUDIO_BITS_PER_SECOND = 96_000

# Codecs that Chrome, Firefox and Safari all play, by container.
VIDEO_CODECS = {"mp4": {"h264", "av1"}, "webm": {"vp8", "vp9", "av1"}}
AUDIO_CODECS = {
    "mp4": {"aac"},
    "webm": {"opus", "vorbis"},
    "ogg": {"opus", "vorbis"},
    "mpeg": {"mp3"},
    "wav": {"pcm_s16le"},
    "flac": {"flac"},
}
PROFILES = {
    "h264": {"Constrained Baseline", "Baseline", "Main", "High"},
    "vp9": {"Profile 0"},
    "av1": {"Main"},
    "aac": {"LC", "HE-AAC", "HE-AACv2"},
}
SIMPLE_FORMATS = {"ogg": "ogg", "mp3": "mpeg", "wav": "wav", "flac": "flac"}  # name in FFmpeg: container
EBML_HEADER, WEBM = b"\x1a\x45\xdf\xa3", b"\x42\x82\x84webm"  # the last: DocType, 4 bytes long


def poster(source: str | Path, target: str | Path, part: Part = None) -> None:
    """Write the middle frame, upright and at most 256 pixels wide and high, as JPEG.

    Raises:
        DecodeError: no frame can be shown.
        WriteError: the target cannot be written.
    """
    with Reader(source) as reader:
        _require(reader, "video")
        frame = _middle_frame(reader, part)
        if frame is None:
            raise DecodeError(source, "no frame of the video track can be decoded")
        aspect = _pixel_aspect(reader.video)
    size = (frame.width * aspect, frame.height)
    small = Resizer(frame, POSTER_SIDE * min(size) / max(size), pixel_aspect=aspect)(frame)
    image = Image.fromarray(small.to_ndarray(format="rgb24"))
    with atomic_write(target) as temporary:
        image.save(temporary, "JPEG", quality=JPEG_QUALITY)


def _middle_frame(reader: Reader, part: Part) -> av.VideoFrame | None:
    """The frame shown in the middle, or the nearest decodable one."""
    if part is None:
        start, _ = next(reader.frames_from("video", -math.inf), (0.0, None))
        part = start, max(start, reader.end_seconds("video") or start)
    middle, found = sum(part) / 2, None
    for seconds, frame in reader.frames_from("video", middle, [middle]):
        if found is not None and seconds > middle + TIME_TOLERANCE:
            break
        found = frame
    return found


def _pixel_aspect(stream: av.stream.Stream) -> float:
    """Width of a stored pixel by its height; 1 for implausible values."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / 4 <= aspect <= 4 else 1.0


def _require(reader: Reader, kind: Track) -> None:
    """Raises DecodeError: there is no such decodable track."""
    if getattr(reader, kind) is None:
        exists = any(not is_cover(stream) for stream in getattr(reader.container.streams, kind))
        raise DecodeError(reader.path, f"no decoder exists for the {kind}" if exists else f"the clip has no {kind}")


def spectrogram(source: str | Path, target: str | Path, part: Part = None) -> None:
    """Write the log-mel spectrogram of the first 30 s of audio as PNG: 256 steps wide, 64 bands high, low ones at the
    bottom; bright is loud, 70 dB below the loudest value is dark.

    Raises:
        DecodeError: there is no decodable audio.
        WriteError: the target cannot be written.
    """
    with Reader(source) as reader:
        _require(reader, "audio")
        first, frames = peek(reader.frames_from("audio", part[0] if part else -math.inf))
        if first is None:
            raise DecodeError(source, "the audio track cannot be decoded")
        start = part[0] if part else first[0]
        end = start + min(SPECTROGRAM_SECONDS, part[1] - part[0] if part else math.inf)
        samples = [np.zeros(0, np.int16), *_samples(reader.path, frames, SPECTROGRAM_RATE, start, end)]
    values = np.concatenate(samples) / np.float32(32768)  # (n,)
    if part:  # all of it is shown, also where there is no audio
        values = np.pad(values, (0, max(0, round((end - start) * SPECTROGRAM_RATE) - len(values))))
    levels = _levels(log_mel(values))  # (NUM_MELS, NUM_STEPS)
    image = Image.fromarray(levels[::-1].copy(), mode="P")
    image.putpalette(_palette().tobytes())
    with atomic_write(target) as temporary:
        image.save(temporary, "PNG")


def log_mel(samples: np.ndarray) -> np.ndarray:
    """(n,) float32 at 16 kHz -> (NUM_MELS, NUM_STEPS) float32 in dB: the mean power of each step."""
    per_step = max(1, math.ceil(len(samples) / NUM_STEPS / STRIDE))  # transforms
    num = per_step * NUM_STEPS
    centers = ((np.arange(num) + 0.5) / num * len(samples)).astype(int)  # (num,)
    padded = np.pad(samples, WINDOW // 2)
    power = np.empty((num, WINDOW // 2 + 1), np.float32)
    for begin in range(0, num, NUM_STEPS):  # bounded memory
        some = slice(begin, begin + NUM_STEPS)
        cut = padded[centers[some, None] + np.arange(WINDOW)] * np.hanning(WINDOW)  # (NUM_STEPS, WINDOW)
        power[some] = np.abs(np.fft.rfft(cut)) ** 2
    power = power.reshape(NUM_STEPS, per_step, -1).mean(axis=1)  # (NUM_STEPS, WINDOW / 2 + 1)
    return 10 * np.log10(np.maximum(power @ _mel_bands(), 1e-10)).T


def _mel_bands() -> np.ndarray:
    """Triangular filters on HTK's mel scale, 0 Hz to half the rate: (WINDOW / 2 + 1, NUM_MELS) float32."""
    highest = 2595 * math.log10(1 + SPECTROGRAM_RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, NUM_MELS + 2) / 2595) - 1)  # Hz
    hertz = np.fft.rfftfreq(WINDOW, 1 / SPECTROGRAM_RATE)[:, None]
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (hertz - left) / (peak - left), (right - hertz) / (right - peak)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _levels(decibel: np.ndarray) -> np.ndarray:
    """dB -> uint8 of the same shape, 255 for the loudest; silence is 0."""
    loudest = decibel.max()
    if loudest <= -90:
        return np.zeros(decibel.shape, np.uint8)
    return np.rint(255 * np.clip(1 + (decibel - loudest) / RANGE_DB, 0, 1)).astype(np.uint8)


def _palette() -> np.ndarray:
    """(256, 3) uint8 RGB."""
    colors = [tuple(bytes.fromhex(color)) for color in COLORS.split()]
    stops = np.linspace(0, 255, len(colors))
    return np.stack([np.interp(np.arange(256), stops, part) for part in np.transpose(colors)], axis=1).astype(np.uint8)


def playable(source: str | Path) -> str | None:
    """Media type under which browsers play a file as it is, by container, codecs, profile and pixel format; or None,
    as for a file in a shard.

    Raises:
        DecodeError: no media file that can be opened, or without video and audio.
    """
    with Reader(source) as reader:
        container = _container(reader)
        videos = [stream for stream in reader.container.streams.video if not is_cover(stream)]
        audios = list(reader.container.streams.audio)
        if not videos and not audios:
            raise DecodeError(source, "the file has neither video nor audio")
        plays = max(len(videos), len(audios)) == 1  # a browser might choose another track
        plays = plays and all(_plays(each, VIDEO_CODECS.get(container, ())) for each in videos)
        plays = plays and all(_plays(each, AUDIO_CODECS.get(container, ())) for each in audios)
        if is_inside(source) or not plays or not _has_packets(reader):
            return None
    return f"{'video' if videos else 'audio'}/{container}"


def _container(reader: Reader) -> str | None:
    """Second half of the media type; None for containers that browsers do not open."""
    name = reader.container.format.name
    if name.startswith("mov"):
        return None if reader.container.metadata.get("major_brand", "").startswith("3g") else "mp4"
    if name.startswith("matroska"):
        with open_part(reader.path) as file:
            head = file.read(64)
        return "webm" if head.startswith(EBML_HEADER) and WEBM in head else None
    return SIMPLE_FORMATS.get(name)


def _plays(stream: av.stream.Stream, codecs: Iterable[str]) -> bool:
    context = stream.codec_context
    if context is None:
        return False
    codec = context.codec.canonical_name
    if codec not in codecs or (codec in PROFILES and context.profile not in PROFILES[codec]):
        return False
    return stream.type == "audio" or context.pix_fmt in ("yuv420p", "yuvj420p")


def _has_packets(reader: Reader) -> bool:
    """Whether each track begins with a packet that is not encrypted."""
    for kind in ("video", "audio"):
        if getattr(reader, kind) is not None:
            packet = next(reader.packets(kind), None)
            if packet is None or not packet.size or packet.has_sidedata("encryption_info"):
                return False
    return True


def preview(source: str | Path, target: str | Path, part: Part = None) -> str:
    """Write the first 60 s, from 0 on, as a small MP4 that every browser plays, and return its media type. A track that
    cannot be decoded is left out.

    Raises:
        DecodeError: neither video nor audio can be decoded.
        WriteError: the target cannot be written.
    """
    with Reader(source) as reader:
        kinds = [kind for kind in ("video", "audio") if getattr(reader, kind) is not None]
    if not kinds:
        raise DecodeError(source, "neither video nor audio can be decoded")
    reason = ""
    for chosen in (kinds, *([kind] for kind in kinds if len(kinds) > 1)):
        try:
            with atomic_write(target) as temporary:
                return _write(source, temporary, part, chosen)
        except DecodeError as error:
            reason = reason or error.reason
        except (av.error.FFmpegError, WriteError) as error:
            cause = error.__cause__ or error
            if cause.errno in FULL or not isinstance(cause, av.error.FFmpegError):
                raise WriteError(Path(target), cause) from cause
            reason = reason or f"it cannot be decoded ({error_text(cause)})"
    raise DecodeError(source, reason)


def _write(source: str | Path, target: Path, part: Part, kinds: list[Track]) -> str:
    """Stream each track from an opening of its own into one file, in the order of their times."""
    with contextlib.ExitStack() as stack:
        readers = {kind: stack.enter_context(Reader(source)) for kind in kinds}
        frames, firsts = {}, []
        for kind, reader in readers.items():
            first, frames[kind] = peek(reader.frames_from(kind, part[0] if part else -math.inf))
            firsts += [] if first is None else [first[0]]
        if not firsts:
            raise DecodeError(source, "neither video nor audio can be decoded")
        start = part[0] if part else min(firsts)
        end = start + min(PREVIEW_SECONDS, part[1] - part[0] if part else math.inf)
        limit = time.monotonic() + MAX_WORK_SECONDS

        container = stack.enter_context(av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}))
        tracks = []
        if "video" in kinds:
            shown = _until(frames["video"], start, end, limit)
            tracks.append(_video_packets(container, readers["video"], shown, start))
        if "audio" in kinds:
            tracks.append(_audio_packets(container, readers["audio"], frames["audio"], start, end, limit))
        # each adds its stream before its first packet, and merging fetches the first of all before it yields any
        packets = heapq.merge(*tracks, key=lambda packet: packet.dts * packet.time_base)
        first, packets = peek(packets)
        if first is None:
            raise DecodeError(source, "there is neither video nor audio in this part of the file")
        for packet in packets:
            container.mux(packet)
        return "video/mp4" if container.streams.video else "audio/mp4"


def _video_packets(
    container: av.container.OutputContainer, reader: Reader, frames: Iterator[tuple[float, av.VideoFrame]], start: float
) -> Iterator[av.Packet]:
    first, timed = peek(_thinned(frames, reader))
    if first is None:
        return
    rate = min(reader.video.average_rate or PREVIEW_FPS, PREVIEW_FPS)
    resize = Resizer(first[2], PREVIEW_SIDE, pixel_aspect=_pixel_aspect(reader.video))
    gop = max(1, round(rate))  # a second
    yield from encode_video(container, timed, resize, rate=rate, gop=gop, options=ENCODER, shift=-start)


def _until(
    frames: Iterator[tuple[float, av.VideoFrame]], start: float, end: float, limit: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames shown between two seconds; the one already shown at `start` begins there."""
    before = None
    for seconds, frame in frames:
        if seconds <= start + TIME_TOLERANCE:
            before = frame
            continue
        if before is not None:
            yield start, before
            before = None
        if seconds >= end or time.monotonic() > limit:
            return
        yield seconds, frame
    if before is not None:
        yield start, before


def _thinned(
    frames: Iterator[tuple[float, av.VideoFrame]], reader: Reader
) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """(second, duration, frame) at PREVIEW_FPS at most."""
    soonest = -math.inf
    for seconds, frame in frames:
        if seconds >= soonest:
            yield seconds, frame_duration(frame, reader.video), frame
            soonest = seconds + 0.9 / PREVIEW_FPS  # times may be rounded to milliseconds


def _audio_packets(
    container: av.container.OutputContainer,
    reader: Reader,
    frames: Iterator[tuple[float, av.AudioFrame]],
    start: float,
    end: float,
    limit: float,
) -> Iterator[av.Packet]:
    first, frames = peek(frames)
    if first is None or first[0] >= end:
        return
    rate = 48_000 if first[1].sample_rate % 11_025 else 44_100
    first, pieces = peek(_samples(reader.path, frames, rate, start, end))
    if first is None:
        return
    stream = container.add_stream("aac", rate=rate, layout="mono")
    stream.codec_context.bit_rate = AUDIO_BITS_PER_SECOND
    stream.codec_context.thread_count = 1
    position = 0
    for samples in pieces:
        yield from stream.encode(mono_frame(samples, rate, position))
        position += len(samples)
        if time.monotonic() > limit:
            break
    yield from stream.encode(None)


def _samples(
    path: Path, frames: Iterator[tuple[float, av.AudioFrame]], rate: int, start: float, end: float
) -> Iterator[np.ndarray]:
    """Contiguous pieces of mono audio, (n,) int16, from second `start` to `end` at most; gaps are silence."""
    inside = itertools.takewhile(lambda each: each[0] < end, frames)
    inside = itertools.dropwhile(lambda each: each[0] + each[1].samples / each[1].sample_rate <= start, inside)
    last = round((end - start) * rate)
    placed = itertools.chain([(0, np.zeros(0, np.int16))], resample_stream(inside, rate, -start))
    for position, samples in without_gaps(placed, rate, path):
        if position >= last:
            return
        yield samples[: last - position]


def _on_clock(source: str | Path, part: tuple[float, float]) -> tuple[float, float]:
    with Reader(source) as reader:
        kinds = [kind for kind in ("video", "audio") if getattr(reader, kind) is not None]
        starts = {kind: next(reader.frames_from(kind, -math.inf), (math.nan,))[0] for kind in kinds}
    zero = np.nan_to_num(beginning(*(np.float64(starts.get(kind, math.nan)) for kind in ("video", "audio"))))
    return part[0] + float(zero), part[1] + float(zero)


def _run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Make or find out one thing.

    Args:
        job: kind ("poster", "spectrogram", "preview", "playable"), source, part (None = the whole file), target.

    Returns:
        reason: why it failed, or empty; media_type if there is one; again: the reason is not in the file.
    """
    source, media_type = job["source"], None
    try:
        part = _on_clock(source, job["part"]) if job["part"] else None
        match job["kind"]:
            case "poster":
                poster(source, job["target"], part)
            case "spectrogram":
                spectrogram(source, job["target"], part)
            case "preview":
                media_type = preview(source, job["target"], part)
            case "playable":
                media_type = playable(source)
    except DecodeError as error:
        return {"reason": error.reason}
    except WriteError as error:
        return {"reason": f"the result cannot be written ({error_text(error.__cause__)})", "again": True}
    except av.error.FFmpegError as error:
        return {"reason": f"it cannot be decoded ({error_text(error)})"}
    except OverflowError:
        return {"reason": "its times cannot be stored"}
    except MemoryError:
        return {"reason": "it needs more memory than a worker may take"}
    return {"reason": "", "media_type": media_type}


if __name__ == "__main__":
    serve(_run_job)
