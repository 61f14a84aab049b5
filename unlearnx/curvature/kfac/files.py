"""Factors in safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._checks import model_device
from unlearnx._extras import extra
from unlearnx._files import write_atomically
from unlearnx._vectors import Layout, Vector
from unlearnx.curvature.kfac.blocks import Block, DiagonalBlock, KroneckerBlock
from unlearnx.curvature.kfac.fingerprint import fingerprint
from unlearnx.curvature.kfac.layers import EmbeddingLayer, GroupedLayer, Layer, SplitLayer

FORMAT = "unlearnx.factors/1"
LAYERS: dict[str, type[Layer]] = {
    "linear": Layer,
    "embedding": EmbeddingLayer,
    "grouped": GroupedLayer,
    "split": SplitLayer,
}


def write_factors(
    path: Path, names: list[str], blocks: list[Block], info: dict[str, Any], fisher_diagonal: Vector | None
) -> None:
    """Write the factors of the parameters of these names, in one step; see :class:`unlearnx.curvature.Factors`."""
    with extra("Factors.save", "safetensors"):
        from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    described: list[dict[str, Any]] = []
    for k, block in enumerate(blocks):
        parts = {"values": block.values}
        entry: dict[str, Any] = {"kind": "diagonal", "weight": block.names[0]}
        if isinstance(block, KroneckerBlock):
            kind = "embedding" if isinstance(block.layer, EmbeddingLayer) else "linear"
            entry = {"kind": kind, "weight": block.layer.weight, "bias": block.layer.bias}
            if isinstance(block.layer, GroupedLayer):
                entry |= {"kind": "grouped", "count": block.layer.groups}
            if isinstance(block.layer, SplitLayer):
                entry |= {"kind": "split", "count": block.layer.blocks}
            parts |= {"out": block.out} | ({} if block.into is None else {"into": block.into})
        described.append(entry)
        tensors |= {f"{k}.{part}": t.contiguous() for part, t in parts.items()}
    tensors |= {f"diagonal.{name}": t.clone() for name, t in (fisher_diagonal or {}).items()}
    about = {"format": FORMAT, "names": names, "blocks": described, "info": info}
    content = save(tensors, {"unlearnx": json.dumps(about)})
    write_atomically(path, lambda file: file.write(content))


def read_factors(path: Path, model: nn.Module) -> tuple[Layout, list[Block], dict[str, Any], Vector | None]:
    """What the factors that were fitted for `model`, as it is now, are made of; errors as for :meth:`Factors.load`."""
    with extra("Factors.load", "safetensors"):
        from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("unlearnx", "{}"))
            if about.get("format") != FORMAT:
                raise ValueError(f"{path}: holds no factors of this version, expected a file that Factors.save wrote")
            own = dict(model.named_parameters())
            if about["info"]["fingerprint"] != fingerprint(model):
                raise ValueError(
                    f"{path}: the factors were fitted for a model with other parameters or buffers; fit them again"
                )
            tensors = {key: file.get_tensor(key).to(model_device(model)) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: is not a safetensors file, or is damaged: {error}") from error
    blocks: list[Block] = []
    for k, entry in enumerate(about["blocks"]):
        name, values = entry["weight"], tensors[f"{k}.values"]
        if entry["kind"] == "diagonal":
            blocks.append(DiagonalBlock(name, values))
            continue
        count = (entry["count"],) if "count" in entry else ()
        layer = LAYERS[entry["kind"]](name, entry["bias"], torch.Size(own[name].shape), *count)
        blocks.append(KroneckerBlock(layer, tensors.get(f"{k}.into"), tensors[f"{k}.out"], values))
    names = about["names"]
    diagonal = {name: tensors[f"diagonal.{name}"] for name in names if f"diagonal.{name}" in tensors}
    return Layout({name: own[name] for name in names}), blocks, about["info"], diagonal or None
