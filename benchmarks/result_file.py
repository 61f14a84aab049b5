"""How every benchmark writes the numbers that are committed."""

import json
from pathlib import Path
from typing import Any

from unlearnx._files import write_atomically


def write_result(file: Path, content: Any) -> None:
    """Write `content` as JSON without white space, of which thousands of rows would be half; in one step."""
    text = json.dumps(content, separators=(",", ":"))
    write_atomically(file, lambda f: f.write(f"{text}\n".encode()))
