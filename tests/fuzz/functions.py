"""Random calls of the Python functions, most with a wrong argument: ``python -m tests.fuzz.functions SEED CALLS``.

What is wrong for an argument follows from its annotation, so that a new function needs right arguments only (CALLS).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import random
import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, TensorDataset

import unlearnx
from unlearnx import Request, attribution, curvature, losses, methods, metrics
from unlearnx import nn as layers
from unlearnx.models import CharacterLSTM, Training

PACKAGE = str(Path(unlearnx.__file__).parent)
OURS = (TypeError, ValueError, IndexError, FloatingPointError)
Arguments = dict[str, Any]
Wrong = list[Callable[[], Any]]

READ = {"Data", "Request"}  # what a model can fit or not
FEATURES, CLASSES, SAMPLES = 6, 3, 24


class Unlucky(nn.Module):
    """A model that cannot be called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("lost")


class Words(Unlucky):
    """A model that returns no tensor."""

    def forward(self, x: Tensor) -> Any:
        return "scores"


def model(inputs: int = FEATURES, outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).eval()


def images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)).eval()


def data() -> tuple[Tensor, Tensor]:
    y = torch.arange(SAMPLES) % CLASSES
    return torch.randn(SAMPLES, FEATURES) + y[:, None], y


def request() -> Request:
    return Request.remove(data(), [0, 4, 8])


def correction() -> Request:
    x, y = data()
    return Request.correct((x, torch.where(torch.arange(SAMPLES) < 3, (y + 1) % CLASSES, y)), (x, y))


def text() -> dict[str, Any]:
    return {"model": CharacterLSTM("abc ", hidden=8).eval(), "prefix": "a b"}


def bigram() -> nn.Module:
    return nn.Embedding(7, 7)


def answers() -> tuple[Tensor, Tensor]:
    y = torch.randint(7, (4, 6))
    return y, y


def vector() -> dict[str, Tensor]:
    return {name: torch.randn_like(p) for name, p in model().named_parameters()}


def readings() -> dict[str, float]:
    return {"retain accuracy": 0.9, "forget accuracy": 0.5, "test accuracy": 0.8}


def factors() -> curvature.Factors:
    return curvature.KFAC().fit(model(), F.cross_entropy, data())


def attributed() -> Arguments:
    return {"scores": torch.randn(2, SAMPLES), "subsets": torch.rand(5, SAMPLES) < 0.5, "losses": torch.randn(5, 2)}


def certified() -> methods.CertifiedRemoval:
    x, y = data()
    return methods.CertifiedRemoval(epsilon=100.0, delta=1e-2, seed=0).fit(x / 10, y)


def sisa(folder: str) -> methods.SISA:
    return methods.SISA(model, folder, shards=2, slices=2, training=Training(epochs=1))


def trained_by(**settings: Any) -> float:
    return Training(**settings).run(model(), data())


def raises(*_: Any) -> Tensor:
    raise KeyError("lost")


def never() -> Any:
    yield from range(3)


