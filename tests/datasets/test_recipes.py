"""The scripts of the published sets, on miniature copies with the layout of the real ones."""

import importlib.util
import io
import json
import os
import re
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.data.manifest import Manifest, read_manifest
from avssl.media.encode import write_clip
from tests.support.clips import make_clip, make_sound

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[2] / "datasets"
RECIPES = ("ave", "audioset", "esc50", "hmdb51", "kinetics", "ucf101", "vggsound")
FILMS = (  # names as they are in HMDB51
    "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
    "Bits_&_Pieces;_(part_[2])_UPDATED!!!!_clap_h_cm_np2_le_bad_13.avi",
    "Bits_&_Pieces;_(part_[2])_UPDATED!!!!_clap_h_cm_np2_le_bad_14.avi",
    "winKen_brush_hair_f_nm_np1_ba_med_0.avi",
)
ID, OTHER, THIRD = "-0RWZT-miFs", "abc_DEF_123", "zyxwvutsrq9"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_script", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One clip of each kind; the copies link to them."""
    folder = tmp_path_factory.mktemp("media")
    make_clip(folder / "clip.mp4", 0, 0)
    make_clip(folder / "silent.mp4", 0, 0, sound=False)
    make_sound(folder / "sound.wav", 0, 0)
    frames = np.zeros((25, 16, 16, 3), dtype=np.uint8)
    tone = np.sin(np.arange(25 * 8000) / 5).astype(np.float32)
    write_clip(folder / "long.mp4", frames, fps=1, samples=tone, sample_rate=8000)
    write_clip(folder / "plain.avi", frames[:4], fps=8, video_codec="mpeg4")
    with av.open(folder / "plain.avi") as source, av.open(folder / "clip.avi", "w") as target:
        target.metadata["title"] = "a title in Latin-1"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = (folder / "clip.avi").read_bytes()
    assert content.count(b"Latin-1") == 1
    (folder / "clip.avi").write_bytes(content.replace(b"Latin-1", b"Lat\xeen \xff\xfe"[:7]))
    return folder


@pytest.fixture
def put(media: Path, tmp_path: Path) -> Callable[..., None]:
    """put("UCF-101/a.avi", ...) makes files below the ROOT of a copy, by default of the kind of their ending."""

    def link(*paths: str, kind: str = "clip") -> None:
        for path in paths:
            file = tmp_path / "copy" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            os.link(media / (f"{kind}{file.suffix}" if file.suffix != ".wav" else "sound.wav"), file)

    return link


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    def text(path: str, content: str) -> None:
        file = tmp_path / "copy" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")

    return text


