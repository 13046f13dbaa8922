"""Writing clips: RGB frames and samples into a file, the same bytes for the same input."""

from fractions import Fraction
from pathlib import Path

import av
import av.container
import numpy as np

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
PCM_SAMPLES = 1024  # in a packet
CLOCK = 90_000  # ticks per second when frames do not lie on the grid of the frame rate


def write_clip(
    path: str | Path,
    frames: np.ndarray,
    *,
    fps: float | Fraction,
    samples: np.ndarray | None = None,
    sample_rate: int | None = None,
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    crf: int = 23,
    gop: int = 48,
    b_frames: int = 0,
    video_start: float = 0.0,
    audio_start: float = 0.0,
    times: np.ndarray | None = None,
    rotation: int = 0,
) -> None:
    """Write one clip; the extension of `path` chooses the container. The same input gives the same bytes with the same
    version of PyAV.

    Args:
        frames: (T, H, W, 3) uint8 RGB, H and W even.
        fps: frames per second; give a Fraction for rates such as 24000/1001.
        samples: (n,) or (n, channels) float32 in [-1, 1], channels 1, 2 or 6 (5.1); None = no audio track.
        sample_rate: of `samples` in Hz.
        video_codec, audio_codec: FFmpeg encoders.
        crf: quality of x264 (0 lossless to 51) and VP8/9.
        gop: largest distance of keyframes in frames.
        b_frames: largest number of consecutive B-frames.
        video_start: time of the first frame in seconds.
        audio_start: time of the first sample in seconds.
        times: (T,) strictly rising seconds of each frame, for a variable rate, instead of video_start + i / fps.
        rotation: metadata, a multiple of 90: degrees by which a player turns the frames counterclockwise.

    Raises:
        ValueError: frames or samples that do not have the shape and type above.
    """
    frames = np.asarray(frames)
    _check_frames(frames, times, rotation)
    fps = Fraction(fps).limit_denominator(1001)
    if times is None and video_start == 0:
        time_base, ticks = 1 / fps, range(len(frames))
    else:
        seconds = video_start + np.arange(len(frames)) / float(fps) if times is None else np.asarray(times)
        time_base, ticks = Fraction(1, CLOCK), np.rint(seconds * CLOCK).astype(int).tolist()

    with av.open(str(path), "w") as container:
        container.flags |= av.container.Flags.bitexact.value  # no random identifiers, no version of the library
        video = container.add_stream(video_codec, rate=fps, options=_video_options(video_codec, crf))
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = time_base
        video.codec_context.gop_size = gop
        video.codec_context.max_b_frames = b_frames
        video.codec_context.thread_count = 1
        if rotation:
            video.set_display_rotation(rotation)
        audio = None
        if samples is not None:
            samples = _check_samples(samples, sample_rate)
            layout = LAYOUTS[samples.shape[1]]
            audio = container.add_stream(audio_codec, rate=sample_rate, layout=layout)
            audio.codec_context.thread_count = 1

        packets = []
        for tick, pixels in zip(ticks, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", threads=1)
            frame.pts, frame.time_base = tick, time_base
            packets += video.encode(frame)
        packets += video.encode(None)
        if audio is not None:
            # an encoder without a frame size, as of PCM, makes one packet of all that it gets
            step = PCM_SAMPLES if audio_codec.startswith("pcm_") else len(samples)
            for first in range(0, len(samples), step):
                part = np.ascontiguousarray(samples[first : first + step].T)
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
                frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
                frame.pts = round(audio_start * sample_rate) + first
                packets += audio.encode(frame)
            packets += audio.encode(None)
        # sorted, or the muxer would hold one whole track in memory
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))


def _video_options(codec: str, crf: int) -> dict[str, str]:
    if codec == "libx264":
        # Without mbtree=0 a few clips in a thousand come out with other bytes from the same frames.
        return {"crf": str(crf), "preset": "veryfast", "mbtree": "0"}
    if codec in ("libvpx", "libvpx-vp9"):
        return {"crf": str(crf), "b": "2M", "cpu-used": "8", "deadline": "realtime"}
    return {}


def _check_frames(frames: np.ndarray, times: np.ndarray | None, rotation: int) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8 with T > 0, not {frames.shape} {frames.dtype}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(
            f"frames are {frames.shape[1]}x{frames.shape[2]}: height and width must be even (4:2:0 color), crop or pad"
        )
    if times is not None and (np.shape(times) != (len(frames),) or np.any(np.diff(times) <= 0)):
        raise ValueError(f"times must be {len(frames)} strictly rising seconds, one per frame, not {times!r}")
    if rotation % 90:
        raise ValueError(f"rotation={rotation} must be a multiple of 90 degrees")


def _check_samples(samples: np.ndarray, sample_rate: int | None) -> np.ndarray:
    """(n,) or (n, channels) -> (n, channels) float32."""
    samples = np.asarray(samples)
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or samples.dtype != np.float32 or samples.shape[1] not in LAYOUTS:
        raise ValueError(
            f"samples must be (n,) or (n, channels) float32 with channels in {sorted(LAYOUTS)}, "
            f"not {samples.shape} {samples.dtype}"
        )
    if not sample_rate:
        raise ValueError(f"sample_rate={sample_rate}: give the rate of the samples in Hz")
    return samples
