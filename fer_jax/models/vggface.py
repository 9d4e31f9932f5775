"""VGG-Face as deepface builds it (2021, deepface/basemodels/VGGFace.py), its softmax left out.

deepface's convolutions carry no names; here they bear those of the VGG-Face authors (Parkhi, Vedaldi,
Zisserman, "Deep Face Recognition", BMVC 2015): conv1_1 ... conv5_3, fc6, fc7, fc8. The layers without
weights keep Keras's automatic names.
"""

import flax.linen as nn
import jax

from fer_jax.models import layers
from fer_jax.models.naming import AutomaticNames

# Filters of the convolutions of each block.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGGFace(nn.Module):
    """VGG-Face: float32 images [N, 224, 224, 3], scaled to 0..1, to identity scores [N, 2622].

    Attributes:
      image_size: height and width of the images in pixels; at least 224. A larger image gives a score
        for every place of the 7x7 window, flattened.
      include_top: add the softmax over identities (it has no weights).
      learning: names of the layers that learn; accepted as in every backbone, but nothing here
        behaves differently for it, since the network has no batch normalisation.
    """

    image_size: int = 224
    include_top: bool = False
    learning: frozenset[str] = frozenset()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        auto = AutomaticNames()
        for block, widths in enumerate(BLOCKS, start=1):
            for i, filters in enumerate(widths, start=1):
                x = layers.zero_padding(1, auto("zero_padding2d"))(x)
                x = layers.Conv2D(filters, 3, activation=nn.relu, name=f"conv{block}_{i}")(x)
            x = layers.max_pooling(2, 2, auto("max_pooling2d"))(x)
        x = layers.Conv2D(4096, 7, activation=nn.relu, name="fc6")(x)
        x = layers.dropout(0.5, train, auto("dropout"))(x)
        x = layers.Conv2D(4096, 1, activation=nn.relu, name="fc7")(x)
        x = layers.dropout(0.5, train, auto("dropout"))(x)
        x = layers.Conv2D(2622, 1, name="fc8")(x)
        x = layers.flatten(auto("flatten"))(x)
        return layers.softmax(auto("activation"))(x) if self.include_top else x
