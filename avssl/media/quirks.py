"""Containers and codecs that the Reader (reader.py) must, or may, read differently than by seeking and decoding all."""

import bisect
import collections
import heapq
import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.audio.stream
import av.container
import av.stream
import av.video.stream
import numpy as np

from avssl.media.shards import open_part

# An MPEG program stream stores few timestamps, and FFmpeg counts on from the last one: after a seek a frame or two too
# few, as a packet ends in the middle of a frame.
COUNTED = frozenset({"mpeg"})
AVI_CHUNK_HEADER = 8  # bytes between the offset in the index and that of the packet
BOX_BYTES = 16  # of the head of a part of a file, at most
AVI_REORDER = 2  # frames looked ahead to put the times of an AVI in order
LOOK_AHEAD = 20  # packets: H.264 shows a frame at most 16 later than it decodes it
JOINED = frozenset({"mpegts", "mpeg", "ogg"})  # may be several files one behind the other, each with its own clock
JUMP_SECONDS = 0.5  # by which times go back from one file to the next, at least
PART_SECONDS = 1.0  # of each of them, at least: a shorter one is damage
WRAP_SECONDS = 2**33 / 90_000  # of the clock of MPEG-TS; FFmpeg adds it to times far below the first ones
PAUSE_SECONDS = 60.0  # longer ones begin another file where that was added
BYTEWISE = frozenset({"g722", "g726", "g726le"})  # in AVI their clock counts bytes
CHAINED = BYTEWISE | {"adpcm_yamaha"}  # a sample is told by those before it, from the first on
PCM_SECONDS = 1.0  # of PCM read at a time
PCM_TAGS = ("sowt", "ipcm", "lpcm")  # of little-endian samples in MOV and MP4


def must_count(container: av.container.InputContainer, video: av.video.stream.VideoStream | None) -> bool:
    """Whether times are right only when read from the beginning: after a seek FFmpeg counts from a wrong one."""
    if container.format.name == "avi" and video is not None:
        entries = video.index_entries  # the clock: number by number, a few of them for an empty packet
        return len(entries) > 0 and entries[len(entries) - 1].timestamp + 1 < video.frames
    return container.format.name in COUNTED


def is_chained(stream: av.stream.Stream) -> bool:
    """Whether audio is decoded rightly only from its beginning."""
    return codec_name(stream) in CHAINED


def codec_name(stream: av.stream.Stream) -> str | None:
    """None without a decoder."""
    return None if stream.codec_context is None else stream.codec_context.name


