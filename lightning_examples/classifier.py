"""A classifier of digits as one has it already: nothing in this file knows of proximal steps."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Subset, TensorDataset

Batch = tuple[Tensor, Tensor]


class Digits(pl.LightningDataModule):
    """scikit-learn's 1797 handwritten digits: 1200 to train, 297 to validate, 300 to test.

    Args:
        seed: Of the split.
        batch: Size of a minibatch.
    """

    def __init__(self, seed: int = 0, batch: int = 200) -> None:
        super().__init__()
        features, labels = load_digits(return_X_y=True)
        data = TensorDataset(
            torch.tensor(features / 16, dtype=torch.float32), torch.from_numpy(labels)
        )
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
        cuts = (order[:1200], order[1200:1497], order[1497:])
        self.train, self.validation, self.test = (Subset(data, cut) for cut in cuts)
        self.batch = batch

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.train, self.batch, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.validation, len(self.validation))

    def test_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.test, len(self.test))


class Classifier(pl.LightningModule):
    """64-200-10 with cross-entropy.

    Args:
        make_optimizer: Makes the optimizer of the module.
    """

    def __init__(self, make_optimizer: Callable[[pl.LightningModule], Optimizer]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))
        self.make_optimizer = make_optimizer

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def _log_accuracy(self, batch: Batch, name: str) -> None:
        self.log(name, (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def validation_step(self, batch: Batch, index: int) -> None:
        self._log_accuracy(batch, "validation accuracy")

    def test_step(self, batch: Batch, index: int) -> None:
        self._log_accuracy(batch, "accuracy")

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(self)
