"""Tools around a Lightning Trainer: checkpoints, averaging, schedulers, failures, compiled code."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import StochasticWeightAveraging as SWA
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import closure_of, sinus_data, sinus_layer
from torch_wprox import FrobeniusProx, Status, WassersteinProx
from torch_wprox.lightning import ProxMonitor
from torch_wprox.particles.layouts import particle_groups

BOTH = [WassersteinProx, FrobeniusProx]
# Lightning speaks of CPU workers and absent progress bars; nothing here is about them.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


class Regression(L.LightningModule):
    """A user's module: nothing in it knows of proximal steps."""

    def __init__(self, net: nn.Module, make: Any) -> None:
        super().__init__()
        self.net, self.make = net, make

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = batch
        return (self.net(x) - y).square().mean()

    def configure_optimizers(self) -> Any:
        return self.make(self)


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net


def minibatches() -> DataLoader[Any]:
    """Three batches of four points."""
    x = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64).unsqueeze(1)
    return DataLoader(TensorDataset(x, torch.sin(10 * x)), batch_size=4)


def trainer_of(root: Path, **options: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "devices": 1}
    return L.Trainer(default_root_dir=root, **{**quiet, **options})


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in module.parameters()])


# --- checkpoints ----------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["gd", "bfgs", "lbfgs"])
@pytest.mark.parametrize("optimizer", BOTH)
def test_a_run_resumed_from_a_checkpoint_ends_at_the_same_bits(
    optimizer: type, solver: str, tmp_path: Path
) -> None:
    def make(module: nn.Module) -> Any:
        opt = optimizer(module.parameters(), gamma=0.5, solver=solver, max_eval=12)
        return [opt], [torch.optim.lr_scheduler.ExponentialLR(opt, 0.7)]

    whole = Regression(network(), make)
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_epochs=2, save_top_k=-1)
    trainer = trainer_of(
        tmp_path, max_epochs=4, callbacks=[saving, ProxMonitor()], enable_checkpointing=True
    )
    trainer.fit(whole, minibatches())
    assert {p.name for p in tmp_path.glob("*.ckpt")} == {"step=6.ckpt", "step=12.ckpt"}
    resumed = Regression(network(), make)
    saving = ModelCheckpoint(tmp_path / "again", "{step}", every_n_epochs=2, save_top_k=-1)
    again = trainer_of(
        tmp_path, max_epochs=4, callbacks=[saving, ProxMonitor()], enable_checkpointing=True
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The dirpath has changed")  # so that both are kept
        again.fit(resumed, minibatches(), ckpt_path=tmp_path / "step=6.ckpt")
    assert torch.equal(flat(whole), flat(resumed))
    [a], [b] = trainer.optimizers, again.optimizers
    assert a.param_groups[0]["lr"] == b.param_groups[0]["lr"] == pytest.approx(0.5 * 0.7**4)
    assert a.report.objective == b.report.objective


def test_model_checkpoint_keeps_the_best_by_a_number_of_the_report(tmp_path: Path) -> None:
    def make(module: nn.Module) -> Any:
        return WassersteinProx(module.parameters(), gamma=0.5, max_eval=12)

    best = ModelCheckpoint(
        tmp_path, monitor="prox/loss_after", save_top_k=1, save_on_train_epoch_end=True
    )
    trainer = trainer_of(
        tmp_path, max_epochs=3, callbacks=[best, ProxMonitor()], enable_checkpointing=True
    )
    module = Regression(network(), make)
    trainer.fit(module, minibatches())
    saved = torch.load(best.best_model_path, weights_only=True)
    fresh = Regression(network(), make)
    fresh.load_state_dict(saved["state_dict"])
    opt = make(fresh)
    opt.load_state_dict(saved["optimizer_states"][0])
    assert best.best_model_score == pytest.approx(
        saved["callbacks"][best.state_key]["current_score"]
    )


# --- averages and schedules -----------------------------------------------------------------


def test_swa_averages_the_epochs_and_anneals_gamma(tmp_path: Path) -> None:
    ends: list[Tensor] = []

    class Snapshots(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            ends.append(flat(module.net))

    def make(module: nn.Module) -> Any:
        return WassersteinProx(module.parameters(), gamma=0.5, max_eval=12)

    module = Regression(network(), make)
    averaging = SWA(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=1)
    trainer = trainer_of(tmp_path, max_epochs=4, callbacks=[averaging, Snapshots(), ProxMonitor()])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*SWA.*|.*swap.*|.*lr_scheduler.*")
        trainer.fit(module, minibatches())
    averaged = torch.stack(ends[:3]).mean(0)  # where epochs 2, 3 and 4 began
    assert torch.allclose(flat(module.net), averaged, rtol=0, atol=1e-12)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)


def test_swa_of_a_model_with_batch_norm_recomputes_its_statistics(tmp_path: Path) -> None:
    # Lightning appends an epoch for it, which "accumulates" without backward and ends in one step.
    net = nn.Sequential(nn.BatchNorm1d(1), *network()).double()
    module = Regression(net, lambda m: WassersteinProx(particle_groups(m.net), 0.5, max_eval=8))
    averaging = SWA(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=1)
    trainer = trainer_of(tmp_path, max_epochs=3, callbacks=[averaging, ProxMonitor()])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*SWA.*|.*swap.*|.*lr_scheduler.*")
        trainer.fit(module, minibatches())
    batches = torch.stack([x.mean(0) for x, _ in minibatches()])
    assert torch.allclose(net[0].running_mean, batches.mean(0), atol=1e-12)
    assert trainer.optimizers[0].report.status is Status.NO_MOVE


@pytest.mark.skipif(
    not hasattr(callbacks, "EMAWeightAveraging"), reason="Lightning before 2.6 has none"
)
def test_an_exponential_average_sees_accepted_points_only(tmp_path: Path) -> None:
    module = Regression(network(), lambda m: WassersteinProx(m.parameters(), 0.5, max_eval=12))
    twin = network()
    opt = WassersteinProx(twin.parameters(), 0.5, max_eval=12)
    points = []
    for x, y in minibatches():
        opt.step(closure_of(twin, opt, x, y))
        points.append(flat(twin))
    average_of_points = callbacks.EMAWeightAveraging(decay=0.5)
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[average_of_points])
    trainer.fit(module, minibatches())
    # The average begins at the first point.
    average = points[0] / 4 + points[1] / 4 + points[2] / 2
    assert torch.allclose(flat(module.net), average, rtol=0, atol=1e-12)


