"""Keras on TensorFlow as a peer, where the extra `bench` is installed."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("tensorflow", reason="needs the extra `bench`: TensorFlow is not installed")


def test_keras_on_tensorflow_is_waited_for_on_all_devices():
    script = """
import tensorflow as tf
from benchmarks.peers import keras_tf
from benchmarks.work import Work
waits = []
tf.test.experimental.sync_devices = lambda: waits.append(1)
for run in keras_tf.variants(Work("matmul", image_size=8)).values():
    run(3)
assert len(waits) == 2, waits
"""
    # In a process of its own: Keras has one backend a process.
    subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )
