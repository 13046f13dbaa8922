"""Read awkward and damaged files as preparing and training do, and count what became of each.

    python -m avssl.benchmark.hostile  (a worker: a job per line in, its verdict per line out, both JSON)

What lives here: the job on one file, the run over many in worker processes, and the table. What does not: the damage
(damage.py) and whether times are right (judge.py). The command is `python tools/hostile.py`.

A file is `read` with right times, or `refused` with a reason; all else is an error of ours: `hang` (over the time
limit), `crash` (the worker died), `other` (an exception that is no DecodeError), `wrong` (times that are not right).
"""

import re
import resource
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from avssl.benchmark.damage import SIZE, damaged_copies, make_clips
from avssl.benchmark.judge import Judge, Likeness, Shown, Truth, decode_plainly, index_digest, truth_of
from avssl.data.sampling import Span, draw_windows
from avssl.media.decode import AudioWindow, VideoWindow, read_clip
from avssl.media.probe import Probe, probe
from avssl.media.reader import DecodeError
from avssl.workers import Lost, run_jobs, serve

VERDICTS = ("read", "refused", "hang", "crash", "other", "wrong")
FAILURES = VERDICTS[2:]
NUM_CLIPS = 6  # drawn as training draws them
FPS, NUM_FRAMES, AUDIO_SECONDS, SAMPLE_RATE, OFFSET_SECONDS = 16, 8, 1.0, 24_000, 0.25
MEMORY_BYTES = 1 << 30  # that a worker may take at most, its libraries included
AWKWARD = "awkward"
REASONS = (  # pattern in a reason -> its class; the first that fits
    (r"is empty", "empty"),
    (r"no media file that can be opened", "not to be opened"),
    (r"larger than|longer than|more than", "asks for more than the limits"),
    (r"encrypted", "encrypted"),
    (r"no decoder exists", "no decoder for it"),
    (r"no video track|no sound track", "no track in it"),
    (r"no frame|cannot be decoded", "nothing in it decodes"),
)


def read_as_training_does(path: str | Path, judge: Judge | None, *, seed: int) -> tuple[str, str]:
    """Probe a file, read windows with the times that the manifest would hold, and show them to the judge.

    Returns:
        "read" and "", or "refused" and why.
    """
    facts = probe(path)
    if facts.status not in ("ok", "no_video") or (facts.status == "no_video" and facts.audio_start is None):
        return "refused", facts.reason
    try:
        for video, audio in _calls(facts, np.random.default_rng(seed)):
            frames, samples = read_clip(path, video=video, audio=audio)
            for window, read in zip(video, frames, strict=True):
                if judge is not None and window.crop is None:
                    judge.pictures(read, window.start + np.arange(NUM_FRAMES) / FPS)
            for read in samples:
                if judge is not None:
                    judge.sound(read, SAMPLE_RATE)
    except DecodeError as error:
        return "refused", error.reason
    return "read", ""


def _calls(facts: Probe, rng: np.random.Generator) -> Iterator[tuple[list[VideoWindow], list[AudioWindow]]]:
    """Windows of each call of `read_clip`: clips as training draws them, two views each; then past both ends; then all
    at once."""
    video = None if facts.status == "no_video" else Span(facts.video_start, facts.video_end)
    audio = None if facts.audio_start is None else Span(facts.audio_start, facts.audio_end)
    lengths = {"video_seconds": NUM_FRAMES / FPS, "audio_seconds": AUDIO_SECONDS, "max_offset_seconds": OFFSET_SECONDS}
    starts = [draw_windows(rng, video, audio, **lengths) for _ in range(NUM_CLIPS)]
    first, last = min((video or audio).start, (audio or video).start), max((video or audio).end, (audio or video).end)
    starts += [(first - 0.7, first - 0.7), (last - 0.3, last - 0.3), (last + 1, last + 1)]
    everything: tuple[list[VideoWindow], list[AudioWindow]] = ([], [])
    for picture, sound in starts:
        top, left = (float(value) for value in rng.uniform(0, 0.3, size=2))
        crops = [] if video is None else [None, (top, left, 0.6, 0.7)]
        windows = [VideoWindow(picture, NUM_FRAMES / FPS, FPS, crop, SIZE) for crop in crops]
        follows = 0 if windows else None
        sounds = [] if audio is None else [AudioWindow(sound, AUDIO_SECONDS, SAMPLE_RATE, follows)]
        yield windows, sounds
        everything[0].extend(windows[:1])
        everything[1].extend(AudioWindow(sound, AUDIO_SECONDS, SAMPLE_RATE) for _ in sounds)
    yield everything


