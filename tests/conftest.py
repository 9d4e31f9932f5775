"""Keras on JAX as the oracle, compiled programs kept, and nothing written outside the checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ["KERAS_BACKEND"] = "jax"
os.environ["https_proxy"] = "http://127.0.0.1:9"  # nothing comes from a publisher; local servers speak http
os.environ.setdefault("KERAS_HOME", str(ROOT / ".cache/keras"))
os.environ.setdefault("MPLCONFIGDIR", str(ROOT / ".cache/matplotlib"))

import jax
import numpy as np
import pytest

COMPILED = ROOT / ".cache/compiled-tests"
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path_factory, monkeypatch):
    """No data set or cache of the user's is found by accident."""
    monkeypatch.delenv("FER2013", raising=False)
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and weights beside the checkout; tests that need them skip elsewhere."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs real data and weights in ../shared, which are not part of the project")
    return path


def write_fer2013_csv(path: Path, rows: int, seed: int = 0) -> Path:
    """A csv in the form of fer2013.csv with `rows` drawn faces, every class at least six times."""
    from fer_jax.data import faces

    images, _ = faces.draw(rows, seed=seed)
    labels = np.arange(rows) % 7
    usage = np.array(["Training"] * 7 + ["PublicTest"] * 2 + ["PrivateTest"])[np.arange(rows) * 7919 % 10]
    lines = [
        f"{label},{' '.join(map(str, image.ravel()))},{use}"
        for label, image, use in zip(labels, images, usage, strict=True)
    ]
    path.write_text("emotion,pixels,Usage\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def small_csv(tmp_path_factory) -> Path:
    """200 rows in the form of fer2013.csv."""
    return write_fer2013_csv(tmp_path_factory.mktemp("csv") / "fer2013.csv", 200)


@pytest.fixture
def lock_folder(monkeypatch):
    """lock_folder(name): folders called so cannot be listed, as the system has it, but for root."""
    scandir = os.scandir

    def lock(name: str) -> None:
        def refusing(path):
            if os.path.basename(path) == name:
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)

    return lock


@pytest.fixture
def shallow(monkeypatch):
    """Backbones with fewer and narrower layers of the same kinds."""
    from fer_jax import models

    blocks = {  # 12 pixels a side to 6, to 3, and one of those that keep them
        "3c": ((4, 8), (4, 8), "max", 0, ((0, 1), (0, 1)), 0),
        "4e": ((4, 8), (4, 8), "max", 0, ((0, 1), (0, 1)), 0),
        "5a": ((4, 8), (), "l2", 8, 1, 8),
    }
    monkeypatch.setattr(models.openface, "INCEPTIONS", blocks)
    monkeypatch.setattr(models.mobilenet, "BLOCKS", ((32, 1), (64, 2), (64, 1)))
    monkeypatch.setattr(models.resnet50, "STACKS", ((8, 1, 1), (8, 1, 2), (16, 3, 2)))
    monkeypatch.setattr(models.vggface, "BLOCKS", ((4,), (4,), (4,), (4,), (8,)))
    models._traced.cache_clear()
    yield
    models._traced.cache_clear()
