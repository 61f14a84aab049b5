"""Checks an installed wheel: its tag, that it is stripped, and the GPU generations that it holds.

python packaging/check.py TAG CUOBJDUMP     TAG such as +pt211cu130; CUOBJDUMP: path to the program, "" without CUDA
"""

import re
import subprocess
import sys

from unlearnx import _C, build_info


def output(*command: str) -> str:
    """What a command prints; raises where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check(tag: str, cuobjdump: str) -> None:
    """Raises AssertionError where something is wrong."""
    info, binary = build_info(), _C.__file__
    print(info)
    assert info["version"].endswith(tag), f"the version is {info['version']}, expected it to end with {tag}"
    sections = output("readelf", "--sections", "--wide", binary)
    assert not re.search(r"\.(symtab|debug_info)\b", sections), f"{binary} is not stripped"
    assert (info["cuda"] is None) == tag.endswith("cpu"), f"built for CUDA {info['cuda']}"
    if info["cuda"]:
        archs = info["cuda_archs"].split(";")
        wanted = {f"sm_{arch.removesuffix('+PTX').replace('.', '')}.cubin" for arch in archs}
        wanted |= {f"sm_{arch.removesuffix('+PTX').replace('.', '')}.ptx" for arch in archs if arch.endswith("+PTX")}
        held = set(re.findall(r"sm_\w+\.(?:cubin|ptx)", output(cuobjdump, "--list-elf", "--list-ptx", binary)))
        print("holds", *sorted(held))
        assert wanted <= held, f"{wanted - held} are missing"


check(*sys.argv[1:])