def test_reduce_on_plateau_lowers_gamma_by_a_number_of_the_report(tmp_path: Path) -> None:
    def make(module: nn.Module) -> Any:
        opt = WassersteinProx(module.parameters(), gamma=0.5, max_eval=12)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            opt, patience=0, threshold=9.0, threshold_mode="abs"
        )
        return {
            "optimizer": opt,
            "lr_scheduler": {"scheduler": plateau, "monitor": "prox/loss_after"},
        }

    trainer = trainer_of(tmp_path, max_epochs=3, callbacks=[ProxMonitor()])
    trainer.fit(Regression(network(), make), minibatches())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5 * 0.1**2)


# --- failures -------------------------------------------------------------------------------


def test_accumulation_warns_even_without_the_monitor(tmp_path: Path) -> None:
    module = Regression(network(), lambda m: WassersteinProx(m.parameters(), max_eval=5))
    trainer = trainer_of(tmp_path, max_epochs=1, accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match="accumulate_grad_batches"):
        trainer.fit(module, minibatches())


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_warns_once_even_without_the_monitor(algorithm: str, tmp_path: Path) -> None:
    module = Regression(network(), lambda m: WassersteinProx(m.parameters(), max_eval=5))
    trainer = trainer_of(
        tmp_path, max_epochs=2, gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm
    )
    with pytest.warns(UserWarning, match="gradient_clip_val in Lightning") as seen:
        trainer.fit(module, minibatches())
    assert len([w for w in seen if "gradient_clip_val" in str(w.message)]) == 1


@pytest.mark.parametrize("at", [1, 4])
def test_an_exception_in_training_step_leaves_the_anchor(at: int, tmp_path: Path) -> None:
    class Failing(Regression):
        calls = 0

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            self.calls += 1
            if self.calls == at:
                raise ValueError("a bad batch")
            return super().training_step(batch, index)

    module = Failing(network(), lambda m: WassersteinProx(m.parameters(), max_eval=12))
    before = flat(module)
    with pytest.raises(ValueError, match="a bad batch"):
        trainer_of(tmp_path, max_epochs=1).fit(module, minibatches())
    assert torch.equal(flat(module), before)


def test_a_nonfinite_loss_ends_no_run_and_moves_nothing(tmp_path: Path) -> None:
    class Broken(Regression):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return super().training_step(batch, index) * float("nan")

    module = Broken(network(), lambda m: WassersteinProx(m.parameters(), max_eval=12))
    before = flat(module)
    trainer = trainer_of(tmp_path, max_epochs=2, callbacks=[ProxMonitor()])
    with pytest.warns(UserWarning, match="not finite") as caught:
        trainer.fit(module, minibatches())
    assert sum("not finite" in str(w.message) for w in caught) == 1
    assert torch.equal(flat(module), before)
    assert trainer.optimizers[0].report.status is Status.NONFINITE


def test_a_gradient_scaler_is_refused_with_the_remedy() -> None:
    net = network().float()
    opt = WassersteinProx(net.parameters())
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(net(torch.ones(1, 1)).sum()).backward()
    with pytest.raises(RuntimeError, match="bf16-mixed"):
        scaler.step(opt)


# --- what a module holds beside its parameters ----------------------------------------------


def test_batch_norm_statistics_move_once_per_evaluation(tmp_path: Path) -> None:
    """Documented: k evaluations on a batch of mean mu leave (1 - .9^k) mu, not .1 mu."""
    x, _ = next(iter(minibatches()))
    net = nn.Sequential(nn.BatchNorm1d(1), *network()).double()
    module = Regression(net, lambda m: WassersteinProx(particle_groups(m.net), 0.5, max_eval=8))
    trainer = trainer_of(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(module, minibatches())
    k = trainer.optimizers[0].report.evaluations
    assert k > 2
    assert net[0].num_batches_tracked == k
    assert torch.allclose(net[0].running_mean, (1 - 0.9**k) * x.mean(0), rtol=1e-12)


# --- compiled code --------------------------------------------------------------------------

NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler"
)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # traces forward and backward as inductor does, and needs no C++ compiler
        pytest.param("inductor", marks=[pytest.mark.nightly, NEEDS_COMPILER]),
    ],
)
def test_a_compiled_module_takes_the_steps_of_the_plain_one(optimizer: type, backend: str) -> None:
    ends = []
    for compiled in (False, True):
        layer = sinus_layer()
        net = torch.compile(layer, backend=backend) if compiled else layer
        opt = optimizer(net.parameters(), gamma=1.0, max_eval=20)
        assert opt.param_groups[0]["layout"] == "layer"
        for _ in range(2):
            opt.step(closure_of(net, opt, *sinus_data()))
        ends.append(layer.particles.detach().clone())
    assert torch.allclose(ends[0], ends[1], rtol=0, atol=1e-9)


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()
