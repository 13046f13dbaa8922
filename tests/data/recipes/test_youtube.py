"""Which file is which listed clip, by the names that crawlers give."""

import pytest

from avssl.data.recipes.youtube import Listed, match_clips, youtube_id

ID = "-_a1B2c3D4e"


@pytest.mark.parametrize(
    "name, start, part",
    [
        (f"{ID}_000030_000040.mp4", 30.0, None),
        (f"{ID}_000030.mp4", 30.0, None),
        (f"{ID}_30.mkv", 30.0, None),
        (f"{ID}_30.000_40.000.mp4", 30.0, None),
        (f"{ID}_30000_40000.wav", 30.0, None),
        (f"{ID}_12500.mp4", 12.5, None),
        (f"{ID}_0_10.mp4", 0.0, None),
        (f"{ID}.mp4", 30.0, (30.0, 40.0)),
        (f"Y{ID}.wav", 30.0, (30.0, 40.0)),  # as AudioSet's crawlers name it
        (f"Y{ID}_30.mp4", 30.0, None),
    ],
)
def test_names(name: str, start: float, part: tuple[float, float] | None) -> None:
    rows, absent, untaken = match_clips([Listed(ID, start, start + 10, {"label": "yoga"})], [f"a/{name}"])
    expected = {"path": f"a/{name}", "group": ID, "label": "yoga"}
    assert rows == [expected | (dict(zip(("start", "end"), part, strict=True)) if part else {})]
    assert not absent
    assert not untaken


@pytest.mark.parametrize("name", [f"{ID}_31.mp4", f"x{ID}_30.mp4", f"{ID}_30_40_50.mp4", f"{ID}30.mp4", "a.mp4"])
def test_names_of_other_clips(name: str) -> None:
    assert match_clips([Listed(ID, 30, 40, {})], [name]) == ([], [f"{ID}_30"], [name])


def test_an_id_may_begin_with_y() -> None:
    for id in ("Yabcdefghij", "Y_bcdefghi_"):
        names = [f"{id}_30.mp4", f"{id}.mp4", f"Y{id}.mp4"]
        assert [match_clips([Listed(id, 30, 40, {})], [name])[0][0]["group"] for name in names] == [id] * 3


def test_a_cut_clip_goes_before_the_whole_video_and_parts_of_it_are_rows() -> None:
    listed = [Listed(ID, start, start + 10, {}) for start in (50, 10, 30, 30)]
    paths = [f"{ID}.mp4", f"a/{ID}_30.mp4", f"b/{ID}_30.mp4"]
    rows, absent, untaken = match_clips(listed, paths)
    assert [(row["path"], row.get("start"), row.get("end")) for row in rows] == [
        (f"{ID}.mp4", 10, 20),
        (f"{ID}.mp4", 50, 60),
        (f"a/{ID}_30.mp4", None, None),
    ]
    assert not absent
    assert untaken == [f"b/{ID}_30.mp4"]


def test_ids() -> None:
    assert youtube_id(f"a/{ID}_000030_000040.mp4") == ID
    assert youtube_id("a/any name.mp4") is None
