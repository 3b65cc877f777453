"""The two optimizers: :class:`WassersteinProx` and :class:`FrobeniusProx`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_wprox.closure.watch import Callback
from torch_wprox.distances.base import Distance
from torch_wprox.optim.proximal_point import ProximalPoint
from torch_wprox.solvers.base import Solver

TOLERANCE_GRAD = 1e-7


class WassersteinProx(ProximalPoint):
    r"""Proximal point steps in the squared 2-Wasserstein distance between clouds of neurons.

    .. math::
        W_{t+1} = \arg\min_V F(V) + \frac{W_2^2(V, W_t)}{2\gamma}, \qquad
        W_2^2(V, W) = \min_\sigma \frac1m \sum_i |V_i - W_{\sigma(i)}|^2

    with sigma a permutation inside the classes. A cloud is found in a :class:`MeanFieldLayer`, in
    one (m, D) matrix, in the weights of Linear - activation - Linear, or through
    :func:`particle_groups`; any other tensor is plain: |V - W|^2 / (2 gamma), nothing exchanged.

    Args:
        params: Parameters, named parameters or groups, as for any torch optimizer.
        gamma: Step size, >= 0 (0: no move), 1 by default. As gamma -> 0 a cloud moves by
            -m gamma grad F.
        lr: Another name of ``gamma`` for tools that pass it; ``gamma`` wins when both are given.
        distance: "emd" (exact), "sinkhorn", "sliced", or an object with options of its own.
        solver: "auto", "gd", "adam", "bfgs", "lbfgs", "global", "map", or an object with options.
        classes: "sign": frozen output weights are exchanged only where they are equal; None: all
            are exchangeable, as in the first experiments of the note; or integer labels (m,).
        weight_decay: F gets (weight_decay/2)|V|^2, in closed form inside the prox (implicit).
        max_eval: Closure evaluations allowed in one step, the first and the last included. None:
            100 in the first step and while the loss stays one function, 5 in a step whose loss is
            another one than in the last step, as on minibatches; ``report.max_eval`` says which.
        tolerance_grad: Converged when |grad P| <= tolerance_grad |grad F(W)|.
        inexact: rho of the rule |grad P| <= rho |V - W_sigma|/(m gamma), None to switch it off.
        process_group: "auto" (the default group if torch.distributed is initialised), None, or the
            group of the ranks that step together.
        callback: Called at every evaluation with a :class:`~torch_wprox.Progress`; a true answer
            ends the step at its best point.
        seconds: Time budget of one step; when it is up, the step ends at the best point so far.

    Raises:
        ValueError: An argument is out of range; the message says the remedy.

    Example:
        >>> import torch, torch_wprox
        >>> layer = torch_wprox.MeanFieldLayer(1, width=8, parameterization="signed")
        >>> x = torch.linspace(-1, 1, 5)[:, None]
        >>> opt = torch_wprox.WassersteinProx(layer.parameters(), gamma=1.0)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (layer(x) - x.sin()).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> opt.report.objective <= opt.report.loss_before
        True

    Source: the note (Mercklé 2024), equation (28).
    """

    _exchanges = True

    def __init__(
        self,
        params: Any,
        gamma: float | None = None,
        *,
        lr: float | Tensor | None = None,
        distance: str | Distance = "emd",
        solver: str | Solver = "auto",
        classes: str | Tensor | None = "sign",
        weight_decay: float = 0.0,
        max_eval: int | None = None,
        tolerance_grad: float = TOLERANCE_GRAD,
        inexact: float | None = None,
        process_group: Any = "auto",
        callback: Callback | None = None,
        seconds: float | None = None,
    ) -> None:
        super().__init__(
            params,
            gamma,
            lr=lr,
            distance=distance,
            solver=solver,
            classes=classes,
            weight_decay=weight_decay,
            max_eval=max_eval,
            tolerance_grad=tolerance_grad,
            inexact=inexact,
            process_group=process_group,
            callback=callback,
            seconds=seconds,
        )


class FrobeniusProx(ProximalPoint):
    r"""Proximal point steps in the mean squared distance neuron by neuron.

    .. math:: W_{t+1} = \arg\min_V F(V) + \frac{1}{2\gamma m} \sum_i |V_i - W_{t,i}|^2

    Clouds are found as in :class:`WassersteinProx`: they set the mass 1/m of a particle. Any other
    tensor is plain, |V - W|^2 / (2 gamma).

    Args:
        params: Parameters, named parameters or groups, as for any torch optimizer.
        gamma: Step size, >= 0 (0: no move), 1 by default. As gamma -> 0 a cloud moves by
            -m gamma grad F.
        lr: Another name of ``gamma`` for tools that pass it; ``gamma`` wins when both are given.
        solver: "auto", "gd", "adam", "bfgs", "lbfgs", "global", "map", or an object with options.
        weight_decay: F gets (weight_decay/2)|V|^2, in closed form inside the prox (implicit).
        max_eval: Closure evaluations allowed in one step, the first and the last included. None:
            100 in the first step and while the loss stays one function, 5 in a step whose loss is
            another one than in the last step, as on minibatches; ``report.max_eval`` says which.
        tolerance_grad: Converged when |grad P| <= tolerance_grad |grad F(W)|.
        inexact: rho of the rule |grad P| <= rho |V - W|/(m gamma), None to switch it off.
        process_group: "auto" (the default group if torch.distributed is initialised), None, or the
            group of the ranks that step together.
        callback: Called at every evaluation with a :class:`~torch_wprox.Progress`; a true answer
            ends the step at its best point.
        seconds: Time budget of one step; when it is up, the step ends at the best point so far.

    Raises:
        ValueError: An argument is out of range; the message says the remedy.

    Example:
        >>> import torch, torch_wprox
        >>> w = torch.nn.Parameter(torch.ones(1, 2))  # prox of |w|^2/2 is w/(1 + gamma)
        >>> opt = torch_wprox.FrobeniusProx([w], gamma=1.0)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = w.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.detach()
        tensor([[0.5000, 0.5000]])

    Source: the note (Mercklé 2024), equation (16).
    """

    def __init__(
        self,
        params: Any,
        gamma: float | None = None,
        *,
        lr: float | Tensor | None = None,
        solver: str | Solver = "auto",
        weight_decay: float = 0.0,
        max_eval: int | None = None,
        tolerance_grad: float = TOLERANCE_GRAD,
        inexact: float | None = None,
        process_group: Any = "auto",
        callback: Callback | None = None,
        seconds: float | None = None,
    ) -> None:
        super().__init__(
            params,
            gamma,
            lr=lr,
            distance="frobenius",
            solver=solver,
            classes="sign",
            weight_decay=weight_decay,
            max_eval=max_eval,
            tolerance_grad=tolerance_grad,
            inexact=inexact,
            process_group=process_group,
            callback=callback,
            seconds=seconds,
        )
