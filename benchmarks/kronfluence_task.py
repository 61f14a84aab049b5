"""kronfluence, another library with EK-FAC, set up for classifiers; imported only where it is installed."""

import copy

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.task import Task
from torch.nn import functional as F


class Labelled(Task):
    """Cross-entropy of samples, or of each of their positions, with classes second; of `layers`, None for all."""

    def __init__(self, layers=None):
        super().__init__()
        self.layers = layers

    def compute_train_loss(self, batch, model, sample=False):
        output, y = model(batch[0]), batch[1]
        if sample:
            p = output.detach().movedim(1, -1).softmax(-1)
            y = torch.multinomial(p.flatten(0, -2), 1).view_as(y)
        return F.cross_entropy(output, y, reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self):
        return self.layers


def prepared(model, layers=None):
    """A copy of the model that the library has its hooks in, and the task."""
    task = Labelled(layers)
    return prepare_model(copy.deepcopy(model), task), task


def analyzer(model, task, folder):
    """What fits factors and gives scores, which it keeps in the folder; the first two are of :func:`prepared`."""
    return Analyzer("run", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
