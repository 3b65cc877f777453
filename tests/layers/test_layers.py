import copy
import functools
import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from torch_wprox.layers.initialization import grid
from torch_wprox.layers.mean_field import MeanFieldLayer, live_layer_of, live_layers
from torch_wprox.layers.parameterizations import PARAMETERIZATIONS

FORMS = list(PARAMETERIZATIONS)
FROZEN = ["signed", "clouds"]
TRAINED = ["joint", "sphere", "radial"]


def make(form, **options):
    options = {"width": 8, "out_features": 2, "dtype": torch.float64, **options}
    return MeanFieldLayer(3, parameterization=form, **options)


def seeded(number=0):
    return torch.Generator().manual_seed(number)


# -- finding a layer through its parameter


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_is_found_through_its_parameter_after_every_way_of_copying(form):
    layer = make(form, output_bias=True)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assigned = make(form, output_bias=True)
    assigned.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    narrow = make(form, output_bias=True, dtype=torch.float32)
    narrow.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    copies = {
        "copy": copy.copy(layer),
        "deepcopy": copy.deepcopy(layer),
        "pickle": pickle.loads(pickle.dumps(layer)),
        "save": torch.load(buffer, weights_only=False),
        "assign": assigned,
        "assign of another dtype": narrow,
    }
    x = torch.randn(5, 3, dtype=torch.float64)
    for name, twin in copies.items():
        assert torch.equal(twin(x), layer(x)), name
        if name != "copy":
            assert all(live_layer_of(p) is twin for p in twin.parameters()), name
    turned = copy.deepcopy(layer).float().double()
    assert live_layer_of(turned.particles) is turned


def test_the_registry_keeps_no_layer_alive():
    layer = make("joint")
    key = id(layer.particles)
    assert key in live_layers()
    del layer
    assert key not in live_layers()


