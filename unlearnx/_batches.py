"""Nests of tensors: how samples in a batch are counted, cut, moved, joined and handed to a model.

A nest is a tensor, or a tuple, list or mapping of nests. In a batch the first dimension of every tensor is the samples.
What is the same for all samples may be in it too: numbers, flags and None as entries of a mapping or of the outermost
tuple, tensors without dimensions, and tensors whose first dimension is 1, which broadcast.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

Nest = Any
Index = slice | Tensor
Rebuild = Callable[[Sequence[Any]], Nest]


def taken_apart(nest: Nest) -> tuple[list[Any], Rebuild]:
    """The leaves of a nest, and a function that makes the nest of other leaves.

    Objects that ``torch.utils._pytree`` does not know, such as what a model returns, are made of their entries where
    they are mappings, and otherwise of their attributes. Attributes that are entries of a mapping change with these.
    """
    if isinstance(nest, Tensor):
        return [nest], lambda leaves: leaves[0]
    leaves, spec = tree_flatten(nest)
    if not (len(leaves) == 1 and leaves[0] is nest):
        return leaves, spec.unflatten
    is_mapping = isinstance(nest, Mapping)
    attributes = _attributes(nest)
    fields = dict(nest) if is_mapping else attributes
    if not fields:
        return leaves, spec.unflatten
    leaves, spec = tree_flatten(list(fields.values()))

    def made(leaves: Sequence[Any]) -> Nest:
        other = copy.copy(nest)
        values = dict(zip(fields, spec.unflatten(leaves), strict=True))
        if is_mapping:
            for name, value in values.items():
                other[name] = value
            new = {id(fields[name]): value for name, value in values.items()}
            values = {name: new[id(value)] for name, value in attributes.items() if id(value) in new}
        for name, value in values.items():
            object.__setattr__(other, name, value)  # also of a frozen dataclass
        return other

    return leaves, made


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, whether it keeps them in a dictionary or in slots."""
    slots = [names for cls in type(value).__mro__ if (names := vars(cls).get("__slots__"))]
    named = [name for names in slots for name in ([names] if isinstance(names, str) else names)]
    held = {name: getattr(value, name) for name in named if name != "__dict__" and hasattr(value, name)}
    return {**held, **getattr(value, "__dict__", {})}


def tensors(nest: Nest) -> Iterator[Tensor]:
    """The tensors of a nest."""
    if isinstance(nest, Tensor):
        yield nest
    else:
        yield from (leaf for leaf in taken_apart(nest)[0] if isinstance(leaf, Tensor))