@pytest.fixture
def copies(put, write) -> dict[str, Callable[[], None]]:
    """{set: what makes a whole miniature copy of it}."""

    def ucf101() -> None:
        write("ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n")
        for split, (train, test) in {1: (8, 1), 2: (1, 2), 3: (2, 8)}.items():
            write(
                f"ucfTrainTestlist/trainlist0{split}.txt",
                f"ApplyEyeMakeup/v_ApplyEyeMakeup_g0{train}_c01.avi 1\r\n"
                f"HandstandPushups/v_HandStandPushups_g0{train}_c01.avi 2\r\n",
            )
            write(
                f"ucfTrainTestlist/testlist0{split}.txt",
                f"ApplyEyeMakeup/v_ApplyEyeMakeup_g0{test}_c01.avi\r\n"
                f"HandstandPushups/v_HandStandPushups_g0{test}_c01.avi\r\n",
            )
        for group in (1, 2, 8):
            put(f"UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g0{group}_c01.avi")
        put("UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi")  # as in the list
        put("UCF-101/HandstandPushups/v_HandstandPushups_g08_c01.mp4")  # as the folder is called, and made anew

    def hmdb51() -> None:
        for split, parts in {1: "1201", 2: "0122", 3: "2110"}.items():
            lines = [f"{name} {part} \n" for name, part in zip(FILMS, parts, strict=True)]
            write(f"testTrainMulti_7030_splits/clap_test_split{split}.txt", "".join(lines[:3]))
            write(f"testTrainMulti_7030_splits/brush_hair_test_split{split}.txt", lines[3])
        put(*(f"hmdb51_org/clap/{name}" for name in FILMS[:3]), f"hmdb51_org/brush_hair/{FILMS[3]}")

    def esc50() -> None:
        lines = ["filename,fold,target,category,esc10,src_file,take"]
        for fold in range(1, 6):
            for take, (target, category) in zip("AB", ((0, "dog"), (41, "chainsaw")), strict=True):
                name = f"{fold}-100032{fold}-{take}-{target}.wav"
                lines.append(f"{name},{fold},{target},{category},True,100032{fold},{take}")
                put(f"ESC-50-master/audio/{name}")
        write("ESC-50-master/meta/esc50.csv", "\n".join(lines))

    def ave() -> None:
        header = "Category&VideoID&Quality&StartTime&EndTime\n"
        train = f"Church bell&{ID}&good&0&1\nMale speech, man speaking&{ID}&good&0&1\nBark&{ID}&good&0.2&1\n"
        val, test = f"Bark&{OTHER}&good&0&0\n", f"Church bell&{THIRD}&good&0&10\n"
        write("Annotations.txt", header + train + val + test)
        for split, lines in (("train", train), ("val", val), ("test", test)):
            write(f"{split}Set.txt", lines)
        put(f"AVE/{ID}.mp4", f"AVE/{OTHER}.mp4", "AVE/notlisted12.mp4")

    def vggsound() -> None:
        write(
            "vggsound.csv",
            f'{ID},30,"dog bow-wow, barking",train\n{OTHER},5,people whistling,test\n{THIRD},1,people whistling,test\n',
        )
        put(f"video/{ID}_000030.mp4", f"video/{OTHER}.mp4")

    def audioset() -> None:
        write(
            "class_labels_indices.csv",
            'index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd00088,Gush\n',
        )
        head = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n# YTID, start_seconds, end_seconds, "
        head += "positive_labels\n"
        write("balanced_train_segments.csv", f'{head}{ID}, 30.000, 40.000, "/m/05zppz,/t/dd00088"\n')
        write("unbalanced_train_segments.csv", f'{head}{OTHER}, 0.000, 10.000, "/m/09x0r"\n')
        write("eval_segments.csv", f'{head}{THIRD}, 12.500, 22.500, "/m/09x0r,/m/05zppz"\n')
        put(f"clips/{ID}_30000_40000.mp4", f"clips/{OTHER}_0.wav", f"clips/{THIRD}_12.5_22.5.mp4")

    def kinetics() -> None:
        head = "label,youtube_id,time_start,time_end,split"
        write(
            "annotations/train.csv",
            f"{head},is_cc\nriding a bike,{ID},10,20,train,0\nriding a bike,{OTHER},7,17,train,1\n",
        )
        write("annotations/val.csv", f"{head}\nmassaging person's head,{THIRD},0,10,validate\n")
        write("annotations/test.csv", "youtube_id,time_start,time_end,split\nhhhhhhhhhhh,3,13,test\n")
        put(f"train/riding_a_bike/{ID}_000010_000020.mp4", f"val/massaging person's head/{THIRD}_000000_000010.mp4")

    return {each.__name__: each for each in (ave, audioset, esc50, hmdb51, kinetics, ucf101, vggsound)}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[Manifest, str]]:
    """Call the script of a set on the copy: its manifest and what was printed."""

    def call(name: str, *more: str) -> tuple[Manifest, str]:
        out = tmp_path / "m.parquet"
        assert load(name).main([str(tmp_path / "copy"), "--out", str(out), "--workers", "1", *more]) == 0
        printed = capsys.readouterr()
        return read_manifest(out), printed.out + printed.err

    return call


