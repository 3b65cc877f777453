"""Which energy drove a flow: potential, interaction and temperature from clouds at times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from torch_wprox.distances.emd.wasserstein import wasserstein_sq
from torch_wprox.maps.features import Features
from torch_wprox.maps.learned import LearnedEnergy, Term
from torch_wprox.maps.linear_fit import fitted_coefficients
from torch_wprox.maps.network_fit import fitted_networks
from torch_wprox.maps.transition import Transition

Coupling = Literal["optimal", "rows"]
Scheme = Literal["implicit", "explicit"]


def learn_energy(
    snapshots: Sequence[Tensor],
    gamma: float | Sequence[float],
    *,
    potential: Features | nn.Module | None = None,
    interaction: Features | nn.Module | None = None,
    entropy: bool | float = False,
    coupling: Coupling = "optimal",
    scheme: Scheme = "implicit",
    partners: int = 64,
    ridge: float = 1e-10,
    max_eval: int = 500,
    seed: int = 0,
) -> LearnedEnergy:
    r"""Learn the energy whose JKO steps lead from every cloud to the next.

    A step from :math:`\mu_t` to :math:`\mu_{t+1}` along an optimal plan satisfies, wherever it
    takes x to y,

    .. math:: \nabla V(y) + (\nabla U * \mu_{t+1})(y) + T \nabla\log\mu_{t+1}(y)
        + \frac{y - x}{\gamma} = 0.

    The mean square of the left side is minimised. In given features it is a linear least squares,
    and no density is estimated: as
    :math:`E\langle g, \nabla\log\mu\rangle = -E\,\mathrm{div}\, g`, the entropy enters through
    Laplacians of V and U. A temperature that is not known is found from how the projections of this
    condition on the features' gradients change in time. Networks are trained by L-BFGS; with an
    entropy :math:`\mu_{t+1}` is estimated by a mixture of Gaussians.

    Args:
        snapshots: Clouds (m_t, D) at successive times, two or more; sizes may differ.
        gamma: Time between two clouds, > 0; a sequence where it changes.
        potential: Features, points (m, D) to (m, K) (:func:`~torch_wprox.maps.polynomials`,
            :func:`~torch_wprox.maps.radial`, :func:`~torch_wprox.maps.ridges` or your own), or a
            network, (m, D) to (m, 1); None: no potential.
        interaction: The same for U, a function of differences x - y; even in them.
        entropy: False: none. True: with a temperature to be found (three clouds or more). A number:
            that temperature.
        coupling: "optimal": exact transport between the clouds. "rows": row i of one cloud
            becomes row i of the next (particles that were followed).
        scheme: "implicit": the condition above, at the ends y of the steps. "explicit": the same
            at their starts x, which is exact for clouds made by explicit Euler steps. Between
            samples of a flow in continuous time both are off by O(gamma), in opposite directions.
        partners: Others that a point meets in the interaction; all of them in clouds that have no
            more.
        ridge: Relative weight of |coefficients|^2, against features that do the same.
        max_eval: Evaluations for training networks.
        seed: Of the choice of partners.

    Raises:
        ValueError: An argument does not fit; the message says the remedy.

    Example:
        >>> from torch_wprox.maps import polynomials
        >>> y = torch.randn(200, 2, dtype=torch.float64)
        >>> x = y + 0.1 * y  # a step of V(y) = |y|^2/2 with gamma = 0.1
        >>> found = learn_energy([x, y], 0.1, potential=polynomials(2, 2))
        >>> torch.allclose(found.potential_gradient(y), y, atol=1e-6)
        True

    Source: Terpin, Lanzetti, Gadea & Doerfler, Learning diffusion at lightspeed (JKOnet*), 2024;
    the weak form of the entropy is ours.
    """
    transitions = _transitions(snapshots, gamma, coupling, scheme)
    if potential is None and interaction is None:
        raise ValueError("give potential= or interaction=: there is nothing to learn")
    if not ridge >= 0:
        raise ValueError(f"ridge must be >= 0, got {ridge!r}")
    if partners < 1:
        raise ValueError(f"partners must be >= 1, got {partners!r}")
    temperature = None if entropy is True else float(entropy)
    if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"entropy must be a bool or a temperature >= 0, got {entropy!r}")
    if temperature is None and len(transitions) < 2:
        raise ValueError(
            "entropy=True needs three snapshots or more: one transition cannot tell a temperature "
            "from a potential"
        )
    of_potential = potential if isinstance(potential, nn.Module) else None
    of_interaction = interaction if isinstance(interaction, nn.Module) else None
    if of_potential is not None or of_interaction is not None:
        if of_potential is not potential or of_interaction is not interaction:
            raise ValueError("potential and interaction must both be features or both networks")
        found = fitted_networks(
            transitions, of_potential, of_interaction, temperature, partners, max_eval, seed
        )
        return replace(found, scheme=scheme)
    sought = (("potential", potential), ("interaction", interaction))
    terms = [Term(name, features) for name, features in sought if features is not None]
    found = fitted_coefficients(transitions, terms, temperature, partners, ridge, seed)
    return replace(found, scheme=scheme)


def _transitions(
    snapshots: Sequence[Tensor], gamma: float | Sequence[float], coupling: Coupling, scheme: Scheme
) -> list[Transition]:
    if scheme not in ("implicit", "explicit"):
        raise ValueError(f"scheme must be 'implicit' or 'explicit', got {scheme!r}")
    if coupling not in ("optimal", "rows"):
        raise ValueError(f"coupling must be 'optimal' or 'rows', got {coupling!r}")
    clouds = [cloud.detach() for cloud in snapshots]
    if len(clouds) < 2:
        raise ValueError(f"snapshots must be two clouds or more, got {len(clouds)}")
    if any(c.ndim != 2 or not c.is_floating_point() or len(c) < 2 for c in clouds) or (
        len({c.shape[1] for c in clouds}) > 1
    ):
        raise ValueError(
            "snapshots must be floating point matrices (m, D) of one dimension D with m >= 2, got "
            f"shapes {[tuple(c.shape) for c in clouds]}"
        )
    if coupling == "rows" and len({len(c) for c in clouds}) > 1:
        raise ValueError(
            f"coupling='rows' needs clouds of one size, got {[len(c) for c in clouds]}: take "
            "'optimal'"
        )
    count = len(clouds) - 1
    gammas = list(gamma) if isinstance(gamma, Sequence) else [gamma] * count
    if len(gammas) != count or not all(math.isfinite(g) and g > 0 for g in gammas):
        raise ValueError(f"gamma must be > 0, one number or one per step ({count}), got {gamma!r}")
    steps = zip(clouds[:-1], clouds[1:], gammas, strict=True)
    if scheme == "implicit":
        return [Transition(y, (y - _partners(y, x, coupling)) / g) for x, y, g in steps]
    return [Transition(x, (_partners(x, y, coupling) - x) / g) for x, y, g in steps]


def _partners(x: Tensor, y: Tensor, coupling: Coupling) -> Tensor:
    """Return for every x_i the mean of the y that an optimal plan joins with it, (m, D).

    The gradient of W2^2 in x_i is 2 (x_i - mean y)/m (Danskin).
    """
    if coupling == "rows":
        return y
    with torch.enable_grad():
        moved = x.clone().requires_grad_()
        (pull,) = torch.autograd.grad(wasserstein_sq(moved, y), moved)
    return x - 0.5 * len(x) * pull
