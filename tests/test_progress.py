from __future__ import annotations

import io

import pytest
import torch

from conftest import closure_of, sinus_data, sinus_layer
from torch_wprox import Progress, WassersteinProx
from torch_wprox.progress import ProgressBar


def progress(evaluation: int, bound: float | None = None) -> Progress:
    return Progress(evaluation, 1.0, 0.5, 0.1, bound, 0.0)


def test_the_bar_shows_the_best_value_and_the_bound() -> None:
    out = io.StringIO()
    with ProgressBar(total=10, file=out, mininterval=0) as bar:
        bar(progress(1))
        bar(progress(4, bound=0.25))
    assert "4/10" in out.getvalue()
    assert "P=0.5" in out.getvalue()
    assert "bound=0.25" in out.getvalue()


def test_a_new_step_has_a_new_bar() -> None:
    out = io.StringIO()
    layer = sinus_layer()
    bar = ProgressBar(total=6, file=out)
    opt = WassersteinProx(layer.parameters(), 1.0, max_eval=6, callback=bar)
    closure = closure_of(layer, opt, *sinus_data())
    opt.step(closure)
    first = bar.shown
    opt.step(closure)
    bar.close()
    assert first == bar.shown <= 6
    assert out.getvalue().count("0/6") == 2


def test_the_bar_keeps_the_best_point_on_ctrl_c_unless_told_otherwise() -> None:
    assert ProgressBar().keep_best_on_interrupt
    assert not ProgressBar(keep_best_on_interrupt=False).keep_best_on_interrupt


def test_lightning_gets_a_bar_for_every_step_and_gives_the_optimizer_back() -> None:
    pl = pytest.importorskip("pytorch_lightning")
    from torch_wprox.lightning import StepProgress

    x, y = (t.float() for t in sinus_data())
    out = io.StringIO()

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = sinus_layer().float()

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return (self.net(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> WassersteinProx:
            self.opt = WassersteinProx(self.parameters(), 1.0, max_eval=5)
            return self.opt

    net = Net()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StepProgress(total=5, file=out)],
    )
    data = torch.utils.data.TensorDataset(x, y)
    trainer.fit(net, torch.utils.data.DataLoader(data, batch_size=len(x)))
    assert out.getvalue().count("0/5") == 2
    assert net.opt.callback is None
