"""Steps on a device that keeps the rules of a GPU reach the numbers of the CPU.

Wherever a tensor of the CPU met one of the device, or NumPy looked into one, these would raise.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases.pretend_device import DEVICE, pretended_device
from torch_wprox import (
    EntropicJKO,
    FrobeniusProx,
    GridLayer,
    MapFlow,
    MeanFieldLayer,
    WassersteinProx,
    certify_training,
    learn_energy,
)
from torch_wprox.maps import Entropy, Potential, polynomials, radial

F64 = torch.float64
CPU = torch.device("cpu")


def taken(
    opt: WassersteinProx | FrobeniusProx | EntropicJKO, loss_of: Callable[[], Tensor]
) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    opt.step(closure)


def network(m: int, D: int, device: torch.device) -> tuple[MeanFieldLayer, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    layer = MeanFieldLayer(D, m, parameterization="signed", generator=g, dtype=F64)
    x = torch.rand(6, D, generator=g, dtype=F64) - 0.5
    return layer.to(device), x.to(device), torch.sin(9 * x[:, :1]).to(device)


def prox_step(device: torch.device, m: int = 12, **options: object) -> list[float]:
    layer, x, y = network(m, 1, device)
    face = FrobeniusProx if options.pop("frobenius", False) else WassersteinProx
    opt = face(layer.parameters(), 1.0, **{"max_eval": 12, **options})  # type: ignore[arg-type]
    for _ in range(2):
        taken(opt, lambda: (layer(x) - y).square().mean())
    assert opt.report is not None
    return [opt.report.objective, opt.report.residual, opt.report.wasserstein_sq or 0.0]


def certified_step(device: torch.device) -> list[float]:
    layer, x, y = network(8, 2, device)
    opt = WassersteinProx(layer.parameters(), 1.0, solver="global", max_eval=12)
    taken(opt, lambda: (layer(x) - y).square().mean())
    assert opt.report is not None
    return [opt.report.objective]


def certificate(device: torch.device) -> list[float]:
    layer, x, y = network(8, 1, device)

    def closure() -> Tensor:
        layer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        return loss

    found = certify_training(layer, closure, weight_decay=0.1, proof_seconds=0)
    return [found.objective, found.lower_bound]


def grid_step(device: torch.device, method: str) -> list[float]:
    layer = GridLayer([torch.linspace(-1, 1, 7, dtype=F64)] * 2, dtype=F64).to(device)
    x = torch.linspace(-1, 1, 4, dtype=F64).unsqueeze(1).to(device)
    opt = EntropicJKO(layer, 1.0, method=method)  # type: ignore[arg-type]
    taken(opt, lambda: (layer(x) - torch.sin(3 * x)).square().mean())
    assert opt.report is not None
    return [opt.report.objective]


def map_step(device: torch.device) -> list[float]:
    g = torch.Generator().manual_seed(0)
    points = torch.randn(20, 2, dtype=F64, generator=g).to(device)
    energies = [Potential(lambda y: (y[:, 0] - 3).square() / 2), Entropy()]
    flow = MapFlow(points, energies, gamma=0.5, depth=1, width=4, max_eval=10)
    flow.step()
    return flow.points.sum(0).tolist()


def learned_energy(device: torch.device) -> list[float]:
    g = torch.Generator().manual_seed(0)
    y = torch.randn(40, 2, dtype=F64, generator=g).to(device)
    found = learn_energy([1.1 * y, y], 0.1, potential=polynomials(2, 2), interaction=radial(3.0, 4))
    return found.potential_gradient(y[:3]).sum(0).tolist()


CASES: dict[str, Callable[[torch.device], list[float]]] = {
    "small clouds": lambda d: prox_step(d),
    "large clouds": lambda d: prox_step(d, 160),
    "sinkhorn": lambda d: prox_step(d, distance="sinkhorn"),
    "sliced": lambda d: prox_step(d, distance="sliced"),
    "frobenius": lambda d: prox_step(d, frobenius=True),
    "limited memory": lambda d: prox_step(d, solver="lbfgs"),
    "gradient descent": lambda d: prox_step(d, solver="gd"),
    "weight decay": lambda d: prox_step(d, weight_decay=0.1),
    "certified": certified_step,
    "certificate": certificate,
    "grid by newton": lambda d: grid_step(d, "newton"),
    "grid by krylov": lambda d: grid_step(d, "krylov"),
    "map": map_step,
    "learned energy": learned_energy,
}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c == "sinkhorn")) for c in CASES]
)
def test_a_step_on_another_device_gives_the_numbers_of_the_cpu(case: str) -> None:
    expected = CASES[case](CPU)
    with pretended_device():
        found = CASES[case](DEVICE)
    assert found == pytest.approx(expected, rel=1e-9)  # tensors made there may lie otherwise


def test_a_closure_may_return_a_number_whatever_the_device() -> None:
    with pretended_device():
        layer, x, y = network(12, 1, DEVICE)
        opt = WassersteinProx(layer.parameters(), 1.0, max_eval=5)

        def closure() -> float:
            opt.zero_grad()
            loss = (layer(x) - y).square().mean()
            loss.backward()
            return loss.item()

        opt.step(closure)
        assert opt.report is not None
        assert opt.report.loss_after < opt.report.loss_before


def test_an_evaluation_waits_for_the_device_a_few_times() -> None:
    with pretended_device() as waits:
        layer, x, y = network(160, 1, DEVICE)
        opt = WassersteinProx(layer.parameters(), 1.0, solver="lbfgs", max_eval=60)
        taken(opt, lambda: (layer(x) - y).square().mean())
    assert opt.report is not None
    # A number for the loss, residual and distance, two slopes, and what the curvature pairs ask.
    assert sum(waits.values()) <= 8 * opt.report.evaluations


def test_the_pretended_device_keeps_the_rules_of_a_gpu() -> None:
    with pretended_device() as waits:
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            _ = there + here
        with pytest.raises(RuntimeError, match="same device"):
            torch.stack([there.sum(), here.sum()])
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=DEVICE, generator=torch.Generator())
        assert not waits
        assert (there + here.sum() + 1).tolist() == [5.0, 5.0, 5.0]
        assert sum(waits.values()) == 1
        there[[0, 2]] = 7.0
        assert there[torch.tensor([0, 1])].cpu().numpy().tolist() == [7.0, 1.0]
