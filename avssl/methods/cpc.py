"""CPC: from what came before, the vectors of later blocks of a clip or a sound, or of lower rows of a frame, have to be
picked among others (van den Oord et al. 2018; DPC: Han, Xie, Zisserman 2019).
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from avssl import distributed
from avssl.config import Count, Options
from avssl.methods.base import Encode, Method, check_usable
from avssl.models.heads import mlp
from avssl.objectives.prediction import draw_others, predict
from avssl.structs import Batch, Instances, Progress, Step
from avssl.transforms.pretext import AudioSegments, Segments
from avssl.transforms.views import View


class CPCOptions(Options):
    modality: Literal["video", "audio"] = "video"
    over: Literal["blocks", "rows"] = "blocks"  # blocks in time; or rows of patches of single frames
    num_blocks: int = Field(8, ge=3)  # blocks of data.num_frames or data.audio_seconds each, one after the other
    maps: bool = False  # of the video encoder, its last one instead of the pooled output: each place by itself (DPC)
    patch_size: int = Field(64, ge=32)  # rows: pixels of a patch
    stride: Count = 32  # rows: pixels from one patch to the next
    skip: int = Field(0, ge=0)  # steps left out before the first predicted one: rows of patches overlap
    num_ahead: Count = 3  # steps that are predicted
    # linear: one of each offset, from every step | recurrent: from the last known step, one after the other (DPC)
    predictor: Literal["linear", "recurrent"] = "linear"
    num_negatives: Count | None = None  # drawn from all blocks, places and clips; null = all of them
    embedding_dim: Count = 128
    hidden_dim: Count = 256  # of the context

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.over == "rows" and (self.modality == "audio" or self.maps):
            raise ValueError("over=rows cuts frames into patches: leave modality=video and maps=false")
        if self.over == "blocks" and self.skip + self.num_ahead >= self.num_blocks:
            raise ValueError(
                f"num_ahead={self.num_ahead} behind skip={self.skip} of num_blocks={self.num_blocks} leaves no block "
                "to predict from: lower it"
            )
        if self.predictor == "recurrent" and self.skip:
            raise ValueError(f"skip={self.skip}: predictor=recurrent predicts each next step, so leave it 0")
        if self.modality == "audio" and self.maps:
            raise ValueError("maps=true takes the places of frames: leave it false for modality=audio")
        return self


class CPC(Method):
    """See the module. The context is a GRU over earlier steps alone; BatchNorm in an encoder, though, sees all blocks
    of a batch at once while training, and may leak statistics of later ones (an encoder without it does not).

    Differs from Greedy InfoMax: the context of patches sums up all rows above in the same column, not one patch;
    negatives never contain the target, and are drawn from all ranks. Differs from DPC: blocks share their crop and
    colors; jitter is not drawn per frame. Steps are projected to embedding_dim before they are compared.
    """

    Options = CPCOptions
    modalities = ("video",)  # unless the options say audio

    def __init__(self, options: CPCOptions, encoders: nn.ModuleDict, *, instances: Instances, seed: int) -> None:
        super().__init__(options, encoders, instances=instances, seed=seed)
        modality, dim, hidden = options.modality, options.embedding_dim, options.hidden_dim
        check_usable(instances, modality)
        blocks = (AudioSegments if modality == "audio" else Segments)(options.num_blocks)
        self.views = (View("video") if options.over == "rows" else View("blocks", recipe=blocks),)
        dims = encoders[modality].feature_dims  # of its maps and, last, of their pool
        self.stage = list(dims)[-2] if options.maps else None
        self.heads = nn.ModuleDict({modality: mlp([dims[self.stage] if options.maps else encoders[modality].dim, dim])})
        self.context = nn.GRU(dim, hidden, batch_first=True)
        num = options.num_ahead if options.predictor == "linear" else 1
        layers = [hidden, dim] if options.predictor == "linear" else [hidden, hidden, dim]
        self.predictors = nn.ModuleList(mlp(layers, bias_out=options.predictor != "linear") for _ in range(num))

    @classmethod
    def needs(cls, options: CPCOptions) -> tuple[str, ...]:
        return (options.modality,)

    def loss(self, encode: Encode, batch: Batch, progress: Progress) -> Step:
        (view,) = self.views
        z = self.heads[self.options.modality](self.steps(encode, batch))  # (B, P, L, D)
        present = self.present(batch, self.options.modality)
        if self.options.over == "blocks":  # of a clip that is too short, later blocks repeat its end
            present = present & ~batch.padded[view.name].to(present.device, non_blocking=True)
        loss = self.contrast(z, present, generator=self.generator(progress))
        first = self.embed(view.name, z[:, 0, 0].detach(), batch)
        return Step(loss, embeddings={self.options.modality: first})

    def steps(self, encode: Encode, batch: Batch) -> Tensor:
        """The encoder's vectors (B, P, L, dim) of L steps at P places: of a map, or columns of patches."""
        (view,), options = self.views, self.options
        if options.over == "rows":
            frames = batch.video[view.name]  # (B, 3, T, H, W)
            patches = frames.unfold(3, options.patch_size, options.stride).unfold(4, options.patch_size, options.stride)
            patches = patches.permute(0, 4, 3, 1, 2, 5, 6)  # (B, columns, rows, 3, T, p, p)
            if patches.shape[2] <= options.skip + options.num_ahead:
                raise ValueError(
                    f"patches of {options.patch_size} pixels every {options.stride} make {patches.shape[2]} rows of "
                    f"{frames.shape[3]} pixels, too few for skip={options.skip} and num_ahead={options.num_ahead}: "
                    "raise data.size or lower the stride"
                )
            return encode(view.name, x=patches.contiguous())
        x = encode(view.name, stage=self.stage)  # (B, L, dim), or (B, L, C, t, h, w)
        return x.unsqueeze(1) if x.dim() == 3 else x.mean(dim=3).flatten(3).permute(0, 3, 1, 2)

    def contrast(self, z: Tensor, present: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of steps (B, P, L, D) of clips of which some are present (B,)."""
        options = self.options
        every, masked = distributed.gather(z), ~distributed.gather(present)  # of all ranks
        rows, places, length = z.shape[:3]
        first, total = distributed.rank() * rows, distributed.world_size() * rows
        number = torch.arange(total * places * length, device=z.device).view(total, places, length)
        own = number[first : first + rows]
        masked = masked[:, None, None].expand_as(number).flatten()
        losses = []
        for predicted in self.predictions(z):  # (B, P, l, D)
            num = predicted.shape[2]
            wanted = own[:, :, length - num :].flatten()  # (R,)
            counted = present[:, None, None].expand(rows, places, num).flatten()
            if options.num_negatives is None:
                kept = number[:, :, length - num :].flatten().contiguous()
                others, columns = None, every.flatten(0, 2)[kept]
                wanted, hidden = torch.searchsorted(kept, wanted.contiguous()), masked[kept]
            else:
                others = draw_others(wanted, options.num_negatives, total=number.numel(), generator=generator)
                columns, hidden = every.flatten(0, 2), masked
            flat = predicted.flatten(0, 2)
            losses.append(predict(flat, columns, own=wanted, present=counted, masked=hidden, others=others))
        return torch.stack(losses).mean()

    def predictions(self, z: Tensor) -> list[Tensor]:
        """Predictions (B, P, l, D) of the last l of the steps (B, P, L, D), one entry for each number of steps ahead;
        predicted one after the other, all are one entry.
        """
        options, (rows, places, length) = self.options, z.shape[:3]
        steps = z.flatten(0, 1)  # (B P, L, D)
        if options.predictor == "linear":
            context, _ = self.context(steps)  # (B P, L, H), of each step and those before it
            ahead = [options.skip + k for k in range(1, options.num_ahead + 1)]
            return [
                predictor(context[:, : length - offset]).unflatten(0, (rows, places))
                for predictor, offset in zip(self.predictors, ahead, strict=True)
            ]
        (predictor,), found = self.predictors, []
        _, state = self.context(steps[:, : length - options.num_ahead])
        for _ in range(options.num_ahead):
            found.append(predictor(state[0]))  # (B P, D)
            _, state = self.context(found[-1][:, None], state)
        return [torch.stack(found, dim=1).unflatten(0, (rows, places))]
