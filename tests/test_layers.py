import copy
import io
import pickle

import pytest
import torch

from torch_wprox.layers import MeanFieldLayer, live_layer_of

FORMS = ["joint", "signed", "clouds", "sphere", "radial"]


def make(form, **options):
    options = {"out_features": 2, "dtype": torch.float64, **options}
    return MeanFieldLayer(3, 8, parameterization=form, **options)


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_is_found_through_its_parameter_after_every_way_of_copying(form):
    layer = make(form, output_bias=True)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assigned = make(form, output_bias=True)
    assigned.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    copies = {
        "deepcopy": copy.deepcopy(layer),
        "pickle": pickle.loads(pickle.dumps(layer)),
        "save": torch.load(buffer, weights_only=False),
        "double": copy.deepcopy(layer).float().double(),
        "assign": assigned,
    }
    x = torch.randn(5, 3, dtype=torch.float64)
    for name, twin in copies.items():
        for parameter in twin.parameters():
            assert live_layer_of(parameter) is twin, name
        torch.testing.assert_close(twin(x), layer(x), rtol=1e-6, atol=1e-6)
