"""Keras weights for the backbones: converted once by `weights_conversion.convert`, then loaded from here.

>>> variables = weights_conversion.load("weights/mobilenet")
>>> features = fer_jax.models.build("mobilenet").apply(variables, images)
"""

from weights_conversion.store import (
    check_fits,
    describe,
    directory_name,
    download_command,
    load,
    load_metadata,
    title,
)

__all__ = ["check_fits", "describe", "directory_name", "download_command", "load", "load_metadata", "title"]
