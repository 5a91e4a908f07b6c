"""ResNets against torchvision and against CVNet's network, in the formats of their authors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from medretrieval.embedders import REGISTRY, EmbedderSpec, load_embedder
from medretrieval.errors import InputError, UnavailableError, UsageError

Tensors = dict[str, torch.Tensor]

PLAIN = ("resnet50-radimagenet", "resnet50-fractaldb")
CVNETS = ("cvnet-r50", "cvnet-r101")
NAMES = (*PLAIN, *CVNETS)
# One bottleneck a stage and small pictures: the same network, and fast.
SMALL = (1, 1, 1, 1)
SIZE = 64


def small(name: str, **changes: Any) -> EmbedderSpec:
    small = {"options": {"blocks": SMALL}, "input_size": SIZE, "resize_to": SIZE}
    return dataclasses.replace(REGISTRY[name], **{**small, **changes})


def perturbed(network: nn.Module) -> nn.Module:
    """In eval mode, with norms and biases that are not trivial: every tensor counts."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim < 2:
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if name.endswith(("var", "weight")) else 0.3 * noise)
        elif tensor.is_floating_point():  # so large that what is seen outweighs the biases
            scale = (2 / tensor[0].numel()) ** 0.5
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    return network.eval()


class PyclsBlock(nn.Module):
    """Of CVNet's network, written from the names and shapes of its tensors and from the paper."""

    def __init__(self, width: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.projects = width != out
        if self.projects:
            self.proj = nn.Conv2d(width, out, 1, stride, bias=False)
            self.bn = nn.BatchNorm2d(out)
        self.f = nn.Sequential()
        for name, module in (
            ("a", nn.Conv2d(width, inner, 1, bias=False)),
            ("a_bn", nn.BatchNorm2d(inner)),
            ("a_relu", nn.ReLU()),
            ("b", nn.Conv2d(inner, inner, 3, stride, 1, bias=False)),
            ("b_bn", nn.BatchNorm2d(inner)),
            ("b_relu", nn.ReLU()),
            ("c", nn.Conv2d(inner, out, 1, bias=False)),
            ("c_bn", nn.BatchNorm2d(out)),
        ):
            self.f.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu((self.bn(self.proj(x)) if self.projects else x) + self.f(x))


class CVNet(nn.Module):
    """CVNet-Global; takes blue, green, red."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, 64, 7, 2, 3, bias=False))
        self.stem.add_module("bn", nn.BatchNorm2d(64))
        width = 64
        for stage, count in enumerate(blocks):
            inner, out = 64 << stage, 256 << stage
            made = nn.Sequential()
            for i in range(count):
                block = PyclsBlock(width, inner, out, 2 if stage and i == 0 else 1)
                made.add_module(f"b{i + 1}", block)
                width = out
            self.add_module(f"s{stage + 1}", made)
        self.head = nn.Module()
        self.head.pool = nn.Module()
        self.head.pool.p = nn.Parameter(torch.full((1,), 2.6))
        self.head.fc = nn.Linear(2048, 2048)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        x = self.s4(self.s3(self.s2(self.s1(x))))
        p = self.head.pool.p
        return self.head.fc(x.clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p))


class SuperCVNet(nn.Module):
    """The global network of SuperCVNet: every tensor of the backbone is there twice."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.resnet = TorchvisionResNet(Bottleneck, list(blocks))
        self.stem = nn.Sequential(
            self.resnet.conv1, self.resnet.bn1, self.resnet.relu, self.resnet.maxpool
        )
        for i in range(1, 5):
            self.add_module(f"layer{i}", getattr(self.resnet, f"layer{i}"))
        self.gem_pooling = nn.Module()
        self.gem_pooling.p = nn.Parameter(torch.full((1,), 3.4))
        self.whitening = nn.Linear(2048, 2048, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        p = self.gem_pooling.p
        x = torch.nn.functional.avg_pool2d(x.clamp(min=1e-6).pow(p), tuple(x.shape[-2:]))
        return self.whitening(x.pow(1.0 / p).flatten(1))


def torchvision_resnet(blocks: tuple[int, ...]) -> nn.Module:
    return TorchvisionResNet(Bottleneck, list(blocks))


@dataclasses.dataclass(frozen=True)
class Case:
    """A published format.

    Attributes:
        name: of the registered embedder.
        make: blocks -> the authors' network.
        file: its state dict -> what the authors' file holds.
        cut: whether the network's output is the class scores, which come after the feature.
        bgr: whether the network takes blue, green, red.
    """

    name: str
    make: Callable[[tuple[int, ...]], nn.Module]
    file: Callable[[Tensors], Mapping[str, Any]]
    cut: bool = False
    bgr: bool = False


def sequential(tensors: Tensors) -> Tensors:
    """RadImageNet: `backbone = Sequential(*children()[:9])`."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    split = {name: name.partition(".") for name in tensors if not name.startswith("fc.")}
    return {f"backbone.{places[s[0]]}.{s[2]}": tensors[name] for name, s in split.items()}


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


RERANKING = {"conv2ds.0.weight": torch.ones(2, 2), "cv_learner.block1.0.weight": torch.ones(3)}

CASES = {
    "radimagenet": Case("resnet50-radimagenet", torchvision_resnet, sequential, cut=True),
    "radimagenet, torchvision names": Case(
        "resnet50-radimagenet", torchvision_resnet, dict, cut=True
    ),
    "fractaldb": Case("resnet50-fractaldb", torchvision_resnet, dict, cut=True),
    "fractaldb, checkpoint of training": Case(
        "resnet50-fractaldb",
        torchvision_resnet,
        lambda tensors: {"epoch": 90, "state_dict": prefixed("module.", tensors)},
        cut=True,
    ),
    "cvnet": Case(
        "cvnet-r50",
        CVNet,
        lambda tensors: {"model_state": {**prefixed("encoder_q.", tensors), **RERANKING}},
        bgr=True,
    ),
    "cvnet, global alone": Case(
        "cvnet-r101",
        CVNet,
        lambda tensors: {"epoch": 99, "model_state": prefixed("globalmodel.", tensors)},
        bgr=True,
    ),
    "supercvnet": Case(
        "cvnet-r50",
        SuperCVNet,
        lambda tensors: {
            **prefixed("global_network.", tensors),
            **prefixed("momentum_network.", {n: t + 1 for n, t in tensors.items()}),
        },
    ),
    "supercvnet, global alone": Case("cvnet-r101", SuperCVNet, dict),
}


@pytest.fixture(scope="module")
def networks() -> Callable[[str], nn.Module]:
    """Gives the authors' network of a case, small and perturbed."""
    made: dict[Any, nn.Module] = {}

    def get(key: str) -> nn.Module:
        make = CASES[key].make
        if make not in made:
            torch.manual_seed(1)
            made[make] = perturbed(make(SMALL))
        return made[make]

    return get


@pytest.fixture
def stored(networks: Callable[[str], nn.Module], tmp_path: Path) -> Callable[..., Path]:
    """Writes the file of a case, its state dict changed first; gives the path."""

    def write(key: str, **changes: Any) -> Path:
        tensors = {**networks(key).state_dict(), **changes}
        content = CASES[key].file({n: t for n, t in tensors.items() if t is not None})
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pth"
        torch.save(content, path)
        return path

    return write


def reference(
    case: Case, network: nn.Module, picture: np.ndarray, spec: EmbedderSpec
) -> np.ndarray:
    """The authors' feature of a picture, with torchvision's transforms of a PIL image."""
    transform = transforms.Compose(
        [
            transforms.Resize((spec.input_size, spec.input_size)),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    pixels = transform(Image.fromarray(picture).convert("RGB"))[None]
    if case.cut:
        network = nn.Sequential(*list(network.children())[:-1], nn.Flatten())
    with torch.inference_mode():
        feature = network(pixels.flip(1) if case.bgr else pixels)[0].numpy()
    return feature / np.linalg.norm(feature)


@pytest.mark.parametrize("key", CASES)
def test_equals_the_authors_network(
    key: str,
    networks: Callable[[str], nn.Module],
    stored: Callable[..., Path],
    pictures: list[np.ndarray],
) -> None:
    case = CASES[key]
    spec = small(case.name)
    found = load_embedder(spec, weights=stored(key)).embed_batch(pictures)
    expected = np.stack([reference(case, networks(key), p, spec) for p in pictures])
    assert (found * expected).sum(axis=1).min() > 0.99999
    # The network must see the pictures: a constant vector would pass.
    assert (found @ found.T)[~np.eye(len(found), dtype=bool)].min() < 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_size_equals_the_authors_network(
    name: str, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    spec = REGISTRY[name]
    case = next(case for case in CASES.values() if case.name == name)
    torch.manual_seed(1)
    network = perturbed(case.make(spec.options["blocks"]))
    if case.cut:  # the published depth and width, not only those that this library asks for
        assert network.state_dict().keys() == torchvision.models.resnet50().state_dict().keys()
    torch.save(case.file(network.state_dict()), tmp_path / "weights.pth")
    found = load_embedder(spec, weights=tmp_path / "weights.pth").embed_batch(pictures[:2])
    expected = np.stack([reference(case, network, p, spec) for p in pictures[:2]])
    assert (found * expected).sum(axis=1).min() > 0.99999


@pytest.mark.parametrize("key", ["radimagenet", "cvnet"])
def test_rows_depend_on_their_picture_alone(
    key: str, stored: Callable[..., Path], pictures: list[np.ndarray]
) -> None:
    embedder = load_embedder(small(CASES[key].name), weights=stored(key))
    alone = np.concatenate([embedder.embed_batch([picture]) for picture in pictures])
    order = [3, 1, 4, 0, 2, 3, 3, 0, 1]  # more than one pass
    together = embedder.embed_batch([pictures[i] for i in order])
    np.testing.assert_allclose(together, alone[order], atol=1e-5)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("key", ["radimagenet", "cvnet", "supercvnet"])
def test_colour_matters_in_its_own_order(
    key: str,
    networks: Callable[[str], nn.Module],
    stored: Callable[..., Path],
    pictures: list[np.ndarray],
) -> None:
    """The authors' network, given the channels in the other order, is far away."""
    case = CASES[key]
    spec = small(case.name)
    (found,) = load_embedder(spec, weights=stored(key)).embed_batch([pictures[1]])
    swapped = dataclasses.replace(case, bgr=not case.bgr)
    assert found @ reference(case, networks(key), pictures[1], spec) > 0.99999
    assert found @ reference(swapped, networks(key), pictures[1], spec) < 0.999


@pytest.mark.parametrize(
    ("key", "used", "unused"),
    [
        ("radimagenet", "layer3.0.conv2.weight", None),
        ("fractaldb", "bn1.running_mean", "fc.weight"),
        ("fractaldb", "layer4.0.downsample.1.bias", "layer1.0.bn1.num_batches_tracked"),
        ("cvnet", "head.pool.p", "stem.bn.num_batches_tracked"),
        ("supercvnet", "whitening.weight", "resnet.fc.bias"),
    ],
)
def test_the_hash_is_of_what_is_used(
    key: str,
    used: str,
    unused: str | None,
    stored: Callable[..., Path],
    networks: Callable[[str], nn.Module],
) -> None:
    spec, tensors = small(CASES[key].name), networks(key).state_dict()
    identity = load_embedder(spec, weights=stored(key)).identity
    other = load_embedder(spec, weights=stored(key, **{used: tensors[used] + 1})).identity
    assert other.weights_sha256 != identity.weights_sha256
    if unused is not None:
        for value in (tensors[unused] + 1, None):
            same = load_embedder(spec, weights=stored(key, **{unused: value})).identity
            assert same == identity
    assert (identity.name, identity.dim, identity.revision) == (spec.name, 2048, "local file")


def test_the_same_weights_in_both_layouts_have_one_hash(stored: Callable[..., Path]) -> None:
    spec = small("resnet50-radimagenet")
    identities = {
        load_embedder(spec, weights=stored(key)).identity.weights_sha256
        for key in ("radimagenet", "radimagenet, torchvision names")
    }
    assert len(identities) == 1


@pytest.mark.parametrize(
    ("key", "missing", "shown"),
    [
        ("radimagenet", "layer2.0.conv1.weight", "layer2.0.conv1.weight"),
        ("fractaldb", "bn1.running_var", "bn1.running_var"),
        ("cvnet", "s3.b1.f.b_bn.bias", "layer3.0.bn2.bias"),
        ("cvnet", "s1.b1.proj.weight", "layer1.0.downsample.0.weight"),
        ("supercvnet", "gem_pooling.p", "avgpool.p"),
    ],
)
def test_a_missing_tensor_is_named(
    key: str, missing: str, shown: str, stored: Callable[..., Path]
) -> None:
    with pytest.raises(InputError) as error:
        load_embedder(small(CASES[key].name), weights=stored(key, **{missing: None}))
    assert f"1 missing ({shown})" in str(error.value)
    assert REGISTRY[CASES[key].name].weights in str(error.value)


@pytest.mark.parametrize(
    ("key", "other", "shown"),
    [
        ("fractaldb", "conv1.bias", "1 not expected (conv1.bias)"),
        ("cvnet", "s1.b2.f.a.weight", "1 not expected (layer1.1.conv1.weight)"),
        ("supercvnet", "whitening.bias", "1 of another shape (fc.bias (7,), not (2048,))"),
        ("fractaldb", "layer1.0.bn3.weight", "layer1.0.bn3.weight (7,), not (256,)"),
        ("cvnet", "stem.conv.weight", "conv1.weight (7,), not (64, 3, 7, 7)"),
    ],
)
def test_other_tensors_are_named(
    key: str, other: str, shown: str, stored: Callable[..., Path]
) -> None:
    with pytest.raises(InputError) as error:
        load_embedder(small(CASES[key].name), weights=stored(key, **{other: torch.zeros(7)}))
    assert shown in str(error.value)


def test_the_release_made_from_keras_is_refused(stored: Callable[..., Path]) -> None:
    """Its convolutions have biases, and its strides are elsewhere, which no shape tells."""
    biases = {
        f"layer{stage}.0.conv{i}.bias": torch.zeros(64) for stage in (1, 2, 3, 4) for i in (1, 2, 3)
    }
    path = stored("radimagenet, torchvision names", **biases)
    with pytest.raises(InputError, match=r"12 not expected \(layer1\.0\.conv1\.bias"):
        load_embedder(small("resnet50-radimagenet"), weights=path)


def test_another_depth_is_refused(stored: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="missing"):
        load_embedder("resnet50-fractaldb", weights=stored("fractaldb"))


def test_another_dimension_is_refused(stored: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="described as 512-d; this feature is 2048-d"):
        load_embedder(small("resnet50-fractaldb", dim=512), weights=stored("fractaldb"))
    with pytest.raises(InputError, match=r"fc\.weight \(2048, 2048\), not \(512, 2048\)"):
        load_embedder(small("cvnet-r50", dim=512), weights=stored("cvnet"))


@pytest.mark.parametrize("blocks", [3, "3463", (3, 4, 6), (1, 1, 1, None)])
def test_blocks_that_are_none_are_refused(blocks: Any, stored: Callable[..., Path]) -> None:
    spec = small("resnet50-fractaldb", options={"blocks": blocks})
    with pytest.raises(InputError, match=r"option 'blocks'; expected 4 (whole )?numbers"):
        load_embedder(spec, weights=stored("fractaldb"))


def test_facts_of_the_papers() -> None:
    # TS-CBIR, section 2.3, and CBIR-FM, appendix A ("Global descriptor size is 2048").
    for name in NAMES:
        spec = REGISTRY[name]
        assert (spec.dim, spec.input_size, spec.resize) == (2048, 224, "squash")
    assert REGISTRY["resnet50-radimagenet"].mean == (0.5, 0.5, 0.5)
    assert REGISTRY["resnet50-radimagenet"].std == (0.5, 0.5, 0.5)
    for name in ("resnet50-fractaldb", *CVNETS):
        assert REGISTRY[name].mean == (0.485, 0.456, 0.406)
        assert REGISTRY[name].std == (0.229, 0.224, 0.225)
    # Deep residual learning for image recognition, table 1.
    assert REGISTRY["cvnet-r101"].options["blocks"] == (3, 4, 23, 3)


@pytest.mark.parametrize("name", ["resnet50-fractaldb", *CVNETS])
def test_what_is_not_public_says_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(tmp_path))
    with pytest.raises(UnavailableError) as error:
        load_embedder(name)
    assert "Get them from their authors" in str(error.value)
    assert str(tmp_path / name) in str(error.value)
