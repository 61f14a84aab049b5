"""Networks of the experiments and how they are trained; pretrained language models."""

from unlearnx._precision import fast_dtype
from unlearnx.models.characters import CharacterLSTM, last_character_loss
from unlearnx.models.language import load_lm
from unlearnx.models.networks import digits_cnn, mnist_cnn, vgg_cifar10
from unlearnx.models.resnets import resnet9, resnet18, resnet20
from unlearnx.models.training import ImageTraining, Training
from unlearnx.models.vit import vit_tiny

__all__ = [
    "CharacterLSTM",
    "ImageTraining",
    "Training",
    "digits_cnn",
    "fast_dtype",
    "last_character_loss",
    "load_lm",
    "mnist_cnn",
    "resnet9",
    "resnet18",
    "resnet20",
    "vgg_cifar10",
    "vit_tiny",
]