# -- the forward map


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("bias", "output_bias"), [*itertools.product([True, False], repeat=2)])
@pytest.mark.parametrize("outputs", [1, 3])
def test_forward_is_the_sum_over_neurons(form, reduction, bias, output_bias, outputs):
    options = {"bias": bias, "output_bias": output_bias, "reduction": reduction}
    layer = make(form, out_features=outputs, **options)
    if output_bias:
        layer.output_bias.data.normal_()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    inputs = torch.cat([x, torch.ones(2, 5, 1)], dim=-1) if bias else x
    w, a = layer.neurons()
    expected = sum(torch.relu(inputs @ w[i])[..., None] * a[i] for i in range(8)) / (
        8 if reduction == "mean" else 1
    )
    expected = expected + (layer.output_bias if output_bias else 0)
    assert layer(x).shape == (2, 5, outputs)
    torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(layer(x[0, 0]), expected[0, 0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_forward_compiles_as_one_graph_and_still_answers_a_substitute(form):
    layer = make(form)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x, z = torch.randn(5, 3, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
    assert torch.equal(compiled(x), layer(x))
    with layer.substituting(z):
        assert torch.equal(compiled(x), z)
    assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_the_layer_computes_in_its_dtype(form, dtype):
    layer = make(form, dtype=dtype, output_bias=True)
    x = torch.ones(4, 3, dtype=dtype)
    assert layer(x).dtype == layer.positions().dtype == layer.masses().dtype == dtype
    layer(x).sum().backward()
    exact = copy.deepcopy(layer).double()
    [grad] = torch.autograd.grad(exact(x.double()).sum(), exact.particles)
    # A few roundings: 4 terms and the norm of a particle.
    rounding = 16 * torch.finfo(dtype).eps * float(grad.abs().max())
    torch.testing.assert_close(layer.particles.grad.double(), grad, rtol=0, atol=rounding)


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_made_on_meta_is_filled_by_reset_parameters(form):
    layer = make(form, device="meta", output_bias=True)
    assert layer.particles.is_meta
    layer.to_empty(device="cpu").reset_parameters(seeded())
    twin = make(form, output_bias=True, generator=seeded())
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(layer(x), twin(x))


@pytest.mark.parametrize("form", FORMS)
def test_state_dicts_carry_everything_that_forward_reads(form):
    layer, other = make(form, output_bias=True), make(form, output_bias=True)
    if form == "signed":
        layer.alpha = torch.randn(8)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(layer(x), other(x))


# -- substitution


def test_backward_at_a_substitute_leaves_the_gradient_of_the_loss_there():
    layer = make("joint")
    x, z = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    z.requires_grad_(True)
    with layer.substituting(z), layer.observing() as seen:
        layer(x).square().sum().backward()
    torch.testing.assert_close(z.grad, 2 * z.detach())
    assert layer.particles.grad is None
    [(seen_x, seen_z)] = seen.calls
    assert torch.equal(seen_x, x)
    assert torch.equal(seen_z, z)
    assert not seen_z.requires_grad


def test_substitution_ends_with_its_block_even_after_an_error():
    layer = make("joint")
    x, z = torch.randn(5, 3, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
    own = layer(x)
    with layer.substituting(z + 1):
        with layer.substituting(z):
            assert torch.equal(layer(x), z)
        assert torch.equal(layer(x), z + 1)
        with pytest.raises(ValueError, match="z must"), layer.substituting(z[:1]):
            layer(x)
        assert torch.equal(layer(x), z + 1)
    assert torch.equal(layer(x), own)
    with layer.observing() as seen, layer.observing() as inner:
        layer(x)
    layer(x)
    assert (len(seen.calls), len(inner.calls)) == (0, 1)


def test_a_substitute_that_is_a_parameter_does_not_become_one_of_the_layer():
    layer = make("joint")
    z = nn.Parameter(torch.zeros(5, 2, dtype=torch.float64))
    with layer.substituting(z):
        assert len(list(layer.parameters())) == 1
        assert pickle.loads(pickle.dumps(layer)).state_dict().keys() == layer.state_dict().keys()


def test_a_substitute_of_another_shape_is_refused():
    layer = make("joint")
    with layer.substituting(torch.zeros(5, 1)), pytest.raises(ValueError, match=r"\(5, 2\)"):
        layer(torch.zeros(5, 3, dtype=torch.float64))


# -- initialisation


def test_one_seed_gives_one_network_wherever_output_weights_train_and_one_where_frozen():
    x = torch.randn(5, 3, dtype=torch.float64)
    for forms in (TRAINED, FROZEN):
        outputs = [make(form, generator=seeded())(x) for form in forms]
        for output in outputs[1:]:
            torch.testing.assert_close(output, outputs[0], rtol=1e-13, atol=1e-14)


def test_normal_initialisation_is_scale_times_a_standard_normal():
    layer = make("signed", init_scale=1e-2, generator=seeded())
    expected = 1e-2 * torch.empty(8, 4, dtype=torch.float64).normal_(generator=seeded())
    assert torch.equal(layer.particles, expected)


def test_uniform_initialisation_fills_the_cube_of_its_scale():
    particles = make("signed", width=1000, init="uniform", init_scale=3.0).particles
    assert 2.9 < particles.max() <= 3
    assert -3 <= particles.min() < -2.9


def test_the_global_generator_is_left_alone_by_a_generator_and_by_conversion():
    state = torch.get_rng_state()
    layer = make("joint", generator=seeded(), output_bias=True)
    layer.to_linear()
    MeanFieldLayer.from_neurons(torch.ones(4, 2), torch.ones(4))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("count", "dim"), [(4, 2), (9, 2), (50, 2), (8, 3), (27, 3), (5, 1)])
def test_a_grid_has_distinct_points_on_a_lattice_of_the_cube(count, dim):
    points = grid(count, dim, dtype=torch.float64)
    side = next(s for s in range(2, 100) if s**dim >= count)
    assert points.shape == (count, dim)
    assert len(points.unique(dim=0)) == count
    steps = (points + 1) * (side - 1) / 2
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-12)
    assert points[0].tolist() == [-1] * dim
    assert points[-1].tolist() == [1] * dim


def test_every_class_of_frozen_neurons_has_a_grid_of_its_own():
    layer = MeanFieldLayer(
        1, 18, parameterization="signed", init="grid", init_scale=0.5, dtype=torch.float64
    )
    plus, minus = layer.particles[:9], layer.particles[9:]
    assert torch.equal(plus, minus)
    assert torch.equal(plus, 0.5 * grid(9, 2, dtype=torch.float64))


def test_a_grid_that_would_be_larger_than_the_width_is_refused():
    with pytest.raises(ValueError, match=r"2\^5 particles.*init='normal'"):
        make("joint", out_features=1, width=31, init="grid")


@pytest.mark.parametrize("form", FORMS)
def test_init_functions_fill_in_place_or_return(form):
    layer = make(form, init=functools.partial(nn.init.constant_, val=2.0), init_scale=0.5)
    twin = make(form, init=torch.ones_like)
    assert torch.equal(layer.particles, twin.particles)


def test_an_init_function_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"init must fill .* \(8, 6\)"):
        make("joint", init=lambda t: t[0].clone())


@pytest.mark.parametrize("form", FROZEN)
def test_frozen_output_weights_are_balanced_and_plus_comes_first(form):
    layer = make(form, width=50, out_features=1)
    assert layer.alpha.tolist() == [1.0] * 25 + [-1.0] * 25
    layer = make(form, width=11, out_features=3)
    counts = [
        int(((layer.outputs == c) & (layer.signs == s)).sum()) for c in range(3) for s in (1, -1)
    ]
    assert counts == [2, 2, 2, 2, 2, 1]
    assert torch.equal(layer.outputs, layer.outputs.sort().values)
    a = layer.neurons()[1]
    assert torch.equal(a.abs(), nn.functional.one_hot(layer.outputs, 3).double())
    assert "alpha" not in dict(layer.named_parameters())


# -- given weights


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_given_neurons_are_the_network_in_every_parameterisation(form, reduction):
    g = seeded()
    w, b = torch.randn(6, 3, generator=g).double(), torch.randn(6, generator=g).double()
    alpha = (
        torch.randn(6, generator=g).double()[:, None] * torch.eye(2).double()[[0, 1, 1, 0, 1, 0]]
    )
    c = torch.tensor([0.5, -2.0], dtype=torch.float64)
    layer = MeanFieldLayer.from_neurons(
        w, alpha, bias=b, output_bias=c, parameterization=form, reduction=reduction
    )
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.relu(x @ w.t() + b) @ alpha / (6 if reduction == "mean" else 1) + c
    torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-14)
    assert layer.outputs.tolist() == [0, 1, 1, 0, 1, 0]
    assert torch.equal(layer.signs, alpha.sum(dim=1).sign())
    layer.reset_parameters(seeded())
    assert layer.particles.std() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_neurons_without_a_direction_are_silent(form):
    w = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    alpha = torch.tensor([3.0, 0.0], dtype=torch.float64)
    layer = MeanFieldLayer.from_neurons(w, alpha, parameterization=form)
    output = layer(torch.randn(5, 2, dtype=torch.float64))
    assert torch.equal(output, torch.zeros_like(output))
    output.sum().backward()
    assert layer.particles.grad.isfinite().all()
    nought = MeanFieldLayer.from_neurons(0 * w, 0 * alpha, parameterization=form)
    nought(torch.ones(5, 2, dtype=torch.float64)).sum().backward()
    assert nought.particles.grad.isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("output_bias", [True, False])
