"""Autograd graphs, read node by node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


def nodes(roots: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of the graphs of some tensors, each once."""
    seen: set[object] = set()
    stack: list[Any] = [t.grad_fn for t in roots]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack += [following for following, _ in node.next_functions]
