"""Small FER2013 look-alikes in every form, and the real one where it is at hand."""

import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from fer_jax.data.dataset import CLASS_NAMES, USAGE_NAMES, FaceDataset


def _dataset(images, labels, usage, kind="csv"):
    return FaceDataset(images, labels.astype(np.int32), usage, CLASS_NAMES, kind, "small", "0" * 64)


@pytest.fixture(scope="session")
def small():
    """210 faces of noise: 30 of each class, in an order that is neither by class nor by usage."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(7), 30))
    usage = rng.permutation(np.repeat([0, 1, 2], [150, 30, 30])).astype(np.uint8)
    return _dataset(rng.integers(0, 256, (210, 48, 48), np.uint8), labels, usage)


@pytest.fixture(scope="session")
def real(shared):
    """FER2013 as published, from the shared copy."""
    with np.load(shared / "data" / "fer2013.npz") as arrays:
        return _dataset(arrays["images"], arrays["labels"], arrays["usage"])


@pytest.fixture(scope="session")
def csv_rows():
    """The lines of fer2013.csv for a data set, header first."""

    def lines(dataset):
        pixels = [" ".join(map(str, image.ravel())) for image in dataset.images]
        usages = [USAGE_NAMES[usage] for usage in dataset.usage]
        rows = zip(dataset.labels, pixels, usages, strict=True)
        return ["emotion,pixels,Usage", *(f"{label},{px},{usage}" for label, px, usage in rows)]

    return lines


@pytest.fixture(scope="session")
def write_csv(csv_rows):
    def write(dataset, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(csv_rows(dataset)) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def write_icml(csv_rows):
    def write(dataset, path):
        rows = [line.split(",") for line in csv_rows(dataset)[1:]]
        lines = ["emotion, Usage, pixels", *(f"{label},{usage},{px}" for label, px, usage in rows)]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def write_folders():
    def write(dataset, root, names=CLASS_NAMES, suffix=".png"):
        for index, (image, label, usage) in enumerate(
            zip(dataset.images, dataset.labels, dataset.usage, strict=True)
        ):
            folder = root / ("train" if usage == 0 else "test") / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"im{index}{suffix}")
        return root

    return write


@pytest.fixture(scope="session")
def pack():
    """Packs everything below a directory into a .zip or .tar.gz, in an order that is not sorted."""

    def write(root, archive):
        files = sorted((path for path in root.rglob("*") if path.is_file()), reverse=True)
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
                for path in files:
                    zipped.write(path, path.relative_to(root).as_posix())
        else:
            with tarfile.open(archive, "w:gz") as tar:
                for path in files:
                    tar.add(path, "./" + path.relative_to(root).as_posix())
        return archive

    return write
