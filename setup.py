"""Builds unlearnx._C, the compiled part; everything else about the package stands in pyproject.toml.

UNLEARNX_CUDA   auto (default: CUDA where nvcc and a CUDA torch are found), 1 (required), 0 (never).
FORCE_CUDA      1 is a synonym of UNLEARNX_CUDA=1.
TORCH_CUDA_ARCH_LIST   GPU generations to compile for, as for every torch extension.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

VERSION = "0.1.0"
ROOT = Path(__file__).resolve().parent
INSTALL = "pip install --no-build-isolation ."

CXX_FLAGS = [
    "-O3",
    "-g0",  # Python's own flags ask for debugging information
    "-fopenmp",  # without it at::parallel_for is serial, silently
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",  # every CPU level computes the same bits
    "-fvisibility=hidden",
]
LINK_FLAGS = ["-Wl,-s"] if sys.platform == "linux" else []  # no symbol table
NVCC_FLAGS = ["-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden"]


def stop(sentence: str) -> None:
    sys.exit(f"unlearnx: {sentence}")


def nvcc_says(nvcc: Path, *arguments: str) -> str:
    """What an nvcc prints; nothing where it cannot be run."""
    try:
        run = subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return run.stdout + run.stderr


def find_nvcc() -> Path | None:
    """nvcc of $CUDA_HOME, of the path, of the toolkit that PyPI installs, or of the usual folder."""
    nvidia = importlib.util.find_spec("nvidia")
    installed = [Path(f) for f in nvidia.submodule_search_locations or []] if nvidia else []
    on_path = shutil.which("nvcc")
    candidates = [
        *([Path(os.environ["CUDA_HOME"], "bin", "nvcc")] if "CUDA_HOME" in os.environ else []),
        *([Path(on_path)] if on_path else []),
        *(nvcc for folder in installed for nvcc in folder.glob("cu*/bin/nvcc")),
        Path("/usr/local/cuda/bin/nvcc"),
    ]
    return next((nvcc for nvcc in candidates if nvcc.is_file()), None)


def toolkit_of(nvcc: Path) -> Path:
    """Folder of the toolkit. The nvcc on the path may be a link or a script: the compiler knows where it lives."""
    for line in nvcc_says(nvcc, "--dryrun", "-x", "cu", os.devnull).splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")).resolve()
    return nvcc.resolve().parents[1]


def choose_cuda(torch_cuda: str | None) -> bool:
    choice = os.environ.get("UNLEARNX_CUDA", "1" if os.environ.get("FORCE_CUDA") == "1" else "auto")
    if choice not in ("auto", "1", "0"):
        stop(f"UNLEARNX_CUDA is {choice!r}, expected auto, 1 or 0.")
    if choice == "0":
        return False
    nvcc = find_nvcc()
    release = re.search(r"release (\d+)\.", nvcc_says(nvcc, "--version")) if nvcc else None
    if not torch_cuda:
        obstacle = "the installed torch is a CPU build: install a CUDA build of torch"
    elif not nvcc or not release:
        obstacle = f"nvcc was not found: install the CUDA {torch_cuda} toolkit or set CUDA_HOME"
    elif release[1] != torch_cuda.split(".")[0]:
        obstacle = (
            f"{nvcc} is of CUDA {release[1]}, but torch of CUDA {torch_cuda}: set CUDA_HOME to a matching toolkit"
        )
    else:
        os.environ["CUDA_HOME"] = str(toolkit_of(nvcc))  # read when torch.utils.cpp_extension is imported
        return True
    if choice == "1":
        stop(f"UNLEARNX_CUDA=1, but {obstacle}.")
    print(f"unlearnx: building for the CPU only; {obstacle} for CUDA kernels.", file=sys.stderr)
    return False


def default_arch_list(torch_cuda: str) -> str:
    """Every generation that the toolkit still compiles for and that has bfloat16 or is common, then PTX."""
    major = int(torch_cuda.split(".")[0])
    return "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX" if major >= 13 else "7.5;8.0;8.6;8.9;9.0+PTX"


def extension(torch, cuda: bool):
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    patterns = ["module.cpp", "ops/*.cpp", "cpu/*.cpp"] + (["cuda/*.cpp", "cuda/*.cu"] if cuda else [])
    sources = [str(f.relative_to(ROOT)) for p in patterns for f in sorted((ROOT / "csrc").glob(p))]
    macros: list[tuple[str, str | None]] = [
        ("UNLEARNX_TORCH", f'"{torch.__version__}"'),
        ("UNLEARNX_CUDA", f'"{torch.version.cuda if cuda else ""}"'),
    ]
    flags = {"cxx": CXX_FLAGS}
    if cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_arch_list(torch.version.cuda))
        macros += [("WITH_CUDA", None), ("UNLEARNX_ARCHS", f'"{os.environ["TORCH_CUDA_ARCH_LIST"]}"')]
        flags["nvcc"] = NVCC_FLAGS
    build = CUDAExtension if cuda else CppExtension
    return build(
        "unlearnx._C",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=LINK_FLAGS,
    )


def main() -> None:
    if "sdist" in sys.argv:  # one for every torch: nothing compiled, no tag
        setup(version=VERSION)
        return
    try:
        import torch
    except ImportError:
        stop(f"building needs torch, which this Python does not see: install torch >= 2.9, then run `{INSTALL}`.")
    cuda = choose_cuda(torch.version.cuda)
    torch_tag = "".join(torch.__version__.split("+")[0].split(".")[:2])
    cuda_tag = f"cu{torch.version.cuda}".replace(".", "") if cuda else "cpu"
    from torch.utils.cpp_extension import BuildExtension

    setup(
        version=f"{VERSION}+pt{torch_tag}{cuda_tag}",
        ext_modules=[extension(torch, cuda)],
        cmdclass={"build_ext": BuildExtension},
    )


main()
