"""Small sets of clips that tests train on: made on the spot, never committed."""

import csv
from pathlib import Path

import av
import numpy as np
from PIL import Image

from avssl.data.check import build_table, join_facts
from avssl.data.manifest import Manifest, read_manifest, write_manifest
from avssl.media.encode import write_clip

FPS, RATE, SECONDS, PIXELS = 10, 8000, 1.2, 48


def make_clip(path: Path, label: int, number: int, *, sound: bool = True) -> None:
    """A bright bar that moves in the label's direction, with a tone of the label's pitch."""
    rng = np.random.default_rng((label, number))
    times = np.arange(round(FPS * SECONDS)) / FPS
    frames = rng.integers(0, 60, (len(times), PIXELS, PIXELS, 3), dtype=np.uint8)
    for i, t in enumerate(times):
        place = int((0.15 + 0.55 * t / SECONDS) * PIXELS)
        bar = (slice(place, place + 8), slice(None)) if label % 2 else (slice(None), slice(place, place + 8))
        frames[i][bar] = 200
    t = np.arange(round(RATE * SECONDS)) / RATE
    samples = (0.4 * np.sin(2 * np.pi * (300 + 500 * label) * t + rng.random())).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, frames, fps=FPS, samples=samples if sound else None, sample_rate=RATE if sound else None)


def make_sound(path: Path, label: int, number: int, *, seconds: float = SECONDS) -> None:
    """A file without video: the tone of the label's pitch, as mp3 or wav."""
    t = np.arange(round(RATE * seconds)) / RATE
    tone = (0.4 * np.sin(2 * np.pi * (300 + 500 * label) * t + number)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream(
            {".mp3": "libmp3lame", ".wav": "pcm_s16le"}[path.suffix], rate=RATE, layout="mono"
        )
        frame = av.AudioFrame.from_ndarray((tone[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.format, "mono", RATE, frame_size=stream.frame_size or 1024)
        for each in resampler.resample(frame) + resampler.resample(None):
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))


def make_set(folder: Path, *, num_train: int = 12, num_test: int = 6, silent: int = 1, sound_only: int = 0) -> Manifest:
    """FOLDER/{train,test}/{0,1}/*.mp4 and FOLDER/manifest.parquet; the last `silent` clips of each split have no
    sound (all when there are fewer), and `sound_only` files more in each have no video.
    """
    rows = []
    for split, num in (("train", num_train), ("test", num_test)):
        for number in range(num):
            path = f"{split}/{number % 2}/{number:03d}.mp4"
            make_clip(folder / path, number % 2, number + 1000 * (split == "test"), sound=number < num - silent)
            rows.append({"path": path, "label": str(number % 2), "split": split})
        for number in range(num, num + sound_only):
            path = f"{split}/{number % 2}/{number:03d}.mp3"
            make_sound(folder / path, number % 2, number)
            rows.append({"path": path, "label": str(number % 2), "split": split})
    rows.sort(key=lambda row: row["path"])
    write_manifest(folder / "manifest.parquet", build_table(folder, rows, num_workers=1), root=folder)
    return read_manifest(folder / "manifest.parquet")


SPEAKERS = ("ann", "bob", "cyd")


def make_digits(folder: Path) -> Path:
    """A folder like the digits: manifest.csv, two classes, three speakers, 12 training and 6 test clips."""
    rows = []
    for split, num in (("train", 12), ("test", 6)):
        for number in range(num):
            path, label = f"{split}/{number % 2}/{number:02d}.mp4", number % 2
            make_clip(folder / path, label, number)
            rows.append({"path": path, "label": label, "split": split, "speaker": SPEAKERS[number % 3]})
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def manifest_of(rows: list[dict]) -> Manifest:
    known = {name: None for name in ("size", "content_key", "duration", "fps", "width", "height", "rotation")}
    known |= {name: None for name in ("video_start", "video_end", "audio_start", "audio_end", "sample_rate", "reason")}
    facts = {row["path"]: known | {"has_audio": True, "status": row.pop("status", "ok")} for row in rows}
    return Manifest(join_facts(rows, facts), Path("/clips"))


def rows_of(num: int, **columns: list) -> list[dict]:
    return [{"path": f"{i:02d}.mp4"} | {name: values[i] for name, values in columns.items()} for i in range(num)]


def write_davis(folder: Path, name: str, frames: np.ndarray, masks: np.ndarray) -> None:
    """frames (T, H, W, 3) uint8, masks (T, H, W) uint8, as DAVIS stores them."""
    for kind in ("JPEGImages", "Annotations"):
        (folder / kind / "480p" / name).mkdir(parents=True)
    for i, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
        Image.fromarray(frame).save(folder / "JPEGImages" / "480p" / name / f"{i:05d}.jpg", quality=95)
        picture = Image.fromarray(mask, mode="P")
        picture.putpalette(np.random.default_rng(0).integers(256, size=768).tolist())  # 256 colors, as in DAVIS
        picture.save(folder / "Annotations" / "480p" / name / f"{i:05d}.png")
