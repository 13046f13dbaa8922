"""Clips of every kind with numbers burnt into the frames and a tone that tells the time; the shared real clips."""

import struct
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.media.encode import write_clip

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "media"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder of real clips is not here")
BLOCK, ROWS, COLUMNS = 16, 4, 6  # a frame is 64 x 96 pixels: 12 bits of the frame's number, then their complement
SECONDS = 4.0
ONSET = 1.25  # second at which the tone sets in, counted from the first sample


def picture(number: int) -> np.ndarray:
    bits = [(number >> i) & 1 for i in range(12)]
    blocks = np.array(bits + [1 - bit for bit in bits], dtype=np.uint8).reshape(ROWS, COLUMNS)
    return np.repeat(np.kron(blocks, np.full((BLOCK, BLOCK), 200, dtype=np.uint8))[..., None] + 20, 3, axis=-1)


def numbers(frames: np.ndarray) -> list[int]:
    """Read the burnt-in numbers of (T, 64, 96, 3)."""
    gray = frames.astype(float).mean(axis=-1).reshape(len(frames), ROWS, BLOCK, COLUMNS, BLOCK).mean(axis=(2, 4))
    bits = (gray > 120).astype(int).reshape(len(frames), 24)
    assert (bits[:, :12] == 1 - bits[:, 12:]).all(), "a picture is damaged"
    return [int(row @ (1 << np.arange(12))) for row in bits[:, :12]]


def tone(seconds: np.ndarray) -> np.ndarray:
    """A rising tone that sets in at ONSET: its phase tells the time everywhere, its onset tells it at a glance."""
    after = seconds - ONSET
    sweep = 0.5 * np.sin(2 * np.pi * (200 * after + 150 * after**2))
    return np.where((after >= 0) & (seconds < SECONDS), sweep, 0).astype(np.float32)


