"""Clips whose every frame and every moment of audio tells where it belongs, and damaged copies of them from a seed.

A frame shows its number in 12 bits and again in their complement, so that a damaged one is known as such. The audio
is a tone that rises (or, in every second clip, falls) all the time: a piece of it fits at one moment only.

Letters: T frames, n samples.
"""

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from avssl.media.encode import write_clip
from tests.support.numbered import move_stamps, set_matrix

BLOCK, ROWS, COLUMNS, BITS = 16, 4, 6, 12  # a frame is 64 x 96 pixels
SIZE = (ROWS * BLOCK, COLUMNS * BLOCK)  # (height, width)
FPS = 25
NUMBERS_PER_CLIP = 125  # clip c shows the numbers from 125 c on
LOWEST_HZ, HIGHEST_HZ = 200.0, 2600.0

H264 = {"video_codec": "libx264", "audio_codec": "aac", "rate": 24000, "gop": 24, "b_frames": 2}
VP8 = {"video_codec": "libvpx", "audio_codec": "libopus", "rate": 48000, "gop": 30}
MPEG4 = {"video_codec": "mpeg4", "audio_codec": "pcm_s16le", "rate": 16000, "gop": 12}
MP3 = {"audio_codec": "libmp3lame", "rate": 44100}
ADPCM = {"audio_codec": "adpcm_ima_wav", "rate": 16000}
MPEG1 = {"video_codec": "mpeg1video", "audio_codec": "mp2", "rate": 44100, "gop": 12}
RECIPES = {  # container -> how its clips are written
    "mp4": [H264, MPEG4 | MP3, H264 | {"gop": 1000, "mirrored": True, "rotation": 90, "opposite": True}],
    "mkv": [
        H264 | {"audio_codec": "flac"},
        VP8 | {"video_codec": "libvpx-vp9"},
        MPEG4 | MP3 | {"further": True},
        H264 | {"b_frames": 0, "wobble": 0.02},
        MPEG4 | {"pause": 30.0},
    ],
    "avi": [MPEG4, MPEG4 | MP3 | {"b_frames": 2}, H264 | ADPCM | {"b_frames": 0}],
    "webm": [VP8, VP8 | {"video_codec": "libvpx-vp9"}],
    "ts": [H264 | {"rate": 48000, "video_start": 36_000.0, "audio_start": 36_000.0}],
    "mpg": [MPEG1, MPEG1 | {"video_codec": "mpeg2video", "b_frames": 2}],
}


def picture(number: int) -> np.ndarray:
    """(64, 96, 3) uint8 that shows a number below 4096."""
    bits = [(number >> i) & 1 for i in range(BITS)]
    blocks = np.array(bits + [1 - bit for bit in bits], dtype=np.uint8).reshape(ROWS, COLUMNS)
    return np.repeat(np.kron(blocks, np.full((BLOCK, BLOCK), 200, dtype=np.uint8))[..., None] + 20, 3, axis=-1)


def read_numbers(frames: np.ndarray) -> list[int]:
    """The numbers that (T, 64, 96, 3) show; -1 where a frame is damaged beyond reading."""
    gray = frames.astype(np.float32).mean(axis=-1).reshape(len(frames), ROWS, BLOCK, COLUMNS, BLOCK).mean(axis=(2, 4))
    bits = (gray > 120).reshape(len(frames), 2, BITS)  # (T, 2, 12)
    values = bits[:, 0] @ (1 << np.arange(BITS))
    return np.where((bits[:, 0] != bits[:, 1]).all(axis=1), values, -1).tolist()


def sweep(num_samples: int, sample_rate: float, seconds: float, *, falls: bool) -> np.ndarray:
    """(n,) float32: the tone of a clip that lasts so many seconds, from its beginning."""
    t = np.arange(num_samples) / sample_rate
    slope = (HIGHEST_HZ - LOWEST_HZ) / seconds
    phase = HIGHEST_HZ * t - slope / 2 * t**2 if falls else LOWEST_HZ * t + slope / 2 * t**2
    return (0.5 * np.sin(2 * np.pi * phase)).astype(np.float32)


@dataclass(frozen=True)
class Clip:
    """An undamaged clip and what it holds.

    Args:
        path: its file.
        first_number: the first frame's; the others count on.
        seconds: of audio and of frames.
        falls: the tone does.
        steady: the same clip before its timestamps were moved.
    """

    path: Path
    first_number: int
    seconds: float
    falls: bool
    steady: Path | None = None

    @property
    def num_frames(self) -> int:
        return round(self.seconds * FPS)


