"""One network, five measures: what agrees between the parameterisations, and what does not."""

import pytest
import torch

from conftest import closure_for
from torch_wprox.layers.mean_field import MeanFieldLayer
from torch_wprox.layers.parameterizations import PARAMETERIZATIONS
from torch_wprox.optim.optimizers import FrobeniusProx, WassersteinProx
from torch_wprox.particles.layouts import views_of_group

FORMS = ["joint", "signed", "clouds", "sphere", "radial"]

X = torch.tensor([[-0.5, 1.0], [0.25, 1.0], [0.75, 1.0]], dtype=torch.float64)
W = torch.tensor([[1.0, 0.5], [-0.6, 0.8], [0.3, -0.1], [-0.9, -0.4]], dtype=torch.float64)
ALPHA = torch.tensor([0.7, -1.2, 0.5, 0.9], dtype=torch.float64)
Y = torch.tensor([-0.3, 0.0, 0.5], dtype=torch.float64)
M, D = W.shape


def network(form, w=W, alpha=ALPHA):
    return MeanFieldLayer.from_neurons(w, alpha, parameterization=form)


def loss_of(layer):
    return (layer(X).squeeze(1) - Y).square().mean()


def cloud(layer):
    [view] = views_of_group(list(layer.parameters()))
    return view


def slope(layer):
    """-m grad F, the velocity of the particles, in the stored coordinates."""
    [grad] = torch.autograd.grad(loss_of(layer), [layer.particles])
    return -M * grad


def velocity(form):
    """The same as a function of the particles, for the flows."""
    formulas = PARAMETERIZATIONS[form]
    frozen = torch.sign(ALPHA).unsqueeze(1)

    def field(particles):
        particles = particles.detach().requires_grad_(True)
        w, a = formulas.neurons(particles, D, frozen)
        z = (torch.relu(X @ w.t()) @ a).squeeze(1) / M
        [grad] = torch.autograd.grad((z - Y).square().mean(), [particles])
        return -M * grad

    return field


def flow(field, start, time, steps):
    """Classical Runge-Kutta of order 4 with a fixed step (adaptive ones hang at the kinks)."""
    v, h = start, time / steps
    for _ in range(steps):
        k1 = field(v)
        k2 = field(v + h / 2 * k1)
        k3 = field(v + h / 2 * k2)
        k4 = field(v + h * k3)
        v = v + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return v


def cone_metric(field):
    """Gradient flow in dr^2 + r^2 |d eta|^2 from the plain derivatives."""

    def curved(particles):
        v = field(particles)
        return torch.cat([v[:, :1], v[:, 1:] / particles[:, :1].square()], dim=1)

    return curved


def theta_of(radial):
    return radial[:, :1] * radial[:, 1:]


START = {form: network(form).particles.detach() for form in FORMS}


# -- one network


