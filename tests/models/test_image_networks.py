"""The image networks: sizes, names that the usual checkpoints have, and that trained ones load."""

import os
from pathlib import Path

import pytest
import torch

from unlearnx.models import resnet9, resnet18, resnet20, vit_tiny


@pytest.mark.parametrize(
    ("build", "parameters"), [(resnet9, 1_646_122), (resnet18, 11_173_962), (resnet20, 272_474), (vit_tiny, 5_362_762)]
)
def test_sizes(build, parameters):
    assert sum(p.numel() for p in build().parameters()) == parameters
    for classes in (10, 20, 100):
        assert build(classes).eval()(torch.randn(2, 3, 32, 32)).shape == (2, classes)
    with pytest.raises(ValueError, match="classes is 0"):
        build(0)


def test_names_of_torchvision():
    own, blocks = set(resnet18().state_dict()), {1: 64, 2: 128, 3: 256, 4: 512}
    expected = {"conv1.weight", "fc.weight", "fc.bias"}
    norms = ["bn1"]
    for stage in blocks:
        for block in (0, 1):
            expected |= {f"layer{stage}.{block}.conv{i}.weight" for i in (1, 2)}
            norms += [f"layer{stage}.{block}.bn{i}" for i in (1, 2)]
        if stage > 1:
            expected.add(f"layer{stage}.0.downsample.0.weight")
            norms.append(f"layer{stage}.0.downsample.1")
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert own == expected | {f"{name}.{part}" for name in norms for part in parts}


def test_names_of_timm():
    names = set(vit_tiny().state_dict())
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "head.bias"} <= names
    inner = ("norm1.weight", "attn.qkv.weight", "attn.proj.bias", "norm2.bias", "mlp.fc1.weight", "mlp.fc2.bias")
    assert {f"blocks.11.{name}" for name in inner} <= names
    assert vit_tiny(1000, image=224, patch=16).pos_embed.shape == (1, 197, 192)
    with pytest.raises(ValueError, match="patch is 5, expected a number that divides image=32"):
        vit_tiny(patch=5)


def test_attention_is_softmax_of_products():
    torch.manual_seed(0)
    model = vit_tiny().double().eval()
    attention, x = model.blocks[0].attn, torch.randn(2, 5, 192, dtype=torch.float64)
    qkv = attention.qkv(x).reshape(2, 5, 3, 3, 64)
    heads = []
    for h in range(3):
        q, k, v = (qkv[:, :, part, h] for part in range(3))
        heads.append(torch.softmax(q @ k.mT / 8, -1) @ v)
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, -1)))


def test_trained_checkpoints_load():
    folder = os.environ.get("UNLEARNX_MODELS")
    if not folder or not (Path(folder) / "resnet9").is_dir():
        pytest.skip("UNLEARNX_MODELS names no folder with trained ResNet-9s")
    state = torch.load(Path(folder) / "resnet9" / "original-0.pt", weights_only=True)
    resnet9().load_state_dict(state)
