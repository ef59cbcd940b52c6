"""Instance norm alone; what it shares with layer norm stands in test_norm_replacement.py."""

import copy

import pytest
import torch
from torch import nn

from runner.methods.instancenorm import apply_instance_norm

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("norm", "shape", "message"),
    [
        (nn.BatchNorm1d(4), (3, 4), r"expected 3D input \(got 2D input\): .* choose another norm"),
        (nn.BatchNorm1d(4), (4, 4), r"expected 3D input \(got 2D input\)"),
        (nn.BatchNorm2d(4), (4, 3, 3), r"expected 4D input \(got 3D input\)"),
        (nn.SyncBatchNorm(4), (2, 4, 3), r"expected 4D input \(got 3D input\)"),
        (nn.BatchNorm2d(4), (2, 4, 1, 1), r"single position gives 0 .* \(2, 4, 1, 1\): use larger images"),
        (nn.BatchNorm1d(4), (2, 4, 1), "single position gives 0"),
    ],
)
def test_inputs_that_instance_norm_would_misread_or_wipe_out_are_refused(norm, shape, message, training):
    model = nn.Sequential(copy.deepcopy(norm))
    apply_instance_norm(model)
    with pytest.raises(ValueError, match=message):
        model.train(training)(torch.randn(shape))


def test_a_checkpoint_that_is_a_bare_dict_of_tensors_loads():
    """torch's own instance norm calls the running statistics in it an error, even with strict=False."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    apply_instance_norm(model)
    state = {name: value + 1 for name, value in nn.Sequential(nn.BatchNorm2d(3)).state_dict().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing
    assert unexpected == ["0.running_mean", "0.running_var", "0.num_batches_tracked"]
    assert torch.equal(model[0].weight, torch.full((3,), 2.0))
    assert "0.running_var" in state
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(state)


def test_channels_last_and_autocast():
    model = nn.Sequential(nn.BatchNorm2d(6))
    apply_instance_norm(model)
    x = torch.randn(3, 6, 4, 5)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), model(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x.bfloat16()).dtype == torch.bfloat16
        assert model(x).dtype == torch.float32


def test_a_model_that_has_instance_norms_already_is_left_as_it_is():
    assert apply_instance_norm(nn.Sequential(nn.InstanceNorm2d(4))) == 0
