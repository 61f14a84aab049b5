"""What is chosen for going through data: the dtype, the samples of a pass, and that little work is left as it is."""

import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from unlearnx import Request, _pace
from unlearnx._pace import Pace, find_pace
from unlearnx.methods import SSD, FineTune, FirstOrder, Pipeline


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 64, 4)).eval()


def data(n=40):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % 4


@pytest.fixture
def dear(monkeypatch):
    """All work is dear enough to be tried."""
    monkeypatch.setattr(_pace, "WORTH", 1)


def paying(monkeypatch, answer):
    monkeypatch.setattr(_pace, "fast_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(_pace, "_pays", lambda slow, fast: answer)


def test_little_work_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(_pace, "_pays", lambda slow, fast: pytest.fail("was tried"))
    assert find_pace(network(), F.cross_entropy, data(), 256) == Pace(None, 256, channels_last=True)


def test_a_dtype_that_pays_is_taken(monkeypatch, dear):
    for answer, dtype in ((True, torch.bfloat16), (False, None)):
        paying(monkeypatch, answer)
        assert find_pace(network(), F.cross_entropy, data(), 256).autocast == dtype


def test_other_precision_than_single_is_kept(monkeypatch, dear):
    monkeypatch.setattr(_pace, "_pays", lambda slow, fast: pytest.fail("was tried"))
    x, y = data()
    for dtype in (torch.float64, torch.bfloat16):
        assert find_pace(network().to(dtype), F.cross_entropy, (x.to(dtype), y), 256).autocast is None


def test_what_is_given_is_not_tried(monkeypatch, dear):
    monkeypatch.setattr(_pace, "_pays", lambda slow, fast: pytest.fail("was tried"))
    for dtype in (None, torch.float16):
        assert find_pace(network(), F.cross_entropy, data(), 256, dtype).autocast == dtype


@pytest.mark.parametrize(("most", "expected"), [(16 << 20, 256), (64 * 64 * 4 * 20, 20), (1, 8)])
def test_passes_keep_the_largest_activation_small(monkeypatch, dear, most, expected):
    monkeypatch.setattr(_pace, "KEPT_WARM", most)
    assert find_pace(network(), F.cross_entropy, data(), 256, None).batch_size == expected
    assert find_pace(network(), F.cross_entropy, data(), 4, None).batch_size == 4


def test_operations_and_activations_are_those_of_a_sample():
    model, x = network(), data()[0][:3]
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert _pace._weighed(lambda: model(x), 3) == (counter.get_total_flops() // 3, 64 * 64 * 4)


def test_weighing_leaves_the_compiler_alone():
    """Its import takes seconds."""
    lines = ["import sys, torch", "from unlearnx._pace import _weighed"]
    lines += ["_weighed(lambda: torch.ones(2, 3) @ torch.ones(3, 2), 2)", "assert 'torch._dynamo' not in sys.modules"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def slept(seconds, loss):
    def run():
        time.sleep(seconds)
        return loss

    return run


@pytest.mark.parametrize(
    ("slow", "fast", "pays"),
    [
        ((0.02, 1.0), (0.005, 1.005), True),
        ((0.02, 300.0), (0.005, 301.0), True),
        ((0.02, 1.0), (0.005, 1.02), False),
        ((0.02, 1.0), (0.005, float("nan")), False),
        ((0.02, 1.0), (0.019, 1.0), False),
        ((0.005, 1.0), (0.02, 1.0), False),
    ],
)
def test_what_pays_is_faster_and_gives_the_same(slow, fast, pays):
    assert _pace._pays(slept(*slow), slept(*fast)) is pays


def test_a_trial_leaves_no_trace(dear):
    model, state = network(), torch.get_rng_state()
    model[0].register_forward_hook(lambda *_: None)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    find_pace(model.train(), F.cross_entropy, data(), 256)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("method", [SSD(max_increase=9.0), FineTune(epochs=1, max_increase=9.0), FirstOrder(steps=1)])
def test_outcomes_say_what_was_chosen(monkeypatch, dear, method):
    paying(monkeypatch, True)
    chosen = {"autocast": "bfloat16", "batch_size": 256, "memory_order": "channels_last"}
    request = Request.remove(data(), range(5))
    # A line search compares losses that differ by little: its own passes stay in the model's dtype.
    own = None if isinstance(method, FirstOrder) else "bfloat16"
    pace = method(network(), request).info["pace"]
    assert pace.pop("head", chosen) == {**chosen, "autocast": own}
    assert pace == chosen
    method.params = "last:2"
    pace = method(network(), request).info["pace"]
    assert pace.pop("head") == {"autocast": own, "batch_size": 256, "memory_order": "contiguous"}
    assert pace == chosen
    stages = Pipeline([method])(network(), request).info["stages"]
    assert stages[0]["pace"]["autocast"] == "bfloat16"


def test_other_words_for_a_dtype_are_refused():
    with pytest.raises(ValueError, match=r"^autocast is 'fast', expected a floating dtype, 'auto' or None"):
        SSD(autocast="fast")
