"""Reference clips with their neighbors, shown by a middle frame above a spectrogram.

Letters: n clips with vectors, D dimensions, N rows of the manifest.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

from avssl.data.manifest import Manifest
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.media.reader import DecodeError
from avssl.methods.base import Method
from avssl.report.page import html
from avssl.retrieval.store import StoreError, read_store
from avssl.structs import MODALITIES
from avssl.transforms.audio import log_mel
from avssl.weights.features import extract
from avssl.weights.load import Pretrained

WIDTH, SOUND_HEIGHT, LINE = 234, 100, 16  # of a picture: pixels
SEED = 0  # draws the references
MAX_EXTRACTED = 200  # clips embedded for a run without memory bank: some seconds on a CPU
NUM_POSITIVES = 2  # shown of each reference
SIMILAR_FRACTION = 0.05  # nearest clips that count as similar


@dataclass(frozen=True)
class Vectors:
    """Vectors that are searched for neighbors."""

    ids: np.ndarray  # (n,) int64 rows of the manifest
    z: Mapping[str, Tensor]  # {modality: (n, D) float32 unit vectors}, of those that the run has an encoder for
    has: Mapping[str, Tensor]  # {modality: (n,) bool}: clips that have it; the others' vectors mean nothing
    source: str  # description

    def at(self, rows: np.ndarray) -> "Vectors":
        """Only the clips whose row is marked in `rows` (N,) bool."""
        keep = torch.from_numpy(rows[self.ids])
        z, has = ({modality: each[keep] for modality, each in of.items()} for of in (self.z, self.has))
        return Vectors(self.ids[keep.numpy()], z, has, self.source)


@dataclass(frozen=True)
class ShownClip:
    """A clip on the page and its row of the manifest."""

    role: str
    row: int
    note: str


def vectors_of_banks(method: Method) -> Vectors | None:
    """The memory banks of a method, or of the first of its parts that has some; None without any."""
    for part in (method, *getattr(method, "parts", {}).values()):
        banks = getattr(part, "banks", {})
        banks = {modality: bank for modality, bank in banks.items() if modality in MODALITIES and bank.valid.any()}
        if banks:
            return Vectors(
                ids=np.arange(len(next(iter(banks.values())).z)),
                z={modality: bank.z.float().cpu() for modality, bank in banks.items()},
                has={modality: bank.valid.cpu() for modality, bank in banks.items()},
                source="the memory banks at the end of the run, running means of embeddings of augmented clips",
            )
    return None


def vectors_of_store(folder: Path, *, manifest_hash: str) -> Vectors:
    """Embeddings written by avssl embed. Raises StoreError: as `read_store`, or they are of another manifest."""
    store = read_store(folder)
    if store.meta.manifest_hash != manifest_hash:
        raise StoreError(f"the embeddings in {folder} are of another manifest than the run's: extract its clips")
    modalities = [
        modality for modality in MODALITIES if modality in store.meta.modalities and store.has[modality].any()
    ]
    everything = np.arange(len(store))
    return Vectors(
        ids=store.ids,
        z={modality: store.vectors[modality].take(everything) for modality in modalities},
        has={modality: torch.tensor(store.has[modality]) for modality in modalities},
        source=f"the embeddings in {folder}",
    )


def vectors_of_some(pretrained: Pretrained, manifest: Manifest, rows: np.ndarray) -> Vectors:
    """Embeddings computed now for at most MAX_EXTRACTED random rows of `rows` (n,): head outputs where every encoder
    has a head, else encoder outputs."""
    drawn = np.sort(np.random.default_rng(SEED).permutation(rows)[:MAX_EXTRACTED])
    found = extract(pretrained, manifest, drawn, num_clips=1)
    by_heads = set(pretrained.encoders) <= set(pretrained.heads)
    vectors = found.embedding if by_heads else found.features
    modalities = [modality for modality in pretrained.encoders if found.has(modality).any()]
    what = "outputs of the heads" if by_heads else "outputs of the encoders"
    return Vectors(
        ids=found.ids,
        z={modality: F.normalize(torch.from_numpy(vectors[modality]), dim=1) for modality in modalities},
        has={modality: torch.from_numpy(found.has(modality)) for modality in modalities},
        source=f"{what} for one clip of each of {len(found.ids)} videos, extracted for this page",
    )


def reference_clips(vectors: Vectors, targets: np.ndarray, *, num: int = 3) -> dict[str, list[ShownClip]]:
    """Random clips, of different classes if labeled (targets (N,), negative = unlabeled), with their neighbors: by
    agreement, by video only and by audio only, or by the single modality.

    Returns:
        {heading: reference and neighbors}; empty with fewer than three clips to choose from.
    """
    modalities = list(vectors.z)
    if not modalities:  # no clip was readable
        return {}
    usable = torch.stack([*vectors.has.values()]).all(dim=0)  # (n,)
    if len(modalities) == 2 and usable.sum() < 3:
        modalities = [max(modalities, key=lambda modality: int(vectors.has[modality].sum()))]
        usable = vectors.has[modalities[0]]
    if usable.sum() < 3:
        return {}
    drawn = np.random.default_rng(SEED).permutation(np.flatnonzero(usable.numpy()))
    references: list[int] = []
    for place in drawn.tolist():
        known = [targets[vectors.ids[each]] for each in references]
        if len(references) < num and (targets[vectors.ids[place]] < 0 or targets[vectors.ids[place]] not in known):
            references.append(place)
    return {
        f"Reference {number}": _neighbors(vectors, modalities, usable, place)
        for number, place in enumerate(references, 1)
    }


def _neighbors(vectors: Vectors, modalities: Sequence[str], usable: Tensor, place: int) -> list[ShownClip]:
    """The reference at `place`, then its neighbors, each once."""
    cosines = {modality: vectors.z[modality] @ vectors.z[modality][place] for modality in modalities}  # (n,) each
    free = usable.clone()
    free[place] = False
    clips = [ShownClip("Reference", int(vectors.ids[place]), "")]
    for role, score in _wanted(cosines, free):
        best = int(score.masked_fill(~free, -torch.inf).argmax())
        if not free[best] or score[best] == -torch.inf:
            continue
        free[best] = False
        words = ", ".join(f"{modality} {_place(cosines[modality], usable, place, best)}" for modality in modalities)
        clips.append(ShownClip(role, int(vectors.ids[best]), f"cosine: {words}"))
    return clips


def _place(cosines: Tensor, usable: Tensor, place: int, best: int) -> str:
    """The cosine of clip `best`, and which share of the other clips is at least as near to the one at `place`."""
    others = usable.clone()
    others[place] = False
    nearer = float((cosines[others] >= cosines[best]).float().mean())
    share = f"{100 * nearer:.0f}" if nearer >= 0.1 else f"{100 * nearer:.2g}"
    return f"{float(cosines[best]):.2f} (nearest {share} %)"


def _wanted(cosines: Mapping[str, Tensor], free: Tensor) -> list[tuple[str, Tensor]]:
    """(role, score (n,)) of every neighbor; each role goes to the free clip with the largest score."""
    if len(cosines) == 1:
        ((modality, cosine),) = cosines.items()
        return [(f"Near in {modality}", cosine)] * (NUM_POSITIVES + 1)
    video, audio = cosines["video"], cosines["audio"]
    num_alike = min(int(free.sum()), max(NUM_POSITIVES + 1, int(free.sum() * SIMILAR_FRACTION)))
    video_only, audio_only = (
        torch.where(one >= one[free].topk(num_alike).values[-1], one - other, -torch.inf)
        for one, other in ((video, audio), (audio, video))
    )
    return [
        *[("Positive by agreement", torch.minimum(video, audio))] * NUM_POSITIVES,
        ("Looks alike, sounds different", video_only),
        ("Sounds alike, looks different", audio_only),
    ]


def clips_html(manifest: Manifest, clips: Sequence[ShownClip]) -> str:
    """Clips in a row; unreadable ones show the reason."""
    figures = []
    for clip in clips:
        path, label = str(manifest.column("path")[clip.row]), manifest.column("label")[clip.row]
        name = Path(path).name if label is None else f"{label} ({Path(path).name})"
        image, error = b"", ""
        try:
            image = clip_png(manifest, clip.row)
        except (DecodeError, OSError) as found:
            error = str(found)
        figures.append((clip.role, name, clip.note, image, path, error))
    return html.clips(figures)


def clip_png(manifest: Manifest, row: int) -> bytes:
    """The middle frame of a clip, if any, above the log-mel spectrogram of its audio, with its times.

    Raises:
        DecodeError: the file cannot be read.
    """
    has_video, has_audio = bool(manifest.has_video[row]), bool(manifest.has_audio[row])
    start, end = (float(each) for each in manifest.bounds("video" if has_video else "audio")[row])
    rate = 16_000
    frames, samples = read_clip(
        manifest.root / manifest.column("path")[row],
        video=[VideoWindow(start=(start + end) / 2, duration=0.04, fps=25.0)] if has_video else [],
        audio=[AudioWindow(start=start, duration=max(end - start, 0.1), sample_rate=rate)] if has_audio else [],
    )
    height = frames[0].data.shape[1] * WIDTH // frames[0].data.shape[2] if has_video else LINE
    page = Image.new("RGB", (WIDTH, height + SOUND_HEIGHT + LINE), "white")
    draw = ImageDraw.Draw(page)
    if has_video:
        page.paste(Image.fromarray(frames[0].data[0]).resize((WIDTH, height)))
    else:
        draw.text((WIDTH // 2, 2), "no video", "black", anchor="ma")
    if has_audio:
        spectrogram = log_mel(
            torch.from_numpy(samples[0].data)[None], sample_rate=rate, n_fft=512, hop_seconds=0.01, num_mels=64
        )
        bands = spectrogram[0, 0].T.flip(0)  # (64, S), high above low
        levels = ((bands - bands.min()) / (bands.max() - bands.min()).clamp(min=1e-6)).numpy()
        colored = Image.fromarray(colormaps["magma"](levels, bytes=True)[..., :3])
        page.paste(colored.resize((WIDTH, SOUND_HEIGHT)), (0, height))
    else:
        draw.text((WIDTH // 2, height + SOUND_HEIGHT // 2), "no audio", "black", anchor="ma")
    draw.text((2, page.height - 1), f"{start:.2f} s", "black", anchor="ld")
    draw.text((WIDTH - 2, page.height - 1), f"{end:.2f} s", "black", anchor="rd")
    buffer = io.BytesIO()
    page.save(buffer, format="png")
    return buffer.getvalue()
