"""From a list of files to the table of a manifest: probing in worker processes.

What lives here: joining probed facts with what is known of each row. What does not: the facts themselves
(media/probe.py), the pool (workers.py) and how files are found (datasets/*.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from avssl.data.manifest import SCHEMA
from avssl.media.probe import Probe
from avssl.workers import Lost, run_jobs

FACTS = tuple(asdict(Probe()))


def build_table(
    root: str | Path, rows: Sequence[Mapping[str, Any]], *, num_workers: int = 2, timeout_seconds: float = 60.0
) -> pa.Table:
    """Probe the files of all rows, each file once, and return the table of a manifest.

    Args:
        root: folder that the paths are relative to.
        rows: in the order of the manifest: "path" and, where known, start, end, group, label, split, further columns.
            `group` defaults to the path. A further column named like a probed fact is kept as listed_<name>.
        num_workers: processes.
        timeout_seconds: per file; a file that takes longer gets the status timeout.
    """
    root = Path(root)
    paths = sorted({row["path"] for row in rows})
    facts = {}
    probed = probe_files([root / path for path in paths], num_workers=num_workers, timeout_seconds=timeout_seconds)
    for i, probe in tqdm(probed, total=len(paths), desc="probing", unit="clip"):
        facts[paths[i]] = asdict(probe)
    return join_facts(rows, facts)


def join_facts(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """The table of a manifest.

    Args:
        rows: see `build_table`.
        facts: of each path, the fields of a `Probe`.
    """
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    further = {name: None for row in rows for name in row if name in FACTS or name not in SCHEMA.names}
    for row in rows:
        found = {"group": row["path"]} | {name: value for name, value in row.items() if value is not None}
        for name in SCHEMA.names:
            columns[name].append(facts[row["path"]][name] if name in FACTS else found.get(name))
    table = pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names})
    for name in further:
        values = pa.array([row.get(name) for row in rows])
        table = table.append_column(f"listed_{name}" if name in FACTS else name, values)
    return table


def probe_files(
    paths: Sequence[str | Path], *, num_workers: int, timeout_seconds: float
) -> Iterator[tuple[int, Probe]]:
    """Yield (position in `paths`, facts) as they come; see `run_jobs` for the rest."""
    jobs = [str(path) for path in paths]
    answers = run_jobs("avssl.media.probe", jobs, num_workers=num_workers, timeout_seconds=timeout_seconds)
    for i, answer in answers:
        yield i, Probe(status=answer.status, reason=answer.reason) if isinstance(answer, Lost) else Probe(**answer)