# What each kind of argument must not be, and what it may be or not: refused in our words, or taken.
WRONG: dict[str, Wrong] = {
    "nn.Module": [
        lambda: None,
        lambda: "model",
        lambda: 3,
        lambda: torch.zeros(3),
        lambda: nn.Linear,
        lambda: lambda x: x,
        lambda: model(FEATURES + 1),
        lambda: model().to("meta"),
        lambda: model().double(),
        lambda: model().to(torch.complex64),
        Unlucky,
        Words,
        lambda: nn.Sequential(nn.LazyLinear(3)),
    ],
    "Loss": [
        lambda: None,
        lambda: 3,
        lambda: "cross-entropy",
        lambda: lambda output, y: 1.0,
        lambda: lambda output: output,
        lambda: lambda output, y: "loss",
        lambda: lambda output, y: None,
        lambda: raises,
        lambda: lambda output, y: output[:2, 0],
        lambda: nn.CrossEntropyLoss,
    ],
    "Data": [
        lambda: None,
        lambda: 3,
        lambda: "data",
        lambda: data()[0],
        lambda: (*data(), data()[1]),
        lambda: (data()[0], data()[1][:-1]),
        lambda: (data()[0][:0], data()[1][:0]),
        lambda: (data()[0].numpy(), data()[1].numpy()),
        lambda: (data()[0], None),
        lambda: (torch.zeros(()), torch.zeros(())),
        lambda: {"x": data()[0], "y": data()[1]},
        dict,
        lambda: [1, 2],
        lambda: [data()],
        lambda: TensorDataset(data()[0]),
        lambda: TensorDataset(*(t[:0] for t in data())),
        lambda: DataLoader(TensorDataset(data()[0]), 5),
        lambda: never(),
        lambda: (data()[0].to_sparse(), data()[1]),
        lambda: tuple(t.to("meta") for t in data()),
    ],
    "Params": [
        lambda: "first:2",
        lambda: "last:0",
        lambda: "last:99",
        lambda: "last:x",
        lambda: ["nothing"],
        list,
        lambda: 3,
        lambda: [3],
        lambda: "0.weight",
        lambda: True,
        lambda: [None],
    ],
    "int": [lambda: 1.5, lambda: "3", lambda: float("nan"), lambda: [1], lambda: 2j, lambda: -(10**30)],
    "float": [lambda: float("nan"), lambda: "much", lambda: [0.1], lambda: 2j, lambda: torch.zeros(2), dict],
    "str": [lambda: 3, lambda: b"x", lambda: ["x"], lambda: 0.5],
    "dtype": [lambda: torch.int8, lambda: "bf16", lambda: 16, lambda: torch.complex64, lambda: float],
    "Generator": [lambda: 3, lambda: "seed", lambda: random.Random(0), lambda: np.random.default_rng(0)],
    "Tensor": [
        lambda: None,
        lambda: "tensor",
        dict,
        lambda: torch.zeros(()),
        lambda: torch.randn(SAMPLES, 2, 2, 2, 2),
        lambda: torch.zeros(0, 0),
        lambda: torch.randn(SAMPLES, CLASSES, dtype=torch.complex64),
    ],
    "Indices": [
        lambda: [0.5],
        lambda: [1.0],
        lambda: "1",
        lambda: None,
        lambda: never(),
        lambda: torch.ones(SAMPLES, dtype=torch.bool),
        lambda: [True, False],
        lambda: [10**9],
        lambda: [-1],
        lambda: [10**30],
        list,
        lambda: [1, 1],
        lambda: range(SAMPLES),
        lambda: ["a"],
        lambda: [[0], [1, 2]],
        lambda: {"a": 1},
        lambda: 1,
    ],
    "Solver": [lambda: None, lambda: "cg", lambda: 3, lambda: curvature.ConjugateGradient, lambda: model()],
    "Mapping": [lambda: None, lambda: {"a": "b"}, lambda: [1.0], lambda: 3, lambda: {3: 1.0}],
    "Vector": [
        lambda: None,
        dict,
        lambda: torch.zeros(3),
        lambda: {"nothing": torch.zeros(3)},
        lambda: {name: t.flatten()[:-1] for name, t in vector().items()},
        lambda: dict.fromkeys(vector(), "vector"),
        lambda: {name: t.to("meta") for name, t in vector().items()},
    ],
    "Function": [lambda: 3, lambda: "function", lambda: raises, lambda: lambda: None],
    "Training": [lambda: None, lambda: 3, lambda: "training", lambda: Training],
    "Request": [lambda: None, lambda: data(), lambda: [0], lambda: "request", lambda: Request],
    "Path": [lambda: 3, lambda: b"", lambda: None],
    "Requests": [lambda: None, lambda: 3, lambda: [None], lambda: "request", lambda: request(), lambda: [[0.5]]],
    "Texts": [lambda: 3, lambda: 0.5, lambda: None, lambda: "x", lambda: b"x", lambda: [1], lambda: [b"x"], dict],
    "Methods": [lambda: None, list, lambda: 3, lambda: [None], lambda: ["ssd"], lambda: methods.SSD()],
    "Pair": [
        lambda: None,
        lambda: (1,),
        lambda: (1, 9),
        lambda: ("a", "b"),
        lambda: (1, 1),
        lambda: 1,
        lambda: (0.5, 1),
    ],
    "Device": [lambda: "cupboard", lambda: 0.5, lambda: [1], lambda: torch.float32],
}
MAYBE: dict[str, Wrong] = {
    "int": [lambda: 0, lambda: -1, lambda: True, lambda: np.int64(2)],
    "float": [lambda: float("inf"), lambda: -1.0, lambda: 0.0, lambda: 1e300, lambda: True, lambda: -1e-9, lambda: 2],
    "str": [lambda: "", lambda: "nonsense", lambda: "auto ", lambda: "\0"],
    "Loss": [lambda: lambda output, y: output.sum() * torch.nan, lambda: F.mse_loss, lambda: F.nll_loss],
    "Data": [
        lambda: (data()[0].double(), data()[1]),
        lambda: (data()[0][:, :3], data()[1]),
        lambda: (data()[0], data()[1].int()),
        lambda: (data()[0], data()[1] + 9),
        lambda: (data()[0], data()[1] - 7),
        lambda: (data()[0], data()[1].float()),
        lambda: (data()[0] * torch.nan, data()[1]),
        lambda: (data()[0], data()[1][:, None].expand(-1, 2)),
        lambda: ([data()[0]], data()[1]),
        lambda: DataLoader(TensorDataset(*data()), 5, shuffle=True, drop_last=True),
        lambda: (data()[0][:1], data()[1][:1]),
    ],
    "nn.Module": [
        lambda: model(outputs=CLASSES + 1),
        lambda: model(outputs=1),
        lambda: nn.Sequential(model(), nn.Dropout()).train(),
        lambda: nn.Sequential(nn.BatchNorm1d(FEATURES), model()).train(),
        lambda: model().half(),
        lambda: nn.Flatten(),
        lambda: model().requires_grad_(False),
    ],
    "Tensor": [
        lambda: torch.full((SAMPLES, FEATURES), torch.nan),
        lambda: torch.randn(SAMPLES),
        lambda: torch.randn(SAMPLES, 2),
        lambda: torch.randn(2, SAMPLES),
        lambda: torch.zeros(SAMPLES, dtype=torch.bool),
        lambda: torch.randn(SAMPLES, FEATURES).to("meta"),
        lambda: [1.0, 2.0],
        lambda: 0.5,
        lambda: torch.arange(SAMPLES) + 5,
        lambda: torch.randn(SAMPLES, FEATURES).to_sparse(),
    ],
    "Mapping": [dict, lambda: {"accuracy": float("nan")}, lambda: {"retain accuracy": None}],
    "Indices": [lambda: np.array([1, 2]), lambda: {1, 2}, lambda: torch.tensor([3]), lambda: torch.tensor(2)],
    "Params": [lambda: ("2.weight",), lambda: {"2.weight"}, lambda: "last:1"],
    "Path": [lambda: "/proc/version/x", lambda: Path("/proc/nowhere/x")],
    "Device": [lambda: "meta", lambda: "cuda:99"],
}
KINDS = [  # by the words of an annotation, the first that fits
    (r"nn\.Module", "nn.Module"),
    (r"Loss\b", "Loss"),
    (r"Sequence\[Request\]", "Requests"),
    (r"Sequence\[Sequence\[int\]", "Requests"),
    (r"Sequence\[Method\]", "Methods"),
    (r"Sequence\[str\]", "Texts"),
    (r"\[int\]", "Indices"),
    (r"Data\b", "Data"),
    (r"Params", "Params"),
    (r"dtype", "dtype"),
    (r"Generator", "Generator"),
    (r"tuple\[int, int\]", "Pair"),
    (r"Mapping", "Mapping"),
    (r"Vector", "Vector"),
    (r"Solver", "Solver"),
    (r"Training", "Training"),
    (r"Request", "Request"),
    (r"Factory|Callable|Fit|Score", "Function"),
    (r"device", "Device"),
    (r"Path", "Path"),
    (r"str\b.*Tensor|Tensor.*str\b", "str"),
    (r"Tensor|Any", "Tensor"),
    (r"float", "float"),
    (r"int\b", "int"),
    (r"str\b|Aggregate", "str"),
]


