"""The blocks of a network, such as a transformer's layers: the longest list of modules of one class that it has."""

from __future__ import annotations

from torch import nn

from unlearnx._checks import qualified

LISTS = (nn.ModuleList, nn.Sequential)


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks with their names in the model, from the first on; an empty list where it has none.

    Of lists of one length the first is taken.
    """
    lists = [
        [(qualified(name, child), block) for child, block in module.named_children()]
        for name, module in model.named_modules()
        if isinstance(module, LISTS) and _alike(module)
    ]
    return max(lists, key=len, default=[])


def _alike(blocks: nn.Module) -> bool:
    """Whether all modules within are of one class, with parameters."""
    return len({type(block) for block in blocks.children()}) == 1 and any(True for _ in blocks.parameters())
