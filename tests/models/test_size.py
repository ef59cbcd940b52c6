"""The sizes that `runner describe` prints, against torchvision's, the papers' and pycls' published ones."""

import pytest
from torchvision.models import get_model_weights

from runner import models
from runner.commands.describe import main
from runner.models.size import measure_size


# millions of activations as pycls' model zoo has them
@pytest.mark.parametrize(
    ("name", "activations"),
    [("resnet18", 2.5), ("resnet34", 3.7), ("resnet50", 11.1), ("resnet101", 16.2), ("resnet152", 22.6)],
)
def test_torchvisions_own_counts(name, activations):
    size, published = measure_size(getattr(models, name)), get_model_weights(name).IMAGENET1K_V1.meta
    assert size.image_size == 224
    assert size.parameters == published["num_params"]
    assert size.multiply_adds / 1e9 == pytest.approx(published["_ops"], abs=0.001)
    assert size.activations / 1e6 == pytest.approx(activations, abs=0.05)


# parameters, multiply-adds, activations at the published image size; the first two of NFNets are those of the paper
@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("resnet20", (269_722, 40_551_040, 188_416)),
        ("resnet110", (1_727_962, 252_887_680, 1_048_576)),
        ("nf_resnet50", (25_557_048, 4_089_184_256, 11_113_984)),
        ("nfnet_f0", (71_489_284, 12_384_198_656, 18_022_400)),
        ("deeplabv3plus_resnet18", (14_993_222, 22_599_303_168, 38_633_728)),
        ("deeplabv3plus_resnet50", (41_273_158, 176_005_316_608, 204_833_280)),
    ],
)
def test_golden_sizes(name, golden):
    size = measure_size(getattr(models, name))
    assert (size.parameters, size.multiply_adds, size.activations) == golden


def test_image_size_and_classes_are_taken():
    small, large = (
        measure_size(models.resnet18, image_size=64, num_classes=10),
        measure_size(models.resnet18, image_size=128),
    )
    assert small.parameters == 11_689_512 - 990 * 513
    assert 3.9 < large.multiply_adds / small.multiply_adds < 4.1


def test_the_command_prints_a_row_a_model_and_refuses_unknown_ones(capsys):
    main(["resnet50", "nfnet_f0"])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["model", "resnet50", "nfnet_f0"]
    assert "25.6 M" in out
    with pytest.raises(SystemExit) as end:
        main(["resnet51"])
    assert end.value.code == 2
    assert "resnet51: there is no such model" in capsys.readouterr().err


def test_a_model_of_a_library_is_described_by_its_own_name(capsys):
    """With the parameters and multiply-adds that torchvision and timm publish."""
    main(["torchvision/efficientnet_b0", "timm/resnet50d"])
    efficientnet, resnet = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert efficientnet[:6] == ["torchvision/efficientnet_b0", "224", "px", "5.29", "M", "386"]
    assert resnet[:7] == ["timm/resnet50d", "224", "px", "25.6", "M", "4.33", "G"]
    for name in ("timm/resnet50dd", "elsewhere/resnet50"):
        with pytest.raises(SystemExit) as end:
            main([name])
        assert end.value.code == 2
        assert name in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--image-size", "0"], ["--num-classes", "-1"], ["--image-size", "x"]])
def test_impossible_sizes_are_refused(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert arguments[-1] in capsys.readouterr().err