def kind_of(annotation: str) -> str | None:
    return next((kind for pattern, kind in KINDS if re.search(pattern, annotation)), None)


def parameters(function: Callable[..., Any]) -> dict[str, str]:
    """Names of the arguments that can be spoiled, with their annotations."""
    found = inspect.signature(function).parameters
    return {
        name: str(p.annotation) + (" | None" if p.default is None else "")
        for name, p in found.items()
        if kind_of(str(p.annotation))
    }


def of_method(cls: type[methods.Method], **right: Any) -> tuple[Callable[..., Any], dict[str, str], Any]:
    """A method as one function of its settings, a model and a request."""

    def call(model: Any, request: Any, **settings: Any) -> Any:
        return cls(**settings)(model, request)

    own = {f.name: str(f.type) for f in dataclasses.fields(cls) if kind_of(str(f.type))}
    return call, {**own, "model": "nn.Module", "request": "Request"}, right


def of_solver(cls: type) -> tuple[Callable[..., Any], dict[str, str], Any]:
    def call(**settings: Any) -> Any:
        operator = curvature.CurvatureOperator(model(), F.cross_entropy, data(), damping=0.1)
        return cls(**settings).solve(operator, vector())

    return call, parameters(cls), {}


def of(function: Callable[..., Any], right: Callable[[], Arguments]) -> Any:
    return function, parameters(function), right