def examine(job: dict[str, Any]) -> dict[str, Any]:
    """The verdict on one file.

    Args:
        job: path, seed; truths: the fields of `Truth` of the clip that it was and of those that pieces may come from,
            or none for a file of which nothing is known.

    Returns:
        verdict, reason, seconds (of reading), peak_bytes (of this process so far), counts of pictures and pieces.
    """
    path = Path(job["path"])
    plain = decode_plainly(path)
    truths = [Truth(**truth) for truth in job["truths"]]
    judge = Shown(truths[0], truths[1:], plain, index=index_digest(path)) if truths else Likeness(plain)
    since = time.perf_counter()
    try:
        verdict, reason = read_as_training_does(path, judge, seed=job["seed"])
    except Exception as error:  # what nobody thought of is what this looks for
        place = traceback.extract_tb(error.__traceback__)[-1]
        verdict, reason = "other", f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
    if judge.counts.wrong and verdict != "other":
        verdict, reason = "wrong", "; ".join(judge.counts.wrong[:5])
    return {
        "verdict": verdict,
        "reason": reason,
        "seconds": time.perf_counter() - since,
        "peak_bytes": peak_bytes(),
        "counts": {name: value for name, value in asdict(judge.counts).items() if name != "wrong"},
    }


def peak_bytes() -> int:
    """The most memory that this process ever had. Linux tells it of a process alone; getrusage has what its parent had
    when it started this one."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def run_hostile(
    folder: Path,
    *,
    number: int,
    seed: int,
    awkward: Path | None = None,
    num_workers: int = 1,
    timeout_seconds: float = 60.0,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Make the damaged copies, examine all files, and sum up.

    Args:
        folder: existing; the clips and their copies go there.
        number: of damaged copies.
        seed: of the damage.
        awkward: folder of further files.
        num_workers: processes.
        timeout_seconds: per file.
        keep: folder that gets the files which failed.

    Returns:
        kinds {kind: {files, and each of VERDICTS}}, reasons {class: files}, failures [{path, kind, verdict, reason}],
        pieces (of pictures and sound by what was found), peak_bytes, memory_bytes, slowest_seconds, seed, seconds.

    Raises:
        ValueError: `awkward` holds no file.
    """
    since = time.perf_counter()
    jobs, kinds = _awkward_jobs(awkward) if awkward else ([], [])
    clips = make_clips(folder)
    known = {clip.path: asdict(truth_of(clip)) for several in clips.values() for clip in several}
    (folder / "copies").mkdir()
    for i, copy in enumerate(damaged_copies(clips, folder / "copies", number=number, seed=seed)):
        truths = [known[path] for path in (copy.clip.path, *([copy.other.path] if copy.other else []))]
        jobs.append({"path": str(copy.path), "seed": i, "truths": truths})
        kinds.append(copy.path.suffix[1:])
    answers: list[dict[str, Any]] = [{}] * len(jobs)
    run = run_jobs(__spec__.name, jobs, num_workers=num_workers, timeout_seconds=timeout_seconds)
    for i, answer in tqdm(run, total=len(jobs), desc="reading", unit="file"):
        answers[i] = _lost(answer) if isinstance(answer, Lost) else answer
    summary = sum_up([job["path"] for job in jobs], kinds, answers)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for failure in summary["failures"]:
            shutil.copy(failure["path"], keep)
    for failure in summary["failures"]:
        failure["path"] = Path(failure["path"]).name
    return summary | {"seed": seed, "seconds": time.perf_counter() - since}


