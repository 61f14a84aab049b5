"""The part of a model before its chosen parameters, which can be run once and its outputs kept as features."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset

from unlearnx._arguments import checked
from unlearnx._batches import Nest, joined, tensors
from unlearnx._checks import Params, model_device, select_params
from unlearnx._closures import hooks_hold
from unlearnx._copies import lent
from unlearnx._data import Data, as_dataset, batches, dataset_of, size
from unlearnx._memory_order import ImageOrder
from unlearnx._modes import modes_kept
from unlearnx._precision import autocast
from unlearnx._rows import Rows
from unlearnx._sources import Changed


class FrozenPrefix:
    """A model split in two: ``prefix``, which depends on none of the chosen parameters, and ``head``, the rest.

    The split is found by tracing (``torch.fx``) and checked on samples of the data. The head keeps the parameter names
    of the model and shares its parameters. There is no prefix, and the head is the model itself, where its input is
    not one tensor or it cannot be traced, where more than one tensor goes from the first part to the second, or where
    the two parts do not give the model's outputs. Results are the same then, only slower.

    Args:
        model: the model; it is not changed.
        params: the parameters that will change, as in :func:`unlearnx.curvature.fisher_diagonal`.
        data: pairs (x, y) to check the split on; two samples are read.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> data = (torch.randn(10, 8), torch.zeros(10))
        >>> frozen_prefix = FrozenPrefix(model, "last:2", data)
        >>> frozen_prefix.head(frozen_prefix.features(data).tensors[0]).shape
        torch.Size([10, 2])
    """

    @checked
    def __init__(self, model: nn.Module, params: Params, data: Data):
        names = select_params(model, params)
        self.prefix: nn.Module | None = None
        self.head: nn.Module = model
        if len(names) < len(list(model.named_parameters())):
            parts = _split_model(model, set(names), data)
            if parts is not None:
                self.prefix, self.head = parts
                self._frozen = lent(self.prefix).eval()
                self._order = ImageOrder(self._frozen)

    def __call__(self, x: Nest) -> Nest:
        """The head's input for the model input `x`: `x` itself where there is no prefix."""
        if self.prefix is None:
            return x
        with torch.no_grad():
            return self._frozen(self._order(x))

    def features(self, data: Data, *, batch_size: int | None = None, dtype: torch.dtype | None = None) -> Data:
        """The head's inputs for all of `data`: `data` itself where there is no prefix.

        The prefix runs in eval mode: it is frozen, and so are its running statistics.

        Args:
            data: pairs (x, y).
            batch_size: samples per forward pass of the prefix.
            dtype: run the prefix in this dtype, by autocast: bfloat16 is 2-3x faster on processors with AMX. Features
                are kept in the dtype of the head's parameters.

        Returns:
            A dataset of (feature, y): in memory, on the device of the model, where the features take at most 512 MiB,
            and in a temporary file beyond. Where samples of different lengths give features of different shapes, they
            are not kept, and the prefix runs whenever they are read.
        """
        if self.prefix is None:
            return data
        rows, run = Rows(size(data)), self._run(dtype)
        ys: list[Nest] = []
        for x, y in batches(data, batch_size, model_device(self.head), title="features"):
            part = run(x)
            if not rows.fits(part):
                return Changed(as_dataset(data), lambda x, y, _: (run(x), y))
            rows.add(part)
            ys.append(y)
        return dataset_of(rows.joined(), joined(ys))

    def live(self, dataset: Dataset[Any], *, dtype: torch.dtype | None = None) -> Dataset[Any]:
        """The samples of a dataset with the head's inputs made anew whenever they are read, for data that change."""
        if self.prefix is None:
            return dataset
        run = self._run(dtype)
        return Changed(dataset, lambda x, y, _: (run(x), y))

    def _run(self, dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
        device, own = model_device(self.head), next(self.head.parameters()).dtype

        def run(x: Tensor) -> Tensor:
            with torch.no_grad(), autocast(device, dtype):
                features = self._frozen(self._order(x.to(device)))
            return features.to(own) if dtype is not None and features.is_floating_point() else features

        return run


class _OneInput(nn.Module):
    """The model called with one argument: the tracer would otherwise turn optional arguments into graph inputs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


_tracing = threading.Lock()  # tracing replaces functions of torch.nn.Module, and puts back what it found


class _Tracer(fx.Tracer):
    """Leaves modules that other threads run meanwhile alone."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


_SCOPE = "model."  # of names inside _OneInput


def _copy_without_hooks(model: nn.Module) -> nn.Module:
    """A copy that shares parameters, so that tracing and checking do not run the model's own hooks."""
    copied = lent(model)
    if copied is model:
        raise ValueError("model: cannot be copied")
    for module in copied.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copied


def _split_model(model: nn.Module, names: set[str], data: Data) -> tuple[nn.Module, nn.Module] | None:
    x = next(iter(batches(data, 2, model_device(model))))[0]
    if not isinstance(x, Tensor):
        return None
    try:
        copied = _copy_without_hooks(model)
        with _tracing:
            graph = _Tracer().trace(_OneInput(copied))
    except Exception:  # this copies and runs the user's code on fx proxies, which may raise anything
        return None
    ran = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    if any(_has_hooks(module) for name, module in model.named_modules() if _SCOPE + name not in ran):
        return None  # these modules do not run as such in a graph of their parts
    if hooks_hold(model):
        return None  # they would go on to write to the model, which the parts are not
    named = [node for node in graph.nodes if node.op in ("call_module", "get_attr")]
    if any(not str(node.target).startswith(_SCOPE) for node in named):
        return None  # the model is a single layer, or its forward creates tensors
    for node in named:
        node.target = str(node.target).removeprefix(_SCOPE)
    head = _dependents(model, graph, names)
    boundary = [node for node in graph.nodes if node not in head and any(user in head for user in node.users)]
    if len(boundary) != 1 or boundary[0].op in ("placeholder", "get_attr"):
        return None
    try:
        if not _gives_same_output(copied, *_parts(copied, graph, head, boundary[0]), x):
            return None
    except Exception:  # a graph leaves out what the code does besides calls, such as taking gradients in forward()
        return None
    parts = _parts(model, graph, head, boundary[0])
    # A chosen parameter that the output does not depend on is in neither part: then there is no split.
    return parts if names <= {name for name, _ in parts[1].named_parameters()} else None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _dependents(model: nn.Module, graph: fx.Graph, names: set[str]) -> set[fx.Node]:
    """Nodes whose value depends on one of the parameters, under any of its names (weights may be tied)."""
    chosen = {id(p) for name, p in model.named_parameters() if name in names}
    owned = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    dependents: set[fx.Node] = set()
    for node in graph.nodes:
        own = False
        if node.op == "call_module":
            own = any(id(p) in chosen for p in model.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            own = owned.get(str(node.target)) in chosen
        if own or node.op == "output" or any(a in dependents for a in node.all_input_nodes):
            dependents.add(node)
    return dependents


def _parts(model: nn.Module, graph: fx.Graph, head: set[fx.Node], boundary: fx.Node) -> tuple[nn.Module, nn.Module]:
    return _part(model, graph, head, boundary, first=True), _part(model, graph, head, boundary, first=False)


def _part(model: nn.Module, graph: fx.Graph, head: set[fx.Node], boundary: fx.Node, *, first: bool) -> nn.Module:
    part = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    if not first:
        copied[boundary] = part.placeholder("features")
    for node in graph.nodes:
        if (node in head) != first:
            copied[node] = part.node_copy(node, copied.__getitem__)
    if first:
        part.output(copied[boundary])
    module = fx.GraphModule(model, part)
    module.training = model.training  # train() would change the children, which are the model's own
    return module


def _gives_same_output(model: nn.Module, prefix: nn.Module, head: nn.Module, x: Tensor) -> bool:
    """Whether the parts give the model's output, on the first pass over the features and on a second one."""
    with torch.no_grad(), modes_kept(model):
        model.eval()
        expected, features = model(x.clone()), prefix(x.clone())
        if not isinstance(features, Tensor) or features.shape[:1] != x.shape[:1]:
            return False
        kept = features.clone()
        passes = [head(features), head(features)]
    return torch.equal(features, kept) and all(_close(p, expected) for p in passes)


def _close(a: Any, b: Any) -> bool:
    """Whether two outputs are made of the same tensors, up to rounding."""
    pairs = list(zip(tensors(a), tensors(b), strict=False))
    return type(a) is type(b) and all(
        s.shape == t.shape and torch.allclose(s.to(t), t, rtol=1e-4, atol=1e-5) for s, t in pairs
    )
