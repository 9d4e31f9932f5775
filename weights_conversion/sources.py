"""Where the published weights lie: addresses and checksums."""

import dataclasses
import os
from pathlib import Path

from fer_jax.errors import InputError
from weights_conversion import store

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_KERAS_BEFORE = "https://github.com/fchollet/deep-learning-models/releases/download/v0.6"  # Keras 2's
_DEEPFACE = "https://github.com/serengil/deepface_models/releases/download/v1.0"
# keras/src/applications/mobilenet.py names its files by the alphas that were trained.
_ALPHAS = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0", 0.25: "2_5"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A published file.

    Attributes:
      name: of the file.
      addresses: tried in turn.
      md5: the publisher's checksum (hex); empty where there is none.
    """

    name: str
    addresses: tuple[str, ...]
    md5: str = ""


def published(backbone: str, alpha: float = 1.0) -> Source:
    """The file with the published weights of a backbone, without its ImageNet classifier.

    $FER_JAX_MIRROR, folders or their addresses separated by spaces, goes before the publisher's.

    Raises:
      InputError: a width of MobileNet that was not published.
    """
    if backbone == "mobilenet":
        if alpha not in _ALPHAS:
            widths = ", ".join(map(store.width, _ALPHAS))
            raise InputError(
                f"no weights of MobileNet alpha {store.width(alpha)} were published, only {widths}"
            )
        name = f"mobilenet_{_ALPHAS[alpha]}_224_tf_no_top.h5"
        return _source(name, f"{_KERAS}/mobilenet", _KERAS_BEFORE)
    if backbone == "resnet50":  # the checksum: keras/src/applications/resnet.py, WEIGHTS_HASHES
        name = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
        return _source(name, f"{_KERAS}/resnet", md5="4d473c1dd8becc155b73f8504c6f6626")
    return _source({"openface": "openface_weights.h5", "vggface": "vgg_face_weights.h5"}[backbone], _DEEPFACE)


def _source(name: str, *publishers: str, md5: str = "") -> Source:
    mirrors = os.environ.get("FER_JAX_MIRROR", "").split()
    folders = [each if "://" in each else Path(each).absolute().as_uri() for each in mirrors]
    return Source(name, tuple(f"{each.rstrip('/')}/{name}" for each in (*folders, *publishers)), md5)