def changed(nest: Nest, function: Callable[[Tensor], Tensor]) -> Nest:
    """The nest with ``function(t)`` in place of each of its tensors."""
    if isinstance(nest, Tensor):
        return function(nest)
    leaves, made = taken_apart(nest)
    return made([function(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves])


def one_real_tensor(x: Nest, purpose: str) -> Tensor:
    """The inputs of a request, where they are one tensor of real numbers.

    Raises:
        ValueError: they are not; the message says what they are needed for.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"request: has inputs of type {what}, expected one tensor of real numbers, {purpose}")
    return x


def count(nest: Nest) -> int:
    """Number of samples in a batch; 0 where it holds no tensor with a first dimension."""
    if isinstance(nest, Tensor):
        return len(nest) if nest.dim() else 0
    return max((len(t) for t in tensors(nest) if t.dim()), default=0)


def nbytes(nest: Nest) -> int:
    """Memory in bytes that the tensors of a nest take."""
    return sum(t.nbytes for t in tensors(nest))


def has_rows(leaf: Any, samples: int) -> bool:
    """Whether a leaf of a batch is a tensor with a row for each sample, rather than the same for all."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == samples


def take(nest: Nest, index: Index) -> Nest:
    """The samples at a slice, or at a tensor of indices, as a batch."""
    if isinstance(nest, Tensor):
        return nest[index if isinstance(index, slice) else index.to(nest.device)]
    n = count(nest)
    leaves, made = taken_apart(nest)
    return made([take(leaf, index) if has_rows(leaf, n) else leaf for leaf in leaves])


def one(nest: Nest, i: int) -> Nest:
    """Sample i of a batch, without the dimension of the samples."""
    n = count(nest)
    leaves, made = taken_apart(nest)
    return made([leaf[i] if has_rows(leaf, n) else leaf for leaf in leaves])


def split_rows(nest: Nest, samples: int) -> tuple[list[Tensor], Rebuild]:
    """The tensors of a batch that have a row for each sample, and a function that puts others in their place."""
    leaves, made = taken_apart(nest)
    places = [i for i, leaf in enumerate(leaves) if has_rows(leaf, samples)]

    def rebuilt(rows: Sequence[Tensor]) -> Nest:
        own = list(leaves)
        for place, row in zip(places, rows, strict=True):
            own[place] = row
        return made(own)

    return [leaves[i] for i in places], rebuilt


def replaced(nest: Nest, index: Index, rows: Nest) -> Nest:
    """A copy of a batch with other samples at a slice, or at a tensor of indices.

    Raises:
        ValueError: these are of another form or shape.
    """
    (own, made), (other, _) = split_rows(nest, count(nest)), split_rows(rows, count(rows))
    if [t.shape[1:] for t in own] != [t.shape[1:] for t in other]:
        raise ValueError(f"data: expected samples of shape {_shapes(own)}, got {_shapes(other)}")
    copies = [t.clone() for t in own]
    for t, part in zip(copies, other, strict=True):
        t[index if isinstance(index, slice) else index.to(t.device)] = part.to(t)
    return made(copies)


def moved(nest: Nest, device: torch.device | str | None) -> Nest:
    """The batch on a device."""
    return nest.to(device) if isinstance(nest, Tensor) else changed(nest, lambda t: t.to(device))


def constant(nest: Nest) -> Nest:
    """The batch as values to compute with: no gradient reaches them, and they may be in the graph of others'."""
    if any(t.requires_grad or t.is_inference() for t in tensors(nest)):
        return changed(nest, lambda t: t.clone() if t.is_inference() else t.detach())
    return nest


def joined(parts: Sequence[Nest]) -> Nest:
    """Batches as one, in order.

    Raises:
        ValueError: they are not of one form, or their samples have different shapes.
    """
    if len(parts) == 1:
        return parts[0]
    taken = [taken_apart(part) for part in parts]
    counts = [count(part) for part in parts]
    if len({len(leaves) for leaves, _ in taken}) > 1:
        raise ValueError(
            f"data: expected samples of one form, got batches of {[len(leaves) for leaves, _ in taken]} tensors"
        )
    made = taken[0][1]
    return made([_joined_leaf(column, counts) for column in zip(*(leaves for leaves, _ in taken), strict=True)])


def _joined_leaf(column: Sequence[Any], counts: Sequence[int]) -> Any:
    if not all(has_rows(leaf, n) for leaf, n in zip(column, counts, strict=True)):
        if not all(equal(leaf, column[0]) for leaf in column):
            raise ValueError("data: an entry that is the same for all samples of a batch differs between batches")
        return column[0]
    shapes = {leaf.shape[1:] for leaf in column}
    if len(shapes) > 1:
        few = ", ".join(str(list(shape)) for shape in list(shapes)[:3])
        raise ValueError(
            f"data: expected samples of one shape, got {few}; pad them to one length, or give a Dataset or a "
            "DataLoader with a collate_fn that pads"
        )
    return torch.cat(list(column))


def equal(a: Nest, b: Nest) -> bool:
    """Whether two batches hold the same values."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Tensor) or isinstance(b, Tensor) or a is None or b is None:
        return False
    (x, _), (y, _) = taken_apart(a), taken_apart(b)
    if len(x) == len(y) == 1 and x[0] is a and y[0] is b:
        return bool(a == b)
    return len(x) == len(y) and all(equal(s, t) for s, t in zip(x, y, strict=True))


def differing(a: Nest, b: Nest) -> Tensor:
    """Which samples of two batches of one form differ, (N,) on the CPU.

    Raises:
        ValueError: their forms or shapes differ.
    """
    n = count(a)
    (x, _), (y, _) = split_rows(a, n), split_rows(b, n)
    if [t.shape for t in x] != [t.shape for t in y]:
        raise ValueError(f"corrected: has samples of shape {_shapes(y)}, expected {_shapes(x)} as dataset")
    result = torch.zeros(n, dtype=torch.bool)
    for s, t in zip(x, y, strict=True):
        if s.data_ptr() != t.data_ptr() or s.stride() != t.stride():
            result |= (s != t).reshape(n, -1).any(1).cpu()
    return result


def _shapes(rows: Sequence[Tensor]) -> Any:
    shapes = [list(t.shape[1:]) for t in rows]
    return shapes[0] if len(shapes) == 1 else shapes


def arguments(x: Nest) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the named arguments that a model is called with on x."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if isinstance(x, (tuple, list)) else ((x,), {})


def call(model: Callable[..., Any], x: Nest) -> Any:
    """``model(x)``, ``model(*x)`` of a tuple or list, ``model(**x)`` of a mapping."""
    args, named = arguments(x)
    return model(*args, **named)


def scores(output: Any) -> Tensor:
    """The scores in what a model returned: a tensor, the logits of an object or mapping, or the first tensor of a
    tuple.

    Raises:
        ValueError: it has none.
    """
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, (tuple, list)):
        found = next((t for t in output if isinstance(t, Tensor)), None)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"model: returned {type(output).__name__}, expected scores: a tensor, an object or mapping with logits, or "
            "a tuple whose first tensor they are"
        )
    return found


def rows(output: Any, samples: int) -> Any:
    """`output` of a model for so many samples. Of a single one the first dimension may be missing, as after a squeeze.

    Raises:
        ValueError: it holds no tensor with a row for each.
    """
    if isinstance(output, Tensor):
        if samples == 1 and output.shape[:1] != (1,):
            return output.unsqueeze(0)
        if has_rows(output, samples):
            return output
        raise ValueError(
            f"model: returned shape {list(output.shape)} for {samples} samples, expected a tensor with a row for each"
        )
    leaves, made = taken_apart(output)
    if not any(has_rows(leaf, samples) for leaf in leaves):
        if samples != 1 or not any(isinstance(leaf, Tensor) for leaf in leaves):
            raise ValueError(
                f"model: returned {type(output).__name__} for {samples} samples, expected a tensor with a row for "
                "each, or an object, mapping or tuple with such tensors"
            )
        return made([leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves])
    return output


def described(nest: Nest) -> str:
    """Dtypes and shapes of the tensors of a nest, for messages."""
    if isinstance(nest, Tensor):
        return f"{nest.dtype} and shape {list(nest.shape)}"
    parts = " and ".join(f"{t.dtype} {list(t.shape)}" for t in tensors(nest))
    return f"{type(nest).__name__} with {parts or 'no tensor'}"