def columns(manifest: Manifest, *names: str) -> dict[str, list]:
    """{path: values of some columns}."""
    values = (manifest.table.column(name).to_pylist() for name in names)
    return dict(zip(manifest.column("path").tolist(), map(list, zip(*values, strict=True)), strict=True))


def test_ucf101(copies, run) -> None:
    copies["ucf101"]()
    manifest, printed = run("ucf101")
    makeup, push = "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup", "UCF-101/HandstandPushups/v_Hand"
    assert columns(manifest, "label", "split", "split1", "split2", "split3") == {
        f"{makeup}_g01_c01.avi": ["ApplyEyeMakeup", "test", "test", "train", None],
        f"{makeup}_g02_c01.avi": ["ApplyEyeMakeup", None, None, "test", "train"],
        f"{makeup}_g08_c01.avi": ["ApplyEyeMakeup", "train", "train", None, "test"],
        f"{push}StandPushups_g01_c01.avi": ["HandstandPushups", "test", "test", "train", None],
        f"{push}standPushups_g08_c01.mp4": ["HandstandPushups", "train", "train", None, "test"],
    }
    assert manifest.column("group").tolist()[::4] == ["v_ApplyEyeMakeup_g01", "v_HandStandPushups_g08"]
    assert manifest.usable("test").tolist() == [True, False, False, True, False]
    assert "found 5 of 13,320 clips, 2 of 101 classes, 2 of 9,537 split1 train, 2 of 3,783 split1 test" in printed
    assert "1 listed clips have no file and are no rows:\n  HandstandPushups/v_HandStandPushups_g02_c01.avi" in printed
    assert "stripped" not in printed  # half of the whole set has no sound


def test_hmdb51(copies, run) -> None:
    copies["hmdb51"]()
    manifest, printed = run("hmdb51")
    assert columns(manifest, "label", "group", "split1", "split2", "split3") == {
        f"hmdb51_org/brush_hair/{FILMS[3]}": ["brush_hair", "winKen", "train", "test", None],
        f"hmdb51_org/clap/{FILMS[0]}": ["clap", "#20_Rhythm", "train", None, "test"],
        f"hmdb51_org/clap/{FILMS[1]}": ["clap", "Bits_&_Pieces;_(part_[2])_UPDATED!!!!", "test", "train", "train"],
        f"hmdb51_org/clap/{FILMS[2]}": ["clap", "Bits_&_Pieces;_(part_[2])_UPDATED!!!!", None, "test", "train"],
    }
    assert manifest.column("split").tolist() == manifest.column("split1").tolist()
    assert manifest.usable().all()  # the metadata of these files is not UTF-8
    assert manifest.usable("train").tolist() == [True, True, False, False]
    assert "4 of 6,766 clips, 2 of 51 classes, 2 of 3,570 split1 train, 1 of 1,530 split1 test" in printed


def test_esc50(copies, run) -> None:
    copies["esc50"]()
    manifest, printed = run("esc50")
    for fold in range(1, 6):
        test = manifest.column(f"split{fold}") == "test"
        assert [path[20] for path in manifest.column("path")[test]] == [str(fold)] * 2
        assert set(manifest.column(f"split{fold}")[~test]) == {"train"}
    assert manifest.column("split").tolist() == manifest.column("split1").tolist()
    assert manifest.column("label").tolist() == ["dog", "chainsaw"] * 5
    assert manifest.column("group").tolist()[:3] == ["1000321", "1000321", "1000322"]
    assert manifest.usable("test").tolist() == [True] * 2 + [False] * 8
    assert not manifest.has_video.any()
    assert "10 of 2,000 clips" in printed
    assert "its audio serves for queries" in printed


