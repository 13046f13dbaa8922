"""Mining by FAISS: flat equals the definition, ivf finds what it says and says how much it misses."""

import itertools
import math

import pytest
import torch

import avssl
from avssl.mining import agreement, index
from avssl.mining.agreement import ENGINES, choose_engine, mine_agreement
from avssl.mining.definition import RULES
from tests.support.mining import assert_equal_sets, dense, unit
from tests.support.ranks import on_ranks


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


def spaces_of_classes(num, generator, *, foreign=0.1, dim=32, classes=20):
    """Classes in both spaces; some rows sound like another class."""
    looks = torch.randint(classes, (num,), generator=generator)
    is_foreign = torch.rand(num, generator=generator) < foreign
    sounds = torch.where(is_foreign, torch.randint(classes, (num,), generator=generator), looks)
    found = []
    for members in (looks, sounds):
        centers = torch.nn.functional.normalize(torch.randn(classes, dim, generator=generator), dim=1)
        own = torch.nn.functional.normalize(torch.randn(num, dim, generator=generator), dim=1)
        found.append(torch.nn.functional.normalize(centers[members] + 0.9 * own, dim=1))
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size, dim, k", [(9, 3, 8), (333, 16, 5), (700, 24, 16)])
@pytest.mark.parametrize("common", [0.0, 8.0])
def test_flat_equals_the_definition(rule, size, dim, k, common, generator):
    video = unit((size, dim), generator, classes=12)
    audio = unit((size, dim), generator, common=common)
    valid = torch.rand(size, generator=generator) < 0.8 if size > 9 else None
    sets = mine_agreement(video, audio, k=k, rule=rule, valid=valid, engine="flat")
    assert (sets.engine, sets.recall) == ("flat", 1)
    assert_equal_sets(sets, dense(video, audio, k=k, rule=rule, valid=valid))


def test_flat_proves_most_rows_at_once_and_leaves_the_rest_to_the_definition(generator):
    video, audio = spaces_of_classes(2000, generator)
    video[1000:1300], audio[1000:1300] = video[1000], audio[1000]  # equal rows: no gap, so only the definition can say
    sets = mine_agreement(video, audio, k=8, engine="flat")
    assert_equal_sets(sets, dense(video, audio, k=8, rule="consensus"))
    assert (sets.passes == 1).float().mean() > 0.5
    assert (sets.passes[1000:1300] == 3).all()


@pytest.mark.parametrize("rule", RULES)
def test_ivf_finds_most_and_measures_how_much(rule, generator):
    video, audio = spaces_of_classes(3000, generator)
    valid = torch.rand(3000, generator=generator) < 0.9
    sets = mine_agreement(video, audio, k=12, rule=rule, valid=valid, engine="ivf")
    _, score = dense(video, audio, k=12, rule=rule, valid=valid)
    assert not sets.exact.any()
    assert sets.engine == "ivf"
    rows = valid.nonzero()[:, 0]
    kth = score[rows].amin(dim=1, keepdim=True)
    recall = float((sets.score[rows] >= kth - 1e-6).float().mean())
    assert recall > 0.97
    assert sets.recall == pytest.approx(recall, abs=0.02)
    cosines = [video @ video.T, audio @ audio.T]
    pairs = {"consensus": torch.minimum(*cosines), "union": torch.maximum(*cosines)}
    pairs |= {"video": cosines[0], "audio": cosines[1]}
    members = sets.ids[rows]
    assert (members >= 0).all()
    assert valid[members].all()
    assert (members != rows[:, None]).all()
    assert (members[:, 1:] > members[:, :-1]).all()  # ascending, none twice
    torch.testing.assert_close(sets.score[rows], pairs[rule][rows[:, None], members], atol=1e-6, rtol=0)
    assert (sets.ids[~valid] == -1).all()


def test_ivf_is_the_same_for_any_threads_and_blocks(generator, monkeypatch):
    video, audio = spaces_of_classes(1500, generator)
    expected = mine_agreement(video, audio, k=8, engine="ivf")
    threads = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            monkeypatch.setattr(index, "BLOCK_ROWS", {"flat": 100, "ivf": 211 * num_threads})
            sets = mine_agreement(video, audio, k=8, engine="ivf")
            assert torch.equal(sets.ids, expected.ids)
            assert sets.recall == expected.recall
            mine_agreement(video[:300], audio[:300], k=8, engine="flat")
            assert torch.get_num_threads() == num_threads  # which FAISS may share
    finally:
        torch.set_num_threads(threads)


