"""The table of tracks: what is written comes back, and a table that does not fit is refused with the way out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avssl.data.tracks import EMPTY, Tracks, TracksError, read_tracks, write_tracks

OPTIONS = {"tracker": "kcf", "max_frames": 30}


def rows() -> list[dict]:
    def track(id: int, number: int) -> dict:
        boxes = np.linspace(0.1, 0.4, 3 * 4).reshape(3, 4) + number / 10
        times = [0.1, 0.2, 0.3 + id]
        return {
            "id": id,
            "track": number,
            "times": times,
            "boxes": boxes.tolist(),
            "confidence": [1.0, 0.5, 0.25],
            "reason": None,
        }

    return [track(7, 1), track(7, 0), {"id": 3, "reason": "no motion"} | EMPTY, track(2**40, 0)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tracks(tmp_path / "new" / "tracks.parquet", rows(), manifest_hash="abc", options=OPTIONS)
    return tmp_path / "new" / "tracks.parquet"


def test_what_is_written_comes_back(path: Path) -> None:
    tracks = read_tracks(path, manifest_hash="abc")
    assert isinstance(tracks, Tracks)
    assert tracks.reasons == {3: "no motion"}
    assert tracks.options == OPTIONS
    assert [track.number for track in tracks.of(7)] == [0, 1]
    assert (tracks.of(3), tracks.of(99)) == ([], [])
    assert tracks.of(2**40)[0].times.tolist() == [0.1, 0.2, 0.3 + 2**40]
    written = rows()[0]
    second = tracks.of(7)[1]
    assert second.boxes.shape == (3, 4)
    np.testing.assert_allclose(second.boxes, written["boxes"], rtol=1e-6)
    assert second.confidence.tolist() == written["confidence"]
    assert {array.dtype for array in (second.times, second.boxes, second.confidence)} == {np.dtype(np.float64)}


def test_a_table_without_rows(tmp_path: Path) -> None:
    write_tracks(tmp_path / "none.parquet", [], manifest_hash="abc", options={})
    assert read_tracks(tmp_path / "none.parquet", manifest_hash="abc").of(0) == []


def test_columns_are_as_described(path: Path) -> None:
    schema = pq.read_schema(path)
    assert schema.names == ["id", "track", "times", "boxes", "confidence", "reason"]
    assert schema.metadata[b"avssl.manifest"] == b"abc"
    assert pq.read_table(path)["track"].to_pylist() == [-1, 0, 1, 0]
    assert pq.read_table(path)["reason"].to_pylist() == ["no motion", None, None, None]


def test_a_table_that_does_not_fit_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(TracksError, match=r"tracks\.parquet belong to another manifest \(hash abc, not xyz\): write"):
        read_tracks(path, manifest_hash="xyz")
    with pytest.raises(TracksError, match=r"none\.parquet do not exist: write it with avssl track"):
        read_tracks(tmp_path / "none.parquet", manifest_hash="abc")
    (tmp_path / "text.parquet").write_text("words")
    with pytest.raises(TracksError, match=r"text\.parquet are no parquet file"):
        read_tracks(tmp_path / "text.parquet", manifest_hash="abc")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "other.parquet")
    with pytest.raises(TracksError, match=r"other\.parquet is no table of tracks"):
        read_tracks(tmp_path / "other.parquet", manifest_hash="abc")


@pytest.mark.parametrize(
    "broken",
    [
        {"times": [0.1]},
        {"times": [0.1, 0.3, 0.2]},
        {"boxes": [[0.1, 0.1, 0.5, 0.5]] * 2 + [[0.1, 0.1, 0.0, 0.5]]},
        {"boxes": [[0.1, 0.1, 0.5, 0.5]] * 2 + [[0.6, 0.1, 0.5, 0.5]]},
        {"boxes": [[-0.1, 0.1, 0.5, 0.5]] * 3},
        {"boxes": [[0.1, 0.1, 0.5]] * 3},
        {"times": [0.1], "boxes": [[0.1, 0.1, 0.5, 0.5]], "confidence": [1.0]},
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, broken: dict) -> None:
    table = rows()
    table[0] |= broken
    write_tracks(tmp_path / "broken.parquet", table, manifest_hash="abc", options={})
    with pytest.raises(TracksError, match=r"broken\.parquet are damaged, at row 7 of the manifest .* anew"):
        read_tracks(tmp_path / "broken.parquet", manifest_hash="abc")


def test_the_digest_is_that_of_the_tracks(tmp_path: Path) -> None:
    moved = rows()
    moved[0]["boxes"][0][0] += 0.01
    digests = []
    for name, table in (("one", rows()), ("two", rows()[::-1]), ("moved", moved), ("fewer", rows()[1:])):
        write_tracks(tmp_path / name, table, manifest_hash="abc", options={})
        digests.append(read_tracks(tmp_path / name, manifest_hash="abc").digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
