"""LPIPS by hand on random classifiers; the linear weights are the authors'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from fpe_core import CheckpointError, ParameterError
from fpe_core.scores.lpips import LpipsModel, LpipsNet, load_lpips, lpips
from fpe_core.still_life import render, sample_scene

# Layer numbers as in torchvision: (convolution, stride, padding); None is a max pooling.
ALEXNET = {0: (64, 3, 11, 4, 2), 3: (192, 64, 5, 1, 2), 6: (384, 192, 3, 1, 1)}
ALEXNET |= {8: (256, 384, 3, 1, 1), 10: (256, 256, 3, 1, 1)}
VGG16_CHANNELS = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128)}
VGG16_CHANNELS |= {12: (256, 256), 14: (256, 256), 17: (512, 256), 19: (512, 512)}
VGG16_CHANNELS |= {21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
VGG16 = {number: (*channels, 3, 1, 1) for number, channels in VGG16_CHANNELS.items()}
LAYERS = {"alex": ALEXNET, "vgg": VGG16}
POOLED_BEFORE = {"alex": {3: 3, 6: 3}, "vgg": {5: 2, 10: 2, 17: 2, 24: 2}}  # window; stride is 2
COMPARED_AFTER = {"alex": (0, 3, 6, 8, 10), "vgg": (2, 7, 14, 21, 28)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    return {net: random_classifier(net) for net in LAYERS}


@pytest.fixture(scope="module")
def files(
    weights: dict[str, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("classifiers")
    for net, each in weights.items():
        save_file(each, folder / f"{net}.safetensors")
    return {net: folder / f"{net}.safetensors" for net in weights}


@pytest.fixture(scope="module")
def alex(files: dict[str, Path]) -> LpipsModel:
    return load_lpips(files["alex"], device="cpu")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_by_hand(
    net: LpipsNet, files: dict[str, Path], weights: dict[str, dict[str, Tensor]]
) -> None:
    """Equation 1, layer by layer with plain functions, in float64."""
    model = load_lpips(files[net], net=net, device="cpu")
    torch.manual_seed(1)
    source = torch.rand(2, 3, 40, 48)
    edit = (source + 0.3 * torch.rand(2, 3, 40, 48)).clamp(0, 1)
    expected = by_hand(net, weights[net], [each.numpy() for each in model.linear], source, edit)
    assert lpips(model, source, edit) == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 1e-3


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_linear_weights_are_those_that_torchmetrics_ships(
    net: LpipsNet, files: dict[str, Path]
) -> None:
    shipped = Path(torchmetrics_lpips.__file__).parent / "lpips_models" / f"{net}.pth"
    stored = torch.load(shipped, map_location="cpu", weights_only=True)
    found = load_lpips(files[net], net=net, device="cpu").linear
    assert len(stored) == len(found) == 5
    for number, each in enumerate(found):
        assert torch.equal(each, stored[f"lin{number}.model.1.weight"][0, :, 0, 0])
        assert bool((each >= 0).all())
        assert float(each.max()) > 0


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_that_of_torchmetrics(
    net: LpipsNet,
    files: dict[str, Path],
    weights: dict[str, dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own forward pass. torchvision, which it takes the classifier from, is not needed here:
    the classifier is laid out as torchvision's is, with the weights of our file."""

    def features(_net: str, _pretrained: bool) -> nn.Sequential:
        return torchvision_features(net, weights[net])

    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", features)
    theirs = torchmetrics_lpips._LPIPS(net=net)
    torch.manual_seed(2)
    source = torch.rand(3, 3, 64, 80)
    edit = (source + 0.3 * torch.rand(3, 3, 64, 80)).clamp(0, 1)
    with torch.inference_mode():
        expected = theirs(source, edit, normalize=True).flatten().tolist()
    ours = lpips(load_lpips(files[net], net=net, device="cpu"), source, edit)
    assert ours == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 1e-3


