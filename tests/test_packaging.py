import hashlib
import os
import subprocess
import sys
import tarfile

import pytest

GENERATED = {"PKG-INFO", "setup.cfg"}
FOLDERS = ("benchmarks/", "csrc/", "packaging/", "tests/", "unlearnx/")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory, pytestconfig):
    """Sizes in bytes of the files of the source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder]
    subprocess.run(command, cwd=pytestconfig.rootpath, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        files = {m.name.partition("/")[2]: m.size for m in tar if m.isfile()}
    assert archive.name == "unlearnx-0.1.0.tar.gz"  # without the tag of a torch
    return {name: size for name, size in files.items() if ".egg-info/" not in name}


def test_sdist_holds_what_git_tracks_and_no_more(sdist, pytestconfig):
    if not (pytestconfig.rootpath / ".git").exists():
        pytest.skip("no git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.splitlines() if (pytestconfig.rootpath / name).exists()}
    assert sdist.keys() - GENERATED <= tracked
    assert {name for name in tracked if name.startswith(FOLDERS)} <= sdist.keys()


def test_sdist_suffices_and_is_small(sdist):
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile", "csrc/module.cpp"} <= sdist.keys()
    assert {"csrc/cpu/tile_kernels.inl", "unlearnx/experiments/report/frame.html"} <= sdist.keys()
    assert sum(sdist.values()) < 5e6


@pytest.mark.slow
def test_wheel(tmp_path, pytestconfig):
    """Beside the torch that is here; TORCHES="2.13.0 2.10.0" would take more, of many gigabytes each."""
    environment = {**os.environ, "PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    subprocess.run(["make", "wheel", "CUDA=cpu"], cwd=pytestconfig.rootpath, env=environment, check=True)


def test_page_of_wheels(tmp_path, pytestconfig):
    """pip reads names and hashes from it."""
    wheel = tmp_path / "unlearnx-0.1.0+cu130-cp311-none-manylinux_2_28_x86_64.whl"
    wheel.write_bytes(b"wheel")
    command = [sys.executable, pytestconfig.rootpath / "packaging" / "index.py", "https://host/v0.1.0", wheel]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    url = f"https://host/v0.1.0/{wheel.name.replace('+', '%2B')}#sha256={hashlib.sha256(b'wheel').hexdigest()}"
    assert f'<a href="{url}">{wheel.name}</a>' in page