def in_ticks(packets: Iterator[av.Packet], container: av.container.InputContainer) -> Iterator[av.Packet]:
    """Packets with times in ticks: in AVI, G.722 and G.726 count bytes, of which FFmpeg makes that many ticks."""
    sizes = {}  # bytes of a tick
    for stream in container.streams.audio if container.format.name == "avi" else ():
        entries, rate = stream.index_entries, stream.bit_rate if codec_name(stream) in BYTEWISE else None
        if rate and len(entries) > 1 and entries[1].timestamp == entries[0].size:
            sizes[stream.index] = stream.time_base * rate / 8
    for packet in packets:
        if packet.stream.index in sizes and packet.dts is not None:
            packet.pts = packet.dts = int(packet.dts // sizes[packet.stream.index])
        yield packet


class Jump(NamedTuple):
    """Where a file is joined to the one before it."""

    position: int  # in bytes
    second: float  # at which the file before it ends
    shift: float | None  # seconds to add to all times from there on; None = its codecs are others, nothing more is read


def find_jumps(packets: Iterable[av.Packet]) -> list[Jump]:
    """Where joined files begin."""
    rows, latest = [], collections.Counter()  # latest position by stream: packets cut out of another have none
    for packet in packets:
        if packet.dts is not None:
            index, base = packet.stream.index, packet.time_base
            latest[index] = latest[index] if packet.pos is None else packet.pos
            shown = packet.dts if packet.pts is None else packet.pts
            rows.append((index, latest[index], *(float(each * base) for each in (packet.dts, shown, packet.duration))))
    if not rows:
        return []
    streams, positions, decoded, shown, durations = np.array(rows).T
    jumps: list[Jump] = []
    while True:
        tracks = [streams == each for each in set(streams.tolist())]
        firsts = [(positions[track], first_jump(_unwrapped(decoded[track]))) for track in tracks]
        begin = min((places[first] for places, first in firsts if first is not None), default=None)
        if begin is None or (jumps and begin <= jumps[-1].position):  # no end of damaged times
            return jumps
        before, behind = positions < begin, positions >= begin
        heads = [shown[behind & track][:LOOK_AHEAD] for track in tracks]
        end = float((shown + durations)[before].max())
        shift = end - float(min(head.min() for head in heads if len(head)))
        decoded[behind] += shift
        shown[behind] += shift
        jumps.append(Jump(int(begin), end, shift + (jumps[-1].shift if jumps else 0.0)))


def _unwrapped(seconds: np.ndarray) -> np.ndarray:
    """Times (n,) of a track without what FFmpeg adds to those of a joined file whose clock is far below the first."""
    steps = np.diff(seconds, prepend=seconds[:1])
    is_over = (seconds >= WRAP_SECONDS) & (seconds - steps < WRAP_SECONDS)  # a clock that runs over has no pause there
    added = (steps > WRAP_SECONDS / 2) | (is_over & (steps > PAUSE_SECONDS))
    return seconds - WRAP_SECONDS * np.cumsum(added.astype(int) - (steps < -WRAP_SECONDS / 2))


def first_jump(seconds: np.ndarray) -> int | None:
    """Number of the first packet of a track from where its times (n,) go back for good; not at a piece that is repeated
    or in the wrong place, behind which the times continue those before it.
    """
    if not len(seconds):
        return None
    steps = np.flatnonzero(np.abs(np.diff(seconds)) > JUMP_SECONDS) + 1
    parts: list[np.ndarray] = []  # numbers of the packets of each
    for part in np.split(np.arange(len(seconds)), steps):
        ahead = [seconds[part[0]] - seconds[each[-1]] for each in parts]
        between = np.cumsum([0.0, *(seconds[each[-1]] - seconds[each[0]] for each in parts[:0:-1])])[::-1]
        continued = [i for i in range(len(parts)) if -JUMP_SECONDS <= ahead[i] <= JUMP_SECONDS + between[i]]
        if continued:
            parts[continued[-1] :] = [np.concatenate([parts[continued[-1]], part])]
        else:
            parts.append(part)
    parts = [part for part in parts if seconds[part[-1]] - seconds[part[0]] >= PART_SECONDS]
    for before, behind in itertools.pairwise(parts):
        if seconds[behind[0]] < seconds[before[-1]]:
            return int(behind[0])
    return None


def on_one_clock(packets: Iterator[av.Packet], jumps: Sequence[Jump]) -> Iterator[av.Packet]:
    """Packets from the beginning of a file with the times of joined files moved one behind the other."""
    passed: collections.Counter[int] = collections.Counter()  # jumps by stream
    latest: dict[int, float] = {}  # by stream, on the clock of its part
    for packet in packets:
        if packet.dts is not None and jumps:
            index, seconds = packet.stream.index, float(packet.dts * packet.time_base)
            while passed[index] < len(jumps) and packet.pos is not None:
                # the last packet of an Ogg has the position of the next
                continues = abs(seconds - latest.get(index, math.inf)) <= JUMP_SECONDS
                if packet.pos < jumps[passed[index]].position or continues:
                    break
                passed[index] += 1
                latest.pop(index, None)
            latest[index] = max(seconds, latest.get(index, seconds))
            shift = jumps[passed[index] - 1].shift if passed[index] else 0.0
            if shift is None:
                continue
            ticks = round(shift / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts += ticks
        yield packet


def second_file(path: Path, format: str) -> int | None:
    """Where another file begins, in bytes, of which the demuxer of this one knows nothing; None = nowhere."""
    with io.BufferedReader(open_part(path)) as file:
        size, position, num_headers = file.seek(0, os.SEEK_END), 0, 0
        while position + BOX_BYTES <= size:
            file.seek(position)
            head = file.read(BOX_BYTES)
            if format.startswith("mov"):
                is_header, length = head[4:8] == b"ftyp", int.from_bytes(head[:4])
                length = int.from_bytes(head[8:16]) if length == 1 else length
            elif format == "flv":
                is_header = head[:3] == b"FLV"
                length = 13 if is_header else 15 + int.from_bytes(head[1:4])
            else:
                return None
            num_headers += is_header
            if num_headers == 2:
                return position
            if length < 8:
                return None
            position += length
    return None


def from_keyframe(packets: Iterator[av.Packet], seconds: float, *, max_bytes: int) -> Iterator[av.Packet]:
    """Packets from the last keyframe at or before a second on, without a seek; at most `max_bytes` are held back."""
    kept: list[av.Packet] = []
    latest, num_bytes = -math.inf, 0
    for packet in packets:
        shown = -math.inf if packet.pts is None else float(packet.pts * packet.time_base)
        if packet.is_keyframe and latest < shown <= seconds:
            kept, latest, num_bytes = [], shown, 0
        kept.append(packet)
        num_bytes += packet.size
        is_behind = packet.dts is not None and float(packet.dts * packet.time_base) > seconds
        if is_behind or num_bytes > max_bytes:
            break
    yield from kept
    yield from packets


def times_of_index(packets: Iterator[av.Packet], stream: av.stream.Stream) -> Iterator[av.Packet]:
    """Packets of an AVI with the times of its index: FFmpeg counts on from packet to packet, so a lost chunk shifts all
    that follow. The index counts chunks or bytes, a packet's ticks are chunks, bytes or samples.
    """
    entries = stream.index_entries

    def number(packet: av.Packet) -> int | None:
        """Of the entry whose chunk begins with a packet."""
        if packet.pos is None or packet.dts is None:
            return None
        begin = packet.pos - AVI_CHUNK_HEADER
        found = bisect.bisect_left(entries, begin, key=lambda entry: entry.pos)
        return found if found < len(entries) and entries[found].pos == begin else None

    first, ahead = None, []  # the chunk that tells how many units of the index a tick is, and the packets up to its end
    for packet in packets:
        ahead.append(packet)
        found = number(packet)
        if first is None and found is not None and found + 1 < len(entries):
            first = found, packet.dts
        elif first is not None and found not in (None, first[0]):
            break
    unit, shift, latest = 1, 0, None
    if first is not None and ahead[-1].dts is not None and ahead[-1].dts > first[1]:
        counted = entries[first[0] + 1].timestamp - entries[first[0]].timestamp
        unit = max(1, round(counted / (ahead[-1].dts - first[1])))
    for packet in itertools.chain(ahead, packets):
        found = number(packet)
        if found not in (None, latest):  # the frames of one chunk can share its position
            shift, latest = entries[found].timestamp // unit - packet.dts, found
        if packet.dts is not None and shift:
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts += shift
        yield packet


def sort_times(decoded: Iterator[tuple[float, av.VideoFrame]]) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames of an AVI, which come in display order, with their times sorted: AVI stores no display times, and FFmpeg
    swaps some of its guesses when two B-frames follow each other (1, 2, 4, 3, 5, 7, 6).
    """
    frames, times = collections.deque(), []
    for seconds, frame in decoded:
        frames.append(frame)
        heapq.heappush(times, seconds)
        if len(frames) > AVI_REORDER:
            yield heapq.heappop(times), frames.popleft()
    while frames:
        yield heapq.heappop(times), frames.popleft()


def can_skip(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> bool:
    """Whether packets have display times, and there can be frames that no other refers to."""
    context = stream.codec_context
    has_times = container.format.name.startswith(("mov", "matroska"))
    return has_times and context.name == "h264" and context.has_b_frames


def skip_unwanted(
    packets: Iterator[av.Packet], stream: av.video.stream.VideoStream, wanted: Sequence[float]
) -> Iterator[av.Packet]:
    """The same packets; before each, the decoder is set to skip its frame if it is unwanted and no other refers to it.

    A frame is shown until the next one. Packets come in decoding order, so the next one is known some packets later.

    Args:
        wanted: rising seconds whose frames are used.
    """
    ticks_per_second = 1 / float(stream.time_base)
    wanted_ticks = [seconds * ticks_per_second for seconds in wanted]
    shown: list[int] = []  # rising ticks of packets decoded or ahead
    ahead: collections.deque[av.Packet] = collections.deque()
    ended = False
    while True:
        while not ended and len(ahead) < LOOK_AHEAD:
            packet = next(packets, None)
            if packet is None:
                ended = True
                break
            ahead.append(packet)
            if packet.pts is not None:
                bisect.insort(shown, packet.pts)
        if not ahead:
            return
        packet = ahead.popleft()
        stream.codec_context.skip_frame = "DEFAULT"
        if packet.pts is not None:
            following = bisect.bisect_right(shown, packet.pts)
            first = bisect.bisect_left(wanted_ticks, packet.pts)  # wanted second that is not before this frame
            is_edge = following == len(shown) or shown[0] == packet.pts
            if not is_edge and (first == len(wanted_ticks) or wanted_ticks[first] >= shown[following]):
                stream.codec_context.skip_frame = "NONREF"
        yield packet


def is_plain_pcm(container: av.container.InputContainer, stream: av.audio.stream.AudioStream) -> bool:
    """Whether the audio is raw PCM at offsets that the index lists, with ticks of one sample."""
    context, entries = stream.codec_context, stream.index_entries
    is_pcm = context.name == "pcm_s16le" and context.codec_tag in PCM_TAGS and context.channels
    in_mov = container.format.name.startswith("mov")
    if not (is_pcm and in_mov and stream.time_base == Fraction(1, context.sample_rate) and len(entries)):
        return False
    # an edit list can hide audio at both ends, which decoding leaves out
    is_whole = not entries[0].is_discard and not entries[len(entries) - 1].is_discard
    return is_whole and entries[0].timestamp == stream.start_time


def read_pcm(path: Path, stream: av.audio.stream.AudioStream, seconds: float) -> Iterator[tuple[float, av.AudioFrame]]:
    """As `Reader.frames_from`, without demuxer and decoder: contiguous index entries become one frame."""
    context, rate, entries = stream.codec_context, stream.codec_context.sample_rate, stream.index_entries
    sample_bytes = 2 * context.channels
    begin = min(max(seconds, entries[0].timestamp / rate), entries[len(entries) - 1].timestamp / rate)
    number = max(0, entries.search_timestamp(math.floor(begin * rate), backward=True))
    entry = entries[number]
    with open_part(path) as file:
        while entry is not None:
            position, tick, size = entry.pos, entry.timestamp, 0
            while (
                entry is not None
                and entry.pos == position + size
                and entry.timestamp == tick + size // sample_bytes
                and size < PCM_SECONDS * rate * sample_bytes
            ):
                size, number = size + entry.size, number + 1
                entry = entries[number] if number < len(entries) else None
            file.seek(position)
            found = file.read(size)
            samples = np.frombuffer(found[: len(found) // sample_bytes * sample_bytes], dtype="<i2")
            if not len(samples):  # the file is cut
                return
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout=context.layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, stream.time_base, tick
            yield tick / rate, frame