def make_clips(folder: Path, *, seconds: float = 4.0) -> dict[str, list[Clip]]:
    """Two clips of every recipe, the second one longer and with a falling tone: {container: clips}."""
    clips: dict[str, list[Clip]] = {}
    count = 0
    for container, recipes in RECIPES.items():
        for number, recipe in enumerate(recipes):
            for falls in (False, True):
                length = seconds * 1.25 if falls else seconds
                path = folder / f"{number}{'b' if falls else 'a'}.{container}"
                clip = Clip(path, NUMBERS_PER_CLIP * count, length, falls)
                own = ("rate", "further", "mirrored", "opposite", "wobble", "pause")
                options = {name: value for name, value in recipe.items() if name not in own}
                tone = sweep(round(length * recipe["rate"]), recipe["rate"], length, falls=falls)
                tone = np.stack([tone, -tone], axis=1) if recipe.get("opposite") else tone
                frames = np.stack([picture(clip.first_number + i) for i in range(clip.num_frames)])
                frames = np.rot90(frames, -recipe.get("rotation", 0) // 90, axes=(1, 2))
                frames = frames[:, :, ::-1] if recipe.get("mirrored") else frames
                write_clip(path, frames, fps=FPS, samples=tone, sample_rate=recipe["rate"], **options)
                if recipe.get("mirrored"):
                    set_matrix(path, recipe["rotation"], mirrored=True)
                if recipe.get("further"):
                    add_tracks(path)
                if "wobble" in recipe or "pause" in recipe:
                    clip = move_times(clip, wobble=recipe.get("wobble", 0.0), pause=recipe.get("pause", 0.0))
                clips.setdefault(container, []).append(clip)
                count += 1
    return clips


def move_times(clip: Clip, *, wobble: float, pause: float) -> Clip:
    """A clip whose audio has timestamps that wobble, or in whose middle nothing comes for `pause` seconds."""
    steady = clip.path.with_name(f"steady_{clip.path.name}")
    clip.path.rename(steady)
    rng = np.random.default_rng(clip.first_number)

    def moved(kind: str, number: int, seconds: float) -> float:
        off = rng.uniform(-wobble, wobble) if kind == "audio" and number else 0.0
        return seconds + off + pause * (seconds > clip.seconds / 2)

    move_stamps(steady, clip.path, moved)
    return replace(clip, steady=steady)


def add_tracks(path: Path) -> None:
    """Put a still image and the description of a clip before its own tracks."""
    other = path.with_name(f"further{path.suffix}")
    write_clip(
        other, np.stack([picture(0)]), fps=FPS, samples=sweep(96_000, 16_000, 6.0, falls=True), sample_rate=16_000
    )
    packets = []
    with (
        av.open(str(other)) as further,
        av.open(str(path)) as clip,
        av.open(f"{path}.both", "w", format="matroska") as both,
    ):
        for source, disposition in ((further, Disposition.visual_impaired), (clip, Disposition.default)):
            streams = {each.index: both.add_stream_from_template(each) for each in source.streams}
            for each in streams.values():
                each.disposition = disposition
            for packet in source.demux():
                if packet.size:
                    index = packet.stream.index
                    packet.stream = streams[index]
                    packet.dts = packet.pts if packet.dts is None else packet.dts
                    packets.append(packet)
        both.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    other.unlink()
    path.with_name(f"{path.name}.both").replace(path)


class Ear:
    """Finds out at which second of a clip's tone a piece of audio belongs."""

    ALIKE = 0.9  # from here on a piece counts as recognized

    def __init__(self, seconds: float, *, falls: bool) -> None:
        self.seconds = seconds
        self.falls = falls
        self._whole = lru_cache(self._tone)

    def _tone(self, sample_rate: int) -> np.ndarray:
        return sweep(round(self.seconds * sample_rate), sample_rate, self.seconds, falls=self.falls)

    def locate(
        self, heard: np.ndarray, sample_rate: int, near: float | None = None, *, reach: float = 0.005
    ) -> float | None:
        """Second of the tone at which `heard` (n,) begins; None when it is not recognized.

        Args:
            heard: any audio, shorter than the tone.
            sample_rate: of it.
            near: look only within `reach` seconds of this second, which is fast. None = everywhere.
        """
        tone = self._whole(sample_rate)
        if np.linalg.norm(heard) < 0.05 * np.sqrt(len(heard)):
            return None
        reach = round(reach * sample_rate)
        low = 0 if near is None else max(round(near * sample_rate) - reach, 0)
        high = len(tone) if near is None else min(round(near * sample_rate) + reach + len(heard), len(tone))
        if high - low < len(heard):
            return None
        alike = likeness(tone[low:high], heard, least=1e-9)
        best = int(np.argmax(alike))
        return (low + best) / sample_rate if alike[best] > self.ALIKE else None


def likeness(whole: np.ndarray, piece: np.ndarray, *, least: float) -> np.ndarray:
    """Cosine of a piece (n,) with every part of `whole` (m,) as long as it, a part's energy taken as at least `least`:
    (m - n + 1,)."""
    size = 1 << (len(whole) + len(piece) - 1).bit_length()
    found = np.fft.irfft(np.fft.rfft(whole, size) * np.conj(np.fft.rfft(piece, size)), size)
    found = found[: len(whole) - len(piece) + 1]  # by how many samples `piece` is moved to the right
    energy = np.cumsum(np.concatenate([[0.0], whole.astype(np.float64) ** 2]))
    energy = energy[len(piece) :] - energy[: len(found)]
    return found / np.linalg.norm(piece) / np.sqrt(np.maximum(energy, least))


# ---- ways to damage a file: bytes, generator, another file of the same container -> bytes


def _cut(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    return content[: round(len(content) * rng.uniform(0.02, 0.98))]


def _behead(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    return content[round(len(content) * rng.uniform(0.001, 0.5)) :]


def _flip(content: bytearray, rng: np.random.Generator, places: np.ndarray) -> bytes:
    for place in places:
        content[place] ^= 1 << int(rng.integers(8))
    return content


def _flip_few(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    return _flip(content, rng, rng.integers(len(content), size=rng.integers(1, 9)))


def _flip_many(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    share = 10 ** rng.uniform(-3.5, -1.5)
    return _flip(content, rng, rng.integers(len(content), size=max(9, round(share * len(content)))))


def _flip_header(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    """The first kilobyte, or what stands at the end: MP4's header, the index of AVI and Matroska."""
    at_end = rng.random() < 0.5
    low, high = (max(0, len(content) - 6000), len(content)) if at_end else (0, min(1000, len(content)))
    return _flip(content, rng, rng.integers(low, high, size=rng.integers(1, 12)))


def _zero(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    length = round(len(content) * 10 ** rng.uniform(-3, -0.5))
    begin = (0, int(rng.integers(len(content) - length)), len(content) - length)[rng.integers(3)]
    content[begin : begin + length] = bytes(length)
    return content


def _splice_in(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    piece, begin = _piece(rng, other), int(rng.integers(len(content)))
    content[begin:begin] = piece
    return content


def _splice_over(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    piece, begin = _piece(rng, other), int(rng.integers(len(content)))
    content[begin : begin + len(piece)] = piece
    return content


def _join(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    """The beginning of this file, then the end of the other."""
    return content[: round(len(content) * rng.uniform(0.1, 0.9))] + other[round(len(other) * rng.uniform(0.1, 0.9)) :]


def _piece(rng: np.random.Generator, other: bytes) -> bytes:
    length = round(len(other) * 10 ** rng.uniform(-2.5, -0.5))
    begin = int(rng.integers(len(other) - length))
    return other[begin : begin + length]


def _shuffle(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    """Blocks change places, behind the first ones."""
    size = int(rng.choice([512, 2048, 8192]))
    blocks = [bytes(content[i : i + size]) for i in range(0, len(content), size)]
    moved = rng.choice(np.arange(1, len(blocks)), size=min(len(blocks) - 1, int(rng.integers(2, 6))), replace=False)
    for old, new in zip(moved, np.roll(moved, 1), strict=True):
        content[old * size : old * size + len(blocks[new])] = blocks[new]
    return content


def _duplicate(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    piece = _piece(rng, content)
    begin = content.index(piece) if rng.random() < 0.5 else int(rng.integers(len(content)))
    content[begin:begin] = piece
    return content


FIELDS: dict[str, list[tuple[bytes, int, int]]] = {  # container -> (signature, bytes from it to a number, its bytes)
    "mp4": [
        *[(b"tkhd", 78 + i, 4) for i in (2, 6)],  # width, height
        *[(b"mvhd", i, 4) for i in (16, 20)],  # clock, duration
        *[(b"mdhd", i, 4) for i in (16, 20)],
        *[(kind, i, 2) for kind in (b"avc1", b"mp4v") for i in (28, 30)],
        *[(b"mp4a", i, 2) for i in (20, 22, 28)],  # channels, bits, rate
        *[(b"stts", i, 4) for i in (8, 12, 16)],
        *[(b"ctts", i, 4) for i in (12, 16)],
        *[(b"stsc", i, 4) for i in (8, 16)],
        *[(b"stsz", i, 4) for i in (8, 12, 16)],
        *[(b"stco", i, 4) for i in (8, 12)],
        *[(b"elst", i, 4) for i in (12, 16)],
    ],
    "mkv": [
        (b"\x2a\xd7\xb1\x83", 4, 3),  # nanoseconds of a tick
        (b"\x44\x89\x88", 3, 8),  # duration
        (b"\xb0\x81", 2, 1),  # width
        (b"\xba\x81", 2, 1),  # height
        (b"\xb5\x88", 3, 8),  # sample rate
        (b"\x9f\x81", 2, 1),  # channels
        (b"\x23\xe3\x83\x84", 4, 4),  # duration of a frame
        (b"\x56\xaa", 3, 2),  # delay of the codec
    ],
    "avi": [
        *[(b"avih", 8 + i, 4) for i in (0, 16, 24, 32, 36)],  # duration of a frame, their number, streams, size
        *[(b"strh", 8 + i, 4) for i in (20, 24, 28, 32, 44)],  # scale, rate, start, length, bytes of a sample
        *[(b"strf", 8 + i, 4) for i in (0, 4, 8)],  # size of the header, width, height; channels, rate
        *[(b"idx1", 8 + i, 4) for i in (4, 8, 12, 28)],
    ],
    "mpg": [
        (b"\x00\x00\x01\xb3", 4, 3),  # width and height
        (b"\x00\x00\x01\xb3", 7, 1),  # shape of a pixel, rate
        (b"\x00\x00\x01\xba", 4, 5),  # clock
        (b"\x00\x00\x01\xe0", 4, 2),  # length of a packet
        (b"\x00\x00\x01\xe0", 7, 8),  # its times
        (b"\x00\x00\x01\xc0", 7, 8),
    ],
    "ts": [(b"\x00\x00\x01\xe0", 7, 8), (b"\x00\x00\x01\xc0", 7, 8)],
}
FIELDS["webm"] = FIELDS["mkv"]


def _lie(content: bytearray, rng: np.random.Generator, container: str) -> bytes:
    """One to three numbers of the headers become others."""
    found = [
        (match.start() + offset, length)
        for signature, offset, length in FIELDS[container]
        for match in list(re.finditer(re.escape(signature), content))[:8]
        if match.start() + offset + length <= len(content)
    ]
    for _ in range(int(rng.integers(1, 4))):
        begin, length = found[rng.integers(len(found))]
        largest = (1 << 8 * length) - 1
        before = int.from_bytes(content[begin : begin + length])
        lies = [0, 1, largest, largest >> 1, 30_000 & largest, before * 2 & largest, before >> 1]
        value = int(rng.choice(len(lies) + 2))
        if value >= len(lies):  # anything
            content[begin : begin + length] = rng.bytes(length)
        else:
            content[begin : begin + length] = lies[value].to_bytes(length)
    if container in ("mkv", "webm") and rng.random() < 0.3:  # seconds that are none
        at = content.find(b"\x44\x89\x88")
        if at >= 0:
            content[at + 3 : at + 11] = struct.pack(">d", float(rng.choice([np.nan, np.inf, -1, 1e300, 1e9])))
    return content


WAYS: dict[str, Callable[[bytearray, np.random.Generator, bytes], bytes]] = {
    "cut": _cut,
    "head cut": _behead,
    "few bits": _flip_few,
    "many bits": _flip_many,
    "header bits": _flip_header,
    "zeros": _zero,
    "spliced in": _splice_in,
    "spliced over": _splice_over,
    "joined": _join,
    "shuffled": _shuffle,
    "doubled": _duplicate,
}
LIE = "lying header"
FOREIGN_WAYS = ("spliced in", "spliced over", "joined")


@dataclass(frozen=True)
class Copy:
    """A damaged file: the clip that it was, the one that a piece was taken from (None = no piece), and the way."""

    path: Path
    clip: Clip
    other: Clip | None
    way: str


def damaged_copies(clips: dict[str, Sequence[Clip]], folder: Path, *, number: int, seed: int) -> Iterator[Copy]:
    """Write so many damaged copies, all containers and all ways in turn; copy i depends on (seed, i) only."""
    ways, containers = [*WAYS, LIE], list(clips)
    for i in range(number):
        rng = np.random.default_rng((seed, i))
        container, way = containers[i % len(containers)], ways[i // len(containers) % len(ways)]
        clip, other = (clips[container][j] for j in rng.choice(len(clips[container]), size=2, replace=False))
        content = bytearray(clip.path.read_bytes())
        damaged = _lie(content, rng, container) if way == LIE else WAYS[way](content, rng, other.path.read_bytes())
        path = folder / f"{i:04d}_{way.replace(' ', '_')}.{container}"
        path.write_bytes(damaged)
        yield Copy(path, clip, other if way in FOREIGN_WAYS else None, way)
