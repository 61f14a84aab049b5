"""What mkdocs cannot be told by its configuration: sections of the README as parts of pages, and the families of ops.

A page names a section by ``<!-- README: its heading -->``, with nothing after the colon for what stands before the
first heading; every section has one page. ``<!-- families -->`` stands for the reference of each family of ops, and
``<!-- names of PACKAGE -->`` for links to its public names: one that the reference does not have fails the build.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

NAMES = re.compile(r"<!-- names of (\w+) -->")
MARK = re.compile(r"^<!-- README:(.*) -->$", re.MULTILINE)
ROOT = Path(__file__).parent.parent

_, *parts = re.split(r"^(?:# unlearnx|## (.+))\n", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
SECTIONS = {heading or "": text for heading, text in zip(parts[::2], parts[1::2], strict=True)}
page_of: dict[str, str] = {}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Note which page has which section of the README."""
    for file in files.documentation_pages():
        for heading in MARK.findall(file.content_string):
            page_of[heading.strip()] = file.src_uri
    if page_of.keys() != SECTIONS.keys():
        raise PluginError(
            f"sections of the README without a page, or the other way: {page_of.keys() ^ SECTIONS.keys()}"
        )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the sections of the README, the families of ops and the names."""
    markdown = MARK.sub(lambda mark: section(mark[1].strip()), markdown)
    markdown = NAMES.sub(lambda mark: names(mark[1]), markdown)
    return markdown.replace("<!-- families -->", "\n\n".join(f"## {name}\n\n::: {name}\n" for name in families()))


def families() -> list[str]:
    """The modules of ops."""
    return [f"unlearnx.ops.{f.stem}" for f in sorted((ROOT / "unlearnx" / "ops").glob("[a-z]*.py"))]


def names(package: str) -> str:
    """Links to what the package, or each family of ops, lists in ``__all__``."""
    modules = families() if package == "ops" else [f"unlearnx.{package}"]
    found = sorted((name, module) for module in modules for name in public(module))
    return ", ".join(f"[`{name}`][{place(module, name)}]" for name, module in found)


def place(module: str, name: str) -> str:
    """Where the reference has a name: with its own module where that has the same name and hides it."""
    namesake = ROOT.joinpath(*module.split("."), f"{name}.py").is_file()
    return f"{module}.{name}.{name}" if namesake else f"{module}.{name}"


def public(module: str) -> list[str]:
    """``__all__`` of a module, which is not imported: that would take torch."""
    file = ROOT.joinpath(*module.split("."))
    tree = ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text())
    (listed,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__")
    return list(ast.literal_eval(listed))


def section(heading: str) -> str:
    """A section of the README, its links leading where they lead from a page."""
    text = SECTIONS[heading].replace("](docs/", "](")
    for other, uri in page_of.items():
        anchor = slugify(other, "-")
        text = text.replace(f"](#{anchor})", f"]({uri}#{anchor})")
    text = re.sub(r"\[([^\]]+)\]\(benchmarks/[^)]*\)", r"`\1`", text)  # files of the repository, not of the site
    return f"## {heading}\n{text}" if heading else text
