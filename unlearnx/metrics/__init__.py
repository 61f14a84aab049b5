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
from unlearnx.metrics.language import answer_probability, extraction_strength, min_k, truth_ratio
from unlearnx.metrics.levels import Level, UnseenLevel
from unlearnx.metrics.lira import Estimate, LiRA, lira
from unlearnx.metrics.margins import klom, klom_interval
from unlearnx.metrics.membership import mia
from unlearnx.metrics.memorization import CharacterModel, Exposure, complete, exposure, log_perplexity
from unlearnx.metrics.outputs import logit_confidence, probabilities
from unlearnx.metrics.over_forgetting import over_forgetting
from unlearnx.metrics.relearning import RelearnTime, relearn_time
from unlearnx.metrics.retrain_free import rf_jsd, rf_jsd_interval
from unlearnx.metrics.robustness import linear_probe, relearn_curve, rounded_weights
from unlearnx.metrics.saliency import saliency
from unlearnx.metrics.sample_memorization import MemorizationScores, memorization_scores
from unlearnx.metrics.shadow_attacks import rmia, u_lira
from unlearnx.metrics.shadows import Shadows, unlearned_shadows
from unlearnx.metrics.skew_normal import SkewNormal
from unlearnx.metrics.text_attacks import reference_attack, zlib_attack
from unlearnx.metrics.tofu import ForgetQuality, forget_quality, model_utility, rouge_l
from unlearnx.metrics.unseen import unseen_level

__all__ = [
    "CharacterModel",
    "ClassReport",
    "Estimate",
    "Exposure",
    "ForgetQuality",
    "ForgettingQuality",
    "Level",
    "LiRA",
    "MemorizationScores",
    "RelearnTime",
    "Shadows",
    "SkewNormal",
    "UnseenLevel",
    "accuracy",
    "activation_distance",
    "answer_probability",
    "complete",
    "confusion_matrix",
    "exposure",
    "extraction_strength",
    "forget_quality",
    "forgetting_quality",
    "gap",
    "interclass_confusion",
    "js_divergence",
    "klom",
    "klom_interval",
    "lds",
    "linear_probe",
    "lira",
    "log_perplexity",
    "logit_confidence",
    "losses_of_subsets",
    "mean_loss",
    "memorization_scores",
    "mia",
    "min_k",
    "model_utility",
    "over_forgetting",
    "per_class_report",
    "predict",
    "probabilities",
    "reference_attack",
    "relearn_curve",
    "relearn_time",
    "rf_jsd",
    "rf_jsd_interval",
    "rmia",
    "rouge_l",
    "rounded_weights",
    "runtime_ratio",
    "saliency",
    "truth_ratio",
    "tug_of_war",
    "u_lira",
    "unlearned_shadows",
    "unseen_level",
    "zlib_attack",
    "zrf",
]
