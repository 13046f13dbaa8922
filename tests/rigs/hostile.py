"""Read awkward and damaged files as preparing and training do, and count what became of each.

    python -m tests.rigs.hostile
    python -m tests.rigs.hostile --awkward FOLDER --damaged 100 --seed 1 --keep failed

Makes clips whose frames and audio tell where they belong, damages copies of them (damage.py), reads all in worker
processes, and judges what was read (judge.py). Files of --awkward are compared with a decode from their beginning to
their end.

A file is `read` with right times, or `refused` with a reason; all else is an error of ours: `hang` (over the time
limit), `crash` (the worker died), `other` (an exception that is no DecodeError), `wrong` (times that are not right).
Exit code: 0 no such error, and memory bounded; 1 otherwise; 2 wrong call.
"""

import argparse
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from avssl.files import check_writable
from avssl.workers import Lost, run_jobs
from tests.rigs.damage import damaged_copies, make_clips
from tests.rigs.judge import truth_of

VERDICTS = ("read", "refused", "hang", "crash", "other", "wrong")
FAILURES = VERDICTS[2:]
MEMORY_BYTES = 1 << 30  # that a worker may take at most, its libraries included
AWKWARD = "awkward"
REASONS = (  # pattern in a reason -> its class; the first that fits
    (r"is empty", "empty"),
    (r"no media file that can be opened", "not to be opened"),
    (r"larger than|longer than|more than", "asks for more than the limits"),
    (r"encrypted", "encrypted"),
    (r"no decoder exists", "no decoder for it"),
    (r"no video track|no audio track", "no track in it"),
    (r"no frame|cannot be decoded", "nothing in it decodes"),
)


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
        pieces (of frames and audio by what was found), peak_bytes, memory_bytes, slowest_seconds, seed, seconds.

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
    run = run_jobs("tests.rigs.judge", jobs, num_workers=num_workers, timeout_seconds=timeout_seconds)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--awkward", type=Path, metavar="FOLDER", help="further files to read")
    parser.add_argument("--damaged", type=int, default=500, help="number of damaged copies (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per file (default: 60)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="gets a copy of each file that failed")
    parser.add_argument("--json", nargs="?", const="-", metavar="PATH", help="the result as JSON (default: stdout)")
    given = parser.parse_args()
    if given.workers < 1 or not 0 < given.timeout < math.inf:
        parser.error(f"--workers {given.workers} must be at least 1, --timeout {given.timeout:g} seconds above 0")
    if given.damaged < 0 or given.seed < 0:
        parser.error(f"--damaged {given.damaged} and --seed {given.seed} must not be negative")
    if given.awkward is not None and not given.awkward.is_dir():
        parser.error(f"--awkward {given.awkward} is no folder")
    how = {"number": given.damaged, "seed": given.seed, "awkward": given.awkward, "keep": given.keep}
    how |= {"num_workers": given.workers, "timeout_seconds": given.timeout}
    try:
        if given.json and given.json != "-":
            check_writable(given.json)
        with tempfile.TemporaryDirectory() as temporary:
            summary = run_hostile(Path(temporary), **how)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(describe(summary), file=sys.stderr if given.json == "-" else sys.stdout)
    if given.json == "-":
        print(json.dumps(summary))
    elif given.json:
        Path(given.json).write_text(json.dumps(summary))
    return 0 if is_good(summary) else 1


if __name__ == "__main__":
    sys.exit(main())