def test_from_linear_and_to_linear_are_inverse_to_each_other(bias, output_bias):
    first, second = nn.Linear(3, 7, bias=bias), nn.Linear(7, 2, bias=output_bias)
    layer = MeanFieldLayer.from_linear(first, second)
    assert (layer.parameterization, layer.reduction) == ("joint", "sum")
    x = torch.randn(5, 3)
    torch.testing.assert_close(layer(x), second(torch.relu(first(x))))
    for ours, theirs in zip(layer.to_linear(), (first, second), strict=True):
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value)
    again = MeanFieldLayer.from_linear(*layer.to_linear())
    assert torch.equal(again.particles, layer.particles)


@pytest.mark.parametrize("form", FORMS)
def test_to_linear_is_the_same_network_for_every_parameterisation(form):
    layer, x = make(form, output_bias=True), torch.randn(5, 3, dtype=torch.float64)
    first, second = layer.to_linear()
    torch.testing.assert_close(second(torch.relu(first(x))), layer(x), rtol=1e-13, atol=1e-14)


def test_alpha_of_a_signed_layer_can_be_set():
    layer, x = make("signed", out_features=1), torch.randn(5, 3, dtype=torch.float64)
    alpha = torch.arange(8.0) - 3
    layer.alpha = alpha
    w, _ = layer.neurons()
    hidden = torch.relu(torch.cat([x, torch.ones(5, 1)], dim=1) @ w.t())
    torch.testing.assert_close(layer(x), (hidden * alpha).mean(dim=1, keepdim=True))
    assert layer.alpha.dtype == torch.float64
    assert torch.equal(layer.masses(), alpha.double() / 8)
    alpha.zero_()
    assert layer.alpha.any()  # a copy
    layer.alpha = [1, -1] * 4
    assert layer.signs.tolist() == [1, -1] * 4


# -- the measure


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_masses_do_not_depend_on_the_reduction(form, reduction):
    layer = make(form, reduction=reduction)
    masses = {
        "signed": layer.signs / 8,
        "radial": layer.particles[:, 0].detach() ** 2 / 8,
    }.get(form, torch.full((8,), 1 / 8, dtype=torch.float64))
    assert torch.equal(layer.masses(), masses)


