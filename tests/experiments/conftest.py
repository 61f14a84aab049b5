import math
import random
import statistics

import pytest
import torch

# A comparison that the command line makes once for all tests.
COMPARE = (
    *("compare", "forget-class-digits", "--methods", "fine-tune, ssd", "--forget-class", "3"),
    *("--epochs", "2", "--seeds", "2", "--name", "x"),
)


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """What the command printed, and the folder of its run, which tests only read."""
    from typer.testing import CliRunner

    from unlearnx.cli import app

    out = tmp_path_factory.mktemp("runs")
    return CliRunner().invoke(app, [*COMPARE, "--out", str(out)], catch_exceptions=False), out / "x"


@pytest.fixture
def canary_result():
    """A result of canary-alice with invented numbers: three seeds, a method that was refused once, a sweep."""
    before = dict(log_perplexity=1.25, exposure=41.37, lower_bound=31.98, contains=True)
    forgotten = dict(log_perplexity=57.5, exposure=0.93, lower_bound=0.0, contains=False)
    cost = dict(gradient_evaluations=816, applied=True)
    refused = {**cost, "applied": False, "reason": "the loss of the <corrected> text rose"}
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


def trained(length, repeats, log_perplexity):
    space = math.log2(10**length)
    bound = max(0.0, space - log_perplexity)
    return {
        "length": length,
        "repeats": repeats,
        "log_perplexity": log_perplexity,
        "exposure": 1.2 * bound,
        "lower_bound": bound,
        "space_bits": space,
        "exact": length == 5,
    }


@pytest.fixture(scope="session")
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


METHODS = {  # name: forget, retain and test accuracy against retraining, share of its seconds
    "SSD": (0.031, -0.012, -0.018, 0.004),
    "fine-tuning": (0.14, 0.001, 0.002, 0.06),
    "random perturbation": (-0.21, -0.31, -0.33, 0.0011),
    "SalUn": (0.004, -0.003, -0.006, 0.021),
    "gradient ascent": (-0.35, -0.08, -0.11, 0.0031),
    "SCRUB": (0.012, -0.002, -0.004, 0.034),
    "stochastic teacher, then fine-tuning of the last block": (0.018, -0.004, -0.003, 0.028),
    "second order": (0.0131, -0.0021, -0.0042, 0.033),
    "first order": (0.09, -0.03, -0.04, 0.0034),
    "bad teacher": (0.027, -0.006, -0.007, 0.024),
    "NegGrad": (-0.02, -0.01, -0.013, 0.025),
    "Fisher masking": (0.06, -0.15, -0.16, 0.0042),
    "SSD, automatic": (0.029, -0.011, -0.017, 0.0065),
    "retraining of half the epochs": (0.001, -0.001, 0.0, 0.5),
}
PROTOCOLS = ("salun", "ssd", "starter_kit")
MEASURES = {
    "forget_accuracy": ("forget accuracy", "%", "retrained"),
    "retain_accuracy": ("retain accuracy", "%", "retrained"),
    "test_accuracy": ("test accuracy", "%", "retrained"),
    "test_forgotten_accuracy": ("test accuracy of the forgotten class", "%", "retrained"),
    "ua": ("unlearning accuracy", "%", "retrained"),
    "gap": ("gap", "%", "low"),
    "tow": ("tug of war", "", "high"),
    "mia_salun": ("SalUn's attack", "%", "retrained"),
    "mia_ssd": ("SSD's attack", "%", "retrained"),
    "mia_starter_kit": ("starter kit's attack", "%", "retrained"),
    "mia_salun_class": ("SalUn's attack within the class", "%", "retrained"),
    "mia_ssd_class": ("SSD's attack within the class", "%", "retrained"),
    "mia_starter_kit_class": ("starter kit's attack within the class", "%", "retrained"),
    "activation_distance": ("activation distance", "", "low"),
    "js": ("Jensen-Shannon divergence", "nats", "low"),
    "zrf": ("ZRF", "", "retrained"),
    "relearn_time": ("relearn time", "", "retrained"),
    "seconds": ("time", "s", "low"),
    "runtime_ratio": ("share of retraining", "%", "low"),
}


