"""A training run that saves after every step and can hang inside one, to be killed there.

python killed.py FOLDER SOLVER STEPS [HANG_STEP HANG_EVALUATION]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from conftest import sinus_data, sinus_layer
from torch_wprox import WassersteinProx


def save(state: dict[str, object], path: Path) -> None:
    """Replace the file in one go: a kill leaves the old one or the new one, never half of one."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def train(folder: Path, solver: str, steps: int, hang: tuple[int, int] | None = None) -> Tensor:
    """Continue from the checkpoint in ``folder``, if there is one, up to ``steps`` steps."""
    layer = sinus_layer(m=12)
    opt = WassersteinProx(layer.parameters(), gamma=0.5, solver=solver, max_eval=30)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.8)
    parts = {"layer": layer, "opt": opt, "schedule": schedule}
    checkpoint = folder / "last.pt"
    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        done = saved["done"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    x, y = sinus_data()
    for step in range(done, steps):
        evaluations = 0

        def closure(step: int = step) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            if (step, evaluations) == hang:
                (folder / "hanging").touch()
                time.sleep(600)
            opt.zero_grad()
            # Every second step is a minibatch: curvature of one F is not that of the next.
            rows = slice(None) if step % 3 else slice(0, 3)
            loss = (layer(x[rows]) - y[rows]).square().mean()
            loss.backward()
            return loss

        opt.step(closure)
        schedule.step()
        states = {name: part.state_dict() for name, part in parts.items()}
        save({"done": step + 1, **states}, checkpoint)
    return layer.particles.detach().clone()


if __name__ == "__main__":
    folder, solver, steps, *hang = sys.argv[1:]
    at = (int(hang[0]), int(hang[1])) if hang else None
    end = train(Path(folder), solver, int(steps), at)
    torch.save(end, Path(folder) / "end.pt")
