"""ResNet-50, version 1, as in keras.applications (keras/src/applications/resnet.py)."""

import flax.linen as nn
import jax

from fer_jax.models import layers

# Filters, blocks and stride of the four stacks conv2 ... conv5.
STACKS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class ResNet50(nn.Module):
    """ResNet-50: float32 images [N, size, size, 3], BGR minus ImageNet means, to features [N, h, w, 2048].

    Attributes:
      image_size: height and width of the images in pixels; at least 32.
      include_top: add the ImageNet classifier; the output is then probabilities [N, 1000].
      learning: names of the layers that learn when `train` is true.
    """

    image_size: int = 224
    include_top: bool = False
    learning: frozenset[str] = frozenset()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def batch_norm(name: str) -> layers.BatchNormalization:
            return layers.BatchNormalization(1.001e-5, learns=train and name in self.learning, name=name)

        def block(x: jax.Array, filters: int, strides: int, convolve_shortcut: bool, name: str) -> jax.Array:
            shortcut = [
                layers.Conv2D(4 * filters, 1, strides, name=f"{name}_0_conv"),
                batch_norm(f"{name}_0_bn"),
            ]
            main = [
                layers.Conv2D(filters, 1, strides, name=f"{name}_1_conv"),
                batch_norm(f"{name}_1_bn"),
                layers.relu(f"{name}_1_relu"),
                layers.Conv2D(filters, 3, padding="same", name=f"{name}_2_conv"),
                batch_norm(f"{name}_2_bn"),
                layers.relu(f"{name}_2_relu"),
                layers.Conv2D(4 * filters, 1, name=f"{name}_3_conv"),
                batch_norm(f"{name}_3_bn"),
            ]
            x = layers.add(f"{name}_add")(layers.parallel([shortcut if convolve_shortcut else [], main], x))
            return layers.relu(f"{name}_out")(x)

        x = layers.zero_padding(3, "conv1_pad")(x)
        x = layers.Conv2D(64, 7, strides=2, name="conv1_conv")(x)
        x = layers.relu("conv1_relu")(batch_norm("conv1_bn")(x))
        x = layers.zero_padding(1, "pool1_pad")(x)
        x = layers.max_pooling(3, 2, "pool1_pool")(x)
        for stack, (filters, blocks, strides) in enumerate(STACKS, start=2):
            for i in range(1, blocks + 1):
                x = block(x, filters, strides if i == 1 else 1, i == 1, f"conv{stack}_block{i}")
        if self.include_top:
            x = layers.global_average_pooling("avg_pool")(x)
            x = layers.Dense(1000, activation=nn.softmax, name="predictions")(x)
        return x
