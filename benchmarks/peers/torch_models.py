"""The four backbones in plain torch, NCHW, with fer_jax's layer names (`conv2_block1_1_conv`).

Written from the layer tables of the papers and of Keras, to give what fer_jax's models give for the same
weights, see `load`.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fer_jax.models import mobilenet, openface, resnet50, vggface


class Backbone(nn.Module):
    """Layers by name. `learning` names those that learn; a frozen batch norm stays in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()

    def freeze_all_but(self, learning: tuple[str, ...]) -> None:
        """To be called after `train()`."""
        for name, layer in self.layers.items():
            if name not in learning:
                layer.requires_grad_(False)
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()

    def conv(self, name: str, *sizes: int, **options: Any) -> None:
        self.layers[name] = nn.Conv2d(*sizes, **options)

    def norm(self, name: str, channels: int, epsilon: float) -> None:
        self.layers[name] = nn.BatchNorm2d(channels, eps=epsilon, momentum=0.01)

    def conv_norm(self, x: torch.Tensor, conv: str, norm: str) -> torch.Tensor:
        return self.layers[norm](self.layers[conv](x))


class OpenFace(Backbone):
    """nn4.small2: [N, 3, 96, 96] to [N, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self._pair("conv1", "bn1", 3, 64, 7, stride=2)
        self._pair("conv2", "bn2", 64, 64, 1)
        self._pair("conv3", "bn3", 64, 192, 3)
        channels = 192
        for block, (three, five, _, pooled, _, one) in openface.INCEPTIONS.items():
            prefix, total = f"inception_{block}", 0
            for size, widths in ((3, three), (5, five)):
                if widths:
                    name = f"{prefix}_{size}x{size}"
                    self._pair(f"{name}_conv1", f"{name}_bn1", channels, widths[0], 1)
                    stride = 1 if one else 2
                    self._pair(f"{name}_conv2", f"{name}_bn2", widths[0], widths[1], size, stride=stride)
                    total += widths[1]
            if pooled:
                self._pair(f"{prefix}_pool_conv", f"{prefix}_pool_bn", channels, pooled, 1)
            if one:
                self._pair(f"{prefix}_1x1_conv", f"{prefix}_1x1_bn", channels, one, 1)
            channels = total + (pooled or channels) + one
        self.layers["dense_layer"] = nn.Linear(channels, 128)

    def _pair(self, conv: str, norm: str, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        self.conv(conv, inputs, outputs, size, stride=stride)
        self.norm(norm, outputs, 1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv_norm(F.pad(x, (3,) * 4), "conv1", "bn1"))
        x = _lrn(F.max_pool2d(F.pad(x, (1,) * 4), 3, 2))
        x = F.relu(self.conv_norm(x, "conv2", "bn2"))
        x = F.relu(self.conv_norm(F.pad(x, (1,) * 4), "conv3", "bn3"))
        x = F.max_pool2d(F.pad(_lrn(x), (1,) * 4), 3, 2)
        for block in openface.INCEPTIONS:
            x = self._inception(x, block)
        return self.layers["dense_layer"](F.avg_pool2d(x, 3, 1).flatten(1))

    def _inception(self, x: torch.Tensor, block: str) -> torch.Tensor:
        three, five, pool, pooled, padding, one = openface.INCEPTIONS[block]
        prefix, branches = f"inception_{block}", []
        for size, widths in ((3, three), (5, five)):
            if widths:
                name = f"{prefix}_{size}x{size}"
                y = F.relu(self.conv_norm(x, f"{name}_conv1", f"{name}_bn1"))
                y = F.pad(y, (size // 2,) * 4)
                branches.append(F.relu(self.conv_norm(y, f"{name}_conv2", f"{name}_bn2")))
        if pool == "max":
            y = F.max_pool2d(x, 3, 2)
        else:  # clamped: the gradient of a square root at 0 is infinite
            y = (9 * F.avg_pool2d(x * x, 3, 3)).clamp_min(1e-30).sqrt()
        if pooled:
            y = F.relu(self.conv_norm(y, f"{prefix}_pool_conv", f"{prefix}_pool_bn"))
        rows, columns = ((padding,) * 2,) * 2 if isinstance(padding, int) else padding
        branches.append(F.pad(y, (*columns, *rows)))
        if one:
            branches.append(F.relu(self.conv_norm(x, f"{prefix}_1x1_conv", f"{prefix}_1x1_bn")))
        return torch.cat(branches, 1)


def _lrn(x: torch.Tensor) -> torch.Tensor:
    # torch divides alpha by the window's length, TensorFlow does not.
    return F.local_response_norm(x, 11, alpha=11e-4, beta=0.75, k=1.0)


class VGGFace(Backbone):
    """[N, 3, 224, 224] to [N, 2622]."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for block, widths in enumerate(vggface.BLOCKS, 1):
            for i, filters in enumerate(widths, 1):
                self.conv(f"conv{block}_{i}", channels, filters, 3, padding=1)
                channels = filters
        self.conv("fc6", 512, 4096, 7)
        self.conv("fc7", 4096, 4096, 1)
        self.conv("fc8", 4096, 2622, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, widths in enumerate(vggface.BLOCKS, 1):
            for i in range(1, len(widths) + 1):
                x = F.relu(self.layers[f"conv{block}_{i}"](x))
            x = F.max_pool2d(x, 2)
        for name in ("fc6", "fc7"):
            x = F.dropout(F.relu(self.layers[name](x)), 0.5, self.training)
        return self.layers["fc8"](x).permute(0, 2, 3, 1).flatten(1)


class ResNet50(Backbone):
    """Version 1: [N, 3, size, size] to [N, 2048, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self._pair("conv1", 3, 64, 7, stride=2, padding=3)
        channels = 64
        for stack, (filters, blocks, stride) in enumerate(resnet50.STACKS, 2):
            for i in range(1, blocks + 1):
                prefix, step = f"conv{stack}_block{i}", stride if i == 1 else 1
                if i == 1:
                    self._pair(f"{prefix}_0", channels, 4 * filters, 1, stride=step)
                self._pair(f"{prefix}_1", channels, filters, 1, stride=step)
                self._pair(f"{prefix}_2", filters, filters, 3, padding=1)
                self._pair(f"{prefix}_3", filters, 4 * filters, 1)
                channels = 4 * filters

    def _pair(self, prefix: str, inputs: int, outputs: int, size: int, **options: int) -> None:
        self.conv(f"{prefix}_conv", inputs, outputs, size, **options)
        self.norm(f"{prefix}_bn", outputs, 1.001e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv_norm(x, "conv1_conv", "conv1_bn"))
        x = F.max_pool2d(F.pad(x, (1,) * 4), 3, 2)
        for stack, (_, blocks, _) in enumerate(resnet50.STACKS, 2):
            for i in range(1, blocks + 1):
                prefix = f"conv{stack}_block{i}"
                y, shortcut = x, x
                if i == 1:
                    shortcut = self.conv_norm(x, f"{prefix}_0_conv", f"{prefix}_0_bn")
                for j in (1, 2):
                    y = F.relu(self.conv_norm(y, f"{prefix}_{j}_conv", f"{prefix}_{j}_bn"))
                x = F.relu(shortcut + self.conv_norm(y, f"{prefix}_3_conv", f"{prefix}_3_bn"))
        return x


class MobileNet(Backbone):
    """Version 1: [N, 3, size, size] to [N, 1024 alpha, h, w]."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        channels = int(32 * alpha)
        self.conv("conv1", 3, channels, 3, stride=2, bias=False)
        self.norm("conv1_bn", channels, 1e-3)
        for i, (filters, stride) in enumerate(mobilenet.BLOCKS, 1):
            outputs = int(filters * alpha)
            padding = 1 if stride == 1 else 0
            options: dict[str, Any] = {
                "stride": stride,
                "padding": padding,
                "groups": channels,
                "bias": False,
            }
            self.conv(f"conv_dw_{i}", channels, channels, 3, **options)
            self.norm(f"conv_dw_{i}_bn", channels, 1e-3)
            self.conv(f"conv_pw_{i}", channels, outputs, 1, bias=False)
            self.norm(f"conv_pw_{i}_bn", outputs, 1e-3)
            channels = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.conv_norm(F.pad(x, (0, 1, 0, 1)), "conv1", "conv1_bn"))  # SAME at even sizes
        for i, (_, stride) in enumerate(mobilenet.BLOCKS, 1):
            if stride == 2:
                x = F.pad(x, (0, 1, 0, 1))
            x = F.relu6(self.conv_norm(x, f"conv_dw_{i}", f"conv_dw_{i}_bn"))
            x = F.relu6(self.conv_norm(x, f"conv_pw_{i}", f"conv_pw_{i}_bn"))
        return x


