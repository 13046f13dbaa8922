"""A run's figures and pictures in one self-contained HTML file: no other file, no network.

What lives here: loss curves, tables, clips shown as a middle frame over a spectrogram, and the page around them.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from avssl.data.manifest import Manifest
from avssl.logs import read_log
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.media.reader import DecodeError
from avssl.transforms.audio import log_mel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MAX_NAMED_CLASSES = 60  # more do not fit beside a picture
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
background: #fff; } h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; } th, td { padding: .25rem .9rem .25rem 0; text-align: left; }
td.figure { text-align: right; font-variant-numeric: tabular-nums; } th { border-bottom: 1px solid #999; font-weight:
600; }
.clips { display: flex; flex-wrap: wrap; gap: 1rem; margin: .6rem 0 1.6rem; } figure { margin: 0; width: 13rem; }
figure img { width: 100%; border: 1px solid #ccc; } figcaption { font-size: .85rem; } figcaption b { display: block; }
p.note { color: #555; font-size: .9rem; } img.curves { max-width: 100%; }
"""


@dataclass(frozen=True)
class ShownClip:
    """A clip in the report: its row of the manifest, and what is said of it."""

    role: str
    row: int
    note: str


def curves_png(logs: Mapping[str, Path], names: Sequence[str]) -> bytes:
    """Figures of several runs over their steps, one panel for each of `names`."""
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for run, path in logs.items():
            points = [(line["step"], line[name]) for line in read_log(path) if line.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=run, linewidth=1.4)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=9)
    return _png(figure)


def clip_png(manifest: Manifest, row: int) -> bytes:
    """The middle frame of a clip over the log-mel spectrogram of its whole sound.

    Raises:
        DecodeError: the clip cannot be read.
    """
    start, end = float(manifest.column("video_start")[row]), float(manifest.column("video_end")[row])
    rate = 16_000
    has_audio = bool(manifest.has_audio[row])
    frames, samples = read_clip(
        manifest.root / manifest.column("path")[row],
        video=[VideoWindow(start=(start + end) / 2, duration=0.04, fps=25.0)],
        audio=[AudioWindow(start=start, duration=max(end - start, 0.1), sample_rate=rate)] if has_audio else [],
    )
    figure, (above, below) = plt.subplots(2, 1, figsize=(2.6, 3.6), height_ratios=[2, 1.1], layout="constrained")
    above.imshow(frames[0].data[0])
    if has_audio:
        spectrogram = log_mel(
            torch.from_numpy(samples[0].data)[None], sample_rate=rate, n_fft=512, hop_seconds=0.01, num_mels=64
        )
        bands = spectrogram[0, 0].T.numpy()  # (64, S)
        below.imshow(bands, origin="lower", aspect="auto", cmap="magma", extent=(start, end, 0, len(bands)))
        below.set_xlabel("seconds", fontsize=7)
    else:
        below.text(0.5, 0.5, "no sound", ha="center", va="center")
    for axis in (above, below):
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
    above.set_xticks([])
    return _png(figure)


def predicts_classes(result: Mapping[str, Any]) -> list[str]:
    """The modalities for which an evaluation predicts one class per clip."""
    return [way for way in ("video", "audio", "both") if "confusion" in result["scores"].get(way, {})]


def confusion_png(result: Mapping[str, Any]) -> bytes:
    """How often each class is taken for each, and how often it is right, of an evaluation that `predicts_classes`: two
    panels for each modality. Shares of the row's class; what is missing to 1 had no answer.
    """
    found = result["scores"]
    ways = predicts_classes(result)
    classes, size = result["classes"], min(10.0, 3.6 + 0.25 * len(result["classes"]))
    figure, axes = plt.subplots(
        len(ways), 2, figsize=(2 * size, size * len(ways)), squeeze=False, layout="constrained", sharey="row"
    )
    for (left, right), way in zip(axes, ways, strict=True):
        table = np.asarray(found[way]["confusion"], dtype=float)  # (C, C + 1)
        shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        places = np.arange(len(classes))
        left.imshow(shares[:, :-1], vmin=0, vmax=1, cmap="Blues")
        right.barh(places, np.diagonal(shares), color="#30658e")
        right.axvline(found[way]["mean"], color="#444", linewidth=1, linestyle="--")
        right.set_xlim(0, 1)
        left.set_title(f"{way}: class (row) taken for (column)", fontsize=9)
        right.set_title(f"{way}: right of each class (all: {found[way]['mean']:.3f})", fontsize=9)
        labelled = len(classes) <= MAX_NAMED_CLASSES
        left.set_xticks(places if labelled else [], classes if labelled else [], rotation=90, fontsize=7)
        left.set_yticks(places if labelled else [], classes if labelled else [], fontsize=7)
        right.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def write_report(
    path: Path,
    *,
    title: str,
    notes: Sequence[str],
    curves: bytes,
    tables: Mapping[str, Mapping[str, Any]],
    manifest: Manifest,
    clips: Mapping[str, Sequence[ShownClip]],
) -> None:
    """Write the page.

    Args:
        notes: sentences below the title: what was run, where, with which command.
        curves: picture of `curves_png`.
        tables: {heading: {name: figure}}.
        manifest: of the shown clips.
        clips: {heading: clips side by side}.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", *(f'<p class="note">{html.escape(note)}</p>' for note in notes)]
    for heading, figures in tables.items():
        rows = "".join(
            f'<tr><td>{html.escape(name)}</td><td class="figure">{_shown(value)}</td></tr>'
            for name, value in figures.items()
        )
        parts.append(f"<h2>{html.escape(heading)}</h2><table>{rows}</table>")
    parts.append(f'<h2>Training</h2><img class="curves" alt="Loss curves" src="{_inline(curves)}">')
    for heading, shown in clips.items():
        figures = "".join(_figure(manifest, clip) for clip in shown)
        parts.append(f'<h2>{html.escape(heading)}</h2><div class="clips">{figures}</div>')
    path.write_text(_page(title, parts), encoding="utf-8")


def write_evaluation(path: Path, results: Sequence[Mapping[str, Any]], *, tables: str) -> None:
    """Write a page of evaluations: what was compared in words, then of each result the confusions, where there are any.

    Args:
        results: as tools/evaluate.py writes them.
        tables: the words of `avssl.evaluate.table.compare`.
    """
    title = "Evaluation"
    parts = [f"<h1>{title}</h1><pre>{html.escape(tables)}</pre>"]
    for result in results:
        name = f"{result['protocol']} on {result['manifest']}, {result['weights']}"
        facts = ", ".join(f"{key} {value}" for key, value in {**result["versions"], "date": result["date"]}.items())
        parts.append(f'<h2>{html.escape(name)}</h2><p class="note">{html.escape(facts)}</p>')
        if predicts_classes(result):
            parts.append(
                f'<img class="curves" alt="Confusions: {html.escape(name)}" src="{_inline(confusion_png(result))}">'
            )
    path.write_text(_page(title, parts), encoding="utf-8")


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _figure(manifest: Manifest, clip: ShownClip) -> str:
    name = f"{manifest.column('label')[clip.row]} ({Path(str(manifest.column('path')[clip.row])).name})"
    try:
        picture = (
            f'<img alt="{html.escape(clip.role)}: {html.escape(name)}" src="{_inline(clip_png(manifest, clip.row))}">'
        )
    except DecodeError as error:
        picture = f"<p>{html.escape(str(error))}</p>"
    caption = f"<b>{html.escape(clip.role)}</b>{html.escape(name)}<br>{html.escape(clip.note)}"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else html.escape(str(value))


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _png(figure: plt.Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
