"""A plain vision transformer on tubelets, without BatchNorm: what self-distillation was said to need.

Takes (B, 3, T, H, W) and returns (B, dim). B clips, T frames, H x W pixels, N tokens, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.models.heads import Encoder

TUBELET = (2, 8, 8)  # frames and pixels of a token
HEAD_DIM = 32  # channels of an attention head
STAGES = ("stage1", "stage2", "stage3", "stage4")  # maps, all of one size


class VideoViT(Encoder):
    """Tubelets of 2 x 8 x 8 pixels, pre-norm blocks of attention and MLP, the mean of the tokens at the end.

    Positions are sines and cosines of time, row and column, so clips of any size pass; frames and pixels that fill no
    tubelet at the end are left out.

    Args:
        depth: number of blocks, in four equal stages.
        width: multiplies the 384 channels of ViT-S; to multiples of HEAD_DIM.

    Raises:
        ValueError: a depth that is no multiple of 4, or a width that is not positive.

    Source: Dosovitskiy et al. 2021; tubelets as ViViT (Arnab et al. 2021). Differs from ViT: heads of 32 channels,
    fixed positions, no class token.
    """

    def __init__(self, *, depth: int = 12, width: float = 1.0) -> None:
        if depth < 4 or depth % 4 or width <= 0:
            raise ValueError(f"vit depth={depth}, width={width}: expected a multiple of 4, and a width above 0")
        dim = HEAD_DIM * max(1, round(384 * width / HEAD_DIM))
        super().__init__(
            modality="video",
            layout="(B, 3, T, H, W)",
            in_channels=3,
            min_size=TUBELET,
            feature_dims=dict.fromkeys(["patches", *STAGES, "pool"], dim),
        )
        self.patches = nn.Conv3d(3, dim, TUBELET, stride=TUBELET)
        self.stages = nn.ModuleDict({name: nn.Sequential(*(_Block(dim) for _ in range(depth // 4))) for name in STAGES})
        self.norm = nn.LayerNorm(dim)

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.check_input(x)
        x = self.patches(x)  # (B, C, T', H', W')
        features, size = {"patches": x}, x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + _positions(size, x.shape[1], device=x.device).to(x.dtype)  # (B, N, C)
        for name, stage in self.stages.items():
            x = stage(x)
            features[name] = x.transpose(1, 2).unflatten(2, size)  # (B, C, T', H', W')
        return features | {"pool": self.norm(x).mean(dim=1)}


class _Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, -1, HEAD_DIM)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, 32)
        attended = F.scaled_dot_product_attention(*qkv)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def _positions(size: torch.Size, dim: int, *, device: torch.device) -> Tensor:
    """(N, C): for each axis of (T', H', W') the sines and cosines of a token's place, at as many frequencies as fit."""
    num = dim // 6  # frequencies of an axis
    frequencies = 100.0 ** -(torch.arange(num, device=device) / num)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32, device=device) for n in size)).reshape(
        -1, 3
    )  # (N, 3)
    angles = (places[:, :, None] * frequencies).flatten(1)  # (N, 3 num)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim - 6 * num))
