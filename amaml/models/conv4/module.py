"""The convolutional network of few-shot classification (Vinyals et al. 2016; Finn, Abbeel, Levine, arXiv 1703.03400).

Four blocks of 3 × 3 convolution, normalisation, ReLU and 2 × 2 max pooling, then a linear layer. The papers normalise over the
batch; here each picture is normalised alone, over all of its channels and pixels. So a picture's prediction doesn't depend on the
other pictures of the batch, there are no running statistics that would mix tasks, and the loss is a pure function of the
parameters, as vmap and second derivatives require.
"""

from __future__ import annotations

from torch import Tensor, nn

from amaml.models.conv4.shapes import block_shapes
from amaml.models.conv4.spec import Conv4Spec


class Conv4(nn.Sequential):
    """The network, from rows of pixels [n, channels · height · width] to outputs [n, out_features].

    A picture with a side of fewer than 16 pixels is pooled less often, so that the input of every block has at least 2 × 2
    pixels. Raises ValueError for a size below 1.
    """

    def __init__(self, picture: tuple[int, int, int], filters: int, out_features: int) -> None:
        if min(*picture, filters, out_features) < 1:
            raise ValueError(
                f"picture {picture}, {filters} filters and {out_features} outputs: every size must be at least 1"
            )
        layers: list[nn.Module] = [nn.Unflatten(-1, picture)]
        shapes = block_shapes(picture, filters)
        for shape in shapes:
            layers += [nn.Conv2d(shape.channels, filters, 3, padding=1), nn.GroupNorm(1, filters), nn.ReLU()]
            if shape.halved:
                layers.append(_Halved())
        height, width = shapes[-1].places
        super().__init__(*layers, nn.Flatten(-3), nn.Linear(filters * height * width, out_features))


class _Halved(nn.Module):
    """2 × 2 max pooling, [n, c, h, w] → [n, c, h // 2, w // 2]; the last row or column of an odd number is dropped.

    It is a maximum over axes, whose derivatives are deterministic on every device; those of torch's pooling aren't on CUDA.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        whole = x[..., : 2 * height, : 2 * width]
        largest: Tensor = whole.unflatten(-1, (width, 2)).unflatten(-3, (height, 2)).amax(dim=(-3, -1))
        return largest


def build(
    spec: Conv4Spec,
    *,
    in_features: int,  # noqa: ARG001 - every model is built alike
    out_features: int,
    picture: tuple[int, int, int],
) -> Conv4:
    """The spec's network with PyTorch's default random initialization."""
    return Conv4(picture, spec.filters, out_features)
