"""Make the toy sets: small clips of things that move and sound, for demos and tests on two CPU cores.

    avssl datasets toy OUT                                # a minute or two; again: says that the sets are there
    avssl datasets toy OUT --seed 1 --train 60 --test 24  # a small one

What lives here: everything that is drawn in a toy clip, as tables (shapes, motions, sweeps, timbres) and a few
functions that render them. What does not: encoding (avssl/media/encode.py) and the manifest (avssl/data).

toy/          24 classes with sound. A class is a motion in a size that goes with a sweep in a register: small things
              sound high, large things low; in each size class i of 12 has motion i // 2 and sweep ((i + 1) // 2) % 6.
              So every motion occurs in two classes that sound different and every sweep in two that look different:
              one modality alone names at most half of the clips. A class has two looks, as each motion is made by two
              shapes, and two sounds, as each sweep is heard in two rhythms. Motions share a material in pairs, sweeps
              a timbre; to tell those of a pair apart, the order of frames and of pitches must be seen and heard: all
              sweeps pass the same octave evenly.
toy_actions/  the same 6 motions, silent, with new shapes, any size and any material: the target of a transfer.

Picture and sound of one recording are tied by cues that say nothing of its class, as in real video: tempo (over a
factor of 2.5), phase (the accent falls on the moment when the ball hits the ground, the kite points up, the plus is
largest) and ambience (the hue of the ground goes with the pitch of a hum). With --untied the sound has cues of its own,
drawn alike: nothing but the class ties it to the picture. One clip in ten carries a foreign sound instead, one that no
class of its look has, with cues of its own. The manifest says which (`foreign`), and the cues.

With --cluttered a training clip of toy is as nobody has chosen it: up to three things, anywhere, each moving by itself,
or none; where there is one, the first is that of the class.

Nothing else in a clip depends on its class: texture, place, direction, tilt, frame rate and camera shake of the
picture; loudness and noise of the sound.

Letters: T frames, S samples, P size of a frame in pixels. Phases are in cycles of the motion, 0 at the accent.
"""

import argparse
import colorsys
import dataclasses
import hashlib
import json
import multiprocessing
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from avssl.data.check import build_table
from avssl.data.manifest import write_manifest
from avssl.data.recipes.build import print_training
from avssl.files import Parser, WriteError, print_result
from avssl.media.encode import write_clip

SECONDS = 3.0
PIXELS = 64
SAMPLE_RATE = 16_000
FRAME_RATES = (10, 20)  # frames per second, lowest and highest
PERIODS = (0.4, 1.0)  # seconds of one cycle of a motion, shortest and longest
FOREIGN_SHARE = 0.1
SPLITS = ("train", "test")
# what is drawn from keys (seed, stream, split, ...)
STREAMS = ("clip", "silent clip", "foreign", "shapes", "cues", "things")
NUM_GROUNDS = 4  # textures: few, so that a clip of so small a set cannot be known by its own
HUES = (0.0, 0.8)  # of the ground for the lowest and the highest ambience, in turns: red to magenta, ends apart
HUM = (90, 360)  # Hz, of the hum for the lowest and the highest ambience
MOST_THINGS = 3  # in a cluttered clip
CENTERED, ANYWHERE = 0.05, 0.4  # sides of the frame by which the middle of a motion is off the frame's, at most
SPRITE = 128  # pixels of the square on which a shape is drawn before it is moved

# ---- looks: a shape is its radius at equal angles clockwise from the top; a motion gives its place per phase

