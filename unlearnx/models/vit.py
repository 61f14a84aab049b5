"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx._checks import check_at_least_one

WIDTH, HEADS, DEPTH = 192, 3, 12


class _Patches(nn.Module):
    def __init__(self, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH, eps=1e-6), _Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH, eps=1e-6), _Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _VisionTransformer(nn.Module):
    """With timm's names."""

    def __init__(self, classes: int, image: int, patch: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2 + 1, WIDTH))
        self.patch_embed = _Patches(patch)
        self.blocks = nn.Sequential(*(_Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_tiny(classes: int = 10, image: int = 32, patch: int = 4) -> nn.Module:
    """A ViT-Ti: (N, 3, image, image) to logits (N, classes); twelve blocks of width 192 with three heads.

    Parameters have timm's names: ``vit_tiny(1000, image=224, patch=16)`` takes its pretrained state dicts.

    Args:
        classes: number of classes.
        image: pixels of a side.
        patch: pixels of a side of a patch; it divides `image`.

    Raises:
        ValueError: a number is below one, or `patch` does not divide `image`.

    Source: Touvron et al., "Training Data-Efficient Image Transformers", ICML 2021 (DeiT-Ti); Dosovitskiy et al., "An
    Image is Worth 16x16 Words", ICLR 2021.

    Example:
        >>> sum(p.numel() for p in vit_tiny(1000, image=224, patch=16).parameters())
        5717416
    """
    check_at_least_one(classes=classes, image=image, patch=patch)
    if image % patch:
        raise ValueError(f"patch is {patch}, expected a number that divides image={image}")
    return _VisionTransformer(classes, image, patch)
