"""Did it forget, is it still good, was it cheap."""

from unlearnx.metrics.classification import (
    ClassReport,
    accuracy,
    confusion_matrix,
    mean_loss,
    per_class_report,
    predict,
)
from unlearnx.metrics.memorization import CharacterModel, Exposure, complete, exposure, perplexity
from unlearnx.metrics.saliency import saliency
from unlearnx.metrics.skew_normal import SkewNormal

__all__ = [
    "CharacterModel",
    "ClassReport",
    "Exposure",
    "SkewNormal",
    "accuracy",
    "complete",
    "confusion_matrix",
    "exposure",
    "mean_loss",
    "per_class_report",
    "perplexity",
    "predict",
    "saliency",
]