SHAPES = {
    "ball": (1.0,) * 32,
    "kite": (1.5, 0.75, 0.75, 0.75),
    "star": (1.0, 0.45) * 5,
    "bone": (1.0, 1.0, 0.35, 0.35, 1.0, 1.0, 0.35, 0.35),
    "fin": (1.6, 0.5, 0.5),
    "plus": (1.0, 1.0, 0.45) * 4,
    "needle": (1.8, 0.35) * 2,
    "clover": (1.1, 1.1, 0.4) * 3,
    "egg": tuple(
        1 / np.hypot(np.cos(angle) / 1.5, np.sin(angle) / 0.8) for angle in np.linspace(0, 2 * np.pi, 24, False)
    ),
    "wheel": (1.0, 0.6) * 9,
    "hook": (1.5, 1.3, 0.4, 0.4, 0.4, 0.4, 1.3),
    "roof": (1.4, 1.0, 0.3, 1.0),
}
NEW_SHAPES = {  # of toy_actions
    "triangle": (1.0,) * 3,
    "square": (1.0,) * 4,
    "sparkle": (1.0, 0.4) * 4,
    "leaf": (1.4, 0.8, 0.5, 0.4, 0.5, 0.8),
    "gear": (1.0, 1.0, 0.7, 0.7) * 6,
    "shell": tuple(np.linspace(0.5, 1.2, 24)),
}


def _triangle(phase: np.ndarray) -> np.ndarray:
    """Triangle wave: 1 at phase 0, -1 at 0.5, straight between."""
    return 4 * np.abs(phase % 1 - 0.5) - 1


# phase (T,) -> x and y in amplitudes (y points down), angle in turns, log2 of the size
MOTIONS = {
    "bouncing": lambda phase: (0 * phase, 2 * (2 * (phase % 1) - 1) ** 2 - 1, 0 * phase, 0 * phase),
    "spinning": lambda phase: (0 * phase, 0 * phase, phase, 0 * phase),
    "swaying": lambda phase: (np.cos(2 * np.pi * phase), 0 * phase, 0.07 * np.cos(2 * np.pi * phase), 0 * phase),
    "orbiting": lambda phase: (np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase), 0 * phase, 0 * phase),
    "zigzagging": lambda phase: (_triangle(phase), _triangle(2 * phase), 0 * phase, 0 * phase),
    "pulsing": lambda phase: (0 * phase, 0 * phase, 0 * phase, 0.6 * np.cos(2 * np.pi * phase)),
}
SIZES = {"small": (0.10, 0.13), "large": (0.20, 0.25)}  # radius in sides of the frame, least and largest
MATERIALS = ("pale", "dark", "vivid")  # of two motions each
# (motion, shape, size): a motion is made by two shapes, so that the next two looks are of the next motion
LOOKS = tuple(
    (motion, shape, size)
    for size in SIZES
    for number, motion in enumerate(MOTIONS)
    for shape in list(SHAPES)[number :: len(MOTIONS)]
)

# ---- sounds: a sweep is the course of an event's pitch; a rhythm says where in the cycle the events are

# u (n,) from 0 to 1 through an event -> octaves above its pitch; all pass the same octave at the same pace, so that the
# long-time spectrum does not tell them apart
SWEEPS = {
    "rising": lambda u: u - 0.5,
    "falling": lambda u: 0.5 - u,
    "trilling": lambda u: _triangle(4 * u) / 2,
    "arching": lambda u: -_triangle(u) / 2,
    "dipping": lambda u: _triangle(u) / 2,
    "wavering": lambda u: _triangle(2 * u) / 2,
}
TIMBRES = {  # amplitudes of a tone's multiples; of two sweeps each
    "flute": (1, 0.05, 0.02, 0.02),
    "string": (0.5, 1, 0.3, 0.1),
    "reed": (0.4, 0.1, 0.8, 0.1, 0.5),
}
HUM_TIMBRES = ((1, 0.1, 0.3, 0.05), (0.3, 0.5, 0.1, 0.1), (0.7, 0.3, 0.05, 0.2))  # any of them
RHYTHMS = {"march": (0.0, 0.5), "gallop": (0.0, 0.3)}  # phases of the accent and of the second, weaker event
EVENT = 0.26  # length of an event in cycles
WEAK = 0.6  # amplitude of the second event, of the accent's
REGISTERS = {"high": (850, 1200), "low": (350, 500)}  # Hz, middle of an event, least and largest; each has its own
# (sweep, rhythm, register), in the order of LOOKS
SOUNDS = tuple((sweep, rhythm, register) for register in REGISTERS for sweep in SWEEPS for rhythm in RHYTHMS)
HUM_LEVEL = 0.1  # amplitude of the hum, of the accent's