def about(take: Callable[[], Any], method: str, right: Callable[[], Arguments]) -> Any:
    """A method of an object that is made anew for each call."""

    def call(**arguments: Any) -> Any:
        return getattr(take(), method)(**arguments)

    return call, parameters(getattr(type(take()), method)), right


def trained(**more: Any) -> Callable[[], Arguments]:
    return lambda: {"model": model(), "loss_fn": F.cross_entropy, **{k: v() for k, v in more.items()}}


def seen(**more: Any) -> Callable[[], Arguments]:
    return lambda: {"model": model(), **{k: v() for k, v in more.items()}}


def shadows() -> Arguments:
    return {
        "confidence": torch.randn(SAMPLES),
        "shadow_confidence": torch.randn(16, SAMPLES),
        "shadow_in": (torch.arange(16)[:, None] + torch.arange(SAMPLES)) % 2 == 0,
        "members": torch.arange(SAMPLES) % 2 == 0,
        "bootstrap": 20,
    }


def unlearned() -> Arguments:
    names = {"shadow_in": "shadow_unlearned", "members": "unlearned"}
    return {names.get(name, name): value for name, value in shadows().items()}


def references() -> Arguments:
    return {
        "probability": torch.rand(SAMPLES).clamp(min=0.1),
        "reference_probability": torch.rand(2, SAMPLES).clamp(min=0.1),
        "reference_in": torch.arange(2)[:, None] == torch.arange(SAMPLES) % 2,
        "members": torch.arange(SAMPLES) % 2 == 0,
        "population": torch.rand(7).clamp(min=0.1),
        "reference_population": torch.rand(2, 7).clamp(min=0.1),
        "bootstrap": 20,
    }


def tmc() -> Arguments:
    return {"fit": lambda i: len(i), "score": lambda n: float(n), "n_points": 4, "permutations": 3}


def knn() -> Arguments:
    (x, y), (x_test, y_test) = data(), data()
    return {"x": x, "y": y, "x_test": x_test, "y_test": y_test}


