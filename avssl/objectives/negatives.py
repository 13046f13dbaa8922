"""Where negatives come from: columns for the contrast table out of the batch, a memory bank, or a queue.

State (`Bank`, `Queue`) lives in buffers and moves only in `update` and `push`, which a method calls in `after_step`.
Both gather over ranks first, so that every rank holds the same (or, of a bank in shards, its own rows). Shapes never
depend on values: nothing here is a host sync.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl import distributed
from avssl.structs import Embedded, SameRows


def in_batch(*parts: Embedded) -> Embedded:
    """The vectors of all parts on all ranks as shared columns (M, D), gradient kept (SimCLR)."""
    return Embedded.cat([part.gather() for part in parts])


def hardest(logits: Tensor, negative: Tensor, *, share: float) -> Tensor:
    """Of each row's negatives the share with the largest scores, at least one; ties count all: (Q, M) bool.

    Args:
        logits: (Q, M).
        negative: (Q, M) bool.
        share: in (0, 1]; 1 changes nothing.
    """
    if share == 1:
        return negative
    scores = logits.detach().masked_fill(~negative, -torch.inf)
    kept = (share * negative.sum(dim=1, keepdim=True)).ceil().long().clamp(min=1)  # (Q, 1)
    least = scores.sort(dim=1, descending=True).values.gather(1, kept - 1)
    return negative & (scores >= least)


def draw_negatives(valid: Tensor, num: int, *, avoid: Tensor, generator: torch.Generator) -> Tensor:
    """Ids drawn uniformly with replacement from the valid instances that a row does not avoid; masked rows (-1) where
    there is none.

    Exact: position r among the allowed ids is drawn, then moved past each avoided id at or below it; no draw is
    repeated and no avoided id can appear. Differs from AVID-CMA: with agreement sets its negatives can contain the
    instance itself.

    Args:
        valid: (N,) bool, or the valid ids themselves (V,) int64 ascending, which spares a GPU's host a wait.
        num: negatives per row, K.
        avoid: (Q, P) ids that a row must not draw, in any order, repeated or -1 as it happens.
        generator: on the CPU, in the same state on every rank: the ids depend neither on the ranks, each of which gives
            as many rows, nor on the device.

    Returns:
        (Q, K) int64 on the device of `avoid`.
    """
    device = avoid.device
    valid_ids = valid.to(device).nonzero().squeeze(1) if valid.dtype == torch.bool else valid  # (V,) ascending
    blocked = _blocked_positions(valid_ids, avoid)  # (Q, P) ascending, V for masked rows
    num_allowed = len(valid_ids) - (blocked < len(valid_ids)).sum(dim=1, keepdim=True)  # (Q, 1)
    uniform = distributed.uniform_rows(len(avoid), num, generator=generator, device=device)
    rank = (uniform * num_allowed).long()  # (Q, K) place among the allowed
    # Example: blocked 2, 5. Allowed 0 1 3 4 6: place 2 is id 3, since one blocked id stands at or below it: 2 - 0 <= 2.
    below = blocked - torch.arange(blocked.shape[1], device=device)  # (Q, P) allowed ids below each blocked one
    below = below.masked_fill(blocked == len(valid_ids), len(valid_ids))  # masked rows stand above every rank
    shift = torch.searchsorted(below, rank, right=True)
    if not len(valid_ids):
        return torch.full_like(rank, -1)
    return valid_ids[(rank + shift).clamp(max=len(valid_ids) - 1)].masked_fill(num_allowed < 1, -1)


def _blocked_positions(valid_ids: Tensor, avoid: Tensor) -> Tensor:
    """Where the avoided ids stand among the valid ones: (Q, P) ascending, each once, the rest V (past the end)."""
    num_valid = len(valid_ids)
    position = torch.searchsorted(valid_ids, avoid.contiguous())
    found = valid_ids[position.clamp(max=num_valid - 1)] == avoid if num_valid else torch.zeros_like(avoid).bool()
    position = position.masked_fill(~found, num_valid).sort(dim=1).values
    repeated = torch.zeros_like(position, dtype=torch.bool)
    repeated[:, 1:] = position[:, 1:] == position[:, :-1]
    return position.masked_fill(repeated, num_valid).sort(dim=1).values


class Bank(nn.Module):
    """One running unit vector per instance (NPID, PIRL, AVID).

    In shards, rank r of W holds the vectors of ids r, r + W, ..., and draws its negatives from them alone: a draw is no
    longer uniform over all instances, and depends on the number of ranks. A checkpoint holds the whole bank (`whole`),
    and each rank takes its rows of it.

    Args:
        valid: (N,) bool, the instances that may be looked up; the others read as masked rows.
        dim: D.
        view: position of the view whose vectors the bank holds.
        generator: draws the random unit vectors that the bank starts from.
        dtype: in which the vectors are kept; they come out in float32.
        sharded: each rank holds a part of the vectors.
    """

    z: Tensor  # (n, D) of this rank's ids
    valid: Tensor  # (N,) of all
    valid_ids: Tensor  # (V,) int64 ascending, of this rank: follows from `valid`

    def __init__(
        self,
        valid: Tensor,
        dim: int,
        *,
        view: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        self.view = view
        self.shard, self.num_shards = (distributed.rank(), distributed.world_size()) if sharded else (0, 1)
        if self.num_shards > len(valid):
            raise ValueError(f"{len(valid)} rows cannot be divided among {self.num_shards} processes: use fewer")
        self.register_buffer("z", self._random_rows(len(valid), dim, generator).to(dtype))
        self.register_buffer("valid", valid.clone())
        self.register_buffer("valid_ids", self._own_valid_ids(), persistent=False)
        self.register_load_state_dict_pre_hook(Bank._take_own_rows)
        self.register_load_state_dict_post_hook(Bank._list_valid_ids)

    def _random_rows(self, num: int, dim: int, generator: torch.Generator, size: int = 1 << 16) -> Tensor:
        """This rank's of N unit vectors, the same numbers as in one draw: no rank ever has more than two blocks of rows
        that it does not keep. The last block is not small, as torch draws less than 16 numbers in another way."""
        own, starts = [], range(0, max(num - size, 1), size)
        for start, stop in zip(starts, [*starts[1:], num], strict=True):
            rows = F.normalize(torch.randn(stop - start, dim, generator=generator), dim=1)
            own.append(rows[(self.shard - start) % self.num_shards :: self.num_shards].clone())
        return torch.cat(own)

    def _own_valid_ids(self) -> Tensor:
        ids = self.valid.nonzero().squeeze(1)
        return ids[ids % self.num_shards == self.shard]

    def _list_valid_ids(self, incompatible: object) -> None:
        self.valid_ids = self._own_valid_ids()

    def _take_own_rows(self, state: dict[str, Tensor], prefix: str, *given: object) -> None:
        """Of a whole bank, as checkpoints have it."""
        if len(state.get(f"{prefix}z", ())) == len(self.valid):
            state[f"{prefix}z"] = state[f"{prefix}z"][self.shard :: self.num_shards]

    def whole(self) -> Tensor:
        """(N, D) of all ids; all ranks call it, and of a bank in shards rank 0 alone gets it, on the CPU."""
        if self.num_shards == 1:
            return self.z
        whole = torch.empty(len(self.valid), self.z.shape[1], dtype=self.z.dtype) if distributed.is_main() else self.z
        for shard in range(self.num_shards):
            num = len(range(shard, len(self.valid), self.num_shards))
            part = self.z if shard == self.shard else self.z.new_empty(num, self.z.shape[1])
            part = distributed.broadcast(part, source=shard)
            if distributed.is_main():
                whole[shard :: self.num_shards] = part.cpu()
        return whole

    def of_rows(self, given: dict[str, Tensor], rows: SameRows) -> dict[str, Tensor]:
        """Entries of another run's bank for this one: vectors of rows that both hold, the others stay as they are."""
        if given["z"].shape[1] != self.z.shape[1]:
            return {}  # which cannot be loaded
        own = slice(self.shard, None, self.num_shards)
        there = rows.there[own].clamp(min=0)
        both = (rows.there[own] >= 0) & given["valid"][there] & self.valid[own].cpu()
        vectors = given["z"][there].to(self.z.dtype)
        return {"z": torch.where(both[:, None], vectors, self.z.cpu()), "valid": self.valid}

    def holds(self, ids: Tensor) -> Tensor:
        """Which of ids (...) are valid and on this rank."""
        return (ids >= 0) & self.valid[ids.clamp(min=0)] & (ids % self.num_shards == self.shard)

    def places(self, ids: Tensor) -> Tensor:
        """Rows of `z` of ids (...); any for those that are not here."""
        return (ids.clamp(min=0) // self.num_shards).clamp(max=len(self.z) - 1)

    def lookup(self, ids: Tensor) -> Embedded:
        """Vectors of ids (...) of this rank -> columns (..., D) without gradient; id -1, invalid ids and those of other
        ranks become masked rows."""
        return self._embedded(self.z[self.places(ids)].float(), ids, usable=self.holds(ids))

    def of_all(self, ids: Tensor) -> Tensor:
        """Vectors of ids (...), which are the same on every rank -> (..., D) float32, zeros for -1 and invalid ids."""
        found = self.lookup(ids)
        z = found.z.masked_fill((found.ids < 0)[..., None], 0.0)
        return z if self.num_shards == 1 else distributed.all_reduce(z)

    def columns(self, positives: Tensor, negatives: Tensor) -> Embedded:
        """Vectors of ids (B, P) that any rank may hold and of drawn ids (B, K) -> (B, P + K, D), as `lookup`. All ranks
        call it, with as many ids."""
        if self.num_shards == 1:
            return self.lookup(torch.cat([positives, negatives], dim=1))
        found = self.of_all(distributed.gather(positives)).narrow(0, self.shard * len(positives), len(positives))
        usable = (positives >= 0) & self.valid[positives.clamp(min=0)]
        return Embedded.cat([self._embedded(found, positives, usable=usable), self.lookup(negatives)])

    def _embedded(self, z: Tensor, ids: Tensor, *, usable: Tensor) -> Embedded:
        return Embedded(
            z=z,
            ids=ids.masked_fill(~usable, -1),
            view=torch.full_like(ids, self.view),
            start=torch.zeros_like(ids, dtype=torch.float64),
        )

    def draw(self, num: int, *, avoid: Tensor, generator: torch.Generator) -> Tensor:
        """Negatives (B, num) for the B rows of this rank, by `draw_negatives`.

        Args:
            avoid: (B, P) ids that a row must not draw.
        """
        return draw_negatives(self.valid_ids, num, avoid=avoid, generator=generator)

    @torch.no_grad()
    def update(self, new: Embedded, *, momentum: float) -> None:
        """Move the entries of new (B, D) on all ranks: normalize(momentum * old + (1 - momentum) * new).

        Differs from AVID-CMA: an id that occurs more than once moves by the average of its vectors; there an
        unspecified one wins. Masked rows and invalid ids are left alone.

        Args:
            momentum: weight of the OLD vector, in [0, 1].
        """
        new = new.gather()
        ids, keep = self.places(new.ids), self.holds(new.ids)  # (n,)
        same = (ids[:, None] == ids) & keep  # (n, n)
        # An average as a matrix product: unlike scattered sums, it is the same on every rank of a GPU run.
        vectors = torch.where(keep[:, None], new.z.float(), 0.0)
        average = same.float() @ vectors / same.sum(dim=1, keepdim=True).clamp(min=1)
        moved = F.normalize(momentum * self.z[ids].float() + (1 - momentum) * average, dim=1).to(self.z.dtype)  # (n, D)
        # Every row writes, without asking which may: a repeated id the vector of its first row, an masked row what the
        # first row that counts writes (none counts: what stands there already). Whoever writes last, the bytes are the
        # same.
        number = torch.arange(len(ids), device=ids.device)
        first = torch.where(same, number, len(ids)).amin(dim=1)  # (n,) of the rows with the same id
        leader = torch.where(keep, first, torch.where(keep, number, len(ids) - 1).amin())  # (n,)
        place = ids[leader]
        self.z[place] = torch.where(keep[leader, None], moved[leader], self.z[place])


class Queue(nn.Module):
    """The latest vectors, first in, first out (MoCo). Starts empty: its rows match nothing and are to be ignored.

    Differs from MoCo, which starts from random vectors that serve as negatives for the first steps.

    Args:
        size: M, vectors kept over all ranks together.
        dim: D.
    """

    z: Tensor
    ids: Tensor
    view: Tensor
    start: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("z", torch.zeros(size, dim))
        self.register_buffer("ids", torch.full((size,), -1))
        self.register_buffer("view", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("start", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def of_rows(self, given: dict[str, Tensor], rows: SameRows) -> dict[str, Tensor]:
        """Entries of another run's queue for this one: vectors of rows that are not trained on here are masked."""
        return {"ids": rows.here[given["ids"].clamp(min=0)].masked_fill(given["ids"] < 0, -1)}

    def columns(self) -> Embedded:
        """Shared columns (M, D) without gradient; copies, so that a later push does not change them."""
        return Embedded(self.z.clone(), self.ids.clone(), self.view.clone(), self.start.clone())

    @torch.no_grad()
    def push(self, new: Embedded) -> None:
        """Store new (B, D) of all ranks over the oldest entries; any batch size, wrapping at the end."""
        new = new.gather()
        size = len(self.ids)
        num = len(new.ids)
        kept = min(num, size)  # of a batch larger than the queue, the last `size` vectors
        places = (self.place + torch.arange(num - kept, num, device=self.z.device)) % size
        for name in ("z", "ids", "view", "start"):
            getattr(self, name)[places] = getattr(new, name)[num - kept :].to(getattr(self, name).dtype)
        self.place.copy_((self.place + num) % size)
