"""Two rounds over the data: one for the covariances of the layers, one for the eigenvalues in their eigenbasis.

The second takes what the first saw at the layers, where memory holds it; otherwise the model runs a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unlearnx import _distributed as distributed
from unlearnx._batches import Nest, count, moved
from unlearnx._calls import check_call
from unlearnx._checks import Params, check_finite, model_device, select_params
from unlearnx._data import Data, check_same_in_every_process, shared_batches, size
from unlearnx._losses import Loss, SampleLoss
from unlearnx._progress import progress_bar
from unlearnx._sources import Samples
from unlearnx._vectors import Layout
from unlearnx.curvature.contributions import Contribution
from unlearnx.curvature.fisher_labels import FisherLabels
from unlearnx.curvature.kfac.blocks import DiagonalBlock, KroneckerBlock
from unlearnx.curvature.kfac.eigen import eigenbasis
from unlearnx.curvature.kfac.factors import Factors
from unlearnx.curvature.kfac.fingerprint import fingerprint
from unlearnx.curvature.kfac.kept import KeptContributions
from unlearnx.curvature.kfac.layers import EmbeddingLayer, Layer, is_its_bias, layer_of
from unlearnx.curvature.kfac.statistics import Covariances, add_rotated_squares
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.rule_check import PROBE_SAMPLES
from unlearnx.curvature.samples import OnContribution, SampleGradients
from unlearnx.curvature.targets import Targets
from unlearnx.ops._dtypes import compute_dtype


def fit_factors(
    model: nn.Module,
    loss_fn: Loss,
    data: Data,
    *,
    params: Params,
    fisher_type: str,
    approximation: str,
    corrected: bool,
    diagonal: bool,
    batch_size: int | None,
    generator: torch.Generator | None,
    progress: bool,
) -> Factors:
    """Fit the factors; with `corrected` eigenvalues those of EK-FAC, else those of K-FAC."""
    check_call(model, loss_fn, data)
    names = select_params(model, params)
    check_same_in_every_process("data", data)
    passes = _Passes(model, loss_fn, data, names, fisher_type, batch_size, generator)
    own: dict[str, Tensor] = {name: model.get_parameter(name) for name in names}
    passes.find_layers(own)
    n, second = size(data), corrected and bool(passes.layers)
    with progress_bar("Kronecker factors", (1 + second) * n, progress) as advance:
        covariances = {layer.weight: Covariances(layer, approximation, own[layer.weight]) for layer in passes.layers}
        in_layers = {name for layer in passes.layers for name in layer.names}
        diagonals = {
            name: torch.zeros_like(own[name], dtype=compute_dtype(own[name]))
            for name in names
            if diagonal or name not in in_layers
        }
        passes.first(covariances, diagonals, advance, keep=second)
        blocks: list[KroneckerBlock] = []
        for layer in passes.layers:
            found = covariances.pop(layer.weight)
            found.finish()
            counted = found.counted.clamp(min=1)
            outputs, out = eigenbasis(found.outputs / n)
            inputs, into = found.inputs / counted, None
            if not isinstance(layer, EmbeddingLayer):
                inputs, into = eigenbasis(inputs)
            blocks.append(KroneckerBlock(layer, into, out, outputs.unsqueeze(-1) * inputs.unsqueeze(-2)))
        if second:
            passes.second(blocks, advance)
            for block in blocks:
                block.values /= n
    check_finite("eigenvalues", ((" and ".join(block.names), block.values) for block in blocks))
    diagonals = {name: t / n for name, t in diagonals.items()}
    others = [DiagonalBlock(name, t) for name, t in diagonals.items() if name not in in_layers]
    info = {
        "method": "EK-FAC" if corrected else "K-FAC",
        "fisher_type": fisher_type,
        "approximation": approximation,
        "samples": n,
        "passes": passes.taken,
        "fingerprint": fingerprint(model),
    }
    return Factors(Layout(own), [*blocks, *others], info, diagonals if diagonal else None)


class _Passes:
    """Passes over the same data with the same labels.

    Attributes:
        layers: those with Kronecker factors.
        taken: number of passes of the model over the data.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        data: Data,
        names: list[str],
        fisher_type: str,
        batch_size: int | None,
        generator: torch.Generator | None,
    ):
        self._names, self._data, self._device = names, data, model_device(model)
        self._batch_size = data.batch_size if batch_size is None and isinstance(data, DataLoader) else batch_size
        self._prefix = FrozenPrefix(model, names, data)
        self._loss = SampleLoss(loss_fn)
        self._labels = FisherLabels(self._loss, fisher_type, size(data), self._device, generator)
        x, self._y = (moved(t, self._device) for t in Samples(data).read(slice(0, PROBE_SAMPLES)))
        self._x = self._prefix(x)
        self._gradients = SampleGradients(self._prefix.head, self._loss, names, self._x, None, need_rules=True)
        self._kept = KeptContributions(self._device)
        self.layers: list[Layer] = []
        self.taken = 0

    def find_layers(self, parameters: dict[str, Tensor]) -> None:
        """Find out from a few samples which parameters belong to which layers."""
        found: dict[str, Contribution] = {}

        def on_contribution(name: str, contribution: Contribution, weight: Tensor | None) -> None:
            found[name] = contribution

        trusted = self._gradients.trusted
        if trusted:
            self._gradients.run(self._x, lambda output: [Targets(self._y)], on_contribution, trusted)
        for name, contribution in found.items():
            path, dot, last = name.rpartition(".")
            bias = path + dot + last.replace("weight", "bias")
            paired = bias != name and is_its_bias(contribution, found.get(bias))
            layer = layer_of(name, parameters[name].shape, bias if paired else None, contribution)
            if layer is not None:
                self.layers.append(layer)

    def first(
        self,
        covariances: dict[str, Covariances],
        diagonals: dict[str, Tensor],
        advance: Callable[[int], None],
        *,
        keep: bool,
    ) -> None:
        """Add up covariances and squares; `keep` what :meth:`second` takes, if memory holds it."""
        seen: set[str] = set()
        labelled: Tensor | None = None

        def on_contribution(name: str, contribution: Contribution, weight: Tensor | None) -> None:
            if name in covariances:
                covariances[name].add(contribution, labelled, weight, inputs=name not in seen)
                seen.add(name)
                if keep:
                    self._kept.add(name, contribution, weight)
            if name in diagonals:
                diagonals[name] += contribution.squares(weight)

        def on_part(y: Nest) -> None:
            nonlocal labelled
            labelled = self._labelled(y)
            seen.clear()

        def on_batch(position: int) -> None:
            sizes = torch.stack([c.size() for c in covariances.values()]) if covariances else torch.zeros(0)
            for name, ok in zip(covariances, sizes.isfinite().tolist(), strict=True):
                if not ok:
                    raise ValueError(
                        f"covariances of {name!r}: values are NaN or infinite in the batch from sample {position} on"
                    )

        self._run({*covariances, *diagonals}, on_contribution, on_part, on_batch, advance)
        distributed.all_reduce_(
            [t for c in covariances.values() for t in (c.inputs, c.outputs, c.counted)] + list(diagonals.values())
        )
        check_finite("Fisher diagonal", diagonals.items())

    def second(self, blocks: list[KroneckerBlock], advance: Callable[[int], None]) -> None:
        """Put the sums of the squares of the samples' gradients in the blocks' bases in place of their values."""
        by_name = {block.layer.weight: block for block in blocks}
        for block in blocks:
            block.values = torch.zeros_like(block.values)

        def on_contribution(name: str, contribution: Contribution, weight: Tensor | None) -> None:
            block = by_name[name]
            add_rotated_squares(block.values, block.layer, (block.into, block.out), contribution, weight)

        if self._kept.complete:
            with distributed.failing_together(self._device):
                self._kept.replay(on_contribution)
                advance(size(self._data))
        else:
            self._run(set(by_name), on_contribution, lambda y: None, lambda position: None, advance)
        distributed.all_reduce_([block.values for block in blocks])

    def _run(
        self,
        names: set[str],
        on_contribution: OnContribution,
        on_part: Callable[[Nest], None],
        on_batch: Callable[[int], None],
        advance: Callable[[int], None],
    ) -> None:
        self.taken += 1
        seen = 0
        with distributed.failing_together(self._device):
            for position, x, y in shared_batches(self._data, self._batch_size, self._device):
                x = self._prefix(x)
                start = position
                for part_x, part_y in self._gradients.split(x, y):
                    on_part(part_y)
                    self._gradients.run(part_x, partial(self._labels, start, part_y), on_contribution, names)
                    start += count(part_x)
                on_batch(position)
                advance(position + count(x) - seen)
                seen = position + count(x)

    def _labelled(self, y: Nest) -> Tensor | None:
        """Which samples of a batch have a label, (N,); None for all, or where labels are no classes."""
        if not isinstance(y, Tensor) or y.is_floating_point() or y.dim() == 0:
            return None
        labelled = (y != self._loss.ignore_index).reshape(len(y), -1).any(1)
        return None if labelled.all() else labelled