OPERATOR = {"params": lambda: ["2.weight", "2.bias"]}
FAST: dict[str, Arguments] = {
    "Retrain": {"epochs": 1, "factory": model},
    "BadTeacher": {"factory": model},
    "StochasticTeacher": {"factory": model, "erase_epochs": 1, "epochs": 1},
    "EWCRepair": {"epochs": 1},
}
CORRECTIONS = {"EWCRepair", "IDK", "NewtonRepair"}


def calls(folder: str) -> dict[str, Any]:
    """Every public function: how it is called, the annotations of its arguments, and right arguments."""

    def operator() -> curvature.CurvatureOperator:
        return curvature.CurvatureOperator(model(), F.cross_entropy, data(), damping=0.1)

    found: dict[str, Any] = {
        "Request.remove": of(Request.remove, lambda: {"dataset": data(), "indices": [1, 2]}),
        "Request.remove_class": of(Request.remove_class, lambda: {"dataset": data(), "c": 1}),
        "Request.correct": of(Request.correct, lambda: dict(zip(("corrected", "dataset"), pair(), strict=True))),
        "Request.with_held_out": about(request, "with_held_out", lambda: {"data": data()}),
        "Request.from_sets": of(Request.from_sets, lambda: {"forget": data(), "retain": data()}),
        "fisher_diagonal": of(curvature.fisher_diagonal, trained(data=data)),
        "grad_difference": of(curvature.grad_difference, trained(old=data, new=data)),
        "per_sample_grad_difference": of(curvature.per_sample_grad_difference, trained(old=data, new=data)),
        "per_sample_grad_dot": of(curvature.per_sample_grad_dot, trained(data=data, v=vector)),
        "CurvatureOperator": of(curvature.CurvatureOperator, trained(data=data)),
        "operator.matvec": about(operator, "matvec", lambda: {"v": vector()}),
        "operator.minibatches": about(operator, "minibatches", lambda: {"batch_size": 2}),
        "operator.trace": about(operator, "trace", lambda: {"samples": 3}),
        "operator.spectrum": about(operator, "spectrum", dict),
        "operator.top_eigenvalue": about(operator, "top_eigenvalue", dict),
        "judge": of(methods.judge, lambda: {"before": model(), "after": model(), "request": request()}),
        "unseen_level": of(metrics.unseen_level, seen(request=request)),
        "accuracy": of(metrics.accuracy, seen(data=data)),
        "activation_distance": of(metrics.activation_distance, two("a", "b", data=data)),
        "js_divergence": of(metrics.js_divergence, two("a", "b", data=data)),
        "zrf": of(metrics.zrf, two("model", "random_model", forget=data)),
        "over_forgetting": of(metrics.over_forgetting, two("model", "retrained", forget=data)),
        "confusion_matrix": of(metrics.confusion_matrix, seen(data=data)),
        "per_class_report": of(metrics.per_class_report, seen(data=data)),
        "interclass_confusion": of(metrics.interclass_confusion, seen(data=data, classes=lambda: (0, 1))),
        "logit_confidence": of(metrics.logit_confidence, seen(data=data)),
        "probabilities": of(metrics.probabilities, seen(data=data)),
        "predict": of(metrics.predict, seen(data=data)),
        "mean_loss": of(metrics.mean_loss, trained(data=data)),
        "mia": of(metrics.mia, seen(forget=data, retain=data, test=data)),
        "relearn_time": of(
            metrics.relearn_time,
            lambda: {**two("model", "original", forget=data)(), "retrained": model(), "max_steps": 3},
        ),
        "saliency": of(
            metrics.saliency,
            lambda: {"model": images(), "images": torch.randn(4, 1, 6, 6), "targets": torch.arange(4) % 3},
        ),
        "forgetting_quality": of(
            metrics.forgetting_quality, lambda: {"unlearned": torch.randn(8, 3), "retrained": torch.randn(8, 3)}
        ),
        "lira": of(metrics.lira, shadows),
        "memorization_scores": of(
            metrics.memorization_scores,
            lambda: {
                "confidence": torch.randn(8, SAMPLES),
                "trained_on": (torch.arange(8)[:, None] + torch.arange(SAMPLES)) % 2 == 0,
            },
        ),
        "rounded_weights": of(metrics.rounded_weights, lambda: {"model": model()}),
        "linear_probe": of(metrics.linear_probe, seen(train=data, test=data)),
        "relearn_curve": of(metrics.relearn_curve, lambda: {"model": model(), "forget": data(), "counts": [1, 2]}),
        "u_lira": of(metrics.u_lira, unlearned),
        "rmia": of(metrics.rmia, references),
        "klom": of(metrics.klom, lambda: {"unlearned": torch.randn(9, 4), "retrained": torch.randn(8, 4)}),
        "klom_interval": of(
            metrics.klom_interval, lambda: {"unlearned": torch.randn(9, 4), "retrained": torch.randn(8, 4)}
        ),
        "rf_jsd": of(metrics.rf_jsd, two("model", "original", forget=data, unseen=data)),
        "rf_jsd_interval": of(metrics.rf_jsd_interval, two("model", "original", forget=data, unseen=data)),
        "unlearned_shadows": of(
            metrics.unlearned_shadows,
            lambda: {
                "train": lambda part, seed: model(),
                "unlearn": lambda trained, asked: trained,
                "data": data(),
                "candidates": [1, 2, 3],
                "models": 2,
            },
        ),
        "gap": of(metrics.gap, lambda: {"unlearned": readings(), "retrained": readings()}),
        "tug_of_war": of(metrics.tug_of_war, lambda: {"unlearned": tow(), "retrained": tow()}),
        "runtime_ratio": of(metrics.runtime_ratio, lambda: {"seconds": 1.0, "retraining_seconds": 3.0}),
        "complete": of(metrics.complete, lambda: {**text(), "length": 3}),
        "exposure": of(metrics.exposure, lambda: {**text(), "canary": "abc", "alphabet": "abc", "samples": 100}),
        "answer_probability": of(metrics.answer_probability, lambda: {"model": bigram(), "data": answers()}),
        "extraction_strength": of(metrics.extraction_strength, lambda: {"model": bigram(), "data": answers()}),
        "min_k": of(metrics.min_k, lambda: {"model": bigram(), "data": answers()}),
        "zlib_attack": of(
            metrics.zlib_attack,
            lambda: {"model": bigram(), "data": answers(), "texts": ["a"] * len(answers()[1])},
        ),
        "reference_attack": of(
            metrics.reference_attack, lambda: {"model": bigram(), "reference": bigram(), "data": answers()}
        ),
        "truth_ratio": of(
            metrics.truth_ratio, lambda: {"model": bigram(), "right": answers(), "wrong": [answers(), answers()]}
        ),
        "rouge_l": of(metrics.rouge_l, lambda: {"written": ["a b"], "wanted": ["a c"]}),
        "forget_quality": of(metrics.forget_quality, lambda: {"unlearned": torch.rand(9), "retrained": torch.rand(9)}),
        "model_utility": of(metrics.model_utility, lambda: {"values": {"probability": 0.5, "rouge": 0.9}}),
        "log_perplexity": of(metrics.log_perplexity, lambda: {**text(), "text": "abc"}),
        "ewc_influence": of(attribution.ewc_influence, trained(train=data, failures=data, steps=lambda: 2)),
        "linear_influence": of(attribution.linear_influence, trained(train=data, failures=data)),
        "ekfac_influence": of(attribution.ekfac_influence, trained(train=data, queries=data)),
        "ekfac_self_influence": of(attribution.ekfac_self_influence, trained(train=data)),
        "EKFAC.fit": about(curvature.EKFAC, "fit", trained(data=data)),
        "factors.solve": about(factors, "solve", lambda: {"v": vector(), "damping": 0.1}),
        "factors.save": about(factors, "save", lambda: {"path": Path(folder) / "factors.safetensors"}),
        "lds": of(metrics.lds, attributed),
        "losses_of_subsets": of(
            metrics.losses_of_subsets,
            lambda: {
                "train": lambda part: model(),
                "loss_fn": F.cross_entropy,
                "data": data(),
                "queries": data(),
                "subsets": 2,
            },
        ),
        "gradient_shapley": of(attribution.gradient_shapley, trained(train=data, test=data, permutations=lambda: 1)),
        "knn_shapley": of(attribution.knn_shapley, knn),
        "tmc_shapley": of(attribution.tmc_shapley, tmc),
        "cross_entropy": of(losses.cross_entropy, scored(lambda: torch.arange(SAMPLES) % CLASSES)),
        "binary_cross_entropy": of(losses.binary_cross_entropy, scored(lambda: torch.ones(SAMPLES, CLASSES))),
        "mse": of(losses.mse, scored(lambda: torch.ones(SAMPLES, CLASSES))),
        "causal_lm": of(losses.causal_lm, tokens),
        "twice_differentiable": of(layers.twice_differentiable, lambda: {"model": nn.GRU(4, 8)}),
        "Training": (trained_by, parameters(Training), lambda: {"epochs": 1}),
        "CertifiedRemoval": of(methods.CertifiedRemoval, dict),
        "certified.remove": about(certified, "remove", lambda: {"indices": [1, 2]}),
        "certified.correct_labels": about(
            certified, "correct_labels", lambda: {"indices": [1, 2], "labels": torch.tensor([2, 1])}
        ),
        "certified.remove_features": about(certified, "remove_features", lambda: {"columns": [1]}),
        "certified.predict": about(certified, "predict", lambda: {"x": data()[0]}),
        "SISA": of(methods.SISA, lambda: {"factory": model, "folder": folder}),
        "sisa.fit": about(lambda: sisa(tempfile.mkdtemp(dir=folder)), "fit", lambda: {"data": data()}),
        "Pipeline": of(methods.Pipeline, lambda: {"stages": [methods.SSD(), methods.FineTune()]}),
        "RUM": of(methods.RUM, lambda: {"stages": [methods.FineTune(), methods.SalUn()]}),
    }
    for cls in (*methods.METHODS.values(), methods.Reapply):
        right = {"update": vector()} if cls is methods.Reapply else FAST.get(cls.__name__, {})
        asked = correction if cls.__name__ in CORRECTIONS else request
        call, own, _ = of_method(cls)
        found[cls.__name__] = (
            call,
            own,
            lambda right=right, asked=asked: {**right, "model": model(), "request": asked()},
        )
    solvers = (curvature.ConjugateGradient, curvature.Direct, curvature.LiSSA, curvature.NystromPCG)
    for cls in (*solvers, curvature.EKFAC, curvature.KFAC):
        call, own, _ = of_solver(cls)
        found[cls.__name__] = call, own, dict
    return found


