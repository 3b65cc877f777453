r"""Train from the shell with any optimizer of torch or of torch_wprox, by Lightning's command line.

python -m lightning_examples fit --config lightning_examples/configs/sinus.yaml
python -m lightning_examples fit --config lightning_examples/configs/diabetes.yaml \
        --optimizer torch_wprox.FrobeniusProx --optimizer.gamma 10
python -m lightning_examples fit --help
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_examples import problems
from torch_wprox import MeanFieldLayer
from torch_wprox.lightning import ProxMonitor

Batch = tuple[Tensor, Tensor]


class Neurons(pl.LightningModule):
    """One hidden layer on a mean squared error; the command line gives it its optimizer.

    Args:
        width: Number of neurons.
        in_features: Inputs: 1 for the sinus, 10 for diabetes.
        parameterization: What of a neuron trains.
        reduction: "sum" over the neurons, as in the note, or their "mean".
        output_bias: Whether the output has a bias.
        init_scale: Factor of the layer's default initial weights.
    """

    def __init__(
        self,
        width: int = 50,
        in_features: int = 1,
        parameterization: Literal["joint", "signed", "clouds", "sphere", "radial"] = "joint",
        reduction: Literal["mean", "sum"] = "mean",
        output_bias: bool = False,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.layer = MeanFieldLayer(
            in_features,
            width,
            parameterization=parameterization,
            reduction=reduction,
            output_bias=output_bias,
            init_scale=init_scale,
        )

    def training_step(self, batch: Batch, index: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self.layer(x), y)

    def validation_step(self, batch: Batch, index: int) -> None:
        x, y = batch
        self.log("val_loss", F.mse_loss(self.layer(x), y), prog_bar=True, batch_size=len(x))


class Points(pl.LightningDataModule):
    """The five-point sine, or scikit-learn's diabetes patients.

    Args:
        name: Which.
        batch_size: Points per batch, None: all of them, which is what proximal steps like best.
    """

    def __init__(
        self, name: Literal["sinus", "diabetes"] = "sinus", batch_size: int | None = None
    ) -> None:
        super().__init__()
        x, y = problems.sinus()
        sinus = x.float(), y.float()
        self.train, self.val = problems.diabetes() if name == "diabetes" else (sinus, sinus)
        self.batch_size = batch_size

    def _loader(self, points: Batch, batch_size: int | None, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*points), batch_size or len(points[0]), shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train, self.batch_size, shuffle=self.batch_size is not None)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val, None, shuffle=False)


class CommandLine(LightningCLI):
    """LightningCLI with a proximal optimizer where the user names none."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_optimizer_args((Optimizer,))  # any of them
        parser.set_defaults({"optimizer": {"class_path": "torch_wprox.WassersteinProx"}})


def main(argv: Sequence[str] | None = None) -> CommandLine:
    with warnings.catch_warnings():
        # One batch an epoch, loaded in this process, is what a full-batch run wants.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", "The number of training batches.*is smaller than")
        return CommandLine(
            Neurons,
            Points,
            args=None if argv is None else list(argv),
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "accelerator": "cpu",
                "logger": {
                    "class_path": "pytorch_lightning.loggers.CSVLogger",
                    "init_args": {"save_dir": "out/command_line", "name": None},
                },
                "max_epochs": 20,
                "log_every_n_steps": 1,
                "callbacks": [ProxMonitor(prog_bar=("loss_after",))],
            },
        )


if __name__ == "__main__":
    main()
