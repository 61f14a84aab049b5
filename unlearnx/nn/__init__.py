"""Drop-in replacements of torch's recurrent layers that can be differentiated twice."""

from unlearnx.nn.convert import twice_differentiable
from unlearnx.nn.gru import GRU
from unlearnx.nn.lstm import LSTM

__all__ = ["GRU", "LSTM", "twice_differentiable"]
