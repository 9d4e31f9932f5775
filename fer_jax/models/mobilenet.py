"""MobileNet v1 as in keras.applications (keras/src/applications/mobilenet.py)."""

import flax.linen as nn
import jax

from fer_jax.models import layers

# Filters and stride of the thirteen depthwise-separable blocks at alpha 1.
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNet(nn.Module):
    """MobileNet v1: float32 images [N, size, size, 3], scaled to -1..1, to features [N, h, w, 1024 alpha].

    Attributes:
      image_size: height and width of the images in pixels; at least 32, and even: at odd sizes the
        older Keras files pad the stem differently from Keras 3.
      alpha: width multiplier.
      include_top: add the ImageNet classifier; the output is then probabilities [N, 1000].
      learning: names of the layers that learn when `train` is true.
    """

    image_size: int = 224
    alpha: float = 1.0
    include_top: bool = False
    learning: frozenset[str] = frozenset()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def batch_norm(name: str) -> layers.BatchNormalization:
            return layers.BatchNormalization(1e-3, learns=train and name in self.learning, name=name)

        def width(filters: int) -> int:
            return int(filters * self.alpha)

        x = layers.Conv2D(width(32), 3, strides=2, padding="same", use_bias=False, name="conv1")(x)
        x = layers.relu6("conv1_relu")(batch_norm("conv1_bn")(x))
        for i, (filters, strides) in enumerate(BLOCKS, start=1):
            if strides == 2:
                x = layers.zero_padding(((0, 1), (0, 1)), f"conv_pad_{i}")(x)
            padding = "valid" if strides == 2 else "same"
            x = layers.DepthwiseConv2D(3, strides, padding, name=f"conv_dw_{i}")(x)
            x = layers.relu6(f"conv_dw_{i}_relu")(batch_norm(f"conv_dw_{i}_bn")(x))
            x = layers.Conv2D(width(filters), 1, use_bias=False, name=f"conv_pw_{i}")(x)
            x = layers.relu6(f"conv_pw_{i}_relu")(batch_norm(f"conv_pw_{i}_bn")(x))
        if self.include_top:
            x = layers.Function(lambda x: x.mean((1, 2), keepdims=True), name="global_average_pooling2d")(x)
            x = layers.dropout(1e-3, train, "dropout")(x)
            x = layers.Conv2D(1000, 1, name="conv_preds")(x)
            x = layers.flatten("reshape_2")(x)
            x = layers.softmax("predictions")(x)
        return x
