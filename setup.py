"""Builds what is compiled: the library of ops, for every torch and Python, and unlearnx._C, the module that loads it.

Everything else about the package stands in pyproject.toml.

UNLEARNX_CUDA   auto (default: CUDA where nvcc and a CUDA torch are found), 1 (required), 0 (never).
FORCE_CUDA      1 is a synonym of UNLEARNX_CUDA=1.
UNLEARNX_PYTHONS   paths of other Pythons, with a colon between them: the wheel has a module for each.
UNLEARNX_TAG    0 leaves +cpu or +cu130 off the version, since PyPI takes none.
TORCH_CUDA_ARCH_LIST   GPU generations to compile for, as for every torch extension.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

VERSION = "0.1.0"
ROOT = Path(__file__).resolve().parent
INSTALL = "pip install --no-build-isolation ."
OLDEST_TORCH = (2, 10)  # the first whose stable ABI has all that the ops need; unlearnx/_extension.py says so as well

CXX_FLAGS = [
    "-O3",
    "-g0",  # Python's own flags ask for debugging information
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",  # every CPU level computes the same bits
    "-fvisibility=hidden",
]
# No symbol table; no torch library but those that are called, so that it need not be there elsewhere.
LINK_FLAGS = ["-Wl,-s", "-Wl,--as-needed"] if sys.platform == "linux" else []
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


def library(torch, cuda: bool):
    """The ops. No Python is in it, and of torch only the stable ABI of OLDEST_TORCH."""
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    patterns = ["build.cpp", "common/*.cpp", "ops/*.cpp", "cpu/*.cpp"] + (["cuda/*.cpp", "cuda/*.cu"] if cuda else [])
    sources = [str(f.relative_to(ROOT)) for p in patterns for f in sorted((ROOT / "csrc").glob(p))]
    major, minor = OLDEST_TORCH
    macros: list[tuple[str, str | None]] = [
        ("TORCH_STABLE_ONLY", None),  # any other header of torch is an error
        ("TORCH_TARGET_VERSION", f"{major << 56 | minor << 48:#x}"),
    ]
    flags = {"cxx": CXX_FLAGS}
    if cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_arch_list(torch.version.cuda))
        macros += [
            ("USE_CUDA", None),
            ("UNLEARNX_CUDA", f'"{torch.version.cuda}"'),
            ("UNLEARNX_ARCHS", f'"{os.environ["TORCH_CUDA_ARCH_LIST"]}"'),
        ]
        flags["nvcc"] = NVCC_FLAGS
    build = CUDAExtension if cuda else CppExtension
    extension = build(
        "unlearnx._ops",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
    )
    # With a runtime of its own it loads beside a torch of another CUDA.
    extension.libraries = ["cudart_static" if name == "cudart" else name for name in extension.libraries]
    return extension


def described(python: str) -> dict[str, str]:
    """Where the headers of a Python are, and what it calls itself and its modules."""
    code = (
        "import json, sys, sysconfig as s; print(json.dumps({'tag': 'cp%d%d' % sys.version_info[:2], "
        "'include': s.get_path('include'), 'suffix': s.get_config_var('EXT_SUFFIX')}))"
    )
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def pythons() -> dict[str, dict[str, str]]:
    """This Python and those of UNLEARNX_PYTHONS, by tag."""
    others = [p for p in os.environ.get("UNLEARNX_PYTHONS", "").split(":") if p]
    return {info["tag"]: info for info in map(described, [sys.executable, *others])}


def module(torch, python: dict[str, str]):
    """unlearnx._C for a Python. pybind11 is not of Python's limited API, so that every version needs one."""
    return Extension(
        f"unlearnx._C_{python['tag']}",
        ["csrc/module.cpp"],
        include_dirs=[python["include"], str(Path(torch.__file__).parent / "include")],  # torch brings pybind11
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=[*LINK_FLAGS, "-ldl"],
        language="c++",
    )


def commands(suffixes: dict[str, str]):
    """build_ext and bdist_wheel; `suffixes` are those of the modules, by the tags of their Pythons."""
    from setuptools.command.bdist_wheel import bdist_wheel
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def get_ext_filename(self, name):
            stem, _, tag = name.rpartition("_C_")
            return (
                f"{stem.replace('.', os.sep)}_C{suffixes[tag]}" if tag in suffixes else super().get_ext_filename(name)
            )

    class Wheel(bdist_wheel):
        def get_tag(self):
            return ".".join(sorted(suffixes)), "none", super().get_tag()[2]

    return {"build_ext": Build, "bdist_wheel": Wheel}


def main() -> None:
    if "sdist" in sys.argv:  # one for every torch: nothing compiled, no tag
        setup(version=VERSION)
        return
    try:
        import torch
    except ImportError:
        oldest = ".".join(map(str, OLDEST_TORCH))
        stop(f"building needs torch, which this Python does not see: install torch >= {oldest}, then run `{INSTALL}`.")
    cuda = choose_cuda(torch.version.cuda)
    built_for = f"+cu{torch.version.cuda}".replace(".", "") if cuda else "+cpu"
    targets = pythons()
    setup(
        version=VERSION + (built_for if os.environ.get("UNLEARNX_TAG", "1") == "1" else ""),
        ext_modules=[library(torch, cuda), *(module(torch, python) for python in targets.values())],
        cmdclass=commands({tag: python["suffix"] for tag, python in targets.items()}),
    )


main()
