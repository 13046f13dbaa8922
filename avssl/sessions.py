"""With what a run was executed, each time it was started: versions, machine, command. RUN/sessions.jsonl, a line each.

Beside the checkpoint and not in it: two runs that are equal bit for bit may have been executed on different machines.
"""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import avssl
from avssl.files import whole_file

SESSIONS = "sessions.jsonl"


def note_session(folder: Path, *, first_step: int, decoder: Mapping[str, str], num_processes: int, device: str) -> None:
    """Write down that this process starts, or continues, a run at `first_step`.

    What an earlier one has noted stays, unless none of its steps is kept.

    Args:
        decoder: as `avssl.media.decoders.describe` gives it.

    Raises:
        WriteError: the disk is full, or the folder may not be written to.
    """
    session = {
        "first_step": first_step,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(),
        "processes": f"{num_processes} x {device}",
        "versions": versions(decoder),
    }
    kept = [each for each in read_sessions(folder) if each["first_step"] < first_step]
    with whole_file(folder / SESSIONS) as temporary:
        temporary.write_text("".join(json.dumps(each) + "\n" for each in [*kept, session]))


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """What `note_session` has written, oldest first; none for a run of before there were such notes."""
    path = folder / SESSIONS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def versions(decoder: Mapping[str, str]) -> dict[str, str]:
    """Of what the figures of a run depend on."""
    faiss = [name for name in ("faiss-gpu", "faiss-cpu") if _installed(name)]
    return {
        "avssl": avssl.__version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        decoder["name"]: decoder["version"],
        "FFmpeg": decoder["ffmpeg"],
        **{name: importlib.metadata.version(name) for name in faiss},
    }


def machine() -> str:
    """Cores, processor and GPU of this machine, in words."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores of {_processor()}{gpu}, {platform.system()}"


def _processor() -> str:
    """The name that the system gives it; where there is none (some ARM), the architecture."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
