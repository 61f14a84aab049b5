"""Builds unlearnx._C, the compiled part; everything else about the package stands in pyproject.toml.

UNLEARNX_CUDA   auto (default: CUDA where nvcc and a CUDA torch are found), 1 (required), 0 (never).
FORCE_CUDA      1 is a synonym of UNLEARNX_CUDA=1.
TORCH_CUDA_ARCH_LIST   GPU generations to compile for, as for every torch extension.
"""

import importlib.util
import os
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
    "-fopenmp",  # without it at::parallel_for is serial, silently
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",  # every CPU level computes the same bits
    "-fvisibility=hidden",
]
NVCC_FLAGS = ["-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden"]


def stop(sentence: str) -> None:
    sys.exit(f"unlearnx: {sentence}")


def find_cuda_home() -> Path | None:
    """Folder of the CUDA toolkit: $CUDA_HOME, that of the nvcc on the path, or the toolkit that PyPI installs."""
    if "CUDA_HOME" in os.environ:
        return Path(os.environ["CUDA_HOME"])
    nvcc = shutil.which("nvcc")
    if nvcc:
        # The nvcc on the path may be a link or a script: the compiler itself knows where it lives.
        dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        for line in dry_run.stderr.splitlines():
            if line.startswith("#$ TOP="):
                return Path(line.removeprefix("#$ TOP=")).resolve()
    nvidia = importlib.util.find_spec("nvidia")
    for folder in nvidia.submodule_search_locations or [] if nvidia else []:
        for nvcc_file in Path(folder).glob("cu*/bin/nvcc"):
            return nvcc_file.parents[1]
    return None


def choose_cuda(torch_cuda: str | None) -> bool:
    choice = os.environ.get("UNLEARNX_CUDA", "1" if os.environ.get("FORCE_CUDA") == "1" else "auto")
    if choice not in ("auto", "1", "0"):
        stop(f"UNLEARNX_CUDA is {choice!r}, expected auto, 1 or 0.")
    if choice == "0":
        return False
    home = find_cuda_home()
    if home:
        os.environ["CUDA_HOME"] = str(home)  # read when torch.utils.cpp_extension is imported
    if choice == "1" and not torch_cuda:
        stop("UNLEARNX_CUDA=1 but the installed torch is a CPU build: install a CUDA build of torch first.")
    if choice == "1" and not home:
        stop(f"UNLEARNX_CUDA=1 but nvcc was not found: install the CUDA {torch_cuda} toolkit or set CUDA_HOME.")
    return bool(home and torch_cuda)


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
    )


def main() -> None:
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
