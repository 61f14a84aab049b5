"""Prints the page on which pip finds wheels: `pip install unlearnx --find-links URL_OF_THE_PAGE`.

python packaging/index.py FOLDER_URL WHEEL...
"""

import hashlib
import html
import sys
from pathlib import Path
from urllib.parse import quote


def page(folder: str, wheels: list[Path]) -> str:
    """HTML with a link to every wheel in the folder at a URL, and the hash by which pip checks what it got."""
    links = []
    for wheel in sorted(wheels):
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        url = f"{folder}/{quote(wheel.name)}#sha256={digest}"
        links.append(f'<a href="{html.escape(url)}">{html.escape(wheel.name)}</a><br>')
    return "<!DOCTYPE html>\n<title>unlearnx</title>\n" + "\n".join(links) + "\n"


if __name__ == "__main__":
    print(page(sys.argv[1], [Path(name) for name in sys.argv[2:]]), end="")
