"""AVID and AVID-CMA as classes: recorded numbers through banks and log_z, and what must always hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avssl.methods.avid import AVID, AVIDOptions
from avssl.methods.avid_cma import AVIDCMAOptions
from avssl.methods.infonce import InfoNCE, InfoNCEOptions
from avssl.structs import Embedded, Instances, Progress
from tests.support.tiny import encode, everything, tiny_method, vector_batch

FIXTURES = Path(__file__).parents[1] / "fixtures"
OPTIONS = {"embedding_dim": 8, "hidden_dim": 16, "num_negatives": 12}
EVERY = torch.ones(40, dtype=torch.bool)
CMA = {**OPTIONS, "num_negatives_within": 5, "num_positives": 3}


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "avid_cma.npz"))


def recorded_start(method: AVID, recorded: dict[str, np.ndarray]) -> None:
    for view, bank in method.banks.items():
        bank.z.copy_(torch.from_numpy(recorded[f"bank_{view}.start"]))


def recorded_step(
    recorded: dict[str, np.ndarray], step: int
) -> tuple[dict[str, torch.Tensor], dict[str, Embedded], torch.Tensor]:
    raw = {view: torch.from_numpy(recorded[f"step{step}.{view}"]).requires_grad_() for view in ("video", "audio")}
    ids = torch.from_numpy(recorded[f"step{step}.ids"])
    z = {
        view: Embedded(
            F.normalize(x, dim=1), ids, torch.full_like(ids, number), torch.zeros(len(ids), dtype=torch.float64)
        )
        for number, (view, x) in enumerate(raw.items())
    }
    return raw, z, ids


@pytest.mark.parametrize("case, cross, within", [("cross", 1, 0), ("self", 0, 1), ("joint", 1, 1)])
def test_avid_equals_three_recorded_steps(
    recorded: dict[str, np.ndarray], case: str, cross: float, within: float
) -> None:
    method = tiny_method(AVIDOptions(cross=cross, within=within, embedding_dim=32, num_negatives=48), everything(300))
    recorded_start(method, recorded)
    for step in range(3):
        raw, z, ids = recorded_step(recorded, step)
        negatives = torch.from_numpy(recorded[f"avid.{case}.step{step}.negative_ids"]).long()
        done = method.contrast(z["video"], z["audio"], ids, dict.fromkeys(z, negatives))
        done.loss.backward()
        method.after_step(done, Progress(0, step, 3))
        assert float(done.loss) == pytest.approx(float(recorded[f"avid.{case}.step{step}.loss"]), rel=1e-4)
        for view, x in raw.items():
            gradient = torch.from_numpy(recorded[f"avid.{case}.step{step}.grad_{view}"])
            assert (x.grad - gradient).norm() <= 1e-4 * gradient.norm()
        assert float(method.log_z) == pytest.approx(float(recorded[f"avid.{case}.step{step}.log_z"][0]), rel=1e-4)
    if case == "joint":
        for view, bank in method.banks.items():
            assert (bank.z - torch.from_numpy(recorded[f"avid.joint.step2.bank_{view}.after"])).abs().max() < 1e-5


@pytest.mark.parametrize("case, cross_positives", [("published", 0), ("cross_positives", 1)])
def test_cma_equals_the_recorded_rows_whose_negatives_are_sound(
    recorded: dict[str, np.ndarray], case: str, cross_positives: float
) -> None:
    """Gradients row by row: recorded negatives may hold the instance itself, which ours never do."""
    options = AVIDCMAOptions(
        embedding_dim=32, num_negatives=48, num_negatives_within=12, num_positives=8, positives_cross=cross_positives
    )
    method = tiny_method(options, everything(300))
    recorded_start(method, recorded)
    method.sets.copy_(torch.from_numpy(recorded["mining.consensus.positive_ids"]).long())
    method.log_z.fill_(float(recorded[f"cma.{case}.step0.log_z"][0]))
    compared = 0
    for step in range(3):
        raw, z, ids = recorded_step(recorded, step)
        negatives = torch.from_numpy(recorded[f"cma.{case}.step{step}.negative_ids"]).long()
        done = method.contrast(z["video"], z["audio"], ids, dict.fromkeys(z, negatives))
        done.loss.backward()
        method.after_step(done, Progress(0, 0, 2))
        sound = ~(negatives == ids[:, None]).any(dim=1)
        compared += int(sound.sum())
        for view, x in raw.items():
            gradient = torch.from_numpy(recorded[f"cma.{case}.step{step}.grad_{view}"])
            assert (x.grad - gradient)[sound].norm() <= 1e-4 * gradient[sound].norm()
    assert compared > 24
    if case == "published":
        for view, bank in method.banks.items():
            assert (bank.z - torch.from_numpy(recorded[f"cma.published.step2.bank_{view}.after"])).abs().max() < 1e-5


@pytest.mark.parametrize("options", [AVIDOptions(**OPTIONS, within=1.0), AVIDCMAOptions(**CMA, positives_cross=1.0)])
def test_loss_is_pure_and_keyed_by_the_step(options: AVIDOptions) -> None:
    method = tiny_method(options, everything(40))
    method.on_epoch(0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    batch = vector_batch(torch.arange(10))
    first, again = (method(batch, Progress(0, 3, 10)) for _ in range(2))
    assert first.loss == again.loss
    assert method(batch, Progress(0, 4, 10)).loss != first.loss  # other negatives
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]) or (torch.isnan(value).all() and torch.isnan(before[name]).all()), name


@pytest.mark.parametrize("options", [AVIDOptions(**OPTIONS), AVIDCMAOptions(**CMA)])
def test_training_moves_towards_pairs_and_never_uses_an_own_negative(
    options: AVIDOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = tiny_method(options, everything(40))
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    losses, avoided = [], []
    monkeypatch.setattr(method, "contrast", lambda *given: avoided.append(given[2:]) or AVID.contrast(method, *given))
    for step in range(60):
        if step % 20 == 0:
            method.on_epoch(step // 20)
        batch = vector_batch(torch.randperm(40, generator=torch.Generator().manual_seed(step))[:16], step=step)
        done = method(batch, Progress(step // 20, step, 60))
        optimizer.zero_grad()
        done.loss.backward()
        optimizer.step()
        method.after_step(done, Progress(step // 20, step, 60))
        losses.append(float(done.logs["v2a"]))
        ids, negatives = avoided[-1]
        assert torch.equal(*negatives.values())  # all clips have both modalities: drawn once and shared
        assert not (negatives["video"][:, :, None] == method.avoid(ids)[:, None, :]).any()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_clips_without_audio_train_what_needs_no_sound_and_enter_nothing() -> None:
    has_audio = torch.arange(40) % 4 != 0
    method = tiny_method(AVIDCMAOptions(**CMA, within=1.0), Instances(EVERY, has_audio, EVERY))
    method.on_epoch(0)
    assert (method.sets[~has_audio] == -1).all()
    assert not torch.isin(method.sets, (~has_audio).nonzero()).any()
    ids = torch.arange(12)
    batch = vector_batch(ids, has_audio=has_audio[ids])
    before = method.banks["audio"].z.clone()
    done = method(batch, Progress(0, 0, 1))
    done.loss.backward()
    method.after_step(done, Progress(0, 0, 2))
    assert torch.isfinite(done.loss)
    assert torch.equal(method.banks["audio"].z[~has_audio], before[~has_audio])
    # the rows without audio add nothing to the terms that need audio: same mean over the rows that have it
    ask = encode(method, batch)
    video, audio = (method.embed(view, method.heads[view](ask(view)), batch) for view in ("video", "audio"))
    v2a, a2v = method.terms(video, audio, ids)[:2]
    negatives = torch.arange(20, 32).expand(12, -1)
    for term in (v2a, a2v):
        columns = method.banks[term.bank].lookup(torch.cat([term.positives, negatives], dim=1))
        assert term.rule(term.query, columns)[has_audio[ids]].any(dim=1).all()
        assert not term.rule(term.query, columns)[~has_audio[ids]].any()
    assert (method.banks["audio"].lookup(v2a.positives).ids[~has_audio[ids], 0] == -1).all()


def test_a_batch_without_any_sound_gives_zero_and_leaves_the_constant_unset() -> None:
    has_audio = torch.arange(40) >= 20
    method = tiny_method(AVIDOptions(**OPTIONS), Instances(EVERY, has_audio, EVERY))
    done = method(vector_batch(torch.arange(8), has_audio=torch.zeros(8, dtype=torch.bool)), Progress(0, 0, 2))
    done.loss.backward()
    method.after_step(done, Progress(0, 0, 2))
    assert done.loss == 0
    assert torch.isnan(method.log_z)
    assert all(parameter.grad is not None for parameter in method.parameters())  # or DDP would wait for ever
    done = method(vector_batch(torch.arange(20, 28)), Progress(0, 1, 2))
    method.after_step(done, Progress(0, 0, 2))
    assert torch.isfinite(method.log_z)


def test_a_file_that_could_not_be_read_counts_nowhere() -> None:
    method = tiny_method(AVIDCMAOptions(**CMA), everything(40))
    method.on_epoch(0)
    readable = torch.tensor([True, False, True])
    batch = vector_batch(torch.tensor([3, -1, 5]), has_audio=readable, has_video=readable)
    before = {view: bank.z.clone() for view, bank in method.banks.items()}
    done = method(batch, Progress(0, 0, 1))
    done.loss.backward()
    method.after_step(done, Progress(0, 0, 2))
    assert torch.isfinite(done.loss)
    for view, bank in method.banks.items():
        assert (bank.z != before[view]).any(dim=1).nonzero().flatten().tolist() == [3, 5]


def test_sets_are_mined_when_the_options_say() -> None:
    method = tiny_method(AVIDCMAOptions(**CMA, mine_from_epoch=2, mine_every=3), everything(40))
    mined = [bool(method.on_epoch(epoch)) for epoch in range(9)]
    assert mined == [False, False, True, False, False, True, False, False, True]
    assert (method.sets >= 0).all()
    assert (method.sets.diff(dim=1) > 0).all()


@pytest.mark.slow
def test_sets_found_in_the_background_are_used_an_epoch_later_and_resumed() -> None:
    options = AVIDCMAOptions(**CMA, mine_in_background=True, mine_every=2)
    method, other, expected = (tiny_method(each, everything(40)) for each in (options, options, AVIDCMAOptions(**CMA)))
    expected.mine()
    assert method.on_epoch(0) == {}
    for bank in method.banks.values():
        bank.z.copy_(bank.z.flip(0))
    assert not method.mined
    method.settle()
    other.load_state_dict(method.state_dict())
    assert not other.mined
    figures = [each.on_epoch(1) for each in (method, other)]
    assert figures[0] == figures[1]
    assert figures[0]["mining/exact"] == figures[0]["mining/rows_with_set"] == 1
    for each in (method, other):
        assert torch.equal(each.sets, expected.sets)
        assert torch.equal(each.set_scores, expected.set_scores)
        assert each.mined
    method.settle()
    assert method.adopt() == {}  # there is nothing new


def test_members_below_the_least_score_are_left_out() -> None:
    full, least = (tiny_method(AVIDCMAOptions(**CMA, min_score=score), everything(40)) for score in (-1.0, 0.25))
    full.mine()
    found = least.mine()
    kept = full.set_scores >= 0.25
    assert 0 < kept.float().mean() < 1
    assert [row[row >= 0].tolist() for row in least.sets] == [
        row[keep].tolist() for row, keep in zip(full.sets, kept, strict=True)
    ]
    assert found["mining/rows_with_set"] == pytest.approx(kept.any(dim=1).float().mean().item())
    done = least(vector_batch(torch.arange(12)), Progress(0, 0, 1))
    done.loss.backward()
    assert torch.isfinite(done.loss)
    none = tiny_method(AVIDCMAOptions(**CMA, min_score=1.0), everything(40))
    assert none.mine() == {"mining/exact": 1, "mining/rows_with_set": 0}
    assert not none.mined  # AVID alone


def test_a_refresh_says_how_much_of_the_sets_stayed() -> None:
    method = tiny_method(AVIDCMAOptions(**CMA, mine_every=1), everything(40))
    assert method.agreement_sets().keys() == {"mining"}
    assert "mining/overlap" not in method.on_epoch(0)
    before = method.agreement_sets()["mining"].tolist()
    assert method.on_epoch(1)["mining/overlap"] == 1  # the same memory banks
    for bank in method.banks.values():
        bank.z.copy_(F.normalize(bank.z + torch.randn(bank.z.shape, generator=torch.Generator().manual_seed(0)), dim=1))
    overlap = method.on_epoch(2)["mining/overlap"]
    after = method.agreement_sets()["mining"].tolist()
    stayed = [len(set(old) & set(new)) / len(new) for old, new in zip(before, after, strict=True)]
    assert overlap == pytest.approx(sum(stayed) / 40)
    assert 0 < overlap < 1


def test_until_the_first_sets_cma_is_avid() -> None:
    avid = tiny_method(AVIDOptions(**OPTIONS), everything(40))
    cma = tiny_method(AVIDCMAOptions(**CMA, mine_from_epoch=5), everything(40))
    batch = vector_batch(torch.arange(10))
    assert cma(batch, Progress(0, 0, 1)).loss == avid(batch, Progress(0, 0, 1)).loss


def test_info_nce_scores_each_positive_against_the_negatives_of_its_query_alone() -> None:
    """By hand: -log of the share of a positive among itself and the drawn negatives; no constant enters."""
    method = tiny_method(
        AVIDCMAOptions(**CMA, contrast="info_nce", positives_within=0.5, temperature=0.2), everything(40)
    )
    method.mine()
    batch, progress = vector_batch(torch.arange(6)), Progress(0, 0, 1)
    done = method(batch, progress)
    z = {m: F.normalize(method.heads[m](encode(method, batch)(m)), dim=1) for m in ("video", "audio")}
    drawn = method.draw(batch.ids, progress)

    def cost(query: str, bank: str, positives: torch.Tensor, num_negatives: int) -> torch.Tensor:
        scores = (z[query] @ method.banks[bank].z.T / 0.2).exp()  # (B, N)
        noise = scores.gather(1, drawn[bank][:, :num_negatives]).sum(dim=1, keepdim=True)
        own = scores.gather(1, positives)
        return -(own / (own + noise)).log().mean()

    own, members = batch.ids[:, None], method.sets[batch.ids]
    cross = (cost("video", "audio", own, 12) + cost("audio", "video", own, 12)) / 2
    within = (cost("video", "video", members, 5) + cost("audio", "audio", members, 5)) / 2
    torch.testing.assert_close(done.loss, (cross + 0.5 * within) / 1.5)
    other = tiny_method(
        AVIDCMAOptions(**CMA, contrast="info_nce", positives_within=0.5, temperature=0.2), everything(40)
    )
    other.load_state_dict(method.state_dict())
    other.log_z.fill_(3.0)
    assert other(batch, progress).loss == done.loss


def test_in_batch_epochs_are_info_nce_that_fills_the_banks() -> None:
    """The first steps are InfoNCE's; log Z is unset until the banks are asked, and comes from what they hold then."""
    method = tiny_method(AVIDOptions(**OPTIONS, in_batch_epochs=2, bank_momentum=0.0), everything(40))
    same = InfoNCE(
        InfoNCEOptions(embedding_dim=8, hidden_dim=16, temperature=0.07),
        method.encoders,
        instances=everything(40),
        seed=0,
    )
    same.heads.load_state_dict(method.heads.state_dict())
    for step in range(4):
        batch, progress = vector_batch(torch.arange(10) + 10 * step), Progress(step // 2, step, 8)
        done = method(batch, progress)
        assert done.loss == same(batch, progress).loss
        method.after_step(done, progress)
    assert torch.isnan(method.log_z)
    everyone = {modality: [] for modality in method.banks}
    with torch.no_grad():
        for step in range(4):
            batch = vector_batch(torch.arange(10) + 10 * step)
            for modality, vectors in everyone.items():
                vectors.append(F.normalize(method.heads[modality](encode(method, batch)(modality)), dim=1))
    for modality, bank in method.banks.items():
        torch.testing.assert_close(bank.z, torch.cat(everyone[modality]))
    progress, batch = Progress(2, 4, 8), vector_batch(torch.arange(10))
    done = method(batch, progress)
    method.after_step(done, progress)
    drawn = method.draw(batch.ids, progress)["audio"]  # (B, K) of the first term, video to audio
    scores = (everyone["video"][0][:, None] * torch.cat(everyone["audio"])[drawn]).sum(dim=2) / 0.07
    torch.testing.assert_close(method.log_z, scores.exp().mean().log())


def test_what_in_batch_epochs_cannot_go_with_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.in_batch_epochs contrasts video with audio: .* method\.cross=0"):
        tiny_method(AVIDOptions(**OPTIONS, in_batch_epochs=1, cross=0, within=1), everything(40))
    early = tiny_method(AVIDCMAOptions(**CMA, in_batch_epochs=3, mine_from_epoch=2), everything(40))
    with pytest.raises(
        ValueError, match=r"mine_from_epoch=2 is earlier than .*in_batch_epochs=3.*from epoch 3 or later"
    ):
        early.check_start()
    tiny_method(AVIDCMAOptions(**CMA, in_batch_epochs=3, mine_from_epoch=3), everything(40)).check_start()


def test_state_round_trip() -> None:
    method = tiny_method(AVIDCMAOptions(**CMA), everything(40))
    method.on_epoch(0)
    method.after_step(method(vector_batch(torch.arange(10)), Progress(0, 0, 1)), Progress(0, 0, 1))
    other = tiny_method(AVIDCMAOptions(**CMA), everything(40), seed=5)
    other.load_state_dict(method.state_dict())
    other.seed = method.seed
    batch = vector_batch(torch.arange(5, 15), step=1)
    assert other(batch, Progress(0, 1, 2)).loss == method(batch, Progress(0, 1, 2)).loss


def test_errors_name_the_value() -> None:
    silent = Instances(torch.ones(4) > 0, torch.zeros(4) > 0, torch.ones(4) > 0)
    with pytest.raises(ValueError, match="no clip of this split has both video and audio"):
        tiny_method(AVIDOptions(), silent)
    with pytest.raises(ValueError, match=r"rule=both in AVIDCMAOptions: expected one of consensus"):
        AVIDCMAOptions(rule="both")
    with pytest.raises(
        ValueError, match=r"num_positives=3, but 4 usable clips have both video and audio: expected 1 to 2"
    ):
        tiny_method(AVIDCMAOptions(**CMA), everything(4))
