"""The part of a model that a change of its last parameters leaves alone, run once."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.utils.data import TensorDataset

from unlearnx._checks import Params, model_device, select_params
from unlearnx._data import Data, batches, channels_last


class FrozenPrefix:
    """A model cut in two: ``prefix``, which depends on none of the chosen parameters, and ``head``, the rest.

    The cut is found by tracing (``torch.fx``). The head keeps the parameter names of the model and shares its
    parameters. Where the model cannot be traced, or no single tensor joins the two parts, there is no prefix and
    the head is the model itself: correct all the same, only slower.

    Args:
        model: the model; put it into eval mode first if its prefix behaves differently there.
        params: the parameters that will change, as in :func:`unlearnx.curvature.fisher_diagonal`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> cut = FrozenPrefix(model, "last:2")
        >>> features = cut.features((torch.randn(10, 8), torch.zeros(10)))
        >>> cut.head(features.tensors[0]).shape
        torch.Size([10, 2])
    """

    def __init__(self, model: nn.Module, params: Params):
        names = select_params(model, params)
        self.prefix: nn.Module | None = None
        self.head: nn.Module = model
        if len(names) < len(list(model.named_parameters())):
            cut = _cut(model, set(names))
            if cut is not None:
                self.prefix, self.head = cut

    def features(self, data: Data, *, batch_size: int | None = None, dtype: torch.dtype | None = None) -> Data:
        """What the head takes in place of the images: `data` itself where there is no prefix.

        Args:
            data: pairs (x, y).
            batch_size: samples in one run of the prefix.
            dtype: run the prefix in this dtype (bfloat16 is 2-3x faster on processors with AMX) and keep the
                features in it.

        Returns:
            A TensorDataset of (feature, y), on the device of the model.
        """
        if self.prefix is None:
            return data
        prefix = self.prefix
        if dtype is not None:
            prefix = copy.deepcopy(prefix).to(dtype)
        xs: list[Tensor] = []
        ys: list[Tensor] = []
        device = model_device(self.head)
        with torch.no_grad():
            for x, y in batches(data, batch_size, device):
                xs.append(prefix(channels_last(x.to(dtype) if dtype and x.is_floating_point() else x)))
                ys.append(y)
        return TensorDataset(torch.cat(xs), torch.cat(ys))


def _cut(model: nn.Module, names: set[str]) -> tuple[nn.Module, nn.Module] | None:
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # tracing runs the user's forward on proxies, which may raise anything
        return None
    head = _dependents(model, graph, names)
    boundary = [node for node in graph.nodes if node not in head and any(user in head for user in node.users)]
    if len(boundary) != 1 or boundary[0].op == "placeholder" or boundary[0].op == "get_attr":
        return None
    return _part(model, graph, head, boundary[0], first=True), _part(model, graph, head, boundary[0], first=False)


def _dependents(model: nn.Module, graph: fx.Graph, names: set[str]) -> set[fx.Node]:
    """Nodes whose value changes with one of the parameters."""
    dependents: set[fx.Node] = set()
    for node in graph.nodes:
        own = False
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            own = any(f"{node.target}.{name}" in names for name, _ in module.named_parameters())
        elif node.op == "get_attr":
            own = str(node.target) in names
        if own or node.op == "output" or any(a in dependents for a in node.all_input_nodes):
            dependents.add(node)
    return dependents


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
    module.training = model.training  # not train(): the children are the model's own and keep their mode
    return module
