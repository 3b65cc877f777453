"""What every rank of a process group does for guests/test_guest_ddp.py: one spawn runs it all."""

from __future__ import annotations

import copy
import datetime
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from conftest import closure_for, sinus_layer
from torch_wprox import (
    FrobeniusProx,
    Global,
    MeanFieldLayer,
    Sinkhorn,
    Sliced,
    WassersteinProx,
)
from torch_wprox.distances import base
from torch_wprox.distances.emd.assignment import Assignment
from torch_wprox.particles.layouts import particle_groups

POINTS = 8  # divisible by every world size
SOLVERS = ("gd", "adam", "bfgs", "lbfgs")
# Every solver with the distances of the note; of the others what one can compare to 1e-9: on the
# kinks of the sliced distance quasi-Newton amplifies a last bit (1e-16) of W to 1e-7 in 3 steps.
COMBINATIONS = [(d, s) for d in ("frobenius", "emd") for s in SOLVERS]
COMBINATIONS += [("sinkhorn", "bfgs"), ("sinkhorn", "lbfgs"), ("sliced", "gd")]
# How the relaxed problem is solved: exactly in the plane, over rays with a proof, by its dual.
GLOBAL_FORMS = ("plane", "rays", "joint")
# Rules that end the inner loop well before max_eval.
STOPPING: dict[str, Any] = {"max_eval": 200, "tolerance_grad": 1e-3, "inexact": 0.2}