def _awkward_jobs(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".csv", ".parquet"))
    if not files:
        raise ValueError(f"{folder} holds no files: name a folder of clips")
    jobs = [{"path": str(path), "seed": i, "truths": []} for i, path in enumerate(files)]
    return jobs, [AWKWARD] * len(files)


def _lost(answer: Lost) -> dict[str, Any]:
    return {"verdict": "hang" if answer.status == "timeout" else "crash", "reason": answer.reason}


def sum_up(paths: Sequence[str], kinds: Sequence[str], answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answers by kind of file and by reason; see `run_hostile`."""
    table = {kind: {"files": 0, **dict.fromkeys(VERDICTS, 0)} for kind in dict.fromkeys(kinds)}
    pieces: Counter[str] = Counter()
    failures = []
    for path, kind, answer in zip(paths, kinds, answers, strict=True):
        table[kind]["files"] += 1
        table[kind][answer["verdict"]] += 1
        pieces.update(answer.get("counts", {}))
        if answer["verdict"] in FAILURES:
            failures.append({"path": path, "kind": kind, "verdict": answer["verdict"], "reason": answer["reason"]})
    reasons = Counter(reason_class(answer["reason"]) for answer in answers if answer["verdict"] == "refused")
    return {
        "kinds": table,
        "reasons": dict(reasons.most_common()),
        "failures": failures,
        "pieces": dict(pieces),
        "peak_bytes": max((answer.get("peak_bytes", 0) for answer in answers), default=0),
        "memory_bytes": MEMORY_BYTES,
        "slowest_seconds": max((answer.get("seconds", 0.0) for answer in answers), default=0.0),
    }


def reason_class(reason: str) -> str:
    """One of a few classes of reasons for which files are refused; the reason itself where none fits."""
    return next((name for pattern, name in REASONS if re.search(pattern, reason)), reason)


def is_good(summary: dict[str, Any]) -> bool:
    """Nothing failed and memory stayed bounded."""
    return not summary["failures"] and summary["peak_bytes"] <= summary["memory_bytes"]


def describe(summary: dict[str, Any]) -> str:
    """The table, the reasons, and each failure by name."""
    columns = ("files", *VERDICTS)
    total = {column: sum(row[column] for row in summary["kinds"].values()) for column in columns}
    lines = ["kind     " + "".join(f"{name:>9}" for name in columns)]
    for kind, row in [*summary["kinds"].items(), ("all", total)]:
        lines.append(f"{kind:9}" + "".join(f"{row[column]:9}" for column in columns))
    lines += ["", "refused because"] + [f"{count:6}  {name}" for name, count in summary["reasons"].items()]
    pieces = summary["pieces"]
    lines += [
        "",
        f"pictures and quarter seconds of sound: {pieces.get('right', 0)} at the right time, "
        f"{pieces.get('as_in_file', 0)} at a time that is damaged in the file itself, "
        f"{pieces.get('concealed', 0)} patched up by a decoder, {pieces.get('damaged', 0)} beyond recognition",
        f"memory of a worker: at most {summary['peak_bytes'] / 2**20:.0f} MiB, bound "
        f"{summary['memory_bytes'] / 2**20:.0f} MiB; slowest file {summary['slowest_seconds']:.1f} s; "
        f"seed {summary['seed']}, {summary['seconds']:.0f} s in all",
    ]
    lines += [f"{each['verdict'].upper()} {each['path']}: {each['reason']}" for each in summary["failures"]]
    return "\n".join(lines)


if __name__ == "__main__":
    serve(examine)