def lag_seconds(heard: np.ndarray, expected: np.ndarray, rate: int) -> tuple[float, float]:
    """How much later `heard` is, by the peak of the cross-correlation within 50 ms, and how alike the two are there."""
    size = 2 * len(heard)
    correlation = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(expected, size)), size)
    lags = np.arange(-rate // 20, rate // 20)
    best = lags[np.argmax(correlation[lags])]
    return float(best) / rate, float(correlation[best] / np.linalg.norm(heard) / np.linalg.norm(expected))


def make(
    path: Path,
    *,
    fps=25,
    rate=24000,
    channels=1,
    seconds=SECONDS,
    sound_seconds=SECONDS,
    rotation=0,
    mirrored=False,
    **options,
):
    num_frames = len(options["times"]) if "times" in options else round(seconds * float(fps))
    frames = np.stack([picture(i) for i in range(num_frames)])
    frames = np.rot90(frames, -rotation // 90, axes=(1, 2))  # the player turns it back
    frames = frames[:, :, ::-1] if mirrored else frames
    samples = None
    if sound_seconds:
        samples = np.zeros((round(sound_seconds * rate), channels), dtype=np.float32)
        samples[:, 0] = tone(np.arange(len(samples)) / rate)
    write_clip(path, frames, fps=fps, samples=samples, sample_rate=rate, rotation=rotation, **options)
    if mirrored:
        set_matrix(path, rotation, mirrored)
    return path


def set_matrix(path: Path, rotation: int, mirrored: bool) -> None:
    """Overwrite the display matrix of an MP4 or MOV: mirrored left to right, then turned counterclockwise."""
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[rotation // 90]
    sign = -1 if mirrored else 1
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    content[at : at + 36] = struct.pack(
        ">9i", *(65536 * each for each in (sign * cos, sign * -sin, 0, sin, cos, 0, 0, 0)), 1 << 30
    )
    path.write_bytes(content)


def move_stamps(source: Path, target: Path, moved: Callable[[str, int, float], float], **options: str) -> Path:
    """The same packets in another container, each at another second: moved(kind of its track, its number, second)."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        counts, latest, packets = Counter(), {}, []
        for packet in old.demux():
            if packet.dts is None:
                continue
            index, kind = packet.stream.index, packet.stream.type
            ticks = round(moved(kind, counts[index], float(packet.pts * packet.time_base)) / packet.time_base)
            ticks = max(ticks, latest.get(index, 0))  # muxers want rising times
            counts[index] += 1
            latest[index] = ticks + 1
            packet.dts, packet.pts, packet.stream = packet.dts + ticks - packet.pts, ticks, streams[index]
            packets.append(packet)
        new.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return target


def decode_in_order(path: Path, options: dict | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: seconds and numbers of all frames, decoded from beginning to end without a seek; options of `make`
    say how they are turned.
    """
    options = options or {}
    with av.open(str(path), metadata_errors="replace") as container:
        decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    frames = np.stack([pixels for _, pixels in decoded])
    frames = frames[:, :, ::-1] if options.get("mirrored") else frames
    frames = np.rot90(frames, options.get("rotation", 0) // 90, axes=(1, 2))
    # sorted: frames come in the order of display, but FFmpeg swaps some of the times that it guesses for AVI
    return np.sort([time for time, _ in decoded]), np.array(numbers(frames))


VARIABLE = np.cumsum(np.random.default_rng(7).choice([0.02, 0.033, 0.05, 0.1, 0.4], size=60))
MPEG4 = {"video_codec": "mpeg4", "audio_codec": "pcm_s16le"}
WEBM = {"video_codec": "libvpx", "audio_codec": "libopus", "rate": 48000}
CASES = {
    "constant.mp4": {},
    "23.976.mp4": {"fps": Fraction(24000, 1001)},
    "60.mp4": {"fps": 60, "rate": 44100},
    "variable.mp4": {"times": VARIABLE},
    "variable.mkv": {"times": VARIABLE},
    "b_frames.mp4": {"b_frames": 3, "gop": 12, "fps": 30},
    "b_frames.ts": {"b_frames": 2, "gop": 12, "rate": 48000},
    "b_frames.mkv": {"b_frames": 2, "gop": 12},
    "mpeg1.mpg": {"video_codec": "mpeg1video", "audio_codec": "mp2", "gop": 12, "rate": 44100},
    "b_frames.mpg": {"video_codec": "mpeg2video", "audio_codec": "mp2", "b_frames": 2, "gop": 12, "rate": 44100},
    "one_keyframe.mp4": {"gop": 1000, "b_frames": 2},
    "only_keyframes.mov": {"gop": 1},
    "picture_later.mp4": {"video_start": 0.7},
    "picture_later.mkv": {"video_start": 0.7, "rate": 16000},
    "sound_later.mp4": {"audio_start": 0.8},
    "sound_later.mkv": {"audio_start": 0.8},
    "sound_later.ts": {"audio_start": 0.8},
    "both_late.mp4": {"video_start": 2.0, "audio_start": 2.5},
    "vp8_opus.webm": WEBM,
    "vp9_opus.webm": WEBM | {"video_codec": "libvpx-vp9", "gop": 30},
    "pcm.avi": MPEG4 | {"gop": 10},
    "b_frames.avi": MPEG4 | {"b_frames": 2, "gop": 12},
    "pcm.mov": {"audio_codec": "pcm_s16le", "rate": 22050, "audio_start": 0.3, "channels": 2},
    "mp3.mp4": {"audio_codec": "libmp3lame", "rate": 44100},
    "stereo.mp4": {"channels": 2},
    "surround.mp4": {"channels": 6, "rate": 48000},
    "low_rate.mp4": {"rate": 8000},
    "turned_90.mp4": {"rotation": 90},
    "turned_180.mp4": {"rotation": 180},
    "turned_270.mov": {"rotation": 270},
    "mirrored.mp4": {"mirrored": True},
    "mirrored_90.mov": {"mirrored": True, "rotation": 90},
}


def case(tmp_path: Path, name: str) -> Path:
    return make(tmp_path / name, **CASES[name])
