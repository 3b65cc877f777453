"""What holds for every distance with every inner solver in every parameterisation."""

import copy
import io
import itertools
import math

import pytest
import torch

from conftest import DEVICE, closure_for
from torch_wprox import FrobeniusProx, MeanFieldLayer, Status, WassersteinProx
from torch_wprox.layers.parameterizations import PARAMETERIZATIONS
from torch_wprox.optim import catalog
from torch_wprox.particles.layouts import views_of_group

pytestmark = pytest.mark.slow  # in all: too long for `make quick`

FORMS = list(PARAMETERIZATIONS)
DISTANCES, SOLVERS = list(catalog.DISTANCES), list(dict.fromkeys(["auto", *catalog.SOLVERS]))


def is_supported(distance, solver, form):
    """The global solver knows the transport and the Frobenius cost of homogeneous particles."""
    is_known = distance in ("frobenius", "emd") and PARAMETERIZATIONS[form].is_homogeneous
    return solver != "global" or is_known


def supported(combinations):
    return [c for c in dict.fromkeys(combinations) if is_supported(*c)]


EVERYTHING = supported(itertools.product(DISTANCES, SOLVERS, FORMS))
# Every pair (distance, solver) and (distance, form).
PAIRS = supported(
    [
        (distance, solver, FORMS[(2 * i + j) % len(FORMS)])
        for (i, distance), (j, solver) in itertools.product(
            enumerate(DISTANCES), enumerate(SOLVERS)
        )
    ]
    + [
        (distance, SOLVERS[(i + j) % len(SOLVERS)], form)
        for (i, distance), (j, form) in itertools.product(enumerate(DISTANCES), enumerate(FORMS))
    ]
)


def over(combinations):
    """One case under Sinkhorn, whose evaluations cost tens of the others; the rest by night."""
    first = next((c for c in combinations if c[0] == "sinkhorn"), None)
    cases = [
        pytest.param(
            *c,
            id="-".join(c),
            marks=[pytest.mark.nightly] if c[0] == "sinkhorn" and c != first else [],
        )
        for c in combinations
    ]
    return pytest.mark.parametrize(("distance", "solver", "form"), cases)


GAMMA, MAX_EVAL = 0.5, 15


def problem(form, seed=0):
    """A layer with two outputs and an output bias (a plain tensor), and its data."""
    g = torch.Generator().manual_seed(seed)
    layer = MeanFieldLayer(
        *(2, 6, 2), parameterization=form, output_bias=True, generator=g, dtype=torch.float64
    )
    x = torch.randn(5, 2, generator=g, dtype=torch.float64)
    y = torch.randn(5, 2, generator=g, dtype=torch.float64)
    return layer.to(DEVICE[0]), x.to(DEVICE[0]), y.to(DEVICE[0])


def optimizer_of(layer, distance, solver, gamma=GAMMA, max_eval=MAX_EVAL):
    if distance == "frobenius":
        return FrobeniusProx(layer.parameters(), gamma, solver=solver, max_eval=max_eval)
    return WassersteinProx(
        layer.parameters(), gamma, distance=distance, solver=solver, max_eval=max_eval
    )


def loss_of(layer, x, y):
    return (layer(x) - y).square().mean()


def closure_of(opt, layer, x, y):
    return closure_for(opt, lambda: loss_of(layer, x, y))


@over(EVERYTHING)
@pytest.mark.parametrize(
    "gamma", [1.0, *(pytest.param(g, marks=pytest.mark.slow) for g in (1e-3, 1e4))]
)
def test_a_step_descends_and_its_report_is_true(distance, solver, form, gamma):
    layer, x, y = problem(form)
    opt = optimizer_of(layer, distance, solver, gamma)
    for _ in range(2):
        before = loss_of(layer, x, y).item()
        first = opt.step(closure_of(opt, layer, x, y))
        after, report = loss_of(layer, x, y).item(), opt.report
        assert all(p.isfinite().all() for p in layer.parameters())
        assert first.item() == before == pytest.approx(report.loss_before, rel=1e-14)
        assert after == pytest.approx(report.loss_after, rel=1e-12)
        assert report.objective <= before * (1 + 1e-14)
        total = report.loss_after + report.distance_sq / (2 * gamma)
        assert report.objective == pytest.approx(total, rel=1e-12)
        assert 1 <= report.evaluations <= MAX_EVAL
        assert report.status in set(Status)
        assert 0 <= report.wasserstein_sq <= report.frobenius_sq * (1 + 1e-12)
        assert 0 <= report.permuted_fraction <= 1
        assert math.isfinite(report.residual)
        if distance in ("frobenius", "emd"):
            exact = report.frobenius_sq if distance == "frobenius" else report.wasserstein_sq
            assert report.distance_sq == pytest.approx(exact, rel=1e-9, abs=1e-15)
        if gamma <= 1:  # far from a minimum, and the first trial step is not too long
            assert report.objective < before
            assert report.distance_sq > 0


