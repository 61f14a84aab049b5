"""Networks of the experiments, and how they are trained."""

from unlearnx._precision import fast_dtype
from unlearnx.models.characters import CharacterLSTM, last_character_loss
from unlearnx.models.networks import digits_cnn, mnist_cnn, vgg_cifar10
from unlearnx.models.training import Training

__all__ = ["CharacterLSTM", "Training", "digits_cnn", "fast_dtype", "last_character_loss", "mnist_cnn", "vgg_cifar10"]
