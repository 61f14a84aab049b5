"""Inside torch.inference_mode(), what needs no gradients works, and the rest says so."""

import pytest
import torch

from tests.fuzz.functions import calls

NEEDS_A_CALL_OUTSIDE = r"model: is called inside torch\.inference_mode\(\)"


@pytest.mark.filterwarnings("ignore")
def test_every_public_function_works_or_says_so(tmp_path):
    torch.manual_seed(0)
    refused = []
    for name, (function, _, right) in calls(str(tmp_path)).items():
        arguments = right() if callable(right) else dict(right)
        with torch.inference_mode():
            try:
                function(**arguments)
            except ValueError as error:
                with pytest.raises(ValueError, match=NEEDS_A_CALL_OUTSIDE):
                    raise error
                refused.append(name)
    assert {"fisher_diagonal", "FineTune", "saliency", "relearn_time"} <= set(refused)
    assert not {"accuracy", "unseen_level", "exposure", "mia", "knn_shapley", "CertifiedRemoval"} & set(refused)
