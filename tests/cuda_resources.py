"""What ptxas reports of every CUDA kernel: registers, static shared memory, stack and spilled registers.

python -m tests.cuda_resources                        writes cuda_resources.json, for sm_80 and sm_90, anew
python -m tests.cuda_resources sm_75 sm_86 sm_100     prints the largest numbers on others; fails on a stack or a spill
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).parents[1] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*_kernels.cu"))
TABLE = Path(__file__).with_suffix(".json")
ARCHITECTURES = ("sm_80", "sm_90")
REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'\n"
    r"ptxas info\s*: Function properties for (?P=kernel)\n"
    r"\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r"ptxas info\s*: Used (?P<registers>\d+) registers(?:.*?, (?P<shared>\d+) bytes smem)?"
)


class Use(NamedTuple):
    """What a thread, and for shared memory a block, of one kernel takes on one architecture; memory in bytes."""

    registers: int
    shared: int
    stack: int = 0
    spills: int = 0


Uses = dict[str, dict[str, Use]]  # by kernel, by architecture


def find_nvcc() -> str | None:
    """nvcc of the path, or the one that `pip install cuda-toolkit[nvcc,...]` lays into site-packages."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = list(nvidia.submodule_search_locations or ()) if nvidia else []
    found = [shutil.which("nvcc")] + [str(f) for folder in folders for f in Path(folder).glob("cu*/bin/nvcc")]
    return next(filter(None, found), None)


def nvcc_version(nvcc: str) -> str:
    """Such as 13.0.88: another release allots registers in its own way."""
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return output.rpartition("release ")[2].partition(", V")[2].split()[0]


def compile_kernels(nvcc: str, source: Path, architectures: tuple[str, ...], folder: Path) -> tuple[bool, str]:
    """Compiles one file, warnings being errors; whether it could, and what the compilers said."""
    targets = [f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in architectures]
    command = [nvcc, "-std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas=-v", f"-I{CSRC}", *targets]
    result = subprocess.run(
        [*command, "-c", str(source), "-o", str(folder / f"{source.stem}.o")],
        capture_output=True,
        text=True,
        env=dict(os.environ, CUDA_HOME=str(Path(nvcc).resolve().parents[1])),
    )
    return result.returncode == 0, result.stdout + result.stderr


def parse(report: str) -> Uses:
    """Uses of every kernel that ptxas reports, by name without namespaces and parameters."""
    found = list(REPORT.finditer(report))
    if len(found) != report.count("Compiling entry function"):
        raise ValueError(f"ptxas writes its report in a way unknown here:\n{report[:2000]}")
    mangled = "\n".join(match["kernel"] for match in found)
    names = subprocess.run(["c++filt", "--no-params"], input=mangled, capture_output=True, text=True, check=True).stdout
    uses: Uses = {}
    for match, name in zip(found, names.replace("unlearnx::cuda::", "").splitlines(), strict=True):
        spills = int(match["stores"]) + int(match["loads"])
        use = Use(int(match["registers"]), int(match["shared"] or 0), int(match["stack"]), spills)
        uses.setdefault(name, {})[match["architecture"]] = use
    return uses


def spilled(uses: Uses) -> list[str]:
    """A line for every kernel that keeps something in local memory."""
    return [
        f"{kernel} on {architecture}: {use.stack} bytes of stack, {use.spills} bytes spilled"
        for kernel, by_architecture in uses.items()
        for architecture, use in by_architecture.items()
        if use.stack or use.spills
    ]


def above(uses: Uses, table: Uses) -> list[str]:
    """A line for every kernel that takes more than the table says, and for every one that only one of them has."""
    lines = [f"{kernel}: in one of table and sources only" for kernel in sorted(uses.keys() ^ table.keys())]
    for kernel in uses.keys() & table.keys():
        for architecture, use in uses[kernel].items():
            limit = table[kernel][architecture]
            if use.registers > limit.registers or use.shared > limit.shared:
                lines.append(
                    f"{kernel} on {architecture}: {use.registers} registers, {use.shared} bytes of shared memory; "
                    f"the table has {limit.registers} and {limit.shared}"
                )
    return lines


def read_table() -> tuple[str, dict[str, Uses]]:
    """Version of nvcc, and uses by file."""
    table = json.loads(TABLE.read_text())
    files = {
        file: {kernel: {name: Use(*use) for name, use in uses.items()} for kernel, uses in kernels.items()}
        for file, kernels in table["kernels"].items()
    }
    return table["nvcc"], files


def table_text(version: str, files: dict[str, Uses]) -> str:
    """A line a kernel."""
    texts = []
    for file, kernels in files.items():
        rows = [
            f"{json.dumps(kernel)}: {json.dumps({name: uses[name][:2] for name in sorted(uses)})}"
            for kernel, uses in sorted(kernels.items())
        ]
        texts.append(f'    "{file}": {{\n      ' + ",\n      ".join(rows) + "\n    }")
    columns = json.dumps(["registers of a thread", "bytes of static shared memory of a block"])
    kernels = ",\n".join(texts)
    return f'{{\n  "nvcc": "{version}",\n  "columns": {columns},\n  "kernels": {{\n{kernels}\n  }}\n}}\n'


def main() -> None:
    architectures = tuple(sys.argv[1:]) or ARCHITECTURES
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("nvcc not found; `make nvcc` installs it from PyPI")
    files = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda source: compile_kernels(nvcc, source, architectures, Path(folder)), SOURCES)
        for source, (compiled, output) in zip(SOURCES, results, strict=True):
            if not compiled:
                sys.exit(output)
            files[source.stem] = parse(output)
    kernels = {kernel: uses for file in files.values() for kernel, uses in file.items()}
    for name in architectures:
        uses = [by_architecture[name] for by_architecture in kernels.values()]
        registers, shared = (max(column) for column in list(zip(*uses, strict=True))[:2])
        print(f"{name}: {len(uses)} kernels, at most {registers} registers, {shared} bytes of static shared memory")
    if lines := spilled(kernels):
        sys.exit("\n".join(lines))
    if architectures == ARCHITECTURES:
        TABLE.write_text(table_text(nvcc_version(nvcc), files))


if __name__ == "__main__":
    main()
