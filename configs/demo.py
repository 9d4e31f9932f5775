"""A short run for a first look: OpenFace from scratch on the embedded drawn faces."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """See configs/default.py for every field."""
    config = default.get_config()
    config.init = "scratch"
    config.epochs = 4
    config.batch_size = 8  # more steps, so that the moving statistics of batch normalisation settle
    config.optimizer.learning_rate = (1e-3,)
    config.data.path = "drawn"
    config.data.drawn_faces = 1280
    return config
