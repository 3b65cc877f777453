"""A good guest in skorch, accelerate and ignite: their steps are those of plain torch."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import closure_of, sinus_data, sinus_layer
from torch_wprox import FrobeniusProx, WassersteinProx

pytestmark = pytest.mark.slow  # in all: too long for `make quick`

BOTH = [WassersteinProx, FrobeniusProx]


def steps_of_plain_torch(net: nn.Module, steps: int, optimizer: type, **options: Any) -> Tensor:
    opt = optimizer(net.parameters(), **options)
    for _ in range(steps):
        opt.step(closure_of(net, opt, *sinus_data()))
    return net.particles.detach().clone()


# --- skorch ---------------------------------------------------------------------------------


def regressor(optimizer: type, **options: Any) -> Any:
    skorch = pytest.importorskip("skorch")
    settings = {"max_epochs": 3, "batch_size": -1, "train_split": None, "verbose": 0}
    settings |= {"optimizer": optimizer, "optimizer__max_eval": 20, **options}
    return skorch.NeuralNetRegressor(sinus_layer(), **settings)


@pytest.mark.parametrize("optimizer", BOTH)
def test_skorch_takes_the_steps_of_plain_torch(optimizer: type) -> None:
    x, y = sinus_data()
    net = regressor(optimizer, optimizer__gamma=1).fit(x.numpy(), y.numpy())
    expected = steps_of_plain_torch(sinus_layer(), 3, optimizer, gamma=1.0, max_eval=20)
    assert torch.equal(net.module_.particles, expected)


@pytest.mark.parametrize("optimizer", BOTH)
def test_skorch_sends_its_lr_and_gamma_wins(optimizer: type) -> None:
    x, y = sinus_data()
    for options, gamma in (
        ({"optimizer__gamma": 1}, 1.0),
        ({"optimizer__gamma": 1, "lr": 0.5}, 1.0),
        ({"lr": 0.5}, 0.5),
        ({}, 0.01),  # skorch's own default, which it always sends
    ):
        net = regressor(optimizer, max_epochs=1, **options).fit(x.numpy(), y.numpy())
        assert net.optimizer_.param_groups[0]["lr"] == gamma


def test_skorch_writes_the_first_loss_of_a_step_into_its_history() -> None:
    x, y = sinus_data()
    net = regressor(WassersteinProx, optimizer__gamma=1).fit(x.numpy(), y.numpy())
    layer = sinus_layer()
    opt = WassersteinProx(layer.parameters(), gamma=1.0, max_eval=20)
    losses = [opt.step(closure_of(layer, opt, x, y)).item() for _ in range(3)]
    assert net.history[:, "train_loss"] == pytest.approx(losses, rel=1e-12)


def test_skorch_schedules_checkpoints_and_grid_searches_gamma(tmp_path: Path) -> None:
    pytest.importorskip("skorch")
    from sklearn.model_selection import GridSearchCV
    from skorch.callbacks import Checkpoint, LRScheduler

    x, y = sinus_data()
    net = regressor(
        WassersteinProx,
        optimizer__gamma=1,
        callbacks=[
            LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
            Checkpoint(dirname=str(tmp_path), monitor=None),
        ],
    ).fit(x.numpy(), y.numpy())
    assert net.optimizer_.param_groups[0]["lr"] == pytest.approx(0.125)
    again = regressor(WassersteinProx, optimizer__gamma=1).initialize()
    again.load_params(checkpoint=Checkpoint(dirname=str(tmp_path)))
    assert torch.equal(again.module_.particles, net.module_.particles)
    assert again.optimizer_.param_groups[0]["lr"] == pytest.approx(0.125)

    search = GridSearchCV(
        regressor(WassersteinProx), {"optimizer__gamma": [1e-4, 1.0]}, cv=2, error_score="raise"
    )
    search.fit(x.numpy().repeat(2, 0), y.numpy().repeat(2, 0))
    assert search.best_params_["optimizer__gamma"] in (1e-4, 1.0)


def test_a_fitted_skorch_net_is_pickled_and_goes_on() -> None:
    x, y = sinus_data()
    net = regressor(WassersteinProx, optimizer__gamma=1).fit(x.numpy(), y.numpy())
    twin = pickle.loads(pickle.dumps(net))
    for fitted in (net, twin):
        fitted.partial_fit(x.numpy(), y.numpy())
    assert torch.equal(net.module_.particles, twin.module_.particles)


# --- accelerate -----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", BOTH)
def test_accelerate_takes_the_steps_of_plain_torch(optimizer: type, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    layer = sinus_layer()
    opt = optimizer(layer.parameters(), gamma=1.0, max_eval=20)
    schedule = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    model, opt, schedule = accelerator.prepare(layer, opt, schedule)
    x, y = sinus_data()

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        accelerator.backward(loss)
        return loss

    def steps() -> None:
        for _ in range(2):
            opt.step(closure)
            schedule.step()

    steps()
    accelerator.save_state(str(tmp_path))
    steps()
    whole = layer.particles.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own: of torch.load and of schedulers
        accelerator.load_state(str(tmp_path))
    steps()
    assert torch.equal(layer.particles, whole)

    twin = sinus_layer()
    plain = optimizer(twin.parameters(), gamma=1.0, max_eval=20)
    for gamma in (1.0, 0.5, 0.25, 0.125):
        plain.param_groups[0]["lr"] = gamma
        plain.step(closure_of(twin, plain, x, y))
    assert torch.equal(whole, twin.particles)


# --- ignite ---------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", BOTH)
def test_ignite_takes_the_steps_of_plain_torch(optimizer: type) -> None:
    engines = pytest.importorskip("ignite.engine")
    layer = sinus_layer()
    opt = optimizer(layer.parameters(), gamma=1.0, max_eval=20)

    def process_function(engine: Any, batch: tuple[Tensor, Tensor]) -> float:
        return opt.step(closure_of(layer, opt, *batch)).item()

    trainer = engines.Engine(process_function)
    losses = []
    trainer.add_event_handler(
        engines.Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output)
    )
    trainer.run([sinus_data()], max_epochs=3)
    expected = steps_of_plain_torch(sinus_layer(), 3, optimizer, gamma=1.0, max_eval=20)
    assert torch.equal(layer.particles, expected)
    assert losses == sorted(losses, reverse=True)


def test_ignites_schedulers_and_checkpoints_see_gamma(tmp_path: Path) -> None:
    engines = pytest.importorskip("ignite.engine")
    from ignite.handlers import Checkpoint, DiskSaver
    from ignite.handlers.param_scheduler import LinearCyclicalScheduler

    layer = sinus_layer()
    opt = WassersteinProx(layer.parameters(), gamma=1.0, max_eval=20)
    trainer = engines.Engine(lambda engine, batch: opt.step(closure_of(layer, opt, *batch)))
    gammas = []
    trainer.add_event_handler(
        engines.Events.ITERATION_STARTED, LinearCyclicalScheduler(opt, "lr", 1.0, 0.5, 8)
    )
    trainer.add_event_handler(
        engines.Events.ITERATION_COMPLETED, lambda _: gammas.append(opt.param_groups[0]["lr"])
    )
    saver = Checkpoint({"model": layer, "opt": opt}, DiskSaver(str(tmp_path), create_dir=True))
    trainer.add_event_handler(engines.Events.COMPLETED, saver)
    trainer.run([sinus_data()], max_epochs=3)
    assert gammas == pytest.approx([1.0, 0.875, 0.75])
    saved = torch.load(tmp_path / saver.last_checkpoint, weights_only=True)
    twin, twins = copy.deepcopy((layer, opt))
    Checkpoint.load_objects({"model": twin, "opt": twins}, saved)
    for net, optimizer in ((layer, opt), (twin, twins)):
        optimizer.step(closure_of(net, optimizer, *sinus_data()))
    assert torch.equal(layer.particles, twin.particles)
