from torch import nn

from unlearnx._blocks import blocks_of


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.activations = nn.ModuleList(nn.ReLU() for _ in range(9))  # without parameters
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())  # of two classes
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.body = nn.Module()
        self.body.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.others = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))  # as many, but later


def test_the_longest_list_of_modules_of_one_class():
    model = Transformer()
    assert blocks_of(model) == [(f"body.layers.{i}", layer) for i, layer in enumerate(model.body.layers)]


def test_a_sequence_of_one_class_is_a_list_too():
    assert [name for name, _ in blocks_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))] == ["0", "1"]


def test_a_network_without_blocks():
    assert blocks_of(nn.Linear(4, 4)) == blocks_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU())) == []