def test_ave(copies, run) -> None:
    copies["ave"]()
    manifest, printed = run("ave")
    assert manifest.column("path").tolist() == [f"AVE/{ID}.mp4"] * 2 + [f"AVE/{OTHER}.mp4"]
    assert manifest.table.column("start").to_pylist() == [0, 0.2, None]  # the last has no length in the list
    assert manifest.table.column("end").to_pylist() == [1, 1, None]
    assert manifest.table.column("labels").to_pylist() == [
        ["Church bell", "Male speech, man speaking"],
        ["Bark"],
        ["Bark"],
    ]
    assert manifest.column("label").tolist() == ["Church bell", "Bark", "Bark"]
    assert manifest.column("split").tolist() == ["train", "train", "val"]
    assert manifest.column("group").tolist() == [ID, ID, OTHER]
    assert "3 of 4,143 clips, 3 of 28 classes" in printed
    assert f"  {THIRD} (Church bell)" in printed
    assert "other files ignored: 1, such as 'AVE/notlisted12.mp4'" in printed


def test_vggsound(copies, run, put) -> None:
    copies["vggsound"]()
    put(f"{THIRD}.mp4", kind="long")  # a whole video; that of OTHER is too short to be one
    manifest, printed = run("vggsound")
    assert columns(manifest, "label", "split", "group", "start", "end") == {
        f"video/{ID}_000030.mp4": ["dog bow-wow, barking", "train", ID, None, None],
        f"video/{OTHER}.mp4": ["people whistling", "test", OTHER, None, None],
        f"{THIRD}.mp4": ["people whistling", "test", THIRD, 1, 11],
    }
    assert manifest.usable("test").sum() == 2
    assert "found 3 of 199,467 clips, 2 of 309 classes" in printed


def test_audioset(copies, run) -> None:
    copies["audioset"]()
    manifest, printed = run("audioset")
    assert columns(manifest, "label", "labels", "part", "split", "group") == {
        f"clips/{ID}_30000_40000.mp4": [
            "Male speech, man speaking",
            ["Male speech, man speaking", "Gush"],
            "balanced_train",
            "train",
            ID,
        ],
        f"clips/{OTHER}_0.wav": ["Speech", ["Speech"], "unbalanced_train", "train", OTHER],
        f"clips/{THIRD}_12.5_22.5.mp4": [
            "Speech",
            ["Speech", "Male speech, man speaking"],
            "eval",
            "test",
            THIRD,
        ],
    }
    assert manifest.usable("train").tolist() == [True, True, False]
    assert "found 3 of 527 classes, 1 of 22,160 part balanced_train, 1 of 2,041,789 part unbalanced_train" in printed


def test_kinetics_with_lists_and_holes(copies, run, put) -> None:
    copies["kinetics"]()
    put("test/hhhhhhhhhhh_3.mp4")
    manifest, printed = run("kinetics", "--json")
    assert columns(manifest, "label", "split", "group") == {
        "test/hhhhhhhhhhh_3.mp4": [None, "test", "hhhhhhhhhhh"],
        f"train/riding_a_bike/{ID}_000010_000020.mp4": ["riding a bike", "train", ID],
        f"val/massaging person's head/{THIRD}_000000_000010.mp4": ["massaging person's head", "val", THIRD],
    }
    assert manifest.usable("val").tolist() == [False, False, True]
    summary = json.loads(printed.splitlines()[0])
    assert summary["absent"] == [f"{OTHER}_7"]
    assert summary["expected"]["split train"] == [1, 246_534]
    assert summary["status"] == {"ok": 3}


def test_kinetics_without_lists_and_with_stripped_sound(run, put) -> None:
    put("train/riding_a_bike/any name.mp4", f"validate/yoga/{ID}_000010_000020.mp4", kind="silent")
    put(f"test/yoga/{OTHER}.mp4")
    manifest, printed = run("kinetics", "--classes", "700")
    assert columns(manifest, "label", "split", "group") == {
        f"test/yoga/{OTHER}.mp4": ["yoga", "test", OTHER],
        "train/riding_a_bike/any name.mp4": ["riding a bike", "train", "train/riding_a_bike/any name.mp4"],
        f"validate/yoga/{ID}_000010_000020.mp4": ["yoga", "val", ID],
    }
    assert "2 usable, but without audio" in printed
    assert "warning: 2 of 3 usable clips have no audio, and those of the whole set have: this copy was str" in printed
    assert "1 of 545,317 split train" in printed