@pytest.mark.parametrize("form", FORMS)
def test_all_five_answer_the_output_of_the_same_neurons(form):
    expected = torch.tensor([[-0.31875], [-0.06375], [0.129375]], dtype=torch.float64)
    torch.testing.assert_close(network(form)(X), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_particles_are_what_the_note_says(form):
    layer, norm = network(form), W.norm(dim=1, keepdim=True)
    alpha = ALPHA.unsqueeze(1)
    theta = torch.cat([W, alpha], dim=1)
    r = theta.norm(dim=1, keepdim=True)
    expected = {
        "joint": theta,
        "signed": W,
        "clouds": alpha.abs() * W,
        "sphere": torch.cat([W / norm, norm * alpha], dim=1),
        "radial": torch.cat([r, theta / r], dim=1),
    }[form]
    torch.testing.assert_close(layer.particles.detach(), expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("form", FORMS)
def test_the_output_is_the_integral_against_the_measure(form):
    layer = network(form)
    position, mass = layer.positions(), layer.masses()
    neuron = {
        "joint": lambda p: p[:, 2] * torch.relu(X @ p[:, :2].t()),
        "signed": lambda p: torch.relu(X @ p.t()),
        "clouds": lambda p: layer.signs * torch.relu(X @ p.t()),
        "sphere": lambda p: p[:, 2] * torch.relu(X @ p[:, :2].t()),
        "radial": lambda p: p[:, 2] * torch.relu(X @ p[:, :2].t()),
    }[form]
    output = (neuron(position) * mass).sum(dim=1, keepdim=True)
    torch.testing.assert_close(output, layer(X).detach(), rtol=1e-14, atol=1e-15)
    total = {"signed": ALPHA.mean(), "radial": (W.square().sum() + ALPHA.square().sum()) / M}
    assert mass.sum().item() == pytest.approx(float(total.get(form, 1.0)), rel=1e-14)


# -- radial is joint in polar coordinates


def test_the_cone_cost_is_the_euclidean_cost_of_joint():
    g = torch.Generator().manual_seed(0)
    theta = torch.randn(2, 9, 3, dtype=torch.float64, generator=g)
    r = theta.norm(dim=2)
    eta = theta / r[..., None]
    cone = (r[0] - r[1]) ** 2 + r[0] * r[1] * (eta[0] - eta[1]).square().sum(dim=1)
    torch.testing.assert_close(cone, (theta[0] - theta[1]).square().sum(dim=1))
    # ... and the view of "radial" is the cloud in which it is Euclidean.
    views = [cloud(network("radial", t[:, :2], t[:, 2])) for t in theta]
    cost = (views[0].read() - views[1].read()).square().sum(dim=1)
    torch.testing.assert_close(cost, cone, rtol=1e-12, atol=0)


def test_radial_and_joint_have_one_gradient_in_the_cloud():
    radial, joint = network("radial"), network("joint")
    for layer in (radial, joint):
        loss_of(layer).backward()
    torch.testing.assert_close(cloud(radial).read(), START["joint"], rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(
        cloud(radial).read_grad(), cloud(joint).read_grad(), rtol=1e-14, atol=1e-16
    )


def test_radial_derivatives_are_twice_r_times_the_potential_and_its_spherical_gradient():
    """J = <grad R(z), psi>, 2-homogeneous: r' = -2 r J(eta), and eta' = -grad_S J(eta)."""
    residual = 2 * (network("joint")(X).squeeze(1).detach() - Y) / 3

    def potential(eta):
        return eta[:, 2] * (residual @ torch.relu(X @ eta[:, :2].t()))

    r, eta = START["radial"][:, :1], START["radial"][:, 1:].clone().requires_grad_(True)
    [grad] = torch.autograd.grad(potential(eta).sum(), [eta])
    eta = eta.detach()
    on_sphere = grad - (grad * eta).sum(dim=1, keepdim=True) * eta
    expected = torch.cat([-2 * r * potential(eta).unsqueeze(1), -on_sphere], dim=1)
    field = cone_metric(velocity("radial"))
    torch.testing.assert_close(field(START["radial"]), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.slow
def test_radial_and_joint_are_one_gradient_flow():
    # One neuron crosses a kink on the way, so the order of the scheme is lost there.
    joint = flow(velocity("joint"), START["joint"], 1.0, 400)
    radial = flow(cone_metric(velocity("radial")), START["radial"], 1.0, 400)
    assert (joint - START["joint"]).abs().max() > 0.2
    crossed = (joint[:, :2] @ X.t() > 0) != (W @ X.t() > 0)
    assert crossed.any()
    torch.testing.assert_close(theta_of(radial), joint, rtol=0, atol=1e-11)
    lengths = radial[:, 1:].norm(dim=1)  # kept by the flow; the scheme adds O(h^4)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-10)


def test_the_product_metric_is_another_flow():
    joint = flow(velocity("joint"), START["joint"], 0.2, 100)
    product = flow(velocity("radial"), START["radial"], 0.2, 100)
    assert (theta_of(product) - joint).abs().max() > 0.05


@pytest.mark.parametrize("optimizer", [FrobeniusProx, WassersteinProx])
def test_radial_and_joint_have_one_proximal_step(optimizer):
    stepped = {}
    for form in ("joint", "radial"):
        layer = network(form)
        opt = optimizer(layer.parameters(), gamma=0.3, max_eval=200, solver="gd")
        for _ in range(3):
            opt.step(closure_of(opt, layer))
        stepped[form] = cloud(layer).read()
    assert (stepped["joint"] - START["joint"]).abs().max() > 0.05
    torch.testing.assert_close(stepped["radial"], stepped["joint"], rtol=0, atol=1e-7)


# -- clouds and sphere are other flows, and which


def test_the_joint_flow_moves_the_clouds_by_an_induced_metric():
    """dw~/dt = (alpha^2 I + w w^T)(-m grad), w~ = |alpha| w."""
    joint, clouds = slope(network("joint")), slope(network("clouds"))
    w, alpha = W, ALPHA.unsqueeze(1)
    moved = alpha.abs() * joint[:, :2] + torch.sign(alpha) * joint[:, 2:] * w
    induced = alpha.square() * clouds + w * (w * clouds).sum(dim=1, keepdim=True)
    torch.testing.assert_close(moved, induced, rtol=1e-13, atol=1e-15)
    assert (induced - clouds).abs().max() > 0.05


def test_the_flow_of_the_clouds_is_not_the_joint_flow():
    joint = flow(velocity("joint"), START["joint"], 1.0, 200)
    clouds = flow(velocity("clouds"), START["clouds"], 1.0, 200)
    assert (joint[:, 2:].abs() * joint[:, :2] - clouds).abs().max() > 0.05


def test_the_joint_flow_moves_the_sphere_by_an_induced_metric():
    """Direction' = direction'_sphere / |w|^2, a' = (|w|^2 + alpha^2) a'_sphere."""
    joint, sphere = slope(network("joint")), slope(network("sphere"))
    norm, alpha = W.norm(dim=1, keepdim=True), ALPHA.unsqueeze(1)
    u = W / norm
    stretch = (u * joint[:, :2]).sum(dim=1, keepdim=True)
    turned = (joint[:, :2] - stretch * u) / norm
    grown = stretch * alpha + norm * joint[:, 2:]
    torch.testing.assert_close(turned, sphere[:, :2] / norm**2, rtol=1e-13, atol=1e-15)
    expected = (norm**2 + alpha**2) * sphere[:, 2:]
    torch.testing.assert_close(grown, expected, rtol=1e-13, atol=1e-15)


# -- balancedness I = |w|^2 - alpha^2


def balance(particles):
    return particles[:, :2].square().sum(dim=1) - particles[:, 2].square()


def closure_of(opt, layer):
    return closure_for(opt, lambda: loss_of(layer))


@pytest.mark.parametrize("lr", [1.0, 0.1])
def test_an_explicit_step_changes_the_balance_by_the_gradients_alone(lr):
    layer = network("joint")
    loss_of(layer).backward()
    g = layer.particles.grad.clone()
    before = balance(layer.particles.detach())
    torch.optim.SGD(layer.parameters(), lr=lr).step()
    change = balance(layer.particles.detach()) - before
    torch.testing.assert_close(change, lr**2 * balance(g), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("gamma", [0.03, 0.3])
def test_a_proximal_step_changes_the_balance_by_the_gradients_after_it(gamma):
    """I_{t+1} = I_t - (m gamma)^2 (|g_w+|^2 - g_alpha+^2), g+ the gradient at the new point."""
    layer = network("joint")
    before = balance(layer.particles.detach())
    opt = FrobeniusProx(layer.parameters(), gamma, max_eval=1000, tolerance_grad=1e-12)
    opt.step(closure_of(opt, layer))
    assert opt.report.residual < 1e-10
    g = layer.particles.grad
    change = balance(layer.particles.detach()) - before
    torch.testing.assert_close(change, -((M * gamma) ** 2) * balance(g), rtol=0, atol=1e-9)
    assert change.abs().max() > 1e-5


def test_the_flow_conserves_the_balance():
    end = flow(velocity("joint"), START["joint"], 1.0, 500)
    torch.testing.assert_close(balance(end), balance(START["joint"]), rtol=0, atol=1e-9)


def test_steps_conserve_the_balance_to_first_order():
    """Explicit steps over a fixed time drift by O(step): half the step, half the drift."""
    drifts = {}
    for steps in (50, 100):
        lr = 0.5 * M / steps
        layer = network("joint")
        sgd = torch.optim.SGD(layer.parameters(), lr=lr)
        for _ in range(steps):
            sgd.step(closure_of(sgd, layer))
        drifts[steps] = (balance(layer.particles.detach()) - balance(START["joint"])).abs().max()
    assert drifts[50] > 1e-4
    assert drifts[50] / drifts[100] == pytest.approx(2, rel=0.05)


# -- the projection of "sphere"


def test_sphere_projection_is_idempotent_and_keeps_the_network():
    layer = network("sphere")
    before = layer(X)
    view = cloud(layer)
    V = view.read()
    V[:, :2] *= torch.tensor([[2.0], [0.5], [1e-8], [1e8]])
    P = view.project(V)
    assert torch.equal(view.project(P), P)
    view.write(P)
    torch.testing.assert_close(layer(X), before, rtol=1e-14, atol=1e-15)


def test_steps_on_the_sphere_stay_on_it():
    layer = network("sphere")
    opt = WassersteinProx(layer.parameters(), gamma=1.0)
    for _ in range(3):
        opt.step(closure_of(opt, layer))
        lengths = layer.particles.detach()[:, :2].norm(dim=1)
        # A direction counts as normalised within 8 roundings, and is then left alone.
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=8 * 2.3e-16)
    assert (layer.particles.detach() - START["sphere"])[:, :2].abs().max() > 1e-2


@pytest.mark.parametrize("form", ["sphere", "radial"])
def test_project_and_cotangent_are_adjoint(form):
    formulas = PARAMETERIZATIONS[form]
    cloud_point = torch.randn(5, 3, dtype=torch.float64).requires_grad_(True)
    g = torch.randn(5, 3, dtype=torch.float64)
    (formulas.project(cloud_point, 2) * g).sum().backward()
    ours = formulas.cotangent(cloud_point.detach(), g, 2)
    torch.testing.assert_close(ours, cloud_point.grad, rtol=1e-13, atol=1e-14)