def data(rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
    """The shard of ``rank``: every world-th point of a sinus."""
    x = torch.linspace(-0.5, 0.5, POINTS, dtype=torch.float64).unsqueeze(1)
    y = torch.sin(10 * x - torch.pi / 2)
    return x[rank::world], y[rank::world]


class Waves(nn.Module):
    """sum_i s_i sin(6 w_i x + b_i), s = +-1/2: smooth, and its neurons exchange in the first step.

    Args:
        seed: Of the particles (w_i, b_i), (8, 2).
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        W = torch.randn(8, 2, generator=generator, dtype=torch.float64)
        self.particles = nn.Parameter(0.3 * W)
        self.register_buffer("signs", torch.tensor([0.5, -0.5], dtype=torch.float64).repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.particles.t()
        return (torch.sin(6 * x * w + b) * self.signs).sum(1, keepdim=True)


def optimizer_of(model: nn.Module, distance: str, solver: str, **options: Any) -> Any:
    """The optimizer of one distance and solver, with stopping rules on."""
    options = {**STOPPING, "gamma": 0.3, "solver": solver, **options}
    if distance == "frobenius":
        return FrobeniusProx(model.parameters(), **options)
    return WassersteinProx(model.parameters(), distance=distance, **options)


def train(
    model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, steps: int
) -> list[dict[str, Any]]:
    """Take steps; return per step the first loss returned and the report's numbers."""
    rows = []

    closure = closure_for(optimizer, lambda: (model(x) - y).square().mean())
    for _ in range(steps):
        local = closure().detach()  # what this rank sees at the anchor
        optimizer.zero_grad()
        first = optimizer.step(closure)
        report = optimizer.report
        rows.append(
            {
                "local": local,
                "first": first,
                "evaluations": report.evaluations,
                "status": str(report.status),
                "objective": report.objective,
                "loss_before": report.loss_before,
                "residual": report.residual,
                "permuted_fraction": report.permuted_fraction,
                "assignment": report.assignment,
            }
        )
    return rows


def flat(model: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


def perceptron(dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    """A small network of the same weights on every rank."""
    generator = torch.Generator().manual_seed(0)
    modules = [nn.Linear(1, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)]
    net = nn.Sequential(*([nn.BatchNorm1d(1)] * norm), *modules).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net


# --- the cases: each returns what the parent compares ----------------------------------------


def combination(rank: int, world: int, distance: str, solver: str) -> dict[str, Any]:
    """Three steps on the shard; ``world=1`` (no wrapper) is the full batch in one process."""
    layer = Waves()
    model = layer if world == 1 else DistributedDataParallel(layer)
    rows = train(model, optimizer_of(model, distance, solver), *data(rank, world), steps=3)
    return {"rows": rows, "end": flat(layer)}


def nan_on_one_rank(rank: int, world: int) -> dict[str, Any]:
    """The last rank's loss is NaN at evaluation 3 of the second step, and at the third anchor."""
    layer = Waves()
    model = DistributedDataParallel(layer)
    opt = optimizer_of(model, "emd", "gd")
    x, y = data(rank, world)
    rows: list[Any] = []
    for bad in (None, 3, 1):
        calls = 0

        def closure(bad: int | None = bad) -> Tensor:
            nonlocal calls
            calls += 1
            opt.zero_grad()
            loss = (model(x) - y).square().mean()
            if rank == world - 1 and calls == bad:
                loss = loss * float("nan")
            loss.backward()
            return loss

        before = flat(layer)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            opt.step(closure)
        moved = not torch.equal(before, flat(layer))
        rows.append((str(opt.report.status), opt.report.evaluations, moved))
    return {"rows": rows, "end": flat(layer)}


def another_assignment_on_one_rank(rank: int, world: int) -> dict[str, Any]:
    """Rank 1 solves its transport to another permutation; its own state must stay its own."""
    states: list[tuple[Tensor, Tensor]] = []
    trial = Assignment.trial

    def another(self: Assignment, V: Tensor) -> Tensor:
        sigma = trial(self, V)
        if rank == 1:
            sigma = sigma.roll(1)
        states.append((sigma, sigma.clone()))
        return sigma

    layer = Waves()
    model = DistributedDataParallel(layer)
    with mock.patch.object(Assignment, "trial", another):
        rows = train(model, optimizer_of(model, "emd", "gd"), *data(rank, world), steps=2)
    kept = all(torch.equal(now, then) for now, then in states)
    return {"rows": rows, "end": flat(layer), "kept": kept}


def another_arithmetic_on_one_rank(rank: int, world: int) -> dict[str, Any]:
    """The last rank computes distances a little smaller, as if on other hardware."""
    measure = base.mean_squared

    def mean_squared(V: Tensor, T: Tensor) -> base.DistanceValue:
        d = measure(V, T)
        return base.DistanceValue(0.99 * d.value, d.gradient) if rank == world - 1 else d

    layer = Waves()
    model = DistributedDataParallel(layer)
    with mock.patch("torch_wprox.distances.emd.distance.mean_squared", mean_squared):
        rows = train(model, optimizer_of(model, "emd", "gd"), *data(rank, world), steps=3)
    return {"rows": rows, "end": flat(layer)}


def approximate_distances_on_other_hardware(rank: int, world: int) -> dict[str, Any]:
    """The last rank rounds what sinkhorn and sliced compute from the anchor differently."""
    ends: dict[str, Any] = {}
    for distance, where in (("sinkhorn", Sinkhorn), ("sliced", Sliced)):
        anchored = where.anchored

        def elsewhere(self: Any, W: Tensor, *rest: Any, anchored: Any = anchored) -> Any:
            return anchored(self, W * (1 + 1e-9 * (rank == world - 1)), *rest)

        layer = Waves()
        model = DistributedDataParallel(layer)
        with mock.patch.object(where, "anchored", elsewhere):
            rows = train(model, optimizer_of(model, distance, "bfgs"), *data(rank, world), steps=2)
        ends[distance] = {"rows": rows, "end": flat(layer)}
    return ends


def alone_in_the_group(rank: int, world: int) -> dict[str, Any]:
    """process_group=None: ranks take different numbers of steps on losses of their own."""
    layer = Waves(seed=rank)
    rows = train(
        layer,
        optimizer_of(layer, "emd", "gd", process_group=None),
        *data(rank, world),
        steps=1 + rank,
    )
    return {"rows": rows, "end": flat(layer)}


def subgroup(rank: int, world: int) -> dict[str, Any]:
    """A group of the last two ranks: its first rank, not rank 0, is the one that is heard."""
    members = [world - 2, world - 1]
    group = dist.new_group(members)
    if rank not in members:
        return {"end": None}
    layer = sinus_layer(m=10, scale=1.0)
    model = DistributedDataParallel(layer, process_group=group)
    opt = optimizer_of(model, "emd", "gd", process_group=group)
    rows = train(model, opt, *data(members.index(rank), 2), steps=2)
    return {"rows": rows, "end": flat(layer)}


def forgotten_wrapper(rank: int, world: int) -> str:
    """Without DistributedDataParallel the gradients differ: every rank must say so."""
    layer = Waves()
    opt = optimizer_of(layer, "emd", "gd")
    before = flat(layer)
    try:
        train(layer, opt, *data(rank, world), steps=1)
    except RuntimeError as error:
        return f"{error} | restored: {torch.equal(before, flat(layer))}"
    return "no error"


def global_step(rank: int, world: int, form: str) -> dict[str, Any]:
    """A step solved globally, each rank with its shard; "rays" has too many inputs for exactness.

    ``world=1`` is the full batch in one process.
    """
    layer, (x, y) = sinus_layer(m=9), data(rank, world)
    if form != "plane":
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(POINTS, 3, generator=g, dtype=torch.float64)[rank::world], y
        layer = MeanFieldLayer(
            3, 5, parameterization="joint" if form == "joint" else "signed", reduction="sum",
            output_bias=True, generator=g, dtype=torch.float64,
        )  # fmt: skip
    model: nn.Module = layer if world == 1 else DistributedDataParallel(layer)
    seconds = 5.0 if form == "rays" else 0.0
    solver = Global(starts=3, polish=200, max_iter=40, proof_seconds=seconds)
    opt = WassersteinProx(model.parameters(), 1.0, solver=solver, max_eval=300)
    rows = train(model, opt, x, y, steps=2 if form == "plane" else 1)
    bounds = [opt.report.lower_bound, opt.report.certified, opt.report.estimate, opt.report.gap]
    return {"rows": rows, "end": flat(layer), "bounds": bounds}


def global_steps(rank: int, world: int) -> dict[str, Any]:
    """All kinds of global steps."""
    return {form: global_step(rank, world, form) for form in GLOBAL_FORMS}


def uneven_global_step(rank: int, world: int) -> dict[str, Any]:
    """Shards of different sizes: the loss is the mean of the ranks' means."""
    layer = sinus_layer(m=6)
    model = DistributedDataParallel(layer)
    x, y = data()
    cut = slice(0, 3) if rank == 0 else slice(3 + (rank - 1), 3 + rank)
    opt = WassersteinProx(model.parameters(), 1.0, solver="global", max_eval=300)
    rows = train(model, opt, x[cut], y[cut], steps=1)
    return {"rows": rows, "end": flat(layer), "bounds": [opt.report.lower_bound]}


def another_input_on_one_rank(rank: int, world: int) -> str:
    """The last rank draws a new batch at every evaluation: every rank must refuse the step."""
    layer = sinus_layer(m=6)
    model = DistributedDataParallel(layer)
    opt = WassersteinProx(model.parameters(), 1.0, solver="global", max_eval=300)
    x, y = data(rank, world)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        opt.zero_grad()
        moved = x + 0.1 * calls * (rank == world - 1)
        loss = (model(moved) - y).square().mean()
        loss.backward()
        return loss

    before = flat(layer)
    try:
        opt.step(closure)
    except ValueError as error:
        return f"{error} | restored: {torch.equal(before, flat(layer))}"
    return "no error"


def float_losses(rank: int, world: int) -> dict[str, Any]:
    """A closure that returns a float is averaged as well."""
    layer = Waves()
    model = DistributedDataParallel(layer)
    opt = optimizer_of(model, "emd", "gd")
    x, y = data(rank, world)

    def closure() -> float:
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss.item()

    first = opt.step(closure)
    return {"first": first, "loss_before": opt.report.loss_before, "end": flat(layer)}


def dropout(rank: int, world: int) -> dict[str, Any]:
    """Every rank draws masks of its own, and replays them."""
    net = perceptron(dropout=0.5)
    model = DistributedDataParallel(net)
    torch.manual_seed(rank)
    rows = train(model, optimizer_of(model, "emd", "gd"), *data(rank, world), steps=3)
    return {"rows": rows, "end": flat(net), "next": torch.rand(1).item()}


def batch_norm(rank: int, world: int) -> dict[str, Any]:
    """BatchNorm under DDP: its buffers are rank 0's at every evaluation."""
    net = perceptron(norm=True)
    model = DistributedDataParallel(net)
    opt = WassersteinProx(particle_groups(net), **STOPPING)
    rows = train(model, opt, *data(rank, world), steps=2)
    return {"rows": rows, "end": flat(net), "tracked": int(net[0].num_batches_tracked)}


def resumed(rank: int, world: int) -> dict[str, Any]:
    """Six steps in one go, and three, a checkpoint through bytes, three."""
    ends = []
    for stop in (None, 3):
        layer = Waves()
        model = DistributedDataParallel(layer)
        opt = optimizer_of(model, "emd", SOLVERS[-1])
        if stop is not None:
            train(model, opt, *data(rank, world), steps=stop)
            file = io.BytesIO()
            torch.save([layer.state_dict(), opt.state_dict()], file)
            file.seek(0)
            weights, state = torch.load(file, weights_only=True)
            layer = Waves()
            layer.load_state_dict(weights)
            model = DistributedDataParallel(layer)
            opt = optimizer_of(model, "emd", SOLVERS[-1])
            opt.load_state_dict(state)
        train(model, opt, *data(rank, world), steps=6 - (stop or 0))
        ends.append(flat(layer))
    return {"one_go": ends[0], "resumed": ends[1]}


def copied(rank: int, world: int) -> dict[str, Any]:
    """deepcopy of an optimizer with an explicit group goes on in the default group."""
    layer = Waves()
    opt = optimizer_of(layer, "emd", "gd", process_group=dist.group.WORLD)
    twin, twins = copy.deepcopy((layer, opt))
    ends = []
    for net, optimizer in ((layer, opt), (twin, twins)):
        train(DistributedDataParallel(net), optimizer, *data(rank, world), steps=2)
        ends.append(flat(net))
    return {"original": ends[0], "copy": ends[1]}


def lightning(rank: int, world: int) -> dict[str, Any]:
    """Trainer(strategy="ddp") on the group that exists already."""
    import lightning as L
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    layer = Waves()

    class Regression(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            x, y = batch
            return (self.layer(x) - y).square().mean()

        def configure_optimizers(self) -> Any:
            return optimizer_of(self, "emd", "gd")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=3,
            accelerator="cpu",
            devices=world,
            strategy=DDPStrategy(cluster_environment=TorchElasticEnvironment()),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # The sampler gives rank r the points r, r + world, ...: the shards of `data`.
        dataset = torch.utils.data.TensorDataset(*data())
        loader = torch.utils.data.DataLoader(dataset, batch_size=POINTS // world)
        trainer.fit(Regression(), loader)
    return {"end": flat(layer), "world": trainer.world_size, "steps": trainer.global_step}


def sharded(rank: int, world: int) -> Any:
    """A model that every rank holds a part of (FSDP2), before and after its optimizer exists."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def shards() -> nn.Module:
        return fully_shard(Waves(), mesh=init_device_mesh("cpu", (world,)))

    x, y = data(rank, world)
    messages = []
    for kind in (WassersteinProx, FrobeniusProx):
        try:
            kind(shards().parameters())
        except TypeError as error:
            messages.append(str(error))
    model = shards()
    opt = WassersteinProx(Waves().parameters())
    opt.param_groups[0]["params"] = list(model.parameters())
    before = [p.to_local().clone() for p in model.parameters()]

    def closure() -> Tensor:
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    try:
        opt.step(closure)
    except TypeError as error:
        messages.append(str(error))
    moved = any(
        not torch.equal(p.to_local(), b) for p, b in zip(model.parameters(), before, strict=True)
    )
    return {"messages": messages, "rows": len(before[0]), "moved": moved}


CASES: dict[str, Callable[[int, int], Any]] = {
    case.__name__: case
    for case in (
        nan_on_one_rank,
        another_assignment_on_one_rank,
        another_arithmetic_on_one_rank,
        approximate_distances_on_other_hardware,
        alone_in_the_group,
        subgroup,
        forgotten_wrapper,
        sharded,
        global_steps,
        uneven_global_step,
        another_input_on_one_rank,
        float_losses,
        dropout,
        batch_norm,
        resumed,
        copied,
        lightning,
    )
}


def main(rank: int, world: int, folder: str) -> None:
    """Join the group, run every case, leave the results in ``folder``/rank.pt."""
    torch.set_num_threads(1)
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}.items():
        os.environ[name] = str(value)
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),  # a deadlock fails here
    )
    try:
        results: dict[str, Any] = {
            f"{distance}-{solver}": combination(rank, world, distance, solver)
            for distance, solver in COMBINATIONS
        }
        for name, case in CASES.items():
            results[name] = case(rank, world)
            dist.barrier()
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
