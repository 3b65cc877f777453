"""A proximal step whose particles move by the gradient of a convex function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_wprox.distances.clouds import class_rows
from torch_wprox.maps.descent import descend
from torch_wprox.maps.potential import ConvexNetwork
from torch_wprox.maps.pushed import Pushed, push
from torch_wprox.maps.transport_map import TransportMap, standardised
from torch_wprox.objective import Block, BudgetExhausted, Objective
from torch_wprox.report import Status
from torch_wprox.solvers import Solver, Stopping

# The first map moves the particles by this share of the way of an explicit step.
_SHARE = 0.1


@dataclass(frozen=True)
class ConvexMap:
    r"""Inner solver that searches among the convex maps, V = grad psi(W), one psi per class.

    .. math:: \min_\theta F(\nabla\psi_\theta(W))
        + \frac{1}{2\gamma m} \sum_i |\nabla\psi_\theta(W_i) - W_i|^2

    By Brenier's theorem the identity plan is optimal for such a V, so that the second term is
    :math:`W_2^2(V, W)/(2\gamma)` although nothing is assigned: time and memory are O(m), at a
    million particles too. psi is an input-convex network (:class:`~torch_wprox.maps.ConvexNetwork`)
    of some thousand numbers, and L-BFGS moves them. Plain tensors move freely beside the clouds.

    Particles that move together cannot be told apart: for clouds small enough for exact transport
    "lbfgs" finds lower objectives (docs/concepts/maps.md has the numbers).

    Args:
        width: Units in every layer of psi.
        depth: Layers of psi; 0: affine maps.
        strength: Least factor by which a map may shrink distances.
        solver: Solver of the descent over theta; None: L-BFGS.
        seed: Of the first psi.

    Raises:
        ValueError: An option is out of range.

    Example:
        >>> import torch_wprox
        >>> W = torch.randn(100, 2, dtype=torch.float64)
        >>> solver = ConvexMap(width=8, depth=1)
        >>> V, report = torch_wprox.prox(
        ...     lambda V: 0.5 * V.square().sum(1).mean(), W, 1.0, solver=solver
        ... )
        >>> torch.allclose(V, W / 2, atol=1e-4)
        True

    Source: Mokrov et al., Large-scale Wasserstein gradient flows, 2021.
    """

    width: int = 32
    depth: int = 2
    strength: float = 1e-3
    solver: Solver | None = None
    seed: int = 0

    name = "map"
    is_local = False

    def __post_init__(self) -> None:
        self._network(1)

    def _network(self, dim: int) -> ConvexNetwork:
        return ConvexNetwork(dim, self.width, self.depth, self.strength)

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Descend over the maps from the identity, or from the last step's map if that is lower."""
        pieces = self._pieces(objective)
        first = torch.cat([piece.theta for piece in pieces])

        def loss_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
            parts = torch.split(theta, [len(piece.theta) for piece in pieces])
            moved = [piece.moved(part) for piece, part in zip(pieces, parts, strict=True)]
            v = objective.anchor.clone()
            for piece, (points, _) in zip(pieces, moved, strict=True):
                piece.block.of(v)[piece.rows] = points
            evaluation = objective.evaluate(v, monotone=True)
            value = evaluation.grad.new_tensor(evaluation.value)
            grads = []
            for piece, (_, pushed) in zip(pieces, moved, strict=True):
                g = piece.block.of(evaluation.grad)[piece.rows]
                grads.append(g.reshape(-1) if pushed is None else pushed.pull_back(g))
            return value, torch.cat(grads)

        try:
            if memory is not None and len(memory["theta"]) == len(first):
                last = memory["theta"].to(first)
                if loss_and_grad(last)[0] < objective.start.value:
                    first = last
            found = descend(
                loss_and_grad,
                first,
                self.solver,
                stopping,
                objective.evaluations_left,
                objective.agree,
            )
        except BudgetExhausted:
            return Status.MAX_EVAL, memory
        return found.status, {"theta": found.theta}

    def _pieces(self, objective: Objective) -> list[_Piece]:
        random = torch.Generator().manual_seed(self.seed)
        pieces = []
        for block in objective.blocks:
            W = block.of(objective.anchor)
            if not block.is_cloud:
                pieces.append(_Piece(block, slice(None), W.reshape(-1).clone(), None, None))
                continue
            network = self._network(block.D)
            # The way of an explicit step, -m gamma grad F.
            slope = block.of(objective.start.loss_grad)
            way = slope.square().mean().sqrt().item() / block.curvature
            for rows in class_rows(block.classes, block.m):
                members = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(W.device)
                x = W[members]
                centre, scale = standardised(x)
                theta = network.initial(random, W.dtype, _SHARE * way / scale).to(W.device)
                start = TransportMap(network, theta, centre, scale)
                pieces.append(_Piece(block, members, theta, start, x))
        return pieces


@dataclass(frozen=True)
class _Piece:
    """A class of a cloud with its map, or a plain tensor that moves freely."""

    block: Block
    rows: slice | Tensor
    theta: Tensor
    start: TransportMap | None
    x: Tensor | None

    def moved(self, theta: Tensor) -> tuple[Tensor, Pushed | None]:
        """Return where ``theta`` moves the piece, and what pulls gradients back."""
        if self.start is None or self.x is None:
            return theta.view(self.block.m, self.block.D), None
        leaf = theta.detach().clone().requires_grad_()
        map_ = TransportMap(self.start.network, leaf, self.start.centre, self.start.scale)
        pushed = push(map_, self.x)
        return pushed.points, pushed
