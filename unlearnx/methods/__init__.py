"""Unlearning methods: small dataclasses, called as ``method(model, request) -> Outcome``."""

from unlearnx.methods.automatic import Automatic, forget
from unlearnx.methods.bad_teacher import BadTeacher
from unlearnx.methods.base import Method
from unlearnx.methods.certified import CertifiedRemoval
from unlearnx.methods.energy_alignment import EnergyAlignment
from unlearnx.methods.ewc_repair import EWCRepair
from unlearnx.methods.fine_tune import FineTune
from unlearnx.methods.first_order import FirstOrder
from unlearnx.methods.fisher_masking import FisherMasking
from unlearnx.methods.gradient_ascent import GradientAscent, NegGrad
from unlearnx.methods.idk import IDK
from unlearnx.methods.kfade import KFADE
from unlearnx.methods.newton_repair import NewtonRepair
from unlearnx.methods.outcome import Outcome
from unlearnx.methods.pipeline import Pipeline
from unlearnx.methods.preference import NPO, SimNPO
from unlearnx.methods.random_perturbation import RandomPerturbation
from unlearnx.methods.reapply import Reapply
from unlearnx.methods.request import Request
from unlearnx.methods.retrain import Retrain
from unlearnx.methods.rmu import RMU
from unlearnx.methods.salun import SalUn
from unlearnx.methods.scrub import SCRUB
from unlearnx.methods.second_order import SecondOrder
from unlearnx.methods.sisa import SISA, SISACost, SISAOutcome
from unlearnx.methods.ssd import SSD
from unlearnx.methods.stochastic_teacher import StochasticTeacher
from unlearnx.methods.task_vector import TaskVector
from unlearnx.methods.verdict import judge

METHODS: dict[str, type[Method]] = {
    "auto": Automatic,
    "bad-teacher": BadTeacher,
    "energy-alignment": EnergyAlignment,
    "ewc-repair": EWCRepair,
    "fine-tune": FineTune,
    "first-order": FirstOrder,
    "fisher-masking": FisherMasking,
    "gradient-ascent": GradientAscent,
    "idk": IDK,
    "k-fade": KFADE,
    "neg-grad": NegGrad,
    "newton-repair": NewtonRepair,
    "npo": NPO,
    "random-perturbation": RandomPerturbation,
    "retrain": Retrain,
    "rmu": RMU,
    "salun": SalUn,
    "scrub": SCRUB,
    "second-order": SecondOrder,
    "simnpo": SimNPO,
    "ssd": SSD,
    "stochastic-teacher": StochasticTeacher,
    "task-vector": TaskVector,
}
"""The methods by their names on the command line."""

__all__ = [
    "IDK",
    "KFADE",
    "METHODS",
    "NPO",
    "RMU",
    "SCRUB",
    "SISA",
    "SSD",
    "Automatic",
    "BadTeacher",
    "CertifiedRemoval",
    "EWCRepair",
    "EnergyAlignment",
    "FineTune",
    "FirstOrder",
    "FisherMasking",
    "GradientAscent",
    "Method",
    "NegGrad",
    "NewtonRepair",
    "Outcome",
    "Pipeline",
    "RandomPerturbation",
    "Reapply",
    "Request",
    "Retrain",
    "SISACost",
    "SISAOutcome",
    "SalUn",
    "SecondOrder",
    "SimNPO",
    "StochasticTeacher",
    "TaskVector",
    "forget",
    "judge",
]
