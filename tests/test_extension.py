import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unlearnx
from unlearnx import _extension


def test_build_info():
    info = unlearnx.build_info()
    assert re.fullmatch(r"2\.\d+\.\d+", info["torch"])  # not the one at hand, but where a wheel was built
    assert info["torch_from"] == ".".join(map(str, _extension.OLDEST_TORCH))
    assert info["version"] == unlearnx.__version__
    assert (info["cuda"] is not None) == ("+cu" in info["version"])
    assert info["threads"] == torch.get_num_threads()


def test_parallel_loops_see_two_threads():
    code = "import torch; torch.set_num_threads(2); import unlearnx; print(unlearnx.build_info()['threads'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "2"


def test_a_torch_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(
        ImportError,
        match=r"^unlearnx needs torch 2\.10 or later, but this is torch 2\.9\.1\+cu128: install a later",
    ):
        _extension._load()


@pytest.mark.parametrize("release", ["2.10.0", "2.14.1+cu130", "3.0.0"])
def test_later_torches_are_not_refused(release, monkeypatch):
    monkeypatch.setattr(torch, "__version__", release)
    assert _extension._load() is _extension._C


def test_a_cuda_wheel_beside_a_torch_without_cuda_is_named(monkeypatch):
    monkeypatch.setattr(_extension, "__version__", "0.1.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        ImportError, match=r"^this unlearnx is built as cu130, with CUDA kernels, .* the wheel .* cpu\.$"
    ):
        _extension._load()


def test_a_module_for_another_python_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "unlearnx._C", None)
    monkeypatch.delattr(unlearnx, "_C", raising=False)
    with pytest.raises(ImportError, match=r"unlearnx is .* and does not load \(.*\); this is torch .*: rebuild"):
        _extension._load()


def test_a_library_that_does_not_load_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(_extension, "LIBRARY", tmp_path / "missing.so")
    with pytest.raises(
        ImportError, match=r"does not load \(.*missing\.so: cannot open shared object file.*\); this is"
    ):
        _extension._load()


def test_a_wheel_for_other_pythons_says_so(monkeypatch, tmp_path):
    for tag in ("30", "31"):
        (tmp_path / f"_C.cpython-3{tag}-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr(_extension, "LIBRARY", tmp_path / "_ops.abi3.so")
    with pytest.raises(ImportError, match=r"is built for Python 3\.30, 3\.31, but this is Python 3\.\d+: install"):
        _extension._load()


def test_the_library_needs_of_torch_the_stable_abi_alone(pytestconfig):
    """A C++ symbol of torch would bind it to one release."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    unstable_symbols = runpy.run_path(str(pytestconfig.rootpath / "packaging" / "check.py"))["unstable_symbols"]
    assert unstable_symbols(str(_extension.LIBRARY)) == []
    assert unstable_symbols(str(Path(torch.__file__).parent / "lib" / "libtorch_python.so"))  # the test finds some


@pytest.mark.parametrize(
    ("environment", "hidden", "message"),
    [
        ({"UNLEARNX_CUDA": "1"}, [], "UNLEARNX_CUDA=1, but the installed torch is a CPU build"),
        ({"FORCE_CUDA": "1"}, [], "the installed torch is a CPU build"),
        ({"UNLEARNX_CUDA": "maybe"}, [], "UNLEARNX_CUDA is 'maybe', expected auto, 1 or 0"),
        ({}, ["torch"], "building needs torch"),
    ],
)
def test_setup_stops_with_one_sentence(environment, hidden, message, tmp_path, pytestconfig):
    import os

    if torch.version.cuda and "CUDA" in str(environment):
        pytest.skip("torch is a CUDA build")
    for name in hidden:
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=pytestconfig.rootpath,
        env={**os.environ, **environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_needs_torch_and_numpy_alone():
    """`import unlearnx` does not pull in what only the experiments need."""
    code = (
        "import sys; before = set(sys.modules); import torch; import unlearnx; "
        "print([m for m in ('rich', 'typer', 'sklearn', 'matplotlib', 'jinja2', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(unlearnx.build_info()["cuda"] is not None, reason="this build has CUDA kernels")
@pytest.mark.parametrize(
    ("op", "arguments"),
    [("linear_grad_sqnorm", [torch.ones(2, 3)] * 2), ("ssd_dampen_", [*[[torch.ones(3)]] * 3, 1.0, 1.0])],
)
def test_cuda_tensors_are_refused_with_a_reason(op, arguments):
    """As the dispatcher would for CUDA tensors, which only a GPU has."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(NotImplementedError, match=rf"{op}: this build of unlearnx has no CUDA kernels \(it"):
        getattr(torch.ops.unlearnx, op).default.redispatch(cuda, *arguments)


@pytest.fixture(scope="module")
def launch_problems(tmp_path_factory, pytestconfig):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    program = tmp_path_factory.mktemp("launch") / "launch_problems"
    source = pytestconfig.rootpath / "tests" / "launch_problems.cpp"
    subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-Werror", f"-I{pytestconfig.rootpath / 'csrc'}", source, "-o", program],
        check=True,
    )
    return program


@pytest.mark.parametrize(
    ("error", "capability", "driver", "message"),
    [
        (
            209,  # cudaErrorNoKernelImageForDevice
            (7, 5),
            13000,
            "unlearnx: this build has CUDA kernels for compute capability 8.0;9.0+PTX, but the GPU has 7.5: "
            "install a wheel that has it, or build with TORCH_CUDA_ARCH_LIST=7.5",
        ),
        (
            222,  # cudaErrorUnsupportedPtxVersion
            (12, 0),
            12080,
            "unlearnx: this build is of CUDA 13.0, but the NVIDIA driver is for CUDA 12.8: update the driver, "
            "install a wheel of that CUDA, or build with TORCH_CUDA_ARCH_LIST=12.0",
        ),
        (700, (9, 0), 13000, ""),  # cudaErrorIllegalAddress, which torch reports
    ],
)
def test_a_gpu_that_the_build_is_not_for(launch_problems, error, capability, driver, message):
    """One sentence with the remedy, where CUDA says "no kernel image is available"."""
    arguments = [str(n) for n in (error, *capability, driver)]
    result = subprocess.run([launch_problems, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout == message + "\n"


def test_every_launch_is_checked_with_the_remedy(pytestconfig):
    for file in (pytestconfig.rootpath / "csrc" / "cuda").glob("*"):
        if file.name != "launch_check.cpp":
            assert "KERNEL_LAUNCH_CHECK" not in file.read_text(), file
