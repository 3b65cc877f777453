import copy
import itertools
import pickle
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from conftest import closure_for
from torch_wprox import FrobeniusProx, WassersteinProx
from torch_wprox.layers.mean_field import MeanFieldLayer
from torch_wprox.layers.parameterizations import PARAMETERIZATIONS
from torch_wprox.particles.layouts import layout_of, particle_groups, views_of_group

FORMS = list(PARAMETERIZATIONS)


def trains_output(form):
    return PARAMETERIZATIONS[form].trains_output


def mlp(*sizes, bias=True, activation=nn.ReLU):
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias), activation()]
    return nn.Sequential(*layers[:-1]).double()


def cloud_of(params, **options):
    [view] = [v for v in views_of_group(list(params), **options) if v.is_cloud]
    return view


def permute_rows(view, sigma):
    view.write(view.read()[sigma])


# -- matching bare groups


@pytest.mark.parametrize(
    ("shapes", "layout"),
    [
        ([(5, 2)], "cloud"),
        ([(1, 2)], "cloud"),
        ([(8, 2), (1, 8)], "pair"),
        ([(8, 2), (8,), (1, 8)], "pair"),
        ([(8, 2), (3, 8), (3,)], "pair"),
        ([(8, 2), (8,), (3, 8), (3,)], "pair"),
        ([(4, 4), (4,), (4, 4), (4,)], "pair"),
    ],
)
def test_a_bare_group_that_is_a_cloud_as_a_whole_is_matched(shapes, layout):
    params = [nn.Parameter(torch.ones(s)) for s in shapes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layout_of(params) == layout


@pytest.mark.parametrize(
    "shapes",
    [
        [(5, 2), (5,)],
        [(5, 2), (5, 2)],
        [(8, 2), (8,), (8,), (1, 8)],
        [(8,), (8, 2), (1, 8)],
        [(8, 2), (7,), (1, 8)],
        [(8, 2), (8,), (3, 8), (4,)],
        [(8, 2), (8,), (8, 8), (8,), (1, 8), (1,)],
        [(4, 3, 2, 2)],
    ],
)
def test_any_other_group_is_plain_with_one_warning_that_names_the_remedy(shapes):
    params = [nn.Parameter(torch.ones(s)) for s in shapes]
    with pytest.warns(UserWarning, match="particle_groups") as caught:
        assert layout_of(params) == "plain"
    assert len(caught) == 1
    views = views_of_group(params, "plain")
    assert [(v.m, v.D, v.is_cloud) for v in views] == [(1, p.numel(), False) for p in params]


def test_vectors_alone_are_plain_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layout_of([nn.Parameter(torch.ones(3)), nn.Parameter(torch.tensor(1.0))]) == "plain"


def test_matrices_of_two_types_are_no_pair():
    a, b = nn.Parameter(torch.ones(8, 2)), nn.Parameter(torch.ones(1, 8, dtype=torch.float64))
    assert layout_of([a, b], warn=False) == "plain"


@pytest.mark.parametrize(
    ("shapes", "layout", "message"),
    [
        ([(5, 2), (5,)], "cloud", "exactly one"),
        ([(5, 2), (5,)], "pair", r"\(m, d\)"),
        ([(5, 2)], "layer", "MeanFieldLayer"),
        ([(5, 2)], "matrix", "layout must be one of"),
    ],
)
def test_a_group_that_does_not_have_its_layout_is_refused(shapes, layout, message):
    with pytest.raises(ValueError, match=message):
        views_of_group([nn.Parameter(torch.ones(s)) for s in shapes], layout)


# -- the blocks


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_particles_of_two_linear_layers_are_weight_bias_and_output_weights(bias, outputs):
    net = mlp(2, 5, outputs, bias=bias)
    V = cloud_of(net.parameters()).read()
    first, second = net[0], net[2]
    parts = [first.weight, *([first.bias[:, None]] if bias else []), second.weight.t()]
    assert torch.equal(V, torch.cat(parts, dim=1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outputs", [1, 2])
def test_exchanging_particles_of_a_class_leaves_a_layer_what_it_is(form, outputs):
    layer = MeanFieldLayer(3, 12, outputs, parameterization=form, dtype=torch.float64)
    view, x = cloud_of(layer.parameters()), torch.randn(7, 3, dtype=torch.float64)
    before, labels = layer(x), view.classes
    labels = torch.zeros(12, dtype=torch.long) if labels is None else labels
    sigma = torch.randperm(12)
    sigma = sigma[torch.argsort(labels[sigma], stable=True)]
    inverse = torch.argsort(labels, stable=True)
    permutation = torch.empty(12, dtype=torch.long)
    permutation[inverse] = sigma  # a permutation inside the classes
    assert torch.equal(labels[permutation], labels)
    permute_rows(view, permutation)
    torch.testing.assert_close(layer(x), before, rtol=1e-13, atol=1e-14)


def test_exchanging_particles_of_a_pair_leaves_the_network_what_it_is():
    net, x = mlp(3, 6, 2), torch.randn(7, 3, dtype=torch.float64)
    before = net(x)
    permute_rows(cloud_of(net.parameters()), torch.randperm(6))
    torch.testing.assert_close(net(x), before, rtol=1e-13, atol=1e-14)


KINDS = [
    *("matrix", "strided", "plain strided", "complex", "scalar", "pair", "complex pair"),
    *FORMS,
]


def params_of(kind):
    """Parameters, and a float64 loss of them with a derivative everywhere it is asked for."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=torch.float64):
        return torch.randn(*shape, dtype=dtype, generator=g)

    if kind in FORMS:
        layer = MeanFieldLayer(
            *(3, 4, 2), parameterization=kind, output_bias=True, generator=g, dtype=torch.float64
        )
        x = normal(6, 3)
        return list(layer.parameters()), lambda: layer(x).square().sum()
    tensors = {
        "matrix": [normal(5, 2)],
        "strided": [normal(4, 6).t()[:, ::2]],
        "plain strided": [normal(2, 3, 4).permute(2, 0, 1)],
        "complex": [normal(5, 2, dtype=torch.complex128)],
        "scalar": [torch.tensor(2.0, dtype=torch.float64)],
        "pair": [normal(5, 3), normal(5), normal(2, 5), normal(2)],
        "complex pair": [normal(*s, dtype=torch.complex128) for s in [(5, 3), (5,), (2, 5)]],
    }[kind]
    params = [nn.Parameter(t) for t in tensors]
    centres = [torch.randn_like(p) for p in params]
    return params, lambda: sum(
        ((p - c).abs() ** 3).sum() for p, c in zip(params, centres, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*particle_groups")
def test_write_after_read_changes_nothing(kind):
    params, _loss = params_of(kind)
    before = [p.detach().clone() for p in params]
    for view in views_of_group(params):
        V = view.read()
        assert V.shape == (view.m, view.D)
        assert not V.requires_grad
        view.write(V)
        torch.testing.assert_close(view.read(), V, rtol=1e-15, atol=0)
    for p, old in zip(params, before, strict=True):
        # A curved view, such as r eta / |r eta| = eta, holds to rounding only; all others copy.
        rounding = 1e-15 if kind in FORMS and not PARAMETERIZATIONS[kind].is_flat else 0
        torch.testing.assert_close(p.detach(), old, rtol=rounding, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*particle_groups")
def test_read_after_write_gives_the_admissible_point(kind):
    params, _loss = params_of(kind)
    for view in views_of_group(params):
        V = view.project(torch.randn(view.m, view.D, dtype=view.dtype))
        view.write(V)
        torch.testing.assert_close(view.read(), V, rtol=1e-15, atol=1e-15)
        assert torch.equal(view.project(V), V)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*particle_groups")
@pytest.mark.parametrize("rescaled", [False, True])
def test_the_gradient_read_is_the_derivative_along_what_is_written(kind, rescaled):
    params, loss = params_of(kind)
    if rescaled:  # directions of any length are stored, and r of any sign
        params[0].data *= -1.7
    loss().backward()
    for view in views_of_group(params):
        V, g, step = view.read(), view.read_grad(), 1e-6
        direction = torch.randn(V.shape, dtype=V.dtype, generator=torch.Generator().manual_seed(2))
        values = []
        for sign in (1, -1):
            view.write(view.project(V + sign * step * direction))
            values.append(loss().item())
        view.write(V)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx((view.cotangent(V, g) * direction).sum().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_computed_in_float32(dtype):
    p = nn.Parameter(torch.randn(4, 2).to(dtype))
    p.grad = torch.ones_like(p)
    view = cloud_of([p])
    assert view.read().dtype == view.read_grad().dtype == view.dtype == torch.float32
    V = view.read()
    view.write(V)
    assert torch.equal(view.read(), V)


def test_read_is_a_copy_and_a_missing_gradient_is_zero():
    p = nn.Parameter(torch.ones(4, 2))
    view = cloud_of([p])
    view.read().zero_()
    assert torch.equal(p, torch.ones(4, 2))
    assert torch.equal(view.read_grad(), torch.zeros(4, 2))
    p.grad = torch.ones(4, 2)
    assert view.read_grad().data_ptr() == p.grad.data_ptr()  # no copy where none is needed


def test_empty_and_frozen_tensors_make_no_block():
    empty = nn.Parameter(torch.empty(0, 3))
    frozen = nn.Parameter(torch.ones(2, 3), requires_grad=False)
    assert views_of_group([empty]) == []
    assert views_of_group([frozen]) == []
    assert views_of_group([empty, frozen, empty], "plain") == []


def test_sparse_gradients_and_parameters_are_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        cloud_of(embedding.parameters()).read_grad()
    with pytest.raises(TypeError, match="dense"):
        views_of_group([nn.Parameter(torch.eye(2).to_sparse())])


def test_a_dtensor_is_refused():
    from torch import distributed
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        p = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh))
        with pytest.raises(TypeError, match="DTensor"):
            views_of_group([p])
    finally:
        distributed.destroy_process_group()


# -- what does not train


def test_frozen_output_weights_are_no_coordinates_and_split_by_sign():
    net = mlp(2, 4, 1)
    net[2].weight.data = torch.tensor([[1.0, -2.0, 3.0, -4.0]]).double()
    net[2].weight.requires_grad_(False)
    view = cloud_of(net.parameters())
    assert torch.equal(view.read(), torch.cat([net[0].weight, net[0].bias[:, None]], dim=1))
    assert view.classes.tolist() == [1, 0, 1, 0]
    assert cloud_of(net.parameters(), classes=None).classes is None
    assert (
        cloud_of(net.parameters(), classes=torch.tensor([0, 1, 2, 3])).classes.unique().numel() == 4
    )


def test_frozen_biases_hold_apart_neurons_that_differ_in_them():
    net = mlp(2, 4, 1)
    net[0].bias.data = torch.tensor([0.0, 0.0, 1.0, 1.0]).double()
    net[0].bias.requires_grad_(False)
    view = cloud_of(net.parameters())
    assert view.D == 3
    assert view.classes.tolist() == [0, 0, 1, 1]


def test_output_weights_of_frozen_features_are_plain():
    net = mlp(2, 4, 1)
    net[0].weight.requires_grad_(False)
    assert not any(v.is_cloud for v in views_of_group(list(net.parameters())))


def test_trainable_output_weights_need_no_class():
    assert cloud_of(mlp(2, 4, 1).parameters()).classes is None
    for form in filter(trains_output, FORMS):
        assert cloud_of(MeanFieldLayer(2, 4, parameterization=form).parameters()).classes is None


@pytest.mark.parametrize("form", [form for form in FORMS if not trains_output(form)])
def test_classes_of_a_layer_are_equal_sign_and_equal_output(form):
    layer = MeanFieldLayer(2, 8, 2, parameterization=form)
    labels = cloud_of(layer.parameters()).classes
    pairs = list(zip(layer.signs.tolist(), layer.outputs.tolist(), strict=True))
    for i in range(8):
        for j in range(8):
            assert (labels[i] == labels[j]) == (pairs[i] == pairs[j])
    assert cloud_of(layer.parameters(), classes=None).classes is None


def test_one_class_is_no_restriction():
    layer = MeanFieldLayer(2, 4, parameterization="signed")
    layer.alpha = torch.ones(4)
    assert cloud_of(layer.parameters()).classes is None


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("signs", "classes must be 'sign'"),
        (torch.zeros(3, dtype=torch.long), r"shape \(4,\)"),
        (torch.zeros(4), "integer labels"),
    ],
)
def test_wrong_classes_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        views_of_group([nn.Parameter(torch.ones(4, 2))], classes=classes)


def test_labels_without_a_cloud_are_refused():
    with pytest.raises(ValueError, match="no cloud"):
        views_of_group([nn.Parameter(torch.ones(4))], classes=torch.zeros(4, dtype=torch.long))


# -- layers in a group


def ways_to_reach_a_layer(layer):
    yield "as it is", layer
    yield "deepcopy", copy.deepcopy(layer)
    yield "pickle", pickle.loads(pickle.dumps(layer))
    yield "double", copy.deepcopy(layer).double()
    assigned = copy.deepcopy(layer)
    assigned.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    yield "assign", assigned


@pytest.mark.parametrize("form", FORMS)
def test_parameters_of_a_layer_are_recognised_in_any_company(form):
    model = nn.Sequential(nn.Linear(2, 2), MeanFieldLayer(2, 4, parameterization=form))
    for name, twin in ways_to_reach_a_layer(model):
        twin[0].bias.requires_grad_(False)
        params = list(filter(lambda p: p.requires_grad, twin.parameters()))
        assert layout_of(params) == "layer", name
        views = views_of_group(params)
        assert [v.is_cloud for v in views] == [False, True], name
        assert views[1].parameters[0] is twin[1].particles, name
        assert (views[1].classes is None) == trains_output(form), name


def test_a_frozen_layer_makes_no_block():
    layer = MeanFieldLayer(2, 4, output_bias=True)
    layer.particles.requires_grad_(False)
    [view] = views_of_group(list(layer.parameters()))
    assert view.parameters[0] is layer.output_bias


# -- groups of a whole model


def layouts(model, **options):
    return [(g["layout"], len(g["params"])) for g in particle_groups(model, **options)]


def covers_once(model, **options):
    ids = [id(p) for g in particle_groups(model, **options) for p in g["params"]]
    return sorted(ids) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (mlp(2, 8, 1), [("pair", 4)]),
        (mlp(2, 8, 8, 1), [("pair", 4), ("plain", 2)]),
        (mlp(2, 8, 8, 8, 1), [("pair", 4), ("pair", 4)]),
        (mlp(2, 8, 1, bias=False), [("pair", 2)]),
        (mlp(2, 8, 1, activation=nn.PReLU), [("pair", 4), ("plain", 1)]),
        (mlp(2, 8, 1, activation=lambda: nn.PReLU(8)), [("plain", 5)]),
        (mlp(2, 8, 1, activation=lambda: nn.Softmax(dim=-1)), [("plain", 4)]),
        (mlp(2, 8, 1, activation=lambda: nn.LayerNorm(8)), [("plain", 6)]),
        (
            nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 1)),
            [("pair", 4)],
        ),
        (nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1)), [("plain", 4)]),
        (nn.Sequential(nn.Linear(2, 8), nn.Dropout(), nn.Linear(8, 1)), [("plain", 4)]),
        (nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Unflatten(-1, (2, 4))), [("plain", 2)]),
        (nn.Sequential(nn.Flatten(), mlp(2, 8, 1), nn.Linear(1, 1)), [("pair", 4), ("plain", 2)]),
        (nn.TransformerEncoderLayer(4, 2, 8), [("pair", 4), ("plain", 8)]),
        (nn.TransformerDecoderLayer(4, 2, 8, activation="gelu"), [("pair", 4), ("plain", 14)]),
        (nn.TransformerEncoderLayer(4, 2, 8, activation=nn.Softmax(-1)), [("plain", 12)]),
        (
            nn.Sequential(MeanFieldLayer(2, 8, 2, output_bias=True), nn.Linear(2, 1)),
            [("layer", 2), ("plain", 2)],
        ),
        (nn.Linear(2, 1), [("plain", 2)]),
        (nn.ReLU(), []),
    ],
)
def test_clouds_of_a_model_are_found_and_every_parameter_is_covered_once(model, expected):
    assert layouts(model) == expected
    assert covers_once(model)


def test_exchanging_the_particles_of_every_group_leaves_a_deep_network_what_it_is():
    encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model = nn.Sequential(encoder, mlp(4, 6, 5, 7, 2), MeanFieldLayer(2, 6)).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    before, exchanged = model(x), 0
    for group in particle_groups(model):
        for view in views_of_group(group["params"], group["layout"]):
            if view.is_cloud:
                permute_rows(view, torch.arange(view.m).flip(0))
                exchanged += 1
    assert exchanged == 4
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-13)


def test_shared_weights_are_never_in_a_cloud():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 4))
    assert layouts(model) == [("plain", 4)]
    tied = mlp(4, 4, 4)
    tied.head = nn.Linear(4, 4)
    tied.head.weight = tied[0].weight
    assert covers_once(tied)
    assert [layout for layout, _ in layouts(tied)] == ["plain"]


def test_parametrised_and_overridden_layers_are_plain():
    model = mlp(2, 8, 1)
    parametrize.register_parametrization(model[0], "weight", nn.Identity())
    assert layouts(model) == [("plain", 4)]

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * torch.arange(self.out_features)

    assert layouts(nn.Sequential(Scaled(2, 8), nn.ReLU(), nn.Linear(8, 1))) == [("plain", 4)]

    class Reversed(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + self[0](x).sum()

    with pytest.warns(UserWarning, match="no cloud of neurons found in Reversed"):
        assert layouts(Reversed(*mlp(2, 8, 1))) == [("plain", 4)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(2, 8), nn.Linear(8, 3), nn.Linear(3, 1)


def test_named_pairs_are_clouds():
    assert layouts(Net(), pairs=[]) == [("plain", 6)]
    assert layouts(Net(), pairs=[("fc1", "fc2")]) == [("pair", 4), ("plain", 2)]
    assert covers_once(Net(), pairs=[("fc2", "fc3")])


def test_named_pairs_come_before_what_is_found():
    model = mlp(2, 8, 8, 1)
    groups = particle_groups(model, pairs=[("2", "4")])
    assert [g["layout"] for g in groups] == ["pair", "plain"]
    assert groups[0]["params"][0] is model[2].weight


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("fc1", "fc3")], "outputs of the first"),
        ([("fc1", "fc1")], "two different"),
        ([("fc1", "head")], "no submodule 'head'"),
        ([("fc1", "fc2"), ("fc2", "fc3")], "another pair"),
        (["fc1"], "pairs of submodule names"),
        ([("fc1", "fc2", "fc3")], "pairs of submodule names"),
    ],
)
def test_a_pair_that_is_none_is_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        particle_groups(Net(), pairs=pairs)


def test_a_pair_of_shared_weights_is_refused():
    net = Net()
    net.again = net.fc1
    with pytest.raises(ValueError, match="several places"):
        particle_groups(net, pairs=[("fc1", "fc2")])


def test_frozen_output_weights_stay_with_their_neurons():
    model = mlp(2, 4, 1)
    model[2].weight.requires_grad_(False)
    [group] = particle_groups(model)
    views = views_of_group(group["params"], group["layout"])
    assert [(v.is_cloud, v.D) for v in views] == [(True, 3), (False, 1)]
    model[0].weight.requires_grad_(False)
    assert layouts(model) == [("plain", 4)]


def test_any_torch_optimizer_takes_the_groups():
    model = mlp(2, 8, 8, 1)
    optimizer = torch.optim.Adam(particle_groups(model), lr=0.1)
    before = model(torch.ones(1, 2, dtype=torch.float64))
    before.sum().backward()
    optimizer.step()
    assert model(torch.ones(1, 2, dtype=torch.float64)) < before


# -- seen from the optimizers


def step_on(model, opt):
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)

    closure = closure_for(opt, lambda: (model(x) - x.sum(dim=1, keepdim=True)).square().mean())
    return opt.step(closure)


@pytest.mark.parametrize(
    "params_of_model", [nn.Module.parameters, nn.Module.named_parameters, particle_groups]
)
def test_a_two_layer_network_is_one_cloud_however_it_is_handed_over(params_of_model):
    ends = []
    for hand_over in (nn.Module.parameters, params_of_model):
        model = mlp(2, 8, 1)
        nn.utils.vector_to_parameters(torch.linspace(-1, 1, 33).double(), model.parameters())
        opt = WassersteinProx(hand_over(model), gamma=1.0, max_eval=20)
        step_on(model, opt)
        assert opt.report.assignment.shape == (8,)
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.equal(*ends)


def test_several_clouds_have_an_assignment_each():
    model = nn.Sequential(
        mlp(2, 8, 4, 6, 3), MeanFieldLayer(3, 5).double(), nn.Linear(1, 1).double()
    )
    opt = WassersteinProx(particle_groups(model), gamma=1.0, max_eval=20)
    first = step_on(model, opt)
    assert [len(sigma) for sigma in opt.report.assignment] == [8, 6, 5]
    assert opt.report.loss_after < first


def test_a_deep_network_handed_over_bare_warns_once_and_names_the_remedy():
    model = mlp(2, 8, 4, 1)
    with pytest.warns(UserWarning, match="particle_groups") as caught:
        opt = WassersteinProx(model.parameters(), gamma=1.0, max_eval=5)
    assert [w.filename for w in caught] == [__file__]  # the line that can be changed
    step_on(model, opt)  # and no other warning
    assert opt.report.assignment is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WassersteinProx([{"params": list(model.parameters()), "layout": "plain"}])
        FrobeniusProx(model.parameters())  # exchanges nothing anyway


def test_parameters_frozen_and_freed_between_steps_are_respected():
    model = mlp(2, 8, 1)
    opt = WassersteinProx(model.parameters(), gamma=1.0, max_eval=10)
    model[2].weight.requires_grad_(False)
    frozen = model[2].weight.detach().clone()
    step_on(model, opt)
    assert torch.equal(model[2].weight, frozen)
    model[2].weight.requires_grad_(True)
    step_on(model, opt)
    assert not torch.equal(model[2].weight, frozen)


@pytest.mark.parametrize("form", FORMS)
def test_a_model_and_its_optimizer_are_copied_together(form):
    layer = MeanFieldLayer(2, 6, parameterization=form, dtype=torch.float64)
    opt = WassersteinProx(layer.parameters(), gamma=0.5, max_eval=15)
    step_on(layer, opt)
    layer.particles.grad = None  # gradients are not copied
    for duplicate in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        twin, twin_opt = duplicate((layer, opt))
        step_on(twin, twin_opt)
        other, other_opt = duplicate((layer, opt))
        step_on(other, other_opt)
        assert torch.equal(twin.particles, other.particles)
        assert not torch.equal(twin.particles, layer.particles)


# --- clouds that a forward hides --------------------------------------------------------------


class TwoLayers(nn.Module):
    """The commonest style: what lies between the layers is seen in ``forward`` only."""

    def __init__(self, *others: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, 8, bias=bias)
        self.others = nn.ModuleList(others)
        self.fc2 = nn.Linear(8, 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("others", [[], [nn.ReLU(), nn.Dropout(0.1), nn.MSELoss()]], ids=len)
def test_two_linear_layers_that_are_the_whole_model_are_a_cloud(
    bias: bool, others: list[nn.Module]
) -> None:
    model = TwoLayers(*others, bias=bias)
    (group,) = particle_groups(model)
    assert group["layout"] == "pair" == layout_of(list(model.parameters()))
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


class Three(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)


class Attention(nn.Module):
    """The linear layers of a BERT block, in its order."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("query", "key", "value", "output"):
            self.add_module(name, nn.Linear(8, 8))
        self.widen, self.narrow = nn.Linear(8, 32), nn.Linear(32, 8)


class Tied(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.fc1


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Three(), "pairs=[('fc1', 'fc2')]"),
        (Attention(), "pairs=[('widen', 'narrow')]"),
        (TwoLayers(nn.Softmax(dim=1)), "pairs=[('fc1', 'fc2')]"),
        (nn.Sequential(Attention(), Attention()), "(2 pairs in this model look like it)"),
    ],
    ids=["three", "attention", "softmax", "two blocks"],
)
def test_a_model_without_a_cloud_is_told_of_pairs(model: nn.Module, names: str) -> None:
    with pytest.warns(UserWarning, match=re.escape(names)) as seen:
        (group,) = particle_groups(model)
    assert group["layout"] == "plain"
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 2),
        nn.Embedding(10, 4),
        nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 2)),
        MeanFieldLayer(2, 4),
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(3, 8), nn.Softmax(-1), nn.Linear(8, 2)),
        nn.TransformerEncoderLayer(4, 2, 8, activation=nn.Softmax(-1)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_nothing_is_said_where_there_is_nothing_to_say(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        particle_groups(model)


def test_an_empty_list_of_pairs_says_that_there_are_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (group,) = particle_groups(Three(), pairs=[])
    assert group["layout"] == "plain"


@pytest.mark.parametrize("pairs", [None, []])
def test_weights_used_twice_are_no_cloud_of_two_layers(pairs: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert {g["layout"] for g in particle_groups(Tied(), pairs)} == {"plain"}


# --- one matrix that is a layer's ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "rows"), [(nn.Embedding(10, 4), "tokens"), (nn.Linear(4, 3, bias=False), "outputs")]
)
@pytest.mark.parametrize("named", [False, True])
def test_the_one_matrix_of_a_layer_is_a_cloud_with_a_warning(
    module: nn.Module, rows: str, named: bool
) -> None:
    params = module.named_parameters() if named else module.parameters()
    with pytest.warns(UserWarning, match=rf"exchange the rows of different {rows}.*layout='plain'"):
        opt = WassersteinProx(params)
    assert opt.param_groups[0]["layout"] == "cloud"
    with pytest.warns(UserWarning, match="layout='plain' in the group exchanges nothing"):
        WassersteinProx([{"params": module.parameters()}])


@pytest.mark.parametrize(
    "groups",
    [
        lambda m: particle_groups(m),
        lambda m: [{"params": m.parameters(), "layout": "plain"}],
        lambda m: [{"params": m.parameters(), "layout": "cloud"}],
        lambda m: [m.weight],  # the user has it in hand
    ],
)
def test_who_says_what_a_matrix_is_hears_nothing(groups: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WassersteinProx(groups(nn.Embedding(10, 4)))
        FrobeniusProx(nn.Embedding(10, 4).parameters())


def test_the_groups_of_a_model_hold_its_embedding_still() -> None:
    (group,) = particle_groups(nn.Embedding(10, 4))
    assert group["layout"] == "plain"
