"""Unlearning methods: small dataclasses, called as ``method(model, request) -> Outcome``."""

from unlearnx.methods.automatic import Automatic, forget
from unlearnx.methods.bad_teacher import BadTeacher
from unlearnx.methods.base import Method
from unlearnx.methods.boundary_shrink import BoundaryShrink
from unlearnx.methods.certified import CertifiedRemoval
from unlearnx.methods.energy_alignment import EnergyAlignment
from unlearnx.methods.ewc_repair import EWCRepair
from unlearnx.methods.fine_tune import FineTune
from unlearnx.methods.first_order import FirstOrder
from unlearnx.methods.fisher_masking import FisherMasking
from unlearnx.methods.gradient_ascent import GradientAscent, NegGrad
from unlearnx.methods.idk import IDK
from unlearnx.methods.jit import JiT
from unlearnx.methods.kfade import KFADE
from unlearnx.methods.l1_sparse import L1Sparse
from unlearnx.methods.newton_repair import NewtonRepair
from unlearnx.methods.outcome import Outcome
from unlearnx.methods.pipeline import Pipeline
from unlearnx.methods.preference import NPO, SimNPO
from unlearnx.methods.random_labels import RandomLabels
from unlearnx.methods.random_perturbation import RandomPerturbation
from unlearnx.methods.reapply import Reapply
from unlearnx.methods.reinitialising import CT, MSG
from unlearnx.methods.request import Request
from unlearnx.methods.retrain import Retrain
from unlearnx.methods.rmu import RMU
from unlearnx.methods.rum import RUM
from unlearnx.methods.salun import SalUn
from unlearnx.methods.scrub import SCRUB
from unlearnx.methods.second_order import SecondOrder
from unlearnx.methods.sisa import SISA, SISACost, SISAOutcome
from unlearnx.methods.ssd import SSD
from unlearnx.methods.stochastic_teacher import StochasticTeacher
from unlearnx.methods.task_vector import TaskVector
from unlearnx.methods.unsir import UNSIR
from unlearnx.methods.verdict import judge
from unlearnx.methods.wood_fisher import WoodFisher

METHODS: dict[str, type[Method]] = {
    "auto": Automatic,
    "bad-teacher": BadTeacher,
    "boundary-shrink": BoundaryShrink,
    "ct": CT,
    "energy-alignment": EnergyAlignment,
    "ewc-repair": EWCRepair,
    "fine-tune": FineTune,
    "first-order": FirstOrder,
    "fisher-masking": FisherMasking,
    "gradient-ascent": GradientAscent,
    "idk": IDK,
    "jit": JiT,
    "k-fade": KFADE,
    "l1-sparse": L1Sparse,
    "msg": MSG,
    "neg-grad": NegGrad,
    "newton-repair": NewtonRepair,
    "npo": NPO,
    "random-labels": RandomLabels,
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
    "unsir": UNSIR,
    "wood-fisher": WoodFisher,
}
"""The methods by their names on the command line."""

__all__ = [
    "CT",
    "IDK",
    "KFADE",
    "METHODS",
    "MSG",
    "NPO",
    "RMU",
    "RUM",
    "SCRUB",
    "SISA",
    "SSD",
    "UNSIR",
    "Automatic",
    "BadTeacher",
    "BoundaryShrink",
    "CertifiedRemoval",
    "EWCRepair",
    "EnergyAlignment",
    "FineTune",
    "FirstOrder",
    "FisherMasking",
    "GradientAscent",
    "JiT",
    "L1Sparse",
    "Method",
    "NegGrad",
    "NewtonRepair",
    "Outcome",
    "Pipeline",
    "RandomLabels",
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
    "WoodFisher",
    "forget",
    "judge",
]
