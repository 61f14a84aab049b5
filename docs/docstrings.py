"""From our docstrings, Google style with roles of reStructuredText, to the Markdown that mkdocstrings reads."""

from __future__ import annotations

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([^`]+)`")
MATH = re.compile(r"^\.\. math:: (.+(?:\n    .+)*)", re.MULTILINE)
EXAMPLE = re.compile(r"^Example:", re.MULTILINE)
SOURCE = re.compile(r"^Source:", re.MULTILINE)
SHARED = re.compile(r"^    ((?:\w+, )+\w+): (.*(?:\n     .*)*)", re.MULTILINE)
ARGUMENT = re.compile(r"^    (\w+(?:, \w+)*): ", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Turns roles into links, formulas into MathML, ``Example:`` into the section griffe knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of anything that has one."""
        if obj.docstring is None:
            return
        text = ROLE.sub(lambda role: self._link(role[1], obj), obj.docstring.value)
        text = MATH.sub(lambda math: f"<div>{convert(math[1], display='block')}</div>", text)
        text = SOURCE.sub("**Source:**", EXAMPLE.sub("Examples:", text))
        obj.docstring.value = ARGUMENT.sub(r"- `\1`: ", text) if obj.is_module else SHARED.sub(_one_by_one, text)

    def _link(self, name: str, obj: griffe.Object) -> str:
        """A link to what `name` means in the docstring of `obj`, and plain code where there is no page for it."""
        owner = obj if obj.is_class or obj.parent is None else obj.parent
        if name.split(".")[0] in owner.members:
            path = f"{owner.path}.{name}"
        else:
            try:
                path = obj.resolve(name)
            except griffe.NameResolutionError:
                path = name
        return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'


def _one_by_one(entry: re.Match[str]) -> str:
    """``a, b: what both are`` as two entries, since griffe takes one name each."""
    return "\n".join(f"    {name}: {entry[2]}" for name in entry[1].split(", "))
