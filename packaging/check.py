"""Checks an installed wheel: its tag, that it is stripped and needs of torch the stable ABI alone, and its GPUs.

python packaging/check.py TAG CUOBJDUMP     TAG such as cu130, or cpu; CUOBJDUMP: path to the program, "" without CUDA
"""

import re
import subprocess
import sys

from unlearnx import _C, build_info
from unlearnx._extension import LIBRARY

# Functions of torch's C interface are no C++ symbols: they have no such names.
UNSTABLE = re.compile(r"\b(at|c10|torch|caffe2)::")


def output(*command: str) -> str:
    """What a command prints; raises where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def unstable_symbols(library: str) -> list[str]:
    """What a library asks of torch that another release of torch may not have."""
    asked = output("nm", "--dynamic", "--undefined-only", "--demangle", library).splitlines()
    return [line.strip() for line in asked if UNSTABLE.search(line)]


def check(tag: str, cuobjdump: str) -> None:
    """Raises AssertionError where something is wrong."""
    info, library = build_info(), str(LIBRARY)
    print(info)
    local = info["version"].partition("+")[2]
    assert local in (tag, "") if tag == "cpu" else local == tag, f"the version is {info['version']}, expected +{tag}"
    for binary in (library, _C.__file__):
        sections = output("readelf", "--sections", "--wide", binary)
        assert not re.search(r"\.(symtab|debug_info)\b", sections), f"{binary} is not stripped"
    unstable = unstable_symbols(library)
    assert not unstable, f"{library} is bound to one torch by {unstable}"
    assert (info["cuda"] is None) == (tag == "cpu"), f"built for CUDA {info['cuda']}"
    if info["cuda"]:
        archs = info["cuda_archs"].split(";")
        wanted = {f"sm_{arch.removesuffix('+PTX').replace('.', '')}.cubin" for arch in archs}
        wanted |= {f"sm_{arch.removesuffix('+PTX').replace('.', '')}.ptx" for arch in archs if arch.endswith("+PTX")}
        held = set(re.findall(r"sm_\w+\.(?:cubin|ptx)", output(cuobjdump, "--list-elf", "--list-ptx", library)))
        print("holds", *sorted(held))
        assert wanted <= held, f"{wanted - held} are missing"


if __name__ == "__main__":
    check(*sys.argv[1:])
