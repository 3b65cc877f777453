"""Trajectories of particles and reports of steps, in plain torch."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch_wprox.layers.mean_field import MeanFieldLayer
from torch_wprox.particles.groups import particle_groups
from torch_wprox.particles.layouts import views_of_group
from torch_wprox.report import Report, numbers_of


@dataclass(frozen=True)
class Snapshot:
    """A model at one time.

    Attributes:
        time: Number of steps taken before.
        positions: Name of a cloud to the positions of its particles, (m, D), on the CPU.
        masses: Name of a cloud to the masses of its particles, (m,).
        outputs: The model's outputs at the recorder's ``inputs``, None without them.

    Example:
        >>> recorder = TrajectoryRecorder(MeanFieldLayer(1, width=8))
        >>> recorder.record()
        >>> snapshot = recorder.snapshots[0]
        >>> snapshot.time, snapshot.positions["cloud"].shape
        (0, torch.Size([8, 3]))
    """

    time: int
    positions: dict[str, Tensor]
    masses: dict[str, Tensor]
    outputs: Tensor | None


class TrajectoryRecorder:
    """Keeps the positions of all particles of a model, step by step, with the reports.

    The clouds are every :class:`MeanFieldLayer` (and any other submodule with methods ``positions``
    and ``masses``); in a model without one, those that :func:`particle_groups` finds. Memory is
    m D numbers per cloud and snapshot.

    Args:
        model: The model; a layer alone is one too.
        inputs: Points at which to record the model's outputs; None: none are recorded.
        every: Keep the particles at every this many calls of :meth:`record`, the first included.
            Reports are all kept.

    Attributes:
        names: Names of the clouds.
        snapshots: What was recorded, oldest first.

    Raises:
        ValueError: The model has no cloud, or ``every`` < 1.

    Example:
        >>> layer = MeanFieldLayer(1, width=8, parameterization="signed")
        >>> x = torch.linspace(-1, 1, 5)[:, None]
        >>> recorder = TrajectoryRecorder(layer, inputs=x)
        >>> recorder.record()
        >>> with torch.no_grad():
        ...     layer.particles += 1
        >>> recorder.record()
        >>> recorder.positions().shape, recorder.outputs().shape
        (torch.Size([2, 8, 2]), torch.Size([2, 5, 1]))
    """

    def __init__(self, model: nn.Module, *, inputs: Tensor | None = None, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        self.snapshots: list[Snapshot] = []
        self._model = model
        self._inputs = inputs
        self._every = every
        self._calls = 0
        self._reports: list[tuple[int, Report]] = []
        self.names = tuple(name for name, _, _ in _clouds(model))
        if not self.names:
            raise ValueError(
                f"{type(model).__name__} has no cloud of particles to record: use a MeanFieldLayer "
                "or Linear - activation - Linear inside nn.Sequential"
            )

    @torch.no_grad()
    def record(self, report: Report | None = None) -> None:
        """Record the model now; ``report`` is that of the step that led here."""
        time, self._calls = self._calls, self._calls + 1
        if report is not None:
            numbers_of(report)  # measured now: until it is read a report keeps its step's clouds
            self._reports.append((time, report))
        if time % self._every:
            return
        clouds = _clouds(self._model)
        self.snapshots.append(
            Snapshot(
                time=time,
                positions={name: _kept(positions) for name, positions, _ in clouds},
                masses={name: _kept(masses) for name, _, masses in clouds},
                outputs=None if self._inputs is None else _kept(self._outputs(self._inputs)),
            )
        )

    def _outputs(self, inputs: Tensor) -> Tensor:
        modes = {module: module.training for module in self._model.modules()}
        self._model.eval()
        try:
            outputs: Tensor = self._model(inputs)
        finally:
            for module, training in modes.items():
                module.training = training
        return outputs

    # -- what was recorded -----------------------------------------------------------------------

    def times(self) -> Tensor:
        """Number of earlier calls of :meth:`record` at each snapshot: steps taken, (T,)."""
        return torch.tensor([s.time for s in self.snapshots])

    def positions(self, name: str | None = None) -> Tensor:
        """Positions of a cloud at all times, (T, m, D); ``name`` may be left out if it is alone.

        Raises:
            KeyError: There is no such cloud.
            RuntimeError: Nothing has been recorded.
        """
        name = self._named(name)
        return self._stacked([s.positions[name] for s in self.snapshots])

    def masses(self, name: str | None = None) -> Tensor:
        """Masses of a cloud at all times, (T, m)."""
        name = self._named(name)
        return self._stacked([s.masses[name] for s in self.snapshots])

    def signs(self, name: str | None = None) -> Tensor | None:
        """Signs of the output weights of a cloud's neurons now, (m,); None where it has none."""
        name = self._named(name)
        module = dict(self._model.named_modules()).get("" if name == "cloud" else name)
        signs = getattr(module, "signs", None)
        return _kept(signs) if isinstance(signs, Tensor) else None

    def outputs(self) -> Tensor:
        """The model's outputs at ``inputs`` at all times, (T, ...)."""
        found = [s.outputs for s in self.snapshots if s.outputs is not None]
        if self._inputs is None:
            raise RuntimeError("no outputs were recorded: give the recorder inputs=")
        return self._stacked(found)

    def reports(self) -> list[Report]:
        """The reports of all steps, oldest first."""
        return [report for _, report in self._reports]

    def tensors(self) -> dict[str, Tensor]:
        """Everything as a flat dict of tensors, for ``torch.save`` and ``weights_only=True``."""
        found = {"times": self.times()}
        for name in self.names:
            found[f"positions.{name}"] = self.positions(name)
            found[f"masses.{name}"] = self.masses(name)
        if self._inputs is not None:
            found["inputs"], found["outputs"] = _kept(self._inputs), self.outputs()
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per report: the time and every number of the report."""
        return [{"step": time, **numbers_of(report)} for time, report in self._reports]

    def to_csv(self, path: str | Path) -> None:
        """Write :meth:`rows` to a CSV file, None as an empty field."""
        write_csv(path, self.rows())

    def _named(self, name: str | None) -> str:
        if name is None and len(self.names) == 1:
            return self.names[0]
        if name not in self.names:
            raise KeyError(f"name must be one of {self.names}, got {name!r}")
        return name

    def _stacked(self, found: Sequence[Tensor]) -> Tensor:
        if not found:
            raise RuntimeError("nothing was recorded yet: call record() first")
        return torch.stack(list(found))


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write dicts of one shape to a CSV file; floats keep every digit, None is an empty field.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "steps.csv")
        >>> write_csv(path, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
        >>> path.read_text().split()
        ['step,loss', '1,0.5', '2,0.25']
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _clouds(model: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """Name, positions (m, D) and masses (m,) of every cloud of the model."""
    found = [
        (name or "cloud", module.positions(), module.masses())
        for name, module in model.named_modules()
        if isinstance(module, MeanFieldLayer)
        or (callable(getattr(module, "positions", None)) and hasattr(module, "masses"))
    ]
    return found or list(_pairs(model))


def _pairs(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    names = {id(p): name for name, p in model.named_parameters()}
    for group in particle_groups(model):
        for view in views_of_group(group["params"], group["layout"]):
            if view.is_cloud:
                name = names[id(view.parameters[0])].rpartition(".")[0]
                positions = view.read()
                yield name or "cloud", positions, positions.new_full((view.m,), 1 / view.m)


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