@pytest.fixture(scope="session")
def forget_result():
    return make_forget_result


def make_forget_result(kind="class", *, methods=6, seeds=3, sweeps=2, saliency=True):
    """A result of a forgetting experiment with invented numbers, for any number of methods and seeds.

    The third method is refused with seed 0, the last one with every seed; the fifth forgets too much; one measure of
    the second is unknown.
    """
    draw = random.Random(0)
    names = list(METHODS)[:methods]
    measures = {
        key: {"title": title, "unit": unit, "ideal": ideal, "note": f"what {title} is, in <one> sentence"}
        for key, (title, unit, ideal) in MEASURES.items()
        if kind == "class" or (not key.endswith("_class") and key != "test_forgotten_accuracy")
    }

    def measure(forget, retain, test, seconds, *, noise=0.002):
        values = {}
        base = {"forget": 0.0 if kind == "class" else 0.96, "retain": 0.995, "test": 0.97, "test_forgotten": 0.0}
        change = {"forget": forget, "retain": retain, "test": test, "test_forgotten": forget}
        for key, start in base.items():
            values[f"{key}_accuracy"] = min(max(start + change[key] + draw.gauss(0, noise), 0.0), 1.0)
        off = [abs(c) for c in (forget, retain, test)]
        attack = min(max(0.85 - forget + draw.gauss(0, 0.01), 0), 1)
        values |= {
            "ua": 1 - values["forget_accuracy"],
            "gap": (sum(off) + abs(attack - 0.85)) / 4,
            "tow": math.prod(1 - d for d in off),
            "activation_distance": sum(off) + 0.02,
            "js": (0.01 * sum(off) + 1e-4),
            "zrf": 0.81 - off[0] / 3,
            "relearn_time": 1 - 2 * off[0] + draw.gauss(0, 0.05),
            "seconds": seconds * (1 + draw.gauss(0, 0.03)),
            "runtime_ratio": seconds / 92.4,
        }
        for protocol in PROTOCOLS:
            values |= {f"mia_{protocol}": attack, f"mia_{protocol}_class": 0.9 * attack}
        return {key: values[key] for key in measures}

    def run(seed):
        unchanged = (0.99 if kind == "class" else 0.03, 0.0, 0.004)
        entries = {}
        for k, name in enumerate(names):
            refused = k == len(names) - 1 or (k == 2 and seed == 0)
            *changes, share = METHODS[name]
            values = measure(*(unchanged if refused else changes), 92.4 * share)
            if k == 1:
                values["relearn_time"] = None
            accuracy = f"{100 * values['forget_accuracy']:.1f} %"
            entries[name] = {
                "measures": values,
                "seconds": values["seconds"],
                "gradient_evaluations": 1000 + k,
                "applied": not refused,
                "reason": "the loss of the <retain> set rose" if refused else None,
                "warning": f"forget accuracy {accuracy}, significantly below retraining." if k == 4 else None,
            }
        retrained = {**measure(0.0, 0.0, 0.0, 92.4), "gap": 0.0, "tow": 1.0, "activation_distance": 0.0, "js": 0.0}
        return {
            "seed": seed,
            "original": {"measures": measure(*unchanged, 97.0), "seconds": 97.0},
            "retrained": {"measures": retrained, "seconds": 92.4},
            "methods": entries,
        }

    runs = [run(seed) for seed in range(seeds)]
    models = {"original": [r["original"] for r in runs], "retrained": [r["retrained"] for r in runs]}
    models |= {name: [r["methods"][name] for r in runs] for name in names}
    summary = {
        model: {key: interval([entry["measures"][key] for entry in entries]) for key in measures}
        for model, entries in models.items()
    }
    applied = [name for name in names if all(r["methods"][name]["applied"] for r in runs)]
    by_gap = sorted(applied, key=lambda name: summary[name]["gap"]["mean"])
    pareto, fastest = [], math.inf
    for name in by_gap:
        if summary[name]["seconds"]["mean"] < fastest:
            pareto, fastest = [*pareto, name], summary[name]["seconds"]["mean"]
    winner = by_gap[0]
    forget = {"original": 9.0, "retrained": -6.0 if kind == "class" else 6.0, winner: -5.0 if kind == "class" else 5.8}
    sets = {
        model: {
            "retain": sample(draw, 9.0, 2.0),
            "forget": sample(draw, mean, 2.0)[:146],
            "test": sample(draw, 7.5, 3.0),
            "test_forgotten": sample(draw, mean - 1, 2.5)[:36],
        }
        for model, mean in forget.items()
    }
    attacks = {
        model: {
            p: {"test": 0.6 + 0.01 * k, "test_forgotten": 0.5} for k, p in enumerate(("salun", "ssd", "starter_kit"))
        }
        for model in forget
    }
    if kind == "random":
        for entry in sets.values():
            del entry["test_forgotten"]
        for entry in attacks.values():
            for protocol in entry.values():
                del protocol["test_forgotten"]
    return {
        "experiment": f"forget-{kind}-digits",
        "classes": [str(c) for c in range(10)],
        "train_images": 1438,
        "test_images": 359,
        "epochs": 60,
        "request": {
            "kind": kind,
            "class": 1 if kind == "class" else None,
            "class_name": "1" if kind == "class" else None,
            "share": None if kind == "class" else 0.1,
            "forget_images": 146 if kind == "class" else 144,
            "description": "all 146 images of class '1'" if kind == "class" else "144 images drawn at random, 10 %",
        },
        "methods": {name: f"Method{k}(alpha=10.0, lam=1.0)" for k, name in enumerate(names)},
        "measures": measures,
        "runs": runs,
        "summary": summary,
        "winner": winner,
        "pareto": pareto,
        "sweeps": [swept(name, kind, k) for k, name in enumerate(names[:sweeps])],
        "confidences": sets,
        "attacks": attacks,
        "saliency": looked_at(draw, winner) if saliency else None,
    }


