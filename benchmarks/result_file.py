"""How every benchmark writes the numbers that are committed."""

import json
from pathlib import Path
from typing import Any

from unlearnx._files import write_atomically

DIGITS = 8  # of a number: more than any measurement has, enough for what is computed from two of them


def write_result(file: Path, content: Any) -> None:
    """Write `content` as JSON without white space and needless digits, which would be half of it; in one step."""
    text = json.dumps(_short(content), separators=(",", ":"))
    write_atomically(file, lambda f: f.write(f"{text}\n".encode()))


def _short(content: Any) -> Any:
    if isinstance(content, float):
        return float(f"{content:.{DIGITS}g}")
    if isinstance(content, dict):
        return {key: _short(value) for key, value in content.items()}
    return [_short(value) for value in content] if isinstance(content, list | tuple) else content