def test_equal_pictures_are_at_zero_and_more_change_is_further(alex: LpipsModel) -> None:
    scenes = [render(sample_scene(seed), 64) for seed in range(2)]
    assert lpips(alex, scenes, scenes) == [0.0, 0.0]
    torch.manual_seed(0)
    source = torch.rand(1, 3, 64, 64) * 0.5 + 0.25
    noise = torch.randn(1, 3, 64, 64)
    little, more = (lpips(alex, source, source + by * noise.clamp(-2, 2)) for by in (0.01, 0.1))
    assert 0 < little[0] < more[0]


def test_together_and_alone(alex: LpipsModel) -> None:
    sources = [render(sample_scene(seed), 32 + 16 * (seed % 2)) for seed in range(4)]
    edits = [render(sample_scene(seed + 9), 32 + 16 * (seed % 2)) for seed in range(4)]
    alone = [lpips(alex, [a], [b])[0] for a, b in zip(sources, edits, strict=True)]
    assert lpips(alex, sources, edits) == pytest.approx(alone, rel=1e-5)
    assert lpips(alex, [], []) == []
    with pytest.raises(ParameterError, match="32 px at least"):
        lpips(alex, torch.rand(1, 3, 31, 64), torch.rand(1, 3, 31, 64))


def test_other_weights_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not hold the classifier of net='vgg'"):
        load_lpips(files["alex"], net="vgg")
    with pytest.raises(ParameterError, match="net must be one of alex, vgg"):
        load_lpips(files["alex"], net="squeeze")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no weights for LPIPS"):
        load_lpips(tmp_path / "missing.safetensors")
    pickled = tmp_path / "alexnet.pth"
    torch.save({}, pickled)
    with pytest.raises(CheckpointError, match="can run code and are not read"):
        load_lpips(pickled)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_lpips(broken)


def random_classifier(net: str) -> dict[str, Tensor]:
    """With a classifier's head, which is ignored, and in half precision, as in real files."""
    found = {"classifier.1.weight": torch.zeros(2, 2)}
    for number, (wide, narrow, side, *_) in LAYERS[net].items():
        spread = (2 / (narrow * side**2)) ** 0.5
        found[f"features.{number}.weight"] = (torch.randn(wide, narrow, side, side) * spread).half()
        found[f"features.{number}.bias"] = (torch.randn(wide) * 0.1).half()
    return found


def torchvision_features(net: str, weights: dict[str, Tensor]) -> nn.Sequential:
    """The convolutions of torchvision's AlexNet or VGG16, the last pooling left out."""
    layers: list[nn.Module] = []
    for number, (wide, narrow, side, stride, padding) in LAYERS[net].items():
        if number in POOLED_BEFORE[net]:
            layers.append(nn.MaxPool2d(POOLED_BEFORE[net][number], stride=2))
        assert len(layers) == number
        convolution = nn.Conv2d(narrow, wide, side, stride, padding)
        convolution.weight.data = weights[f"features.{number}.weight"].float()
        convolution.bias.data = weights[f"features.{number}.bias"].float()
        layers += [convolution, nn.ReLU()]
    return nn.Sequential(*layers)


def by_hand(
    net: str, weights: dict[str, Tensor], linear: list, source: Tensor, edit: Tensor
) -> list[float]:
    mean = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
    features = [(each.double() * 2 - 1 - mean) / std for each in (source, edit)]
    total, stage = torch.zeros(len(source), dtype=torch.float64), 0
    for number, (_, _, _, stride, padding) in LAYERS[net].items():
        weight, bias = (
            weights[f"features.{number}.{kind}"].double() for kind in ("weight", "bias")
        )
        if number in POOLED_BEFORE[net]:
            window = POOLED_BEFORE[net][number]
            features = [torch.nn.functional.max_pool2d(each, window, 2) for each in features]
        features = [
            torch.nn.functional.conv2d(each, weight, bias, stride, padding).relu()
            for each in features
        ]
        if number in COMPARED_AFTER[net]:
            first, second = (each / (each.norm(dim=1, keepdim=True) + 1e-10) for each in features)
            channels = torch.from_numpy(linear[stage]).double().view(1, -1, 1, 1)
            total += (channels * (first - second) ** 2).sum(dim=1).mean(dim=(1, 2))
            stage += 1
    assert stage == 5
    return total.tolist()