@over(PAIRS)
def test_a_saved_run_goes_on_bit_by_bit(distance, solver, form):
    layer, x, y = problem(form)
    opt = optimizer_of(layer, distance, solver)
    opt.step(closure_of(opt, layer, x, y))
    buffer = io.BytesIO()
    torch.save({"layer": layer.state_dict(), "opt": opt.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed, _, _ = problem(form, seed=1)
    resumed.load_state_dict(saved["layer"])
    other = optimizer_of(resumed, distance, solver)
    other.load_state_dict(saved["opt"])
    opt.step(closure_of(opt, layer, x, y))
    other.step(closure_of(other, resumed, x, y))
    for p, q in zip(layer.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


@over(PAIRS)
def test_a_step_commutes_with_exchanges_inside_the_classes(distance, solver, form):
    ends = []
    for exchanged in (False, True):
        layer, x, y = problem(form)
        [view] = [v for v in views_of_group(list(layer.parameters())) if v.is_cloud]
        sigma = torch.arange(view.m, device=DEVICE[0])
        if exchanged:
            # Reverse the members of every class: an exchange that leaves the network what it is.
            labels = torch.zeros_like(sigma) if view.classes is None else view.classes
            for label in labels.unique():
                members = (labels == label).nonzero().squeeze(1)
                sigma[members] = members.flip(0)
        layer.particles.data = layer.particles.data[sigma]
        opt = optimizer_of(layer, distance, solver, max_eval=6)
        opt.step(closure_of(opt, layer, x, y))
        ends.append(view.read()[torch.argsort(sigma)])
    # Sums run in another order, and six evaluations do not amplify that much.
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-9)


@over([c for c in itertools.product(DISTANCES, SOLVERS, FORMS) if not is_supported(*c)])
def test_what_a_solver_cannot_do_it_refuses_without_moving(distance, solver, form):
    layer, x, y = problem(form)
    opt = optimizer_of(layer, distance, solver)
    before = [p.detach().clone() for p in layer.parameters()]
    with pytest.raises(ValueError, match=r"bfgs|parameterization=|distance="):
        opt.step(closure_of(opt, layer, x, y))
    for p, q in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p, q)


@over(PAIRS)
def test_an_error_inside_the_closure_leaves_the_parameters_at_the_anchor(distance, solver, form):
    layer, x, y = problem(form)
    opt = optimizer_of(layer, distance, solver)
    opt.step(closure_of(opt, layer, x, y))
    before = [p.detach().clone() for p in layer.parameters()]
    state = copy.deepcopy(opt.state_dict())
    closure, calls = closure_of(opt, layer, x, y), itertools.count()

    def failing():
        if next(calls) == 2:
            raise KeyboardInterrupt
        return closure()

    with pytest.raises(KeyboardInterrupt):
        opt.step(failing)
    for p, q in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p, q)
    assert str(opt.state_dict()) == str(state)


def poisoned(closure, calls):
    """The closure, with a loss of NaN at some of its calls."""
    count = itertools.count()
    return lambda: closure() * (math.nan if next(count) in calls else 1)


@over([c for c in PAIRS if c[1] != "global"])
def test_points_without_a_finite_loss_are_rejected(distance, solver, form):
    layer, x, y = problem(form)
    opt = optimizer_of(layer, distance, solver)
    before = loss_of(layer, x, y).item()
    opt.step(poisoned(closure_of(opt, layer, x, y), (1, 3, 4)))
    assert loss_of(layer, x, y).item() <= before
    assert opt.report.objective <= before * (1 + 1e-14)
    assert all(p.isfinite().all() for p in layer.parameters())


@over([c for c in PAIRS if c[1] == "global"])
def test_the_global_solver_refuses_a_loss_that_is_no_function_and_moves_nothing(
    distance, solver, form
):
    layer, x, y = problem(form)
    before = [p.detach().clone() for p in layer.parameters()]
    opt = optimizer_of(layer, distance, solver)
    with pytest.raises(ValueError, match="not a function of the output"):
        opt.step(poisoned(closure_of(opt, layer, x, y), (1, 3, 4)))
    for p, q in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("distance", catalog.DISTANCES)
@pytest.mark.parametrize("form", FORMS)
def test_nothing_moves_from_an_anchor_without_a_finite_loss(distance, form):
    layer, x, y = problem(form)
    before = [p.detach().clone() for p in layer.parameters()]
    opt = optimizer_of(layer, distance, "auto")
    with pytest.warns(UserWarning, match="not finite"):
        opt.step(closure_of(opt, layer, x * math.inf, y))
    assert opt.report.status is Status.NONFINITE
    for p, q in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p, q)
