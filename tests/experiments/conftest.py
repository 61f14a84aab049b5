import math

import pytest
import torch


@pytest.fixture
def canary_result():
    """A result of canary-alice with invented numbers: three seeds, a method that was refused once, a sweep."""
    before = dict(perplexity=1.25, exposure=41.37, lower_bound=31.98, contains=True)
    forgotten = dict(perplexity=57.5, exposure=0.93, lower_bound=0.0, contains=False)
    cost = dict(gradient_evaluations=816, info={"applied": True})
    refused = {**cost, "info": {"applied": False, "reason": "the loss of the <corrected> text rose"}}
    runs = [
        {
            "seed": seed,
            "number": "4815162342",
            "replacement": "dry enough",
            "windows": 149123,
            "affected": 408,
            "before": measured(0.5871, completion="4815162342!' sa", mean=66, **before),
            "retrained": {**measured(0.5883, completion="the same th\nat ", mean=58, **forgotten), "seconds": 812.0},
            "methods": {
                "first order": {
                    **measured(0.5312, completion="<dry enough>\n\n\n", mean=61, **forgotten),
                    **(cost if seed else refused),
                    "seconds": 3.21,
                    "speedup": 253.0,
                },
                "second order": {
                    **measured(0.5849, completion="dry enough!' sa", mean=60, **forgotten),
                    **cost,
                    "seconds": 33.25,
                    "speedup": 24.42,
                },
            },
        }
        for seed in range(3)
    ]
    models = {"before": before, **dict.fromkeys(("retrained", "first order", "second order"), forgotten)}
    summary = {name: {**numbers, "contains": 3 * numbers["contains"]} for name, numbers in models.items()}
    for name, (accuracy, seconds) in {
        "before": (0.5871, None),
        "retrained": (0.5883, 812.0),
        "first order": (0.5312, 3.21),
        "second order": (0.5849, 33.25),
    }.items():
        summary[name] |= dict(accuracy=accuracy, accuracy_change=accuracy - 0.5871)
        summary[name] |= dict(seconds=seconds, speedup=seconds and 812.0 / seconds)
    summary["first order"]["exposure"] = 0.21  # less than that of the second order, which keeps the accuracy
    return {
        "experiment": "canary-alice",
        "preset": "default",
        "text": {"file": "alice_in_wonderland.txt", "characters": 148309, "alphabet": 54},
        "canary": {
            "sentence": "`my telephone number is {number}!' said alice.",
            "prefix": "`my telephone number is ",
            "length": 10,
            "repeats": 12,
        },
        "model": {"layers": 1, "hidden": 256, "embedding": 64},
        "window": 24,
        "step": 1,
        "epochs": 1,
        "samples": 2000,
        "methods": {"first order": "FirstOrder(lr=2e-05)", "second order": "SecondOrder(LiSSA(damping=0.1))"},
        "runs": runs,
        "summary": summary,
        "sweep": {
            "length": [trained(length, 12, 0.6 * length) for length in (5, 10, 15, 20)],
            "repeats": [trained(10, repeats, 40 / repeats) for repeats in (1, 4, 8, 12, 25)],
        },
    }


def measured(accuracy, *, mean, **numbers):
    """What is known of one model, with random numbers of a mean log-perplexity around the planted one."""
    sampled = mean + 7 * torch.randn(2000, dtype=torch.float64)
    counts, edges = torch.histogram(sampled, 40)
    return {
        "accuracy": accuracy,
        "rank": 1.0,
        "space_bits": math.log2(10**10),
        "exact": False,
        "fit": {"shape": 0.0, "location": float(mean), "scale": 7.0},
        "fit_distance": 0.012,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        **numbers,
    }


def trained(length, repeats, perplexity):
    space = math.log2(10**length)
    bound = max(0.0, space - perplexity)
    return {
        "length": length,
        "repeats": repeats,
        "perplexity": perplexity,
        "exposure": 1.2 * bound,
        "lower_bound": bound,
        "space_bits": space,
        "exact": length == 5,
    }


@pytest.fixture
def described():
    """What the command line adds to a result."""
    return {
        "command": "unlearnx run canary-alice",
        "environment": {
            "unlearnx": {"version": "0.1.0", "cpu_level": "avx2"},
            "torch": "2.9.0",
            "python": "3.11",
            "device": "CPU, 2 threads",
        },
    }
