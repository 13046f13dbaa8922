"""The other decoders give PyAV's frames, seconds and sound, or refuse a file by name; runs with those installed."""

import sys
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest

from avssl.config import ConfigError, DataConfig
from avssl.data.dataset import ClipDataset
from avssl.data.manifest import Manifest
from avssl.media import decoders
from avssl.media.decode import AudioWindow, VideoWindow, read_clip, read_frames, read_samples
from avssl.media.decoders import DecoderMissingError, describe, format_decoder
from avssl.media.reader import DecodeError, Limits, Reader
from avssl.methods.avid import AVID
from avssl.training.checkpoint import load_checkpoint, save_checkpoint
from avssl.training.loop import train
from tests.support.numbered import CASES, case, decode_in_order, make, numbers, picture
from tests.support.runs import config

pytestmark = pytest.mark.slow
REFUSED = {"avi", "ts", "mpg"}  # endings of CASES


def usable(decoder: str) -> str:
    """Why a decoder cannot be tried here; empty = it can."""
    try:
        describe(decoder)
    except DecoderMissingError as error:
        return str(error)
    return ""


@pytest.fixture(params=["decord", "torchcodec"])
def other(request: pytest.FixtureRequest) -> str:
    reason = usable(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


def kept(clips: Path, name: str) -> Path:
    return clips / name if (clips / name).exists() else case(clips, name)


@pytest.mark.parametrize("name", [name for name in CASES if name.rpartition(".")[2] not in REFUSED])
def test_frames_times_and_sound_are_pyavs(clips: Path, other: str, name: str) -> None:
    path = kept(clips, name)
    times, shown = decode_in_order(path, CASES[name])
    generator = np.random.default_rng(3)
    starts = [times[0] - 0.5, times[17], *generator.uniform(times[0], times[-1] - 0.5, size=3), times[-1] - 0.2, 30.0]
    whole = [VideoWindow(start, 0.5, fps) for start, fps in zip(starts, [16, 60, 25, 8, 30, 16, 4], strict=True)]
    parts = [VideoWindow(start, 0.5, 16, crop=(0.1, 0.2, 0.6, 0.5), size=(40, 44)) for start in starts[1:3]]
    sound = [AudioWindow(start, 0.7, 16000, follows=1) for start in starts[:3]]
    expected = read_clip(path, video=[*whole, *parts], audio=sound)
    found = read_clip(path, video=[*whole, *parts], audio=sound, decoder=other)
    for one, two in zip(expected[0], found[0], strict=True):
        np.testing.assert_array_equal(one.times, two.times)
        assert (one.start, one.padded, one.data.shape) == (two.start, two.padded, two.data.shape)
        assert np.abs(one.data.astype(int) - two.data).mean() <= 2
    for window, frames in zip(whole[:5], found[0], strict=False):  # by the numbers, not only by PyAV
        wanted = window.start + np.arange(window.num_frames) / window.fps
        assert numbers(frames.data) == shown[np.maximum(np.searchsorted(times, wanted + 1e-4, "right") - 1, 0)].tolist()
    for one, two in zip(expected[1], found[1], strict=True):
        np.testing.assert_array_equal(one.data, two.data)
        assert (one.start, one.padded) == (two.start, two.padded)


REFUSALS = {
    "b_frames.avi": CASES["b_frames.avi"],
    "pcm.avi": CASES["pcm.avi"],  # also where nothing is swapped: it cannot be told from outside
    "b_frames.ts": CASES["b_frames.ts"],
    "clip.mpg": {"video_codec": "mpeg2video", "audio_codec": "mp2", "rate": 48000, "b_frames": 2, "gop": 12},
}


@pytest.mark.parametrize("name", REFUSALS)
def test_containers_without_reliable_times_are_refused_by_name(tmp_path: Path, other: str, name: str) -> None:
    path = make(tmp_path / name, **REFUSALS[name])
    with pytest.raises(DecodeError, match=rf"{name}: {other} gives wrong times or .* files.*: set data\.decoder=pyav"):
        read_frames(path, start=1, duration=0.5, fps=8, decoder=other)
    # sound is PyAV's
    expected = read_samples(path, start=1.5, duration=1, sample_rate=24000)
    np.testing.assert_array_equal(
        read_samples(path, start=1.5, duration=1, sample_rate=24000, decoder=other).data, expected.data
    )


def write(path: Path, codec: str, *, pixels: str = "yuv420p", full_range: bool = False, **options: str) -> Path:
    """100 numbered frames with whatever the encoder can be told."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        stream.codec_context.color_range = 2 if full_range else 1
        for number in range(100):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame = frame.reformat(format=pixels, dst_color_range=2 if full_range else 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def agree(path: Path, decoder: str) -> None:
    windows = [VideoWindow(start, 0.5, 16) for start in (0.3, 1.71, 3.02)]
    expected, found = (read_clip(path, video=windows, decoder=each)[0] for each in ("pyav", decoder))
    for one, two in zip(expected, found, strict=True):
        assert numbers(one.data) == numbers(two.data)
        np.testing.assert_array_equal(one.times, two.times)
        assert np.abs(one.data.astype(int) - two.data).mean() <= 2


def test_flash_video(tmp_path: Path, other: str) -> None:
    agree(make(tmp_path / "clip.flv", rate=44100), other)


def test_ten_bits(tmp_path: Path, other: str) -> None:
    agree(write(tmp_path / "clip.mp4", "libx264", pixels="yuv420p10le"), other)


def test_full_range(tmp_path: Path, other: str) -> None:
    agree(write(tmp_path / "8.mp4", "libx264", pixels="yuvj420p", full_range=True), other)
    path = write(tmp_path / "10.mp4", "libx264", pixels="yuv420p10le", full_range=True)
    if other == "decord":
        agree(path, other)
    else:
        with pytest.raises(DecodeError, match=r"10\.mp4: torchcodec takes the full range of its yuv420p10le"):
            read_frames(path, start=1, duration=0.5, fps=8, decoder=other)


def test_frames_before_a_keyframe_that_are_built_on_it(tmp_path: Path, other: str) -> None:
    params = "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"
    path = write(tmp_path / "open.mp4", "libx264", **{"x264-params": params})
    if other == "torchcodec":
        agree(path, other)
    else:
        with pytest.raises(DecodeError, match=r"open\.mp4: frames before a keyframe .*\(open GOP\).*pyav"):
            read_frames(path, start=1, duration=0.5, fps=8, decoder=other)


def test_frames_that_are_not_shown(tmp_path: Path, other: str) -> None:
    """A copy of the first frame, marked as not to be shown, as VP8 stores pictures that others are only built on."""
    path = tmp_path / "hidden.webm"
    with av.open(str(case(tmp_path, "vp8_opus.webm"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is None:
                continue
            ticks, content = packet.pts, bytearray(bytes(packet))
            packet.stream = stream
            target.mux(packet)
            if ticks == 0:
                content[0] &= ~0x10
                copy = av.Packet(bytes(content))
                copy.stream, copy.pts, copy.dts, copy.time_base = stream, 1, 1, source.streams.video[0].time_base
                target.mux(copy)
    with Reader(path) as reader:
        assert sum(packet.size > 0 for packet in reader.packets("video")) == 101
    if other == "torchcodec":
        agree(path, other)
    else:
        with pytest.raises(DecodeError, match=r"hidden\.webm: decord counts \d+ frames where 100 are shown.*pyav"):
            read_frames(path, start=1, duration=0.5, fps=8, decoder=other)


def test_the_track_that_pyav_takes(tmp_path: Path, other: str) -> None:
    pictures = [picture(0)[:32, :48], np.kron(picture(1), np.ones((2, 2, 1), dtype=np.uint8))]
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in pictures]
        for stream, pixels in zip(streams, pictures, strict=True):
            stream.height, stream.width = pixels.shape[:2]
            stream.pix_fmt = "yuv420p"
        container.start_encoding()
        for stream, pixels in zip(streams, pictures, strict=True):
            for _ in range(25):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
            container.mux(stream.encode(None))
    if other == "torchcodec":
        frames = read_frames(path, start=0, duration=0.5, fps=8, decoder=other)
        assert frames.data.shape[1:3] == (32, 48)
    else:
        with pytest.raises(DecodeError, match=r"two\.mp4: it has more than one video track.*pyav"):
            read_frames(path, start=0, duration=0.5, fps=8, decoder=other)


def test_limits_hold(clips: Path, other: str) -> None:
    path, window = kept(clips, "constant.mp4"), [VideoWindow(0, 0.5, 16)]
    with pytest.raises(DecodeError, match=r"96x64 pixels is larger than data\.max_pixels=1000"):
        read_clip(path, video=window, decoder=other, limits=Limits(max_pixels=1000))
    with pytest.raises(DecodeError, match="more than max_bytes=5000"):
        read_clip(path, video=window, decoder=other, limits=Limits(max_bytes=5000))
    (clips / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{path}\n#EXT-X-ENDLIST\n")
    with pytest.raises(DecodeError, match=r"list\.mp4: no media file"):
        read_clip(clips / "list.mp4", video=window, decoder=other)


def test_damage_is_told(clips: Path, tmp_path: Path, other: str) -> None:
    content = bytearray(kept(clips, "b_frames.mp4").read_bytes())
    with Reader(clips / "b_frames.mp4") as reader:
        packets = [(packet.pos, packet.size) for packet in reader.packets("video") if packet.size]
    for position, size in packets[40:44]:
        content[position : position + size] = bytes(size)
    (tmp_path / "damaged.mp4").write_bytes(content)
    with pytest.raises(DecodeError, match=rf"damaged\.mp4: {other} cannot decode it.*set data\.decoder=pyav"):
        read_frames(tmp_path / "damaged.mp4", start=1.4, duration=0.5, fps=16, decoder=other)


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_what_is_missing_is_told_with_the_way_out(
    clips: Path, clip_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    monkeypatch.setitem(sys.modules, decoder, None)
    words = rf"decoder {decoder} is not installed here: pip install .*{decoder}.*pyav, the default"
    with pytest.raises(DecoderMissingError, match=words):
        read_frames(kept(clips, "constant.mp4"), start=0, duration=0.5, fps=8, decoder=decoder)
    with pytest.raises(ConfigError, match=rf"data\.decoder={decoder}: {words}"):
        train(config(clip_set, tmp_path / "run", f"data.decoder={decoder}"))
    assert not (tmp_path / "run").exists()


def test_system_libraries_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_ffmpeg(name: str) -> None:
        raise RuntimeError("Could not load libtorchcodec. Likely causes: ...")

    monkeypatch.setattr(decoders.importlib, "import_module", without_ffmpeg)
    with pytest.raises(DecoderMissingError, match=r"torchcodec does not load here: pip install 'avssl\[torchcodec\]'"):
        describe("torchcodec")


def test_wrong_settings_are_refused(clips: Path, clip_set: Manifest, tmp_path: Path) -> None:
    assert get_args(DataConfig.model_fields["decoder"].annotation) == get_args(decoders.Decoder)
    with pytest.raises(ConfigError, match=r"data\.decoder=opencv in test: expected one of pyav, decord, torchcodec"):
        config(clip_set, tmp_path / "run", "data.decoder=opencv")
    with pytest.raises(ValueError, match="decoder='opencv' must be pyav, decord or torchcodec"):
        read_frames(kept(clips, "constant.mp4"), start=0, duration=0.5, fps=8, decoder="opencv")
    settings = config(clip_set, tmp_path / "run", "data.decoder=decord", "data.cache_gigabytes=0.5")
    with pytest.raises(
        ConfigError, match=r"data\.cache_gigabytes=0\.5 keeps .* set data\.decoder=pyav, or data\.cache"
    ):
        ClipDataset(clip_set, settings.data, AVID.views[:1])


def test_a_run_says_what_decoded_it(clip_set: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert not train(config(clip_set, folder, "run.max_steps=1"))
    assert f"decoded by pyav {av.__version__} (FFmpeg {av.ffmpeg_version_info})" in capsys.readouterr().err
    state = load_checkpoint(folder)
    assert state["decoder"] == {"name": "pyav", "version": av.__version__, "ffmpeg": av.ffmpeg_version_info}
    with pytest.raises(ConfigError, match=r"data\.decoder|decoder decord is not installed"):
        train(config(clip_set, folder, "data.decoder=decord"))
    state["decoder"]["ffmpeg"] = "7.0"
    save_checkpoint(folder / "last.pt", state)
    assert not train(config(clip_set, folder, "run.max_steps=2"))
    assert "(FFmpeg 7.0) before, now with pyav" in capsys.readouterr().err
    assert not train(config(clip_set, folder, "run.max_steps=3"))
    assert "before, now with" not in capsys.readouterr().err


def test_a_run_trains_with_it(clip_set: Manifest, tmp_path: Path, other: str) -> None:
    assert not train(
        config(clip_set, tmp_path / "run", f"data.decoder={other}", "run.max_steps=2", "data.num_workers=1")
    )
    state = load_checkpoint(tmp_path / "run")
    assert state["decoder"] == describe(other)
    assert state["decoder"]["name"] == other
    assert state["decoder"]["ffmpeg"][0].isdigit() or state["decoder"]["ffmpeg"] == "unknown"
    with pytest.raises(ConfigError, match=rf"data\.decoder=pyav, but the run in .* was started with {other}"):
        train(config(clip_set, tmp_path / "run"))
    assert format_decoder(describe(other)).startswith(f"{other} ")
