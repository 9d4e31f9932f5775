"""Every command of TUTORIAL.md, as it stands there, on photographs that are drawn."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_jax.data import faces

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [
    command
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "TUTORIAL.md").read_text(), re.DOTALL)
    for command in block.replace("\\\n", " ").strip().splitlines()
]
PUBLISHED = "mobilenet_2_5_224_tf_no_top.h5"


def draw_photos(folder: Path) -> None:
    """Colour photographs of drawn faces, two classes, ten each."""
    images, labels = faces.draw(400)
    for name, label in (("delighted", 3), ("grumpy", 0)):
        (folder / name).mkdir(parents=True)
        for number, face in enumerate(images[labels == label][:14]):
            photo = np.full((300, 400, 3), (90, 120, 140), np.uint8)
            large = np.asarray(Image.fromarray(face).resize((192, 192), Image.Resampling.BICUBIC))
            photo[50:242, 100:292] = large[..., None]
            Image.fromarray(photo).save(folder / name / f"photo_{number}.jpg")


def put_weights_into_the_cache(cache: Path) -> None:
    """Puts there what the download would give: the published file, or else random weights in its form."""
    real = ROOT.parent / "shared" / "weights" / PUBLISHED
    target = cache / "published" / PUBLISHED
    target.parent.mkdir(parents=True)
    if real.exists():
        target.write_bytes(real.read_bytes())
        return
    import keras

    model = keras.applications.MobileNet((96, 96, 3), alpha=0.25, include_top=False, weights=None)
    model.save_weights(cache / "random.weights.h5")
    (cache / "random.weights.h5").rename(target)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory in which the commands run one after the other."""
    place = tmp_path_factory.mktemp("tutorial")
    (place / "configs").symlink_to(ROOT / "configs")
    draw_photos(place / "photos")
    put_weights_into_the_cache(place / "cache")
    return place


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_every_command_of_the_tutorial_runs_in_its_turn(number, place):
    words = shlex.split(COMMANDS[number])
    assert words[0] == ".venv/bin/python"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FER_JAX_CACHE": str(place / "cache")}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=place, env=environment, capture_output=True, text=True
    )
    missing_faces = words[2] in ("fer_jax.crop", "fer_jax.predict") and done.returncode == 1
    assert done.returncode == 0 or missing_faces, done.stderr[-2000:]


def test_the_tutorial_leaves_what_it_says(place):
    assert len(list((place / "faces" / "grumpy").iterdir())) >= 10
    results = json.loads((place / "runs/mine/results.json").read_text())
    assert results["data"]["class_names"] == ["delighted", "grumpy"]
    assert results["init"]["name"] == "pretrained"
    assert len(json.loads((place / "emotions.json").read_text())) == 28
    assert list((place / "annotated").rglob("*.jpg"))
    assert "delighted" in (place / "runs/report/report.html").read_text()
    assert (place / "mine.stablehlo").stat().st_size > 100_000
