"""All studies by name. A new one is a line here."""

from __future__ import annotations

from unlearnx.experiments.canary import CANARY_ALICE
from unlearnx.experiments.canary_lm import CANARY_LM
from unlearnx.experiments.features import FEATURES
from unlearnx.experiments.forget.studies import FORGETTING
from unlearnx.experiments.poison import POISON_CIFAR, POISON_DIGITS
from unlearnx.experiments.repair import REPAIR_MNIST
from unlearnx.experiments.tofu import TOFU

STUDIES = {
    study.name: study
    for study in (
        POISON_DIGITS,
        POISON_CIFAR,
        CANARY_ALICE,
        CANARY_LM,
        *FORGETTING,
        *FEATURES,
        REPAIR_MNIST,
        TOFU,
    )
}
