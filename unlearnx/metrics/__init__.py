"""Did it forget, is it still good, was it cheap."""

from unlearnx.metrics.classification import (
    ClassReport,
    accuracy,
    confusion_matrix,
    mean_loss,
    per_class_report,
    predict,
)

__all__ = ["ClassReport", "accuracy", "confusion_matrix", "mean_loss", "per_class_report", "predict"]
