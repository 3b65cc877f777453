"""Two networks that are deeper than a measure, and their data: an MLP and a transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_examples.classifier import Digits
from lightning_examples.problems import Batch


def mlp() -> nn.Sequential:
    """Return 64-64-32-32-10: the neurons of its first and of its third hidden layer are clouds."""
    first = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()]
    return nn.Sequential(*first, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


class Transformer(nn.Module):
    """Two blocks that read six of five tokens; the clouds are the two feed-forward parts."""

    def __init__(self, tokens: int = 5, length: int = 6, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.5 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(width, 2, hidden, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, tokens) from sequences x (n, length), read at the last place."""
        return self.head(self.blocks(self.embed(x) + self.position)[:, -1])


def digits() -> tuple[Batch, Batch]:
    """Return (x, y) of 1200 and of 300 handwritten digits: to train and to test."""
    data = Digits()
    (x, y), (x_test, y_test) = (tuple(zip(*part, strict=True)) for part in (data.train, data.test))
    return (torch.stack(x), torch.stack(y)), (torch.stack(x_test), torch.stack(y_test))


def sequences() -> tuple[Batch, Batch]:
    """Return 600 and 300 sequences (n, 6); the label is the sum of two tokens modulo 5."""
    x = torch.randint(0, 5, (900, 6), generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] + x[:, 1]) % 5
    return (x[:600], y[:600]), (x[600:], y[600:])


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean over the data."""
    return F.cross_entropy(model(x), y)


TASKS = {"digits, MLP": (mlp, digits), "sequences, transformer": (Transformer, sequences)}
