"""Models whose EK-FAC factors are fitted, and other libraries that fit them.

Each fits the same layers, linear ones and convolutions, with labels drawn from the model: `fit()` leaves factors with
corrected eigenvalues behind. The data are pairs (x, y) in one set; batches have `batch_size` samples.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import smollm2
from unlearnx.curvature import EKFAC
from unlearnx.data import load_digits
from unlearnx.models import resnet9

LAST_BLOCKS = 4  # of the language model: decompositions of all thirty take minutes for each side of the comparison


@dataclass
class Case:
    """A model with data, and the layers to fit.

    Attributes:
        layers: paths of linear layers and convolutions.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    batch_size: int
    layers: list[str]

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch; classes come second, as torch has them."""
        return F.cross_entropy(output, y)

    @property
    def names(self) -> list[str]:
        """Of the layers' parameters."""
        return [
            f"{path}.{name}" for path in self.layers for name, _ in self.model.get_submodule(path).named_parameters()
        ]

    def loader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.x, self.y), batch_size=self.batch_size)


def digits() -> Case:
    """A perceptron on the training digits."""
    torch.manual_seed(0)
    splits = load_digits()
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    return Case(model, splits.train_x.flatten(1), splits.train_y, 256, ["0", "2", "4"])


def resnet() -> Case:
    """ResNet-9 on 256 images of 32 x 32 pixels."""
    torch.manual_seed(0)
    model = resnet9().eval()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return Case(model, torch.randn(256, 3, 32, 32), torch.randint(10, (256,)), 128, layers)


class _NextToken(nn.Module):
    """Scores of the token after each, classes second: all libraries know cross-entropy of such an output."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x).logits.transpose(1, 2)


def language_model() -> Case:
    """Attention and feed-forward layers of the last blocks of SmolLM2-135M, on 16 texts of 64 tokens."""
    model, x = smollm2.load()
    last = list(range(model.config.num_hidden_layers))[-LAST_BLOCKS:]
    blocks = tuple(f"model.model.layers.{i}." for i in last)
    wrapped = _NextToken(model)
    layers = [n for n, m in wrapped.named_modules() if isinstance(m, nn.Linear) and n.startswith(blocks)]
    for name, p in wrapped.named_parameters():
        p.requires_grad_(name.startswith(blocks))
    return Case(wrapped, x[:, :-1], x[:, 1:].contiguous(), len(x), layers)


CASES: dict[str, Callable[[], Case]] = {"digits": digits, "resnet9": resnet, "smollm2": language_model}


def ours(case: Case) -> Callable[[], object]:
    def losses(output: Tensor, y: Tensor) -> Tensor:
        own = F.cross_entropy(output, y, reduction="none")
        return own.flatten(1).sum(1) if own.dim() > 1 else own

    data = (case.x, case.y)
    return lambda: EKFAC().fit(case.model, losses, data, params=case.names, batch_size=case.batch_size, diagonal=False)


def step(case: Case) -> Callable[[], object]:
    """The unit: one forward and backward pass over the data for the same parameters."""
    own = [case.model.get_parameter(name) for name in case.names]

    def run() -> None:
        for x, y in case.loader():
            torch.autograd.grad(case.loss(case.model(x), y), own)

    return run


def decompositions(case: Case) -> Callable[[], object]:
    """Eigenvectors of matrices of the sizes that every side decomposes."""
    generator = torch.Generator().manual_seed(0)
    sizes = [side for path in case.layers for side in _sides(case.model.get_submodule(path))]
    gaussian = [torch.randn(n, n, generator=generator) for n in sizes]
    matrices = [t @ t.T / len(t) for t in gaussian]
    return lambda: [torch.linalg.eigh(t) for t in matrices]


def _sides(layer: nn.Module) -> tuple[int, int]:
    rows, *others = layer.weight.shape
    return rows, torch.Size(others).numel() + (layer.bias is not None)


def kronfluence(case: Case) -> Callable[[], object]:
    from kronfluence.arguments import FactorArguments

    from benchmarks.kronfluence_task import analyzer, prepared

    own, data = prepared(case.model, case.layers), TensorDataset(case.x, case.y)

    def fit() -> None:
        with tempfile.TemporaryDirectory() as folder:
            analyzer(*own, folder).fit_all_factors(
                "f", data, per_device_batch_size=case.batch_size, factor_args=FactorArguments("ekfac")
            )

    return fit


def curvlinops(case: Case) -> Callable[[], object]:
    from curvlinops import EKFACLinearOperator

    own = [case.model.get_parameter(name) for name in case.names]
    batches = list(case.loader())

    def fit() -> None:
        operator = EKFACLinearOperator(
            case.model, nn.CrossEntropyLoss(), own, batches, check_deterministic=False, separate_weight_and_bias=False
        )
        operator.compute_kronecker_factors()
        operator.compute_eigenvalue_correction()

    return fit


def dattri(case: Case) -> Callable[[], object]:
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask

    if any(not isinstance(case.model.get_submodule(path), nn.Linear) for path in case.layers):
        raise NotImplementedError("knows linear layers only")
    model = copy.deepcopy(case.model)

    def loss(values, batch):
        x, y = batch
        return F.cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    return lambda: IFAttributorEKFAC(task, module_name=case.layers).cache(case.loader())


RIVALS = {"kronfluence": kronfluence, "curvlinops": curvlinops, "dattri": dattri}