NUM_CLASSES = 24


@dataclass(frozen=True)
class Cues:
    """What a picture shows and a sound lets hear of the single recording, and not of its class.

    period: seconds of one cycle of the motion or rhythm.
    phase: in cycles, of the first frame or sample.
    ambience: from 0 to 1; hue of the ground, pitch of the hum.
    """

    period: float
    phase: float
    ambience: float

    def cycles(self, seconds: np.ndarray) -> np.ndarray:
        return self.phase + seconds / self.period


@dataclass(frozen=True)
class Clip:
    """One clip to be made; with the seed it determines every byte.

    path is relative to the folder of its set; look is motion, shape, size and sound is sweep, rhythm, register; sound
    and heard are None in the silent set; foreign says that `sound` is none of the label; things: what a cluttered clip
    shows instead of the look.
    """

    path: str
    label: str
    split: str
    index: int
    look: tuple[str, str, str]
    material: str
    seen: Cues
    sound: tuple[str, str, str] | None = None
    heard: Cues | None = None
    foreign: bool = False
    things: tuple[tuple[str, str, str], ...] | None = None


# ---- what is in a set


def toy_class(number: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The looks and the sounds of a class (indices into LOOKS and SOUNDS): in each size a cycle whose neighbors share
    the motion or the sweep."""
    size, number = divmod(number, NUM_CLASSES // 2)
    motion, sweep = number // 2, (number + 1) // 2 % len(SWEEPS)
    look, sound = 2 * (len(MOTIONS) * size + motion), 2 * (len(SWEEPS) * size + sweep)
    return (look, look + 1), (sound, sound + 1)


def toy_clips(split: str, num_clips: int, *, seed: int, tied: bool = True) -> list[Clip]:
    """The clips of one split of the toy set: classes, and in each its looks and sounds, take turns; one clip in ten
    gets a foreign sound. `tied`: a sound has the cues of its picture."""
    rng = np.random.default_rng((seed, STREAMS.index("foreign"), SPLITS.index(split)))
    num_foreign = round(FOREIGN_SHARE * num_clips)
    foreign = set(rng.permutation(num_clips)[:num_foreign].tolist())
    classes = [toy_class(number) for number in range(NUM_CLASSES)]
    clips = []
    for index in range(num_clips):
        turn, number = divmod(index, NUM_CLASSES)
        looks, sounds = classes[number]
        look, sound = looks[turn % 2], sounds[turn // 2 % 2]
        if index in foreign:
            known = {own for looks, sounds in classes if look in looks for own in sounds}
            sound = int(rng.choice([other for other in range(len(SOUNDS)) if other not in known]))
        seen, other = draw_cues(split, index, seed=seed)
        heard = seen if tied and index not in foreign else other
        motion, _, size = LOOKS[look]
        label = f"{size}-{motion}_{SOUNDS[sounds[0]][0]}"
        path = f"{split}/{label}/{index:05d}.mp4"
        clips.append(
            Clip(
                path,
                label,
                split,
                index,
                LOOKS[look],
                material_of(motion),
                seen,
                SOUNDS[sound],
                heard,
                index in foreign,
            )
        )
    return clips


def cluttered_clips(split: str, num_clips: int, *, seed: int, tied: bool = True) -> list[Clip]:
    """`toy_clips`; those of training show from none to MOST_THINGS things, all numbers alike often."""
    clips = toy_clips(split, num_clips, seed=seed, tied=tied)
    if split != "train":
        return clips
    rng = np.random.default_rng((seed, STREAMS.index("things")))
    looks = rng.integers(len(LOOKS), size=(num_clips, MOST_THINGS - 1))
    numbers = rng.permutation(np.arange(num_clips) % (MOST_THINGS + 1)).tolist()
    return [
        dataclasses.replace(clip, things=(clip.look, *(LOOKS[other] for other in others))[:number])
        for clip, others, number in zip(clips, looks, numbers, strict=True)
    ]


def action_clips(split: str, num_clips: int, *, seed: int) -> list[Clip]:
    """The clips of one split of the silent set; classes are motions, any new shape may make any of them."""
    rng = np.random.default_rng((seed, STREAMS.index("shapes"), SPLITS.index(split)))
    motions = list(MOTIONS)
    traits = zip(*(rng.choice(list(each), num_clips).tolist() for each in (NEW_SHAPES, SIZES, MATERIALS)), strict=True)
    clips = []
    for index, (shape, size, material) in enumerate(traits):
        label = motions[index % len(motions)]
        seen, _ = draw_cues(split, index, seed=seed)
        path = f"{split}/{label}/{index:05d}.mp4"
        clips.append(Clip(path, label, split, index, (label, shape, size), material, seen))
    return clips


def material_of(motion: str) -> str:
    return MATERIALS[list(MOTIONS).index(motion) // 2]


def timbre_of(sweep: str) -> str:
    return list(TIMBRES)[list(SWEEPS).index(sweep) // 2]


def draw_cues(split: str, index: int, *, seed: int) -> tuple[Cues, Cues]:
    """Two draws for a clip: of its picture, and of a sound that is not tied to it."""
    rng = np.random.default_rng((seed, STREAMS.index("cues"), SPLITS.index(split), index))
    seen, other = (Cues(_log_uniform(rng, *PERIODS), rng.uniform(), rng.uniform()) for _ in range(2))
    return seen, other


# ---- drawing one clip


def render_clip(clip: Clip, *, seed: int) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Draw one clip -> frames (T, P, P, 3) uint8, samples (S,) float32 or None in the silent set, frames per second."""
    stream = STREAMS.index("clip" if clip.sound else "silent clip")
    rng = np.random.default_rng((seed, stream, SPLITS.index(clip.split), clip.index))
    fps = int(rng.integers(*FRAME_RATES, endpoint=True))
    seconds = np.arange(round(SECONDS * fps)) / fps
    if clip.things is None:
        frames = render_frames(rng, *clip.look, clip.material, clip.seen, seconds)
    else:
        frames = render_things(rng, clip.things, clip.seen, seconds)
    if clip.sound is None:
        return frames, None, fps
    samples = render_samples(rng, *clip.sound, clip.heard, np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE)
    return frames, samples, fps


def make_clip(clip: Clip, *, root: Path, seed: int) -> None:
    """Render and write one clip; it appears under its name only when it is whole."""
    frames, samples, fps = render_clip(clip, seed=seed)
    path = root / clip.path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    write_clip(unfinished, frames, fps=fps, samples=samples, sample_rate=SAMPLE_RATE, gop=15)
    unfinished.replace(path)


def render_frames(
    rng: np.random.Generator, motion: str, shape: str, size: str, material: str, cues: Cues, seconds: np.ndarray
) -> np.ndarray:
    """(T,) times -> (T, P, P, 3) uint8: the shape on a textured ground, both under a shaking camera."""
    sprite = draw_sprite(rng, shape, color_of(material, cues))
    ground = draw_ground(np.random.default_rng(rng.integers(NUM_GROUNDS)), color_of("ground", cues), margin=8)
    course = draw_course(rng, motion, size, cues, seconds, off=CENTERED)
    shake = shake_camera(rng, seconds)
    frames = shift_ground(ground, shake)
    put_on(frames, sprite, *course, shake)
    return frames


def render_things(
    rng: np.random.Generator, things: Sequence[tuple[str, str, str]], cues: Cues, seconds: np.ndarray
) -> np.ndarray:
    """(T,) times -> (T, P, P, 3) uint8: several things (motion, shape, size) or none, as `render_frames`; the first has
    the cues, the others move at a pace of their own."""
    shake = shake_camera(rng, seconds)
    ground = draw_ground(np.random.default_rng(rng.integers(NUM_GROUNDS)), color_of("ground", cues), margin=8)
    frames = shift_ground(ground, shake)
    for motion, shape, size in things:
        sprite = draw_sprite(rng, shape, color_of(material_of(motion), cues))
        put_on(frames, sprite, *draw_course(rng, motion, size, cues, seconds, off=ANYWHERE), shake)
        cues = Cues(_log_uniform(rng, *PERIODS), rng.uniform(), cues.ambience)
    return frames


def color_of(what: str, cues: Cues) -> np.ndarray:
    """(3,) RGB from 0 to 255 of a material, or of the ground."""
    hue = HUES[0] + (HUES[1] - HUES[0]) * cues.ambience
    return {
        "ground": 255 * np.array(colorsys.hsv_to_rgb(hue, 0.6, 0.75)),
        "pale": np.full(3, 220),
        "dark": np.full(3, 35),
        "vivid": 255 * np.array(colorsys.hsv_to_rgb((hue + 0.5) % 1, 0.9, 0.8)),  # far from the ground's color
    }[what]


def draw_course(
    rng: np.random.Generator, motion: str, size: str, cues: Cues, seconds: np.ndarray, *, off: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T,) times -> places (T, 2) in pixels, scales (T,) of the sprite, angles (T,) in degrees, of a camera at rest."""
    radius = rng.uniform(*SIZES[size]) * PIXELS
    amplitude = rng.uniform(0.18, 0.26) * PIXELS
    center = PIXELS / 2 + rng.uniform(-off, off, 2) * PIXELS
    side, tilt = rng.choice((-1, 1)), rng.uniform(-20, 20)
    x, y, turns, octaves = MOTIONS[motion](cues.cycles(seconds))
    places = center + amplitude * np.stack([side * x, y], axis=1)
    return places, radius * 2**octaves / (SPRITE / 4), tilt + 360 * side * turns  # of radius 1: a quarter of the sprite


def shift_ground(ground: np.ndarray, shake: np.ndarray) -> np.ndarray:
    """The ground (P + 16, P + 16, 3) under a camera that is shifted by (T, 2) pixels -> (T, P, P, 3) uint8."""
    shifts = [np.float64([[1, 0, x - 8], [0, 1, y - 8]]) for x, y in shake]
    return np.stack([cv2.warpAffine(ground, shift, (PIXELS, PIXELS), flags=cv2.INTER_LINEAR) for shift in shifts])


def put_on(
    frames: np.ndarray,
    sprite: np.ndarray,
    places: np.ndarray,
    scales: np.ndarray,
    angles: np.ndarray,
    shake: np.ndarray,
) -> None:
    """Draw a sprite over frames (T, P, P, 3), in place."""
    for frame, place, scale, angle in zip(frames, places + shake, scales, angles, strict=True):
        turn = cv2.getRotationMatrix2D((SPRITE / 2, SPRITE / 2), -angle, scale)  # clockwise for positive angles
        turn[:, 2] += place - SPRITE / 2
        thing = cv2.warpAffine(sprite, turn, (PIXELS, PIXELS), flags=cv2.INTER_LINEAR)
        cover = thing[..., 3:].astype(np.uint16)
        frame[:] = np.minimum(thing[..., :3] + frame * (255 - cover) // 255, 255)


def draw_sprite(rng: np.random.Generator, shape: str, color: np.ndarray) -> np.ndarray:
    """A shape in two tones of a color -> (SPRITE, SPRITE, 4) uint8, colors multiplied by the cover in [..., 3]."""
    radii = np.array(SHAPES[shape] if shape in SHAPES else NEW_SHAPES[shape])
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    corners = radii[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)  # (n, 2)
    x, y = corners.T
    area = abs((x * np.roll(y, 1) - y * np.roll(x, 1)).sum()) / 2
    corners *= np.sqrt(np.pi / area)  # every shape covers as much as a disc of radius 1

    cover = np.zeros((SPRITE, SPRITE), np.uint8)
    points = np.rint((SPRITE / 2 + SPRITE / 4 * corners) * 16).astype(np.int32)  # in sixteenths of a pixel
    cv2.fillPoly(cover, [points], 255, lineType=cv2.LINE_AA, shift=4)

    row, column = np.mgrid[:SPRITE, :SPRITE] / SPRITE
    direction, frequency = rng.integers(4) * np.pi / 4, 24
    wave = np.sin(frequency * (np.cos(direction) * row + np.sin(direction) * column))
    if shape in NEW_SHAPES:  # checks instead of stripes
        wave = wave * np.sin(frequency * (np.sin(direction) * row - np.cos(direction) * column))
    tones = np.clip(color + 35 * np.sign(wave)[..., None], 0, 255)
    return np.dstack([tones * (cover[..., None] / 255), cover]).astype(np.uint8)


def draw_ground(rng: np.random.Generator, color: np.ndarray, *, margin: int) -> np.ndarray:
    """Cloudy texture around a color -> (P + 2 margin, P + 2 margin, 3) uint8."""
    size = PIXELS + 2 * margin
    ground = np.broadcast_to(color, (size, size, 3))
    for cells, contrast in ((4, 16), (rng.integers(8, 24), 8)):
        noise = contrast * rng.standard_normal((cells, cells, 3))
        ground = ground + cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(ground, 0, 255).astype(np.uint8)


def shake_camera(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """Shift of the whole picture at times (T,) -> (T, 2) pixels: three slow swings in x and in y."""
    strength, speed, start = rng.uniform(0, 1, (3, 3, 2, 1))  # (3 swings, x and y, 1) each
    return (0.008 * PIXELS * strength * np.sin(2 * np.pi * ((0.3 + 1.5 * speed) * seconds + start))).sum(axis=0).T


def render_samples(
    rng: np.random.Generator, sweep: str, rhythm: str, register: str, cues: Cues, seconds: np.ndarray
) -> np.ndarray:
    """(S,) times -> (S,) float32 in [-1, 1]: the events of the rhythm over a hum and noise."""
    cycles = cues.cycles(seconds)
    loudness = np.zeros_like(cycles)
    pitch = np.full_like(cycles, REGISTERS[register][0])  # Hz
    for begin, accent in zip(RHYTHMS[rhythm], (1, WEAK), strict=True):
        number, u = np.divmod(cycles - begin, 1)  # of the event, counted from the first cycle
        u /= EVENT
        sounding = u < 1
        centers = _log_uniform(rng, *REGISTERS[register], size=int(np.ptp(number)) + 1)[
            (number - number.min()).astype(int)
        ]
        pitch[sounding] = (centers * 2 ** SWEEPS[sweep](u))[sounding]
        loudness[sounding] = accent * np.minimum(1, 12 * np.minimum(u, 1 - u)[sounding])
    voice = loudness * _tone(pitch, TIMBRES[timbre_of(sweep)])

    strength = HUM_TIMBRES[rng.integers(len(HUM_TIMBRES))]
    hum = _tone(np.full_like(cycles, HUM[0] * (HUM[1] / HUM[0]) ** cues.ambience), strength)
    noise = rng.standard_normal(len(cycles))
    mixed = voice + HUM_LEVEL * hum + _log_uniform(rng, 0.01, 0.1) * noise
    return (_log_uniform(rng, 0.2, 0.9) * mixed / np.abs(mixed).max()).astype(np.float32)


def _tone(frequencies: np.ndarray, strength: tuple[float, ...]) -> np.ndarray:
    """(S,) Hz -> (S,) tone of about unit amplitude with the given overtones."""
    angle = 2 * np.pi * np.cumsum(frequencies) / SAMPLE_RATE
    return sum(a * np.sin(n * angle) for n, a in enumerate(strength, 1)) / sum(strength)


def _log_uniform(rng: np.random.Generator, low: float, high: float, size: int | None = None) -> float | np.ndarray:
    return low * (high / low) ** rng.uniform(size=size)


# ---- making a set


def make_set(clips: list[Clip], *, root: Path, parameters: dict[str, object], num_workers: int) -> int:
    """Make the clips of a set that `root` does not hold yet, and its manifest.parquet.

    Args:
        clips: the whole set.
        root: its folder; toy.json in it says with which parameters it was begun.
        parameters: what determines the clips; a set begun with others is removed and made anew.
        num_workers: processes; their number changes no byte.

    Returns:
        How many clips had to be made: 0 when the set was there.

    Raises:
        ValueError: root holds files but is not a set made here.
    """
    record = root / "toy.json"
    if not record.exists() and root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} holds files that toy.py did not make: choose another OUT or empty that folder")
    text = json.dumps(parameters, indent=1)
    if record.exists() and record.read_text() != text:
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    record.write_text(text)  # before the first clip, so that a half-made set is known as ours and continued

    missing = [clip for clip in clips if not (root / clip.path).exists()]
    make = partial(make_clip, root=root, seed=parameters["seed"])
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), _one_thread) as pool:
        made = pool.map(make, missing, chunksize=8)
        for _ in tqdm(made, desc=str(root), total=len(missing), unit="clip", disable=not missing):
            pass
    manifest = root / "manifest.parquet"
    if missing or not manifest.exists():
        rows = [describe_clip(clip) for clip in sorted(clips, key=lambda clip: clip.path)]
        write_manifest(manifest, build_table(root, rows, num_workers=num_workers), root=root)
    return len(missing)


def describe_clip(clip: Clip) -> dict[str, object]:
    """The row of a clip in the manifest, before it is probed."""
    row = {"path": clip.path, "label": clip.label, "split": clip.split}
    row |= dict(zip(("motion", "shape", "size"), clip.look, strict=True)) | {"material": clip.material}
    row |= {} if clip.things is None else {"things": len(clip.things)}
    row |= {"period": clip.seen.period, "ambience": clip.seen.ambience}
    if clip.sound is None:
        return row
    sound = dict(zip(("sweep", "rhythm", "register"), clip.sound, strict=True))
    return row | sound | {"timbre": timbre_of(clip.sound[0]), "foreign": clip.foreign}


def _one_thread() -> None:
    cv2.setNumThreads(1)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for toy/ and toy_actions/")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    for name, default, content in (
        ("--train", 2400, "clips of toy to train on"),
        ("--test", 400, "clips of toy to test on"),
        ("--actions-train", 120, "clips of toy_actions to train on"),
        ("--actions-test", 120, "clips of toy_actions to test on"),
        ("--workers", 2, "processes"),
    ):
        parser.add_argument(name, type=_count, default=default, help=f"{content} (default: {default})")
    parser.add_argument("--no-next", action="store_true", help="do not say what may follow")
    parser.add_argument("--untied", action="store_true", help="no cue but the class ties a sound to its picture")
    parser.add_argument("--cluttered", action="store_true", help="training clips of toy show several things or none")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="PATH", type=Path, help="summary as JSON (default: stdout)"
    )
    given = parser.parse_args(arguments)
    if given.seed < 0:
        parser.error(f"--seed {given.seed} must be 0 or more")

    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()  # a changed recipe makes another set
    summary = {}
    toy = cluttered_clips if given.cluttered else toy_clips
    for name, clips_of, num_train, num_test in (
        ("toy", partial(toy, tied=not given.untied), given.train, given.test),
        ("toy_actions", action_clips, given.actions_train, given.actions_test),
    ):
        root = given.out / name
        clips = clips_of("train", num_train, seed=given.seed) + clips_of("test", num_test, seed=given.seed)
        parameters = {
            "seed": given.seed,
            "train": num_train,
            "test": num_test,
            "untied": given.untied,
            "cluttered": given.cluttered,
            "source": source,
        }
        try:
            num_made = make_set(clips, root=root, parameters=parameters, num_workers=given.workers)
        except (ValueError, OSError) as error:
            parser.error(str(WriteError(root, error) if isinstance(error, OSError) else error))
        print(f"{root}: {num_made} clips made, {len(clips) - num_made} were there already", file=sys.stderr)
        manifest = str(root / "manifest.parquet")
        summary[name] = parameters | {"clips": len(clips), "made": num_made, "manifest": manifest}
    if not given.no_next:
        print_training(summary["toy"]["manifest"], ["train"])
    if given.json:
        print_result(summary, f"summary: {given.json}", to=str(given.json))
    return 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
