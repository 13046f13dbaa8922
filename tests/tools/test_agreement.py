"""The agreement experiment at miniature size."""

import sys
from collections.abc import Iterator
from pathlib import Path

import agreement
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avssl.data.manifest import write_manifest
from avssl.methods import METHODS
from tests.support.clips import make_set
from tests.support.runs import TINY

pytestmark = pytest.mark.slow
CONTRAST, MINED = ("start", "avid", "consensus", "random"), ("consensus", "random")
ROWS = (*CONTRAST, "labels_audio")
SMALL = [line for line in TINY if not line.startswith(("method.", "run."))]
SMALL += ["data.cache_gigabytes=0", "data.clips_per_video=1", "optim.epochs=2"]


@pytest.fixture(autouse=True)
def methods_as_before() -> Iterator[None]:
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def test_all_rows_start_from_one_and_train_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "toy"
    manifest = make_set(folder, num_train=10, num_test=4)
    table = pq.read_table(folder / "manifest.parquet")
    table = table.append_column("foreign", pa.array([False] * len(manifest)))
    write_manifest(folder / "manifest.parquet", table, root=folder)
    monkeypatch.setattr(agreement, "NUM_POSITIVES", 2)
    for name in CONTRAST:
        row, few = agreement.ROWS[name], ["method.hidden_dim=16", "method.num_negatives=3"]
        few += ["method.num_positives=2", "method.num_negatives_within=2"] if name in MINED else []
        few += ["method.in_batch_epochs=1"] if name == "start" else []
        monkeypatch.setitem(agreement.ROWS, name, agreement.Row(row.heading, row.config, (*row.changed, *few)))
    out = tmp_path / "out"
    arguments = [tmp_path / "data", *SMALL, "--out", out, "--seeds", 0, "--rows", *ROWS[1:]]
    monkeypatch.setattr(sys, "argv", [agreement.__file__, *map(str, arguments)])
    assert agreement.main() == 0
    printed = capsys.readouterr().out
    for name in ROWS:
        assert f"| {agreement.ROWS[name].heading} |" in printed
    beyond = printed.partition("| minus AVID, longer | linear both | kNN both |")[2]
    assert beyond.count(" to ") == 2 * 3  # start, consensus, random: the base and the encoders alone are left out
    logs = {name: (out / "seed0" / name / "log.jsonl").read_text() for name in ROWS}
    assert len({log.count('"loss"') for log in logs.values()}) == 1
    assert "mining/exact" in logs["consensus"]
    assert "mining/exact" not in logs["random"]
    assert agreement.main() == 0  # from what is cached
    assert capsys.readouterr().out == printed
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--test", str(tmp_path / "data")])
    assert agreement.main() == 0
    assert capsys.readouterr().out == printed
    make_set(tmp_path / "other" / "toy", num_train=8, num_test=4)
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], str(tmp_path / "other")])
    assert agreement.main() == 2
    assert "other training clips than" in capsys.readouterr().err