class Classifier(nn.Module):
    """Backbone and head, as `fer_jax.models.classifier` has it: logits [N, classes]."""

    def __init__(self, backbone: Backbone, features: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.BatchNorm1d(features, eps=1e-3, momentum=0.01), nn.Linear(features, classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.backbone(x)
        return self.head(x.mean((2, 3)) if x.ndim == 4 else x)


def build(name: str, alpha: float = 1.0) -> Backbone:
    """A backbone without head, with random weights; names as in `fer_jax.models.BACKBONES`."""
    if name == "mobilenet":
        return MobileNet(alpha)
    return {"openface": OpenFace, "vggface": VGGFace, "resnet50": ResNet50}[name]()


def load(backbone: Backbone, variables: Any) -> None:
    """Copies fer_jax's variables {"params", "batch_stats"} into a backbone.

    OpenFace's dense layer needs no reordering, since its input is 1x1.
    """
    names = {
        "kernel": "weight",
        "depthwise_kernel": "weight",
        "bias": "bias",
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    state = {}
    for collection in variables.values():
        for layer, tensors in collection.items():
            for name, values in tensors.items():
                array = np.array(values)
                if name == "depthwise_kernel":
                    array = array.transpose(2, 3, 0, 1)
                elif name == "kernel":
                    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
                state[f"layers.{layer}.{names[name]}"] = torch.tensor(array)
    missing, unexpected = backbone.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
