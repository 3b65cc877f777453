"""Wasserstein gradient flows of sampled measures by composed convex maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torch_wprox.maps.descent import descend
from torch_wprox.maps.energies import CloudEnergy, Energy, Entropy
from torch_wprox.maps.potential import ConvexNetwork
from torch_wprox.maps.pushed import push
from torch_wprox.maps.transport_map import TransportMap, standardised
from torch_wprox.report import Status, StepReport
from torch_wprox.solvers import Solver, Stopping


class MapFlow:
    r"""JKO steps of a measure given by samples; every step is a convex map.

    .. math:: \rho_{t+1} = \arg\min_\rho E(\rho) + \frac{1}{2\gamma} W_2^2(\rho, \rho_t),
        \qquad \rho_{t+1} = (\nabla\psi_t)_\# \rho_t

    The cloud is moved, and every map is kept: fresh samples are moved by their composition, and
    where the first density is known the later ones are, by the change of variables. A step never
    raises E + W_2^2/(2 gamma) above E of the measure before it, on the samples.

    Args:
        points: Samples of the first measure, (m, D), floating point. Thousands; a map has
            that many parameters.
        energies: One energy, or several whose sum is E: :class:`~torch_wprox.maps.Potential`,
            :class:`~torch_wprox.maps.Interaction`, :class:`~torch_wprox.maps.CloudFunction`,
            :class:`~torch_wprox.maps.Entropy` (one at most).
        gamma: Step size, > 0: the time that a step covers.
        width: Units in every layer of psi.
        depth: Layers of psi; 0: affine maps, which Gaussians under quadratic potentials need.
        strength: Least factor by which a map may shrink distances.
        solver: Solver of the descent over the numbers of psi; None: L-BFGS.
        max_eval: Evaluations of E allowed in a step.
        tolerance_grad: Ends a step when the gradient fell to this share of its first value.
        log_density: Log density of the first measure, points (k, D) to (k,); None: not known.
        seed: Of the first psi.

    Attributes:
        points: The cloud now, (m, D).
        maps: The maps so far, oldest first.
        report: The :class:`~torch_wprox.StepReport` of the last step; its losses are E without the
            entropy of the first measure.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from torch_wprox.maps import Entropy, Potential
        >>> x = torch.randn(2000, 1, dtype=torch.float64)
        >>> energies = [Potential(lambda y: (y[:, 0] - 3).square() / 2), Entropy()]
        >>> flow = MapFlow(x, energies, gamma=0.5, depth=0)
        >>> for _ in range(10):
        ...     report = flow.step()
        >>> abs(flow.points.mean().item() - 3) < 0.1
        True

    Source: Mokrov et al., Large-scale Wasserstein gradient flows, 2021; the note, section 11.2.
    """

    def __init__(
        self,
        points: Tensor,
        energies: Energy | Sequence[Energy],
        gamma: float,
        *,
        width: int = 32,
        depth: int = 2,
        strength: float = 1e-3,
        solver: Solver | None = None,
        max_eval: int = 300,
        tolerance_grad: float = 1e-6,
        log_density: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        if points.ndim != 2 or not points.is_floating_point() or not len(points):
            raise ValueError(
                "points must be a nonempty floating point matrix (m, D), got shape "
                f"{tuple(points.shape)} and {points.dtype}"
            )
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"gamma must be a finite number > 0, got {gamma!r}")
        if max_eval < 1:
            raise ValueError(f"max_eval must be >= 1, got {max_eval!r}")
        given = [energies] if isinstance(energies, CloudEnergy | Entropy) else list(energies)
        self._energies = [e for e in given if isinstance(e, CloudEnergy)]
        entropies = [e for e in given if isinstance(e, Entropy)]
        if len(self._energies) + len(entropies) != len(given) or len(entropies) > 1 or not given:
            raise ValueError(
                "energies must be energies of torch_wprox.maps, one Entropy at most, got "
                f"{[type(e).__name__ for e in given]}"
            )
        self._entropy = entropies[0] if entropies else None
        self._network = ConvexNetwork(points.shape[1], width, depth, strength)
        self._solver, self._stopping = solver, Stopping(tolerance_grad)
        self._max_eval, self._log_density, self._seed = max_eval, log_density, seed
        self.gamma = float(gamma)
        self.points = points.detach().clone()
        self.maps: list[TransportMap] = []
        self._log_det = 0.0  # of all maps so far, mean over the cloud
        self.report: StepReport | None = None

    # -- the step ----------------------------------------------------------------------------------

    def step(self) -> StepReport:
        """Take one step: find the map, move the cloud, keep the map."""
        x = self.points
        before, slope, _ = self._energy(x, None)
        if not math.isfinite(before):
            raise ValueError(
                f"the energy of the cloud is {before}: it must be finite where the flow begins"
            )
        start = self._start(x, slope)

        def loss_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
            leaf = theta.detach().clone().requires_grad_()
            pushed = push(replace(start, theta=leaf), x, self._entropy and self._entropy.log_det)
            energy, slope, stretch = self._energy(pushed.points, pushed.log_det)
            moved = pushed.points - x
            value = energy + moved.square().sum(1).mean().item() / (2 * self.gamma)
            slope = slope + moved / (self.gamma * len(x))
            return x.new_tensor(value), pushed.pull_back(slope, stretch)

        found = descend(loss_and_grad, start.theta, self._solver, self._stopping, self._max_eval)
        if found.value <= before:
            map_, status, residual = replace(start, theta=found.theta), found.status, found.residual
            moved = push(map_, x, self._entropy and self._entropy.log_det)
            y, stretched = moved.points, moved.log_det
        else:  # no map that was tried is better than none
            map_, status, residual = self._identity(x), Status.STALLED, 0.0
            y, stretched = x, None
        after, _, _ = self._energy(y, stretched)
        distance_sq = (y - x).square().sum(1).mean().item()
        if stretched is not None:
            self._log_det += stretched.mean().item()
        self.maps.append(map_)
        self.points = y
        self.report = StepReport(
            status=status,
            evaluations=found.evaluations,
            loss_before=before,
            loss_after=after,
            objective=after + distance_sq / (2 * self.gamma),
            distance_sq=distance_sq,
            wasserstein_sq=distance_sq,
            frobenius_sq=distance_sq,
            permuted_fraction=0.0,
            residual=residual,
        )
        return self.report

    def _energy(
        self, points: Tensor, log_det: Tensor | None
    ) -> tuple[float, Tensor, Tensor | None]:
        """Return E, its gradient in the points (m, D) and in the log determinants (m,)."""
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            total = leaf.sum() * 0.0
            for energy in self._energies:
                total = total + energy(leaf)
            (slope,) = torch.autograd.grad(total, leaf)
        if self._entropy is None:
            return total.item(), slope, None
        temperature, now = self._entropy.temperature, self._log_det
        if log_det is None:
            return total.item() - temperature * now, slope, None
        stretch = torch.full_like(log_det, -temperature / len(log_det))
        return total.item() - temperature * (now + log_det.mean().item()), slope, stretch

    def _start(self, x: Tensor, slope: Tensor) -> TransportMap:
        """Return where the descent begins: the last step's psi, which is nearly that of this one.

        The first psi moves points by a tenth of the way of an explicit step.
        """
        centre, scale = standardised(x)
        if self.maps and self.maps[-1].network == self._network:
            return TransportMap(self._network, self.maps[-1].theta, centre, scale)
        way = self.gamma * len(x) * slope.square().mean().sqrt().item() / scale
        if self._entropy is not None:  # grad log rho is about x/scale^2
            way += self.gamma * self._entropy.temperature / scale**2
        random = torch.Generator().manual_seed(self._seed)
        theta = self._network.initial(random, x.dtype, 0.1 * way).to(x.device)
        return TransportMap(self._network, theta, centre, scale)

    def _identity(self, x: Tensor) -> TransportMap:
        flat = replace(self._network, depth=0)
        theta = flat.initial(torch.Generator(), x.dtype).to(x.device)
        return TransportMap(flat, theta, *standardised(x))

    # -- the measure -------------------------------------------------------------------------------

    @torch.no_grad()
    def transport(self, x: Tensor, steps: int | None = None) -> Tensor:
        """Move samples x (k, D) of the first measure to the measure after ``steps``, (k, D).

        None: after all steps.
        """
        for map_ in self._first_maps(steps):
            x = push(map_, x).points
        return x

    @torch.no_grad()
    def log_density(self, y: Tensor, steps: int | None = None) -> Tensor:
        r"""Return the log density at y (k, D) of the measure after ``steps``, (k,).

        .. math:: \log\rho_t(y) = \log\rho_0(x) - \sum_s \log\det D T_s, \qquad
            y = T_t \circ \dots \circ T_1(x)

        Raises:
            ValueError: The density of the first measure was not given.
        """
        if self._log_density is None:
            raise ValueError("the first density is not known: give MapFlow log_density=")
        stretched = y.new_zeros(len(y))
        for map_ in reversed(self._first_maps(steps)):
            y = map_.inverse(y)
            stretched += map_.log_det(y)
        return self._log_density(y) - stretched

    def _first_maps(self, steps: int | None) -> list[TransportMap]:
        if steps is not None and not 0 <= steps <= len(self.maps):
            raise ValueError(
                f"steps must be between 0 and the {len(self.maps)} steps taken, got {steps!r}"
            )
        return self.maps[:steps]

    # -- checkpoints -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the cloud and the maps as plain values and tensors."""
        maps = [
            {
                "depth": map_.network.depth,
                "theta": map_.theta,
                "centre": map_.centre,
                "scale": map_.scale,
            }
            for map_ in self.maps
        ]
        return {"points": self.points, "maps": maps, "log_det": self._log_det}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, on the device of the cloud."""
        here = self.points.device
        self.points, self._log_det = state["points"].to(here), state["log_det"]
        self.maps = [
            TransportMap(
                replace(self._network, depth=kept["depth"]),
                kept["theta"].to(here),
                kept["centre"].to(here),
                kept["scale"],
            )
            for kept in state["maps"]
        ]
