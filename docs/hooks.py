"""What mkdocs cannot be told by its configuration: pages from outside of docs, and the families of ops.

CONTRIBUTING.md and CHANGELOG.md, which people look for beside the README, are pages of the site. ``<!-- families -->``
stands for the reference of each family of ops, and ``<!-- names of PACKAGE -->`` for links to its public names: one
that the reference does not have fails the build.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

NAMES = re.compile(r"<!-- names of (\w+) -->")
ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages from outside of docs; their links begin at the root of the repository."""
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the families of ops and the names."""
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
    namesake = ROOT.joinpath(*module.split("."), name)
    hidden = namesake.is_dir() or namesake.with_suffix(".py").is_file()
    return f"{module}.{name}.{name}" if hidden else f"{module}.{name}"


def public(module: str) -> list[str]:
    """``__all__`` of a module, which is not imported: that would take torch."""
    file = ROOT.joinpath(*module.split("."))
    tree = ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text())
    (listed,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__")
    return list(ast.literal_eval(listed))
