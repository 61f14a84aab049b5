"""Networks of the experiments, and how they are trained."""

from unlearnx.models.networks import digits_cnn, vgg_cifar10
from unlearnx.models.training import Training, fast_dtype

__all__ = ["Training", "digits_cnn", "fast_dtype", "vgg_cifar10"]