def test_positions_are_points_of_the_space_of_the_measure():
    for form in FORMS:
        layer = make(form)
        layer.particles.data *= 3
        positions = layer.positions()
        assert not positions.requires_grad
        positions.zero_()
        assert layer.particles.any()
    sphere, radial = make("sphere"), make("radial")
    sphere.particles.data *= 3
    lengths = sphere.positions()[:, :4].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert torch.equal(sphere.positions()[:, 4:], sphere.particles[:, 4:])
    lengths = radial.positions().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert radial.positions().shape == (8, 6)


@pytest.mark.parametrize("form", TRAINED)
def test_a_trained_neuron_counts_for_the_output_it_feeds_most(form):
    w, alpha = torch.eye(2), torch.tensor([[1.0, -3.0], [2.0, 0.5]])
    layer = MeanFieldLayer.from_neurons(w, alpha, parameterization=form)
    assert layer.outputs.tolist() == [1, 0]
    assert layer.signs.tolist() == [-1, 1]


def test_the_representation_names_what_makes_the_layer():
    text = repr(MeanFieldLayer(3, 8, 2, parameterization="sphere", reduction="sum"))
    for part in ("in_features=3", "width=8", "out_features=2", "'sphere'", "'sum'", "bias=True"):
        assert part in text


# -- wrong arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be an integer >= 1, got 0"),
        ({"width": 2.5}, ValueError, "width must be an integer >= 1, got 2.5"),
        ({"out_features": -1}, ValueError, "out_features must be an integer >= 1, got -1"),
        ({"form": "polar"}, ValueError, "parameterization must be one of .*joint.*got 'polar'"),
        ({"reduction": "max"}, ValueError, "reduction must be one of .*got 'max'"),
        ({"init": "xavier"}, ValueError, "init must be one of .*or a function, got 'xavier'"),
        ({"init_scale": float("nan")}, ValueError, "init_scale must be a finite number"),
        ({"form": "signed", "width": 1}, ValueError, "width must be >= out_features = 2"),
        ({"dtype": torch.complex64}, ValueError, "dtype must be a real floating"),
        ({"dtype": torch.int64}, ValueError, "dtype must be a real floating"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_name_and_value(options, error, message):
    form = options.pop("form", "joint")
    with pytest.raises(error, match=message):
        make(form, **options)


def test_numpy_integers_are_integers():
    layer = MeanFieldLayer(np.int64(3), np.int32(4))
    assert type(layer.width) is int


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"w": torch.ones(8, 4)}, r"w must have shape \(8, 3\), got \(8, 4\)"),
        ({"alpha": torch.ones(8)}, r"alpha must have shape \(8, 2\), got \(8,\)"),
        ({"alpha": torch.ones(8, 2)}, "at most one entry per row.*'joint'"),
        ({"bias": torch.ones(7)}, r"bias must have shape \(8,\)"),
        ({"bias": None}, "bias must be given: the layer was made with bias=True"),
        ({"output_bias": torch.ones(2)}, "output_bias must be None"),
    ],
)
def test_neurons_that_do_not_fit_are_refused_and_change_nothing(given, message):
    layer = make("signed")
    before = copy.deepcopy(layer.state_dict())
    arguments = {"w": torch.ones(8, 3), "alpha": torch.eye(2).repeat(4, 1), "bias": torch.ones(8)}
    with pytest.raises(ValueError, match=message):
        layer.set_neurons(**{**arguments, **given})
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    layer.set_neurons(**arguments)


def test_alpha_is_checked_where_it_is_frozen_and_refused_where_it_trains():
    with pytest.raises(AttributeError, match="set_neurons"):
        make("joint").alpha = torch.ones(8)
    with pytest.raises(ValueError, match=r"alpha must have shape \(8,\), got \(4,\)"):
        make("signed").alpha = torch.ones(4)
    clouds = make("clouds")
    clouds.alpha = -clouds.alpha
    with pytest.raises(ValueError, match=r"1 or -1.*set_neurons"):
        clouds.alpha = 2 * clouds.alpha


def test_linear_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"second.in_features must be .* 4, got 5"):
        MeanFieldLayer.from_linear(nn.Linear(2, 4), nn.Linear(5, 1))
    with pytest.raises(ValueError, match=r"w must be \(m, d\)"):
        MeanFieldLayer.from_neurons(torch.ones(4), torch.ones(4))
