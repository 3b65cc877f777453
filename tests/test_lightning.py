"""A good guest in Lightning, of both packages that carry the name."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import closure_of, sinus_data, sinus_layer
from torch_wprox import (
    EntropicJKO,
    FrobeniusProx,
    GridLayer,
    JKOReport,
    MeanFieldLayer,
    WassersteinProx,
)
from torch_wprox.lightning import ProxMonitor, TrajectoryCallback

PACKAGES = ["pytorch_lightning", "lightning"]


class Batches:
    """The full batch, ``steps`` times an epoch: any iterable is a loader to Lightning."""

    def __init__(self, steps: int, dtype: torch.dtype = torch.float64) -> None:
        x, y = sinus_data()
        self.batch, self.steps = (x.to(dtype), y.to(dtype)), steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.steps)


@pytest.fixture(params=PACKAGES)
def lightning(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def module_of(
    L: ModuleType, layer: nn.Module, make: Any, *, manual: bool = False, log: bool = False
) -> Any:
    class Regression(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer
            self.automatic_optimization = not manual
            self.evaluations = 0

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            x, y = batch
            if manual:
                opt = self.optimizers()
                opt.step(closure_of(self.layer, opt, x, y))
                return None
            self.evaluations += 1
            loss = (self.layer(x) - y).square().mean()
            if log:
                self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return make(self.parameters())

    return Regression()


def trainer_of(L: ModuleType, root: Path, **options: Any) -> Any:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "log_every_n_steps": 1,
    }
    return L.Trainer(default_root_dir=root, **{**quiet, **options})


def plain_steps(layer: MeanFieldLayer, make: Any, steps: int) -> list[Any]:
    opt, reports = make(layer.parameters()), []
    for _ in range(steps):
        opt.step(closure_of(layer, opt, *sinus_data()))
        reports.append(opt.report)
        assert opt.report.frobenius_sq > 0  # or comparing runs would say nothing
    return reports


def wasserstein(params: Any) -> WassersteinProx:
    return WassersteinProx(params, 1.0, max_eval=40)


@pytest.mark.parametrize("optimizer", [WassersteinProx, FrobeniusProx])
def test_a_trainer_takes_the_steps_of_plain_torch_bit_for_bit(
    lightning: ModuleType, optimizer: type, tmp_path: Path
) -> None:
    def make(params: Any) -> Any:
        return optimizer(params, 1.0, max_eval=40)

    layer, twin = sinus_layer(), sinus_layer()
    module = module_of(lightning, layer, make)
    trainer_of(lightning, tmp_path, callbacks=[ProxMonitor()]).fit(module, Batches(3))
    reports = plain_steps(twin, make, 3)
    assert torch.equal(layer.particles, twin.particles)
    assert module.evaluations == sum(report.evaluations for report in reports)


def test_manual_optimization_takes_the_same_steps(lightning: ModuleType, tmp_path: Path) -> None:
    layer, twin = sinus_layer(), sinus_layer()
    module = module_of(lightning, layer, wasserstein, manual=True)
    trainer_of(lightning, tmp_path, callbacks=[ProxMonitor()]).fit(module, Batches(3))
    plain_steps(twin, wasserstein, 3)
    assert torch.equal(layer.particles, twin.particles)


def test_callbacks_are_instances_of_either_packages_callback(lightning: ModuleType) -> None:
    assert isinstance(ProxMonitor(), lightning.Callback)
    assert isinstance(TrajectoryCallback(), lightning.Callback)


def test_a_callback_is_taken_alone_and_in_a_list(lightning: ModuleType, tmp_path: Path) -> None:
    monitor = ProxMonitor()
    for callbacks in (monitor, [monitor]):
        assert monitor in trainer_of(lightning, tmp_path, callbacks=callbacks).callbacks


def test_every_report_reaches_the_logger_once(lightning: ModuleType, tmp_path: Path) -> None:
    loggers = importlib.import_module(
        "pytorch_lightning.loggers"
        if lightning.__name__ == "pytorch_lightning"
        else "lightning.pytorch.loggers"
    )
    logger = loggers.CSVLogger(tmp_path)
    callbacks = [ProxMonitor()]
    trainer = trainer_of(lightning, tmp_path, callbacks=callbacks, logger=logger)
    trainer.fit(module_of(lightning, sinus_layer(), wasserstein), Batches(4))
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    reports = plain_steps(sinus_layer(), wasserstein, 4)
    assert len(rows) == 4
    for row, report in zip(rows, reports, strict=True):
        assert "prox/gap" not in row  # None in every report
        for name in ("loss_after", "wasserstein_sq", "permuted_fraction", "evaluations"):
            # The logger stores float32.
            assert float(row[f"prox/{name}"]) == pytest.approx(getattr(report, name), rel=1e-6)


def test_a_bound_is_logged_with_whether_it_is_proved(tmp_path: Path) -> None:
    L = importlib.import_module("pytorch_lightning")
    trainer = trainer_of(L, tmp_path, callbacks=[ProxMonitor()])
    make = lambda p: WassersteinProx(p, 1.0, solver="global")  # noqa: E731
    trainer.fit(module_of(L, sinus_layer(m=6), make), Batches(1))
    logged = trainer.callback_metrics
    assert logged["prox/certified"] == 1
    assert logged["prox/lower_bound"] <= logged["prox/objective"]
    local = trainer_of(L, tmp_path, callbacks=[ProxMonitor()])
    local.fit(module_of(L, sinus_layer(m=6), wasserstein), Batches(1))
    assert "prox/certified" not in local.callback_metrics


def test_metrics_and_prefix_are_what_is_asked_for(tmp_path: Path) -> None:
    L = importlib.import_module("pytorch_lightning")
    monitor = ProxMonitor(metrics=("objective",), prefix="step.", prog_bar=("residual",))
    trainer = trainer_of(L, tmp_path, callbacks=[monitor])
    trainer.fit(module_of(L, sinus_layer(), wasserstein), Batches(2))
    assert set(trainer.callback_metrics) == {"step.objective", "step.residual"}
    assert set(trainer.progress_bar_metrics) == {"step.residual"}
    with pytest.raises(ValueError, match=r"metrics must be among .* got \['typo'\]"):
        ProxMonitor(metrics=("typo",))


def test_accumulation_is_refused_with_the_reason(lightning: ModuleType, tmp_path: Path) -> None:
    layer = sinus_layer()
    before = layer.positions()
    trainer = trainer_of(lightning, tmp_path, callbacks=[ProxMonitor()], accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=2: .* larger batches"):
        trainer.fit(module_of(lightning, layer, wasserstein), Batches(2))
    assert torch.equal(layer.positions(), before)


def test_accumulation_that_a_scheduler_starts_in_mid_run_is_refused(
    lightning: ModuleType, tmp_path: Path
) -> None:
    callbacks = importlib.import_module(f"{lightning.Trainer.__module__.split('.trainer')[0]}")
    scheduler = callbacks.callbacks.GradientAccumulationScheduler({0: 1, 2: 4})
    trainer = trainer_of(lightning, tmp_path, callbacks=[ProxMonitor(), scheduler], max_epochs=5)
    with pytest.raises(ValueError, match="accumulate_grad_batches=4"):
        trainer.fit(module_of(lightning, sinus_layer(), wasserstein), Batches(1))
    assert trainer.global_step == 2


def test_clipping_is_refused_with_the_reason(lightning: ModuleType, tmp_path: Path) -> None:
    trainer = trainer_of(lightning, tmp_path, callbacks=[ProxMonitor()], gradient_clip_val=0.5)
    with pytest.raises(ValueError, match=r"gradient_clip_val=0.5: .* smaller\s+gamma"):
        trainer.fit(module_of(lightning, sinus_layer(), wasserstein), Batches(1))


def test_other_optimizers_are_left_alone(tmp_path: Path) -> None:
    L = importlib.import_module("pytorch_lightning")
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    trainer = trainer_of(L, tmp_path, callbacks=[ProxMonitor()], **options)
    trainer.fit(module_of(L, sinus_layer(), torch.optim.Adam), Batches(2))
    assert not trainer.callback_metrics


def test_a_grid_layer_is_monitored_and_recorded_too(tmp_path: Path) -> None:
    L = importlib.import_module("pytorch_lightning")
    axis = torch.linspace(-2, 2, 5, dtype=torch.float64)
    layer = GridLayer([axis, axis], mass=40.0, dtype=torch.float64)
    callback = TrajectoryCallback("layer")
    trainer = trainer_of(L, tmp_path, callbacks=[ProxMonitor(), callback])
    module = module_of(L, layer, lambda _: EntropicJKO(layer, gamma=1.0, epsilon=1.0))
    trainer.fit(module, Batches(2))
    assert callback.recorder is not None
    last = callback.recorder.reports()[-1]
    assert isinstance(last, JKOReport)
    # callback_metrics holds float32.
    assert trainer.callback_metrics["prox/wasserstein_eps"].item() == pytest.approx(
        last.wasserstein_eps, rel=1e-6
    )
    assert "prox/wasserstein_sq" not in trainer.callback_metrics
    assert callback.recorder.masses().shape[0] == 3
    assert not torch.equal(callback.recorder.masses()[0], callback.recorder.masses()[-1])


def test_several_optimizers_are_told_apart_by_their_index(tmp_path: Path) -> None:
    L = importlib.import_module("pytorch_lightning")
    first, second = sinus_layer(seed=0), sinus_layer(seed=1)

    class Two(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([first, second])
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            for opt, layer in zip(self.optimizers(), self.layers, strict=True):
                opt.step(closure_of(layer, opt, *batch))

        def configure_optimizers(self) -> Any:
            return [wasserstein(layer.parameters()) for layer in self.layers]

    trainer = trainer_of(L, tmp_path, callbacks=[ProxMonitor(metrics=("objective",))])
    trainer.fit(Two(), Batches(1))
    assert set(trainer.callback_metrics) == {"prox/0/objective", "prox/1/objective"}


def test_trajectories_are_those_of_the_run(lightning: ModuleType, tmp_path: Path) -> None:
    x, _ = sinus_data()
    layer, twin = sinus_layer(), sinus_layer()
    file = tmp_path / "run" / "steps.csv"
    callback = TrajectoryCallback("layer", inputs=x, every=2, csv=file)
    trainer = trainer_of(lightning, tmp_path, callbacks=[callback])
    trainer.fit(module_of(lightning, layer, wasserstein), Batches(4))
    reports = plain_steps(twin, wasserstein, 4)
    assert callback.recorder is not None
    assert callback.recorder.times().tolist() == [0, 2, 4]
    assert torch.equal(callback.recorder.positions()[-1], twin.positions())
    assert torch.equal(callback.recorder.outputs()[-1], twin(x).detach())
    assert [r.objective for r in callback.recorder.reports()] == [r.objective for r in reports]
    with open(file, newline="") as opened:
        assert len(list(csv.DictReader(opened))) == 4


@pytest.mark.parametrize("package", PACKAGES)
def test_resuming_from_a_trainers_checkpoint_is_bit_exact(package: str, tmp_path: Path) -> None:
    L = importlib.import_module(package)

    def fit(steps: int, layer: nn.Module, ckpt: Path | None = None) -> Any:
        trainer = trainer_of(
            L, tmp_path, max_epochs=steps, callbacks=[ProxMonitor()], enable_checkpointing=False
        )
        trainer.fit(module_of(L, layer, wasserstein), Batches(1), ckpt_path=ckpt)
        return trainer

    whole, resumed = sinus_layer(), sinus_layer()
    fit(4, whole)
    fit(2, sinus_layer()).save_checkpoint(tmp_path / "two.ckpt")
    fit(4, resumed, tmp_path / "two.ckpt")
    assert torch.equal(whole.particles, resumed.particles)


def test_schedulers_monitors_and_early_stopping_see_gamma_and_the_report(tmp_path: Path) -> None:
    L = importlib.import_module("pytorch_lightning")

    def make(params: Any) -> Any:
        opt = wasserstein(params)
        return [opt], [torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)]

    logger = importlib.import_module("pytorch_lightning.loggers").CSVLogger(tmp_path)
    monitor = L.callbacks.LearningRateMonitor("step")
    # No loss falls by 10 a step: training ends after the first epoch that fails to.
    stopping = L.callbacks.EarlyStopping(
        "prox/loss_after", min_delta=10.0, patience=1, check_on_train_epoch_end=True
    )
    trainer = trainer_of(
        L,
        tmp_path,
        logger=logger,
        max_epochs=9,
        callbacks=[ProxMonitor(), monitor, stopping],
    )
    module = module_of(L, sinus_layer(), make)
    trainer.fit(module, Batches(1))
    assert trainer.current_epoch == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.25
    assert trainer.callback_metrics["lr-WassersteinProx"] == 0.5


@pytest.mark.parametrize("precision", ["64-true", "32-true", "bf16-mixed"])
def test_precisions_descend(precision: str, tmp_path: Path) -> None:
    L = importlib.import_module("pytorch_lightning")
    dtype = torch.float64 if precision == "64-true" else torch.float32
    layer = sinus_layer().to(dtype)
    callback = TrajectoryCallback("layer")
    trainer = trainer_of(L, tmp_path, callbacks=[ProxMonitor(), callback], precision=precision)
    trainer.fit(module_of(L, layer, wasserstein), Batches(2, dtype))
    assert layer.particles.dtype == dtype
    assert callback.recorder is not None
    first, second = callback.recorder.reports()
    assert first.objective < first.loss_before
    # In bf16-mixed the loss of the second step is below the resolution of its products.
    assert second.objective <= second.loss_before


def test_fabric_takes_the_steps_of_plain_torch(tmp_path: Path) -> None:
    fabric = importlib.import_module("lightning").Fabric(accelerator="cpu", devices=1)
    layer, twin = sinus_layer(), sinus_layer()
    model, opt = fabric.setup(layer, wasserstein(layer.parameters()))
    x, y = sinus_data()

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        fabric.backward(loss)
        return loss

    for _ in range(3):
        opt.step(closure)
    plain_steps(twin, wasserstein, 3)
    assert torch.equal(layer.particles, twin.particles)


def test_logging_inside_training_step_runs_at_every_evaluation(tmp_path: Path) -> None:
    # The reason for ProxMonitor: the last logged value is that of the accepted parameters.
    L = importlib.import_module("pytorch_lightning")
    layer = sinus_layer()
    trainer = trainer_of(L, tmp_path, callbacks=[ProxMonitor()])
    trainer.fit(module_of(L, layer, wasserstein, log=True), Batches(1))
    # callback_metrics holds float32.
    assert trainer.callback_metrics["loss"].item() == pytest.approx(
        trainer.callback_metrics["prox/loss_after"].item(), rel=1e-6
    )
