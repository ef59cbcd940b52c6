import pytest
import torch
import torch.nn.functional as F

from runner.methods.label_smoothing import LabelSmoothing


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_loss_is_the_formula(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(16, 7, dtype=torch.float64) * 3
    labels = torch.randint(7, (16,))

    loss = F.cross_entropy(logits, labels, **LabelSmoothing(smoothing=smoothing).loss_options())

    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    nll = -log_p[torch.arange(16), labels]
    expected = ((1 - smoothing) * nll + smoothing * -log_p.sum(1) / 7).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_default_is_one_tenth():
    assert LabelSmoothing().loss_options() == {"label_smoothing": 0.1}


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=r"^smoothing=.*\[0, 1\)"):
        LabelSmoothing(smoothing=smoothing)
