"""Which tracks of a file are read: the video track that players show, and the audio track that belongs to it.

The rule is that of FFmpeg's av_find_best_stream (default disposition, bit rate, order), among the tracks that are no
still image, commentary, description or silence as long as there are others, and audio is of the program of the video.
"""

import re
from collections import Counter
from collections.abc import Callable

import av
import av.container
import av.logging
import av.stream
from av.stream import Disposition

Open = Callable[[], av.container.InputContainer]
ADDED = (  # to other tracks
    *(Disposition.timed_thumbnails, Disposition.still_image, Disposition.comment, Disposition.karaoke),
    *(Disposition.hearing_impaired, Disposition.visual_impaired, Disposition.descriptions, Disposition.clean_effects),
    *(Disposition.non_diegetic, Disposition.dependent),
)
MOVING_PACKETS = 50  # of one video track, by which another has two, or is a still image
HEARD_SECONDS = 10.0  # in which an audio track is heard, or is silent
SILENT = 2**-14  # of full scale, from the lowest to the highest value: a peak of a step of 16 bits


def choose_tracks(container: av.container.InputContainer, reopen: Open) -> tuple[int | None, int | None]:
    """Numbers of the video and the audio track that are read; None without a decodable one.

    Args:
        reopen: opens the same file, to look into several tracks of a kind.
    """
    videos = _main([each for each in container.streams.video if is_decodable(each)])
    if len(videos) > 1:
        videos = _moving(videos, reopen)
    video = _best(container, videos)
    program = _program(container, video)
    audios = _main([each for each in container.streams.audio if is_decodable(each) and each.index in program])
    first = audio = _best(container, audios)
    while len(audios) > 1 and not _is_heard(audio.index, reopen):
        audios.remove(audio)
        audio = _best(container, audios)
    if audio is not first and not _is_heard(audio.index, reopen):  # all are silent
        audio = first
    return video and video.index, audio and audio.index


def is_cover(stream: av.stream.Stream) -> bool:
    """Whether a video stream is only cover art."""
    return Disposition.attached_pic in stream.disposition


def is_decodable(stream: av.stream.Stream) -> bool:
    """Whether a stream has a decoder and is no cover art."""
    return stream.codec_context is not None and not is_cover(stream)


def name_track(stream: av.stream.Stream) -> str:
    """Such as "audio track 2 (aac, visual impaired)", by its number in the file."""
    kinds = [each.name.replace("_", " ") for each in Disposition if each in stream.disposition]
    codec = stream.codec_context.name if stream.codec_context else "no decoder"
    return f"{stream.type} track {stream.index} ({', '.join([codec, *kinds])})"


def _main(streams: list[av.stream.Stream]) -> list[av.stream.Stream]:
    return [each for each in streams if not any(kind in each.disposition for kind in ADDED)] or streams


def _best(container: av.container.InputContainer, streams: list[av.stream.Stream]) -> av.stream.Stream | None:
    """FFmpeg's choice among streams of one kind: all others are marked so that they lose."""
    if len(streams) < 2:
        return streams[0] if streams else None
    given = {each: each.disposition for each in getattr(container.streams, streams[0].type)}
    for each, disposition in given.items():
        each.disposition = disposition & Disposition.default if each in streams else Disposition.hearing_impaired
    best = container.streams.best(streams[0].type)
    for each, disposition in given.items():
        each.disposition = disposition
    return best if best in streams else streams[0]


def _moving(videos: list[av.stream.Stream], reopen: Open) -> list[av.stream.Stream]:
    """Those with more than one frame in the beginning of the file; all if there are none."""
    counts: Counter[int] = Counter()
    try:
        with reopen() as container:
            for packet in container.demux([container.streams[each.index] for each in videos]):
                counts[packet.stream.index] += packet.size > 0
                if counts[packet.stream.index] == MOVING_PACKETS:
                    break
    except (av.error.FFmpegError, ValueError, IndexError):
        pass  # what came before it counts
    return [each for each in videos if counts[each.index] > 1] or videos


def _is_heard(index: int, reopen: Open) -> bool:
    """Whether an audio track is not silent in the beginning of the file."""
    end = None
    try:
        with reopen() as container:
            for frame in container.decode(container.streams[index]):
                values = frame.to_ndarray()
                scale = 1 if values.dtype.kind == "f" else 2.0 ** (8 * values.itemsize - 1)
                if float(values.max()) - float(values.min()) > SILENT * scale:
                    return True
                end = end or (frame.time or 0.0) + HEARD_SECONDS
                if (frame.time or 0.0) > end:
                    break
    except (av.error.FFmpegError, ValueError, EOFError, IndexError):
        pass
    return False


def _program(container: av.container.InputContainer, stream: av.stream.Stream | None) -> set[int]:
    """Numbers of the streams in the program of one, all where there are no programs: only FFmpeg's log tells them."""
    everything = {each.index for each in container.streams}
    if stream is None or container.format.name != "mpegts":
        return everything
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        text = container.dumps_format()
    finally:
        av.logging.set_level(level)
    parts = text.partition("\n  No Program")[0].split("\n  Program ")[1:]
    programs = [set(map(int, re.findall(r"\n +Stream #0:(\d+)", part))) for part in parts]
    return next((each for each in programs if stream.index in each), everything)
