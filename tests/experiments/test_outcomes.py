import json

import torch
from torch import nn

from unlearnx.experiments.outcomes import describe_outcome, with_fields
from unlearnx.methods import FineTune, Request


def test_what_results_say_of_an_outcome():
    request = Request.remove((torch.randn(20, 4), torch.arange(20) % 2), [0])
    for lr in (0.0, 1e-2):
        outcome = FineTune(lr=lr)(nn.Linear(4, 2), request)
        entry = json.loads(json.dumps(describe_outcome(outcome)))
        assert entry["applied"] is outcome.applied is (lr > 0)
        assert entry["reason"] == outcome.reason
        assert entry["loss_before"] == outcome.loss_before
        assert "model" not in entry
        assert with_fields(entry) is entry


def test_results_written_before_outcomes_had_fields():
    info = {"applied": False, "reason": "it would rise", "corrected_loss": [0.5, 0.5], "steps": []}
    fields = {"applied": False, "reason": "it would rise", "loss_before": 0.5, "loss_after": 0.5}
    assert with_fields({"seconds": 1.0, "info": info}) == {"seconds": 1.0, **fields, "info": {"steps": []}}
    assert with_fields({"info": {"applied": True}})["reason"] is None
    assert with_fields({"recipe": {}}) == {"recipe": {}}
