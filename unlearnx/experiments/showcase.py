"""What a report shows of single images: how confident models are of their labels, and which pixels matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx import metrics
from unlearnx.experiments.evaluation import Evaluation, Sets

MAX_CONFIDENCES_PER_SET = 500  # more are a random sample
IMAGES_PER_SET = 4  # that saliency is shown for


def confidences(
    models: Mapping[str, nn.Module], sets: Sets, autocast: torch.dtype | None
) -> dict[str, dict[str, list[float]]]:
    """Logit confidences of every model, in nats, on each part of the images, or on a random sample of a large part."""
    generator = torch.Generator().manual_seed(0)
    drawn = {
        part: numbers[torch.randperm(len(numbers), generator=generator)[:MAX_CONFIDENCES_PER_SET]]
        for part, numbers in sets.parts.items()
    }
    evaluation = Evaluation(sets, autocast=autocast)
    tables = {name: evaluation.scores(model) for name, model in models.items()}
    return {
        name: {
            part: metrics.logit_confidence(table, (numbers, sets.labels[numbers])).tolist()
            for part, numbers in drawn.items()
        }
        for name, table in tables.items()
    }


def saliency_maps(models: Mapping[str, nn.Module], best: str, sets: Sets, classes: Sequence[str]) -> dict[str, Any]:
    """Grad-CAM saliency of the original, the retrained and the `best` model for the labels of some images."""
    shown = {"original": models["original"], "unlearned": models[best], "retrained": models["retrained"]}
    entries = []
    for part in ("forget", "retain"):
        x, y = (t[:IMAGES_PER_SET] for t in sets.samples(part))
        maps = {name: metrics.saliency(model, x, y) for name, model in shown.items()}
        predicted = {name: metrics.predict(model, (x, y)) for name, model in shown.items()}
        for k, image in enumerate(_displayable(x, sets.train[0])):
            entries.append(
                {
                    "set": part,
                    "label": classes[int(y[k])],
                    "image": image.tolist(),
                    **{name: found[k].tolist() for name, found in maps.items()},
                    "predicted": {name: classes[int(found[k])] for name, found in predicted.items()},
                }
            )
    return {"images": entries, "method": best, "attribution": "grad_cam"}


def _displayable(x: Tensor, of: Tensor) -> Tensor:
    """Images (N, H, W), or (N, H, W, 3) with three channels, scaled so that each channel of `of` spans [0, 1]."""
    low, high = (extreme(of, (0, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
    images = ((x - low) / (high - low)).permute(0, 2, 3, 1)
    return images[..., 0] if images.shape[-1] == 1 else images
