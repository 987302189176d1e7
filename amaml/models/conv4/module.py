"""The convolutional network of few-shot classification (Vinyals et al. 2016; Finn, Abbeel, Levine, arXiv 1703.03400).

Four blocks of 3 × 3 convolution, normalisation, ReLU and 2 × 2 max pooling, then a linear layer. They normalise over the
batch; here it is over all channels and pixels of each picture alone. So a picture's prediction doesn't depend on which
others are beside it, no statistics run along as hidden state (of which task?), and the loss stays a pure function of the
parameters, which vmap and second derivatives need.
"""

from __future__ import annotations

from torch import Tensor, nn

from amaml.models.conv4.shapes import block_shapes
from amaml.models.conv4.spec import Conv4Spec


class Conv4(nn.Sequential):
    """Rows of pixels [n, channels · height · width] → [n, out_features].

    A picture of fewer than 16 pixels a side is pooled less often, so that every block sees 2 × 2 or more.
    Raises ValueError for a size below 1.
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
    """The largest of each 2 × 2 pixels [n, c, h, w] → [n, c, h // 2, w // 2]; a last odd row or column is dropped.

    As a maximum over axes, whose derivatives are deterministic on every device; those of torch's pooling aren't on CUDA.
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
    """The spec's network with PyTorch's default random start."""
    return Conv4(picture, spec.filters, out_features)
