"""Which training samples caused a failure: influence scores (higher = more to blame), Shapley values (higher = more
valuable).
"""

from unlearnx.attribution.ekfac import ekfac_influence, ekfac_self_influence
from unlearnx.attribution.influence import ewc_influence, linear_influence
from unlearnx.attribution.knn_shapley import knn_shapley
from unlearnx.attribution.permutations import ShapleyResult
from unlearnx.attribution.shapley import gradient_shapley, tmc_shapley

__all__ = [
    "ShapleyResult",
    "ekfac_influence",
    "ekfac_self_influence",
    "ewc_influence",
    "gradient_shapley",
    "knn_shapley",
    "linear_influence",
    "tmc_shapley",
]
