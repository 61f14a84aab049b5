"""Measures of unlearning: did the model forget, is it still good, and was it cheaper than retraining."""

from unlearnx.metrics.agreement import activation_distance, js_divergence, zrf
from unlearnx.metrics.classification import (
    ClassReport,
    accuracy,
    confusion_matrix,
    interclass_confusion,
    mean_loss,
    per_class_report,
    predict,
)
from unlearnx.metrics.comparison import gap, runtime_ratio, tug_of_war
from unlearnx.metrics.datamodelling import lds, losses_of_subsets
from unlearnx.metrics.forgetting_quality import ForgettingQuality, forgetting_quality
from unlearnx.metrics.lira import Estimate, LiRA, lira
from unlearnx.metrics.membership import mia
from unlearnx.metrics.memorization import CharacterModel, Exposure, complete, exposure, log_perplexity
from unlearnx.metrics.outputs import logit_confidence, probabilities
from unlearnx.metrics.over_forgetting import over_forgetting
from unlearnx.metrics.relearning import RelearnTime, relearn_time
from unlearnx.metrics.saliency import saliency
from unlearnx.metrics.skew_normal import SkewNormal
from unlearnx.metrics.unseen import Level, UnseenLevel, unseen_level

__all__ = [
    "CharacterModel",
    "ClassReport",
    "Estimate",
    "Exposure",
    "ForgettingQuality",
    "Level",
    "LiRA",
    "RelearnTime",
    "SkewNormal",
    "UnseenLevel",
    "accuracy",
    "activation_distance",
    "complete",
    "confusion_matrix",
    "exposure",
    "forgetting_quality",
    "gap",
    "interclass_confusion",
    "js_divergence",
    "lds",
    "lira",
    "log_perplexity",
    "logit_confidence",
    "losses_of_subsets",
    "mean_loss",
    "mia",
    "over_forgetting",
    "per_class_report",
    "predict",
    "probabilities",
    "relearn_time",
    "runtime_ratio",
    "saliency",
    "tug_of_war",
    "unseen_level",
    "zrf",
]