def interval(values):
    """Mean and 95 % interval as the studies give them; None where a value is unknown."""
    if None in values:
        return None
    mean = statistics.fmean(values)
    half = 4.303 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half}


def sample(draw, mean, spread):
    return [draw.gauss(mean, spread) for _ in range(500)]


def swept(name, kind, k):
    points = []
    for value in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0) if k % 2 == 0 else (0.1, 0.2, 0.3, 0.4):
        kept = 1 - math.exp(-value / (20 if k % 2 == 0 else 0.2))
        measures = {"retain_accuracy": 0.8 + 0.2 * kept, "forget_accuracy": kept**2, "test_accuracy": 0.78 + 0.2 * kept}
        if kind == "class":
            measures["test_forgotten_accuracy"] = 0.9 * kept**2
        points.append({"value": value, "measures": measures, "applied": value != 1.0})
    return {"method": name, "parameter": "alpha" if k % 2 == 0 else "ratio", "points": points}


def looked_at(draw, winner):
    """Six images, five grey ones and one in colour."""
    images = []
    for k in range(6):
        side, label = (32 if k == 5 else 8), ("1" if k < 3 else str(k))
        spot = [
            [math.exp(-((i - side / 2) ** 2 + (j - side / 3) ** 2) / side) for j in range(side)] for i in range(side)
        ]
        image = [[v * draw.random() for v in row] for row in spot]
        if k == 5:
            image = [[[draw.random(), draw.random(), v] for v in row] for row in spot]
        moved = [row[::-1] for row in spot]
        models = {"original": spot, "unlearned": moved, "retrained": moved}
        predicted = {"original": label, "unlearned": "7" if k < 3 else label, "retrained": "8" if k < 3 else label}
        images.append(
            {"set": "forget" if k < 3 else "retain", "label": label, "image": image, "predicted": predicted, **models}
        )
    return {"images": images, "method": winner, "attribution": "grad_cam"}