@pytest.mark.parametrize(
    "name, gone, message",
    [
        ("ucf101", "UCF-101", "UCF-101 is not a folder: unpack UCF101.rar"),
        ("ucf101", "UCF-101/ApplyEyeMakeup", "UCF-101/ApplyEyeMakeup does not exist or holds no clip: unpack"),
        ("ucf101", "ucfTrainTestlist", "classInd.txt cannot be read (No such file or directory): unpack UCF101Train"),
        ("ucf101", "ucfTrainTestlist/testlist02.txt", "testlist02.txt cannot be read (No such file or directory): "),
        ("hmdb51", "hmdb51_org", "hmdb51_org is not a folder: unpack hmdb51_org.rar"),
        ("hmdb51", "hmdb51_org/clap", "hmdb51_org/clap does not exist or holds no clip: unpack hmdb51_org.rar, then"),
        ("hmdb51", "testTrainMulti_7030_splits", "splits holds no list such as brush_hair_test_split1.txt: unpack"),
        ("hmdb51", "testTrainMulti_7030_splits/clap_test_split1.txt", "clap_test_split1.txt cannot be read"),
        ("hmdb51", "testTrainMulti_7030_splits/clap_test_split3.txt", "clap_test_split3.txt cannot be read"),
        ("esc50", "ESC-50-master", "ESC-50-master/audio is not a folder: unpack https://github.com"),
        ("esc50", "ESC-50-master/meta", "esc50.csv cannot be read (No such file or directory): unpack"),
        ("ave", "AVE", "AVE is not a folder: ROOT must be what AVE_Dataset.zip"),
        ("ave", "Annotations.txt", "Annotations.txt cannot be read"),
        ("ave", "valSet.txt", "valSet.txt cannot be read (No such file or directory): ROOT must be"),
        ("vggsound", "vggsound.csv", "vggsound.csv cannot be read (No such file or directory): put https://raw"),
        ("audioset", "class_labels_indices.csv", "class_labels_indices.csv cannot be read"),
        ("audioset", "*_segments.csv", "balanced_train_segments.csv does not exist, nor do the other lists: put the"),
    ],
)
def test_the_first_missing_thing_is_named(copies, tmp_path: Path, capsys, name: str, gone: str, message: str) -> None:
    copies[name]()
    for path in (tmp_path / "copy").glob(gone):
        path.rename(tmp_path / f"gone_{path.name}")
    with pytest.raises(SystemExit, match="2"):
        load(name).main([str(tmp_path / "copy"), "--out", str(tmp_path / "m.parquet")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m.parquet").exists()


@pytest.mark.parametrize(
    "name, path, content, message",
    [
        ("ucf101", "ucfTrainTestlist/trainlist02.txt", "Archery/v_Archery_g01_c01.avi 3", "is no clip with a class"),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 0", "and number"),
        ("ucf101", "ucfTrainTestlist/classInd.txt", "ApplyEyeMakeup", "'ApplyEyeMakeup' must be a number and a class"),
        ("hmdb51", "testTrainMulti_7030_splits/clap_test_split1.txt", "a.avi 3", "'a.avi 3' must be a clip and 0, 1"),
        ("esc50", "ESC-50-master/meta/esc50.csv", "filename,fold\na.wav,1", "has no column category"),
        ("esc50", "ESC-50-master/meta/esc50.csv", "filename,fold,category,src_file\na,6,b,c", "is in fold '6'"),
        ("ave", "valSet.txt", "Barking&abc&good&0&10", "class 'Barking' is not in Annotations.txt"),
        ("ave", "valSet.txt", "Bark&abc&good&0", "'Bark&abc&good&0' is not Category&VideoID&Quality"),
        ("vggsound", "vggsound.csv", "a,1,b", "'a,1,b' is not id,start,label,split"),
        ("vggsound", "vggsound.csv", "a,soon,b,test", "'soon' is no number of seconds"),
        ("audioset", "eval_segments.csv", 'abc, 1, 2, "/m/1"', "class '/m/1' is not in class_labels_indices.csv"),
        ("audioset", "eval_segments.csv", "abc, 1, 2", "is not id,start,end,labels"),
        ("kinetics", "annotations/val.csv", "label,youtube_id\nyoga,abc", "has no column time_start"),
        (
            "kinetics",
            "annotations/val.csv",
            "youtube_id,time_start,time_end,split\na,1,2,dev",
            "split 'dev': expected train",
        ),
        (
            "kinetics",
            "annotations/val.csv",
            "youtube_id,time_start,time_end,split\na,1",
            "has 2 cells and the first line 4",
        ),
        ("kinetics", "annotations/val.csv", "youtube_id,time_start,time_end,split\na,1,2,val,b", "has 5 cells and"),
        ("audioset", "eval_segments.csv", "a" * 200_000, "cannot be read as CSV (field larger"),
    ],
)
def test_lists_of_another_form_are_refused(
    copies, write, tmp_path: Path, capsys, name: str, path: str, content: str, message: str
) -> None:
    copies[name]()
    write(path, content)
    with pytest.raises(SystemExit, match="2"):
        load(name).main([str(tmp_path / "copy"), "--out", str(tmp_path / "m.parquet")])
    assert message in capsys.readouterr().err


def test_kinetics_without_classes_or_lists_is_refused(put, tmp_path: Path, capsys) -> None:
    put(f"train/{ID}_000010_000020.mp4")
    for more, message in (([], "lies in no folder of a class"), (["--lists", str(tmp_path)], "holds no CSV")):
        with pytest.raises(SystemExit, match="2"):
            load("kinetics").main([str(tmp_path / "copy"), "--out", str(tmp_path / "m.parquet"), *more])
        assert message in capsys.readouterr().err


def test_a_copy_without_clips_costs_no_manifest(copies, tmp_path: Path, capsys) -> None:
    copies["vggsound"]()
    for path in (tmp_path / "copy").rglob("*.mp4"):
        path.unlink()
    (tmp_path / "m.parquet").write_bytes(b"of before")
    assert load("vggsound").main([str(tmp_path / "copy"), "--out", str(tmp_path / "m.parquet")]) == 1
    assert "is usable: is ROOT right? clips are named <YouTube id>_<start>" in capsys.readouterr().err
    assert (tmp_path / "m.parquet").read_bytes() == b"of before"


def test_what_the_owner_offers_is_fetched(copies, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("esc50", "vggsound", "audioset"):
        copies[name]()
    copy = tmp_path / "copy"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((copy / "ESC-50-master").rglob("*.*")):
            file.write(path, path.relative_to(copy))
            path.unlink()
    (copy / "ESC-50-master").rename(tmp_path / "empty")
    answers = {"master.zip": archive.getvalue()}
    for path in copy.glob("*.csv"):
        answers[path.name] = path.read_bytes()
        path.unlink()
    asked = []

    def urlopen(address: str, timeout: float):
        asked.append(address)
        answer = io.BytesIO(answers[address.rpartition("/")[2]])
        answer.headers = {}
        return answer

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for name, rows in (("esc50", 10), ("vggsound", 2), ("audioset", 3)):
        assert len(run(name, "--download")[0]) == rows
    assert all(
        re.match("https?://(github.com|raw.githubusercontent.com|storage.googleapis.com)/", each) for each in asked
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_table_and_the_docstring_name_every_set_its_numbers_and_its_command(name: str) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    command = f"avssl datasets {name} ROOT --out data/{name}/manifest.parquet"
    assert command in readme
    assert command in load(name).__doc__
    expected = load(name).EXPECTED
    for counts in expected.values() if name == "kinetics" else [expected]:
        assert all(f"{number:,}" in readme for number in counts.values())


def test_the_table_names_every_script() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"[{path.stem}]({path.name})" in readme for path in FOLDER.glob("*.py"))
