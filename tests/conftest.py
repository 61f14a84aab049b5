import os
from pathlib import Path

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def pytest_addoption(parser):
    parser.addoption("--fuzz-calls", type=int, help="random calls of each kind in tests/fuzz")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data():
    """Folder of real data that does not travel with the project, named by UNLEARNX_DATA."""
    folder = os.environ.get("UNLEARNX_DATA")
    if not folder:
        pytest.skip("UNLEARNX_DATA is not set: it names the folder with them")
    return Path(folder)