def test_ivf_misses_more_when_it_may_visit_few_and_says_so(generator, monkeypatch):
    video, audio = unit((3000, 32), generator), unit((3000, 32), generator)  # neighbors are chance
    monkeypatch.setattr(index, "MAX_VISITED", 4)
    monkeypatch.setattr(index, "TILES_COST", math.inf)
    sets = mine_agreement(video, audio, k=8, engine="ivf")
    _, score = dense(video, audio, k=8, rule="consensus")
    recall = float((sets.score >= score.amin(dim=1, keepdim=True) - 1e-6).float().mean())
    assert recall < 0.5
    assert sets.recall == pytest.approx(recall, abs=0.05)
    monkeypatch.setattr(index, "TILES_COST", 0.1)
    assert mine_agreement(video, audio, k=8, engine="ivf").recall > 0.98  # tiles search for rows that nobody is near


def test_rows_that_meet_too_few_have_smaller_sets(generator):
    video = torch.eye(8).repeat_interleave(5, dim=0)  # eight places far apart, five rows in each
    sets = mine_agreement(video, video, k=12, engine="ivf", min_score=0.5)
    assert ((sets.ids >= 0).sum(dim=1) == 4).all()
    assert (sets.score[sets.ids < 0] == 0).all()


def test_the_space_that_tells_rows_apart_weighs_more(generator):
    video, audio = unit((2000, 32), generator, classes=30), unit((2000, 32), generator, common=8.0)
    assert index.choose_weight([video, audio], "consensus", k=8) > index.choose_weight([audio, video], "consensus", k=8)


def test_auto_is_exact_while_that_takes_a_minute(monkeypatch, generator):
    cpu = torch.device("cpu")
    for fast, most in ((True, 150_000), (False, 50_000)):
        monkeypatch.setattr(agreement.tiles, "has_fast_bfloat16", lambda fast=fast: fast)
        assert [choose_engine(num, cpu) for num in (100, most, most + 1)] == ["tiles", "tiles", "ivf"]
    monkeypatch.setattr(agreement, "_EXACT_ROWS", {"bfloat16": 500, "float32": 500})
    video, audio = spaces_of_classes(600, generator)
    assert mine_agreement(video, audio, k=4).engine == "ivf"
    assert mine_agreement(video[:500], audio[:500], k=4).engine == "tiles"
    with pytest.raises(ValueError, match=f"engine is 'hnsw', expected one of {', '.join(ENGINES)}"):
        mine_agreement(video, audio, k=4, engine="hnsw")


def of_banks(engine):
    video, audio = spaces_of_classes(701, torch.Generator().manual_seed(3))
    valid = torch.rand(701, generator=torch.Generator().manual_seed(4)) < 0.9
    sets = mine_agreement(video, audio, k=6, valid=valid, engine=engine, over_ranks=True)
    return {"ids": sets.ids, "score": sets.score, "recall": torch.tensor(sets.recall)}


def of_every_engine():
    return {engine: of_banks(engine) for engine in ENGINES}


@pytest.mark.processes
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_same_sets_for_any_number_of_ranks(world_size):
    found, expected = on_ranks(world_size, of_every_engine), of_every_engine()
    for rank, engine in itertools.product(range(world_size), ENGINES):
        sets = expected[engine].items()
        assert all(torch.equal(found[rank][engine][name], value) for name, value in sets), (engine, rank)


def test_anybodys_embeddings(generator):
    video, audio = spaces_of_classes(300, generator)
    expected = mine_agreement(video, audio, k=4)
    for given in ((video.numpy(), audio.numpy()), (video.double(), audio.double().numpy())):
        found = avssl.mine(*given, k=4)
        assert torch.equal(found.ids, expected.ids)
    assert float(avssl.mine(video.half(), audio.half(), k=4).score.mean()) == pytest.approx(
        float(expected.score.mean()), abs=1e-3
    )
    assert {"load", "mine"} <= set(dir(avssl))
    for wrong, message in (
        ((video * 2, audio), "video row 0 has length 2 .* expected unit length"),
        ((video, audio.index_fill(0, torch.tensor([7]), torch.nan)), "audio row 7 has length nan"),
        ((video[:4], audio[:4]), "k is 4, but each of the 4 usable rows has only 3 others"),
        ((video, audio[:10]), "expected both"),
        ((video.long(), audio), r"video holds torch\.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            avssl.mine(*wrong, k=4)
    scaled = avssl.mine(3 * video, audio / 7, k=4, normalize=True)
    assert torch.equal(scaled.ids, expected.ids)
    with pytest.raises(ValueError, match="audio row 7 has length 0"):
        avssl.mine(video, audio.index_fill(0, torch.tensor([7]), 0), k=4, normalize=True)
    twice = avssl.mine(video[:50].repeat(2, 1), audio[:50].repeat(2, 1), k=1)  # each clip's copy is its neighbor
    assert torch.equal(twice.ids[:, 0], (torch.arange(100) + 50) % 100)
