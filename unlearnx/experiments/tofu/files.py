"""Results as open-unlearning writes them, so that its plots read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearnx.experiments.runs import write_json

# Of each measure: what open-unlearning calls it, and what it calls the value of a question.
NAMES = {
    "forget_probability": ("forget_Q_A_Prob", "prob"),
    "forget_rouge": ("forget_Q_A_ROUGE", "rougeL_recall"),
    "forget_truth_ratio": ("forget_truth_ratio", "score"),
    "retain_probability": ("retain_Q_A_Prob", "prob"),
    "retain_rouge": ("retain_Q_A_ROUGE", "rougeL_recall"),
    "retain_truth_ratio": ("retain_Truth_Ratio", "score"),
    "real_authors_probability": ("ra_Q_A_Prob_normalised", "prob"),
    "real_authors_rouge": ("ra_Q_A_ROUGE", "rougeL_recall"),
    "real_authors_truth_ratio": ("ra_Truth_Ratio", "score"),
    "world_facts_probability": ("wf_Q_A_Prob_normalised", "prob"),
    "world_facts_rouge": ("wf_Q_A_ROUGE", "rougeL_recall"),
    "world_facts_truth_ratio": ("wf_Truth_Ratio", "score"),
    "extraction_strength": ("extraction_strength", "score"),
    "forget_quality": ("forget_quality", ""),
    "utility": ("model_utility", ""),
    "mia_loss": ("mia_loss", ""),
    "mia_zlib": ("mia_zlib", ""),
    "mia_min_k": ("mia_min_k", ""),
    "mia_min_k_plus_plus": ("mia_min_k_plus_plus", ""),
    "mia_reference": ("mia_reference", ""),
}


def write_files(folder: Path, measures: Mapping[str, Any], questions: Mapping[str, list[float]]) -> None:
    """Write ``TOFU_EVAL.json``, with the values by question, and ``TOFU_SUMMARY.json``.

    Args:
        folder: of the model.
        measures: values over all questions.
        questions: values by question, of some of them.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, (name, value) in NAMES.items():
        if measures.get(key) is not None:
            found[name] = {"agg_value": measures[key]}
            if key in questions:
                found[name]["value_by_index"] = {str(i): {value: v} for i, v in enumerate(questions[key])}
    write_json(folder / "TOFU_EVAL.json", found)
    write_json(folder / "TOFU_SUMMARY.json", {name: entry["agg_value"] for name, entry in found.items()})
