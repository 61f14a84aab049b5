"""What trying a model has shown, for later calls on the same modules with the same settings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from unlearnx._batches import Nest, taken_apart

MOST_KNOWN = 8  # kinds of calls that are remembered for a model
T = TypeVar("T")


class Remembered(Generic[T]):
    """Findings about models, kept as long as the models are.

    Values of parameters must not matter to them, which functions these go through may.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, dict[Any, T]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, model: nn.Module, x: Nest, about: Any, find: Callable[[], T | None]) -> T | None:
        """What ``find()`` gives, now or in an earlier call; None is not remembered.

        Args:
            model: the model.
            x: samples, of which shapes and dtypes count.
            about: what else counts.
            find: tries the model.
        """
        key = (about, tuple(_form(leaf) for leaf in taken_apart(x)[0]), tuple(_settings(model)))
        with self._lock:
            found = self._known.get(model, {}).get(key)
        if found is None:
            found = find()
        if found is not None:
            with self._lock:
                kept = self._known.setdefault(model, {})
                if len(kept) >= MOST_KNOWN:
                    kept.clear()
                kept[key] = found
        return found


def _form(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else _simple(leaf)


def _settings(model: nn.Module) -> Iterator[Any]:
    """Everything about a model that decides which functions it calls, but what its own code looks up elsewhere."""
    for name, module in model.named_modules():
        yield name, type(module), id(module)
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers"):
                yield attribute, *((n, id(t), t.shape, t.dtype, t.device) for n, t in value.items() if t is not None)
            elif attribute.endswith("_hooks"):
                yield attribute, *(id(hook) for hook in (value or {}).values())
            elif attribute != "_modules":
                yield attribute, _simple(value)
                entries = vars(value) if hasattr(value, "__dict__") and not callable(value) else {}
                yield from ((n, _simple(v)) for n, v in entries.items())  # of a configuration


def _simple(value: Any) -> Any:
    """A setting by its value, an object by what it is."""
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, (tuple, list)):
        return type(value), *map(_simple, value)
    return id(value)
