"""The paper's experiment on the backbone mobilenet."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """See configs/default.py for every field."""
    config = default.get_config()
    config.backbone = "mobilenet"
    return config