def pair() -> tuple[Any, Any]:
    x, y = data()
    return (x, y), (x, torch.where(torch.arange(SAMPLES) < 3, (y + 1) % CLASSES, y))


def two(first: str, second: str, **more: Any) -> Callable[[], Arguments]:
    return lambda: {first: model(), second: model(), **{k: v() for k, v in more.items()}}


def tow() -> dict[str, float]:
    return {"forget": 0.5, "retain": 0.9, "test": 0.8}


def tokens() -> Arguments:
    return {"output": torch.randn(SAMPLES, 5, 8), "y": torch.randint(8, (SAMPLES, 5))}


def scored(labels: Callable[[], Tensor]) -> Callable[[], Arguments]:
    return lambda: {"output": torch.randn(SAMPLES, CLASSES), "y": labels()}


def state(value: Any) -> Any:
    """A copy of what belongs to the user."""
    if isinstance(value, nn.Module):
        values = {name: t.clone() for name, t in value.state_dict().items() if not is_lazy(t)}
        return values, [m.training for m in value.modules()]
    if isinstance(value, Tensor):
        return value.clone()
    return [state(v) for v in value] if isinstance(value, (tuple, list)) else None


def unchanged(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.is_meta or a.layout != torch.strided or torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(unchanged(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(unchanged, a, b))
    return a == b


def optional(annotation: str) -> bool:
    return "None" in annotation


def one(draw: random.Random, table: dict[str, Any], counts: Counter[str]) -> str | None:
    name = draw.choice(sorted(table))
    function, annotations, right = table[name]
    arguments = right() if callable(right) else dict(right)
    spoiled, surely = None, False
    if draw.random() < 0.9:
        spoiled = draw.choice(sorted(annotations))
        kind = kind_of(annotations[spoiled]) or ""
        wrong, maybe = list(WRONG[kind]), MAYBE.get(kind, [])
        surely = draw.random() < len(wrong) / (len(wrong) + len(maybe))
        arguments[spoiled] = draw.choice(wrong if surely else maybe)()
        reads = bool(READ & {*annotations.values()})
        surely &= kind != "nn.Module" or reads or not isinstance(arguments[spoiled], nn.Module)
        surely &= not (arguments[spoiled] is None and optional(annotations[spoiled]))
        if "str" in annotations[spoiled] and isinstance(arguments[spoiled], str) and kind == "float":
            surely = True
    label = f"{name} {spoiled or ''} {'' if spoiled is None else shown(arguments[spoiled])}"
    print(json.dumps(label[:200]), flush=True)
    before = {key: state(value) for key, value in arguments.items()}
    try:
        function(**arguments)
    except Exception as error:
        found = judged(annotations, arguments, spoiled, error, counts)
    else:
        counts["right" if spoiled is None else "taken"] += 1
        found = "was accepted" if surely else None
    if not all(unchanged(before[key], state(value)) for key, value in arguments.items()):
        found = found or "an argument was changed"
    return found and f"{label}: {found}"


def judged(
    annotations: dict[str, str], arguments: Arguments, spoiled: str | None, error: Exception, counts: Counter[str]
) -> str | None:
    """What is wrong with an error: ours come from a file of the package and name the argument."""
    message = str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    if spoiled is None:
        return f"a right call was refused at {place}: {type(error).__name__}: {message[:200]}"
    counts["refused"] += 1
    # Where two arguments do not fit each other, either may be named.
    either = type(arguments[spoiled]) in (tuple, dict) or fits(arguments[spoiled])
    names = {spoiled, *annotations} if either else {spoiled}
    named = (
        any(re.match(rf"(\w+[:,] )*{n}\b", message) for n in names)
        or re.search(rf"expected [^:]*\b{spoiled} takes", message)
        # of a parameter: the model, the loss or the samples may be why
        or re.search("are NaN or infinite|is not finite", message)
    )
    if isinstance(error, OSError) and str(arguments[spoiled]) in message:
        return None
    if type(error) not in OURS or not frame.filename.startswith(PACKAGE) or not named:
        return f"{type(error).__name__} at {place}: {message[:200]}"
    return None


def fits(value: Any) -> bool:
    return isinstance(value, (nn.Module, Tensor, TensorDataset, DataLoader, list, set, range, str)) or callable(value)


def shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype)[6:]}{list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {shown(v)}' for k, v in value.items())}}}"
    return re.sub(r" at 0x\w+", "", repr(value)).replace("\n", "")


def main(seed: int, count: int) -> None:
    warnings.simplefilter("ignore")
    draw, counts, wrong = random.Random(seed), Counter[str](), []
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        table = calls(folder)
        for _ in range(count):
            found = one(draw, table, counts)
            if found:
                wrong.append(found)
    print(json.dumps({"counts": counts, "wrong": wrong}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
