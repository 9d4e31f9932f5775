"""Trained models in other tools: the same probabilities by each tool's own runtime, and nothing else left."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import keras
import keras_reference
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors import safe_open

import fer_jax
from fer_jax import models, saved_model
from fer_jax.data import faces, preprocessing
from fer_jax.errors import InputError
from weights_conversion import convert, export, formats, keras_h5, keras_models
from weights_conversion.formats import keras_file, safetensors_file

ROOT = Path(__file__).resolve().parents[2]
FACES = 64
LICENCE = "CC BY-NC 4.0, non-commercial research"
SIZES = {"mobilenet": 32, "openface": 96, "resnet50": 32, "vggface": 224}
ALPHAS = {"mobilenet": 0.25}


def spec_of(backbone: str, **changes) -> saved_model.Spec:
    values = {
        "backbone": backbone,
        "alpha": ALPHAS.get(backbone, 1.0),
        "image_size": SIZES[backbone],
        "pooling": "avg" if backbone in ("mobilenet", "resnet50") else "none",
        "batch_norm": True,
        "hidden": (16,),
        "scaling": preprocessing.AUTO_SCALING[backbone],
        "class_names": tuple(faces.PROTOTYPES),
        "side": 48,
        "channels": 1,
        "provenance": {"title": "a test", "init": {"weights": {"licence": LICENCE}}},
    }
    return saved_model.Spec(**values | changes)


@functools.cache
def variables_of(backbone: str):
    """Random weights of backbone and head under which faces differ: those of `keras_reference.calibrate`."""
    spec = spec_of(backbone)
    with keras_reference.zero_kernels():
        base = keras_models.build(backbone, spec.image_size, spec.alpha)
        model = keras_models.classifier(base, 7, spec.pooling, hidden=spec.hidden)
    drawn, _ = faces.draw(8, seed=1)
    images = preprocessing.prepare(jax.numpy.asarray(drawn), spec.image_size, spec.scaling)
    keras_reference.calibrate(model, np.asarray(images), seed=1)
    last = model.get_layer("head_predictions").kernel
    last.assign(0.3 * last)  # no probability near 1, where differences would not show
    tensors = {
        f"{layer.name}/{keras_models.tensor_name(layer, weight)}": np.asarray(weight)
        for layer in model.layers
        for weight in layer.weights
    }
    return safetensors_file.to_variables(tensors)


@pytest.fixture(scope="module", params=["mobilenet", "openface"])
def trained(request, tmp_path_factory):
    """A saved model, 64 faces as an outsider prepares them, and what fer_jax itself predicts of them."""
    directory, spec = tmp_path_factory.mktemp("run"), spec_of(request.param)
    saved_model.save(directory / saved_model.FILE, spec, variables_of(request.param))
    saved = saved_model.load(directory)
    drawn = jax.numpy.asarray(faces.draw(FACES, seed=2)[0])

    images = np.asarray(preprocessing.to_images(drawn, spec.image_size))
    expected = np.asarray(jax.jit(spec.predictor())(saved.variables, images))
    assert expected.std(0).min() > 0.02, "too little signal for a test"
    return SimpleNamespace(directory=directory, saved=saved, images=images, expected=expected)


@pytest.fixture(autouse=True)
def _compile_little(monkeypatch):
    """The command tries as many faces as the tests do, so that programs are alike; Keras draws no kernels."""
    monkeypatch.setattr(export, "FACES", FACES)
    with keras_reference.zero_kernels():
        yield


def snippet(name: str) -> str:
    """The code of docs/export.md that reads the file `name`."""
    text = (ROOT / "docs" / "export.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if name in code]
    return code


def run_snippet(name: str, images: np.ndarray) -> dict:
    namespace = {"images": images}
    exec(snippet(name), namespace)
    return namespace


def test_a_crop_made_ready_by_the_readme_is_what_fer_jax_makes_of_it(trained, tmp_path, monkeypatch):
    """Of a large one, in colour: what is left out of the readme would show."""
    large = Image.fromarray(faces.draw(1, seed=5)[0][0]).resize((301, 277), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(5).integers(-40, 40, (277, 301, 3))
    crop = np.clip(np.asarray(large)[..., None] + noise, 0, 255).astype(np.uint8)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(crop).save("crop.png")
    namespace = {"size": trained.saved.spec.image_size}
    exec(snippet("crop.png"), namespace)
    found = jax.jit(trained.saved.spec.predictor())(trained.saved.variables, namespace["images"])
    (photo,) = fer_jax.load(trained.directory).predict(["crop.png"], detector="none")
    np.testing.assert_allclose(100 * found[0], list(photo.faces[0].emotion.values()), atol=0.01)
    words = formats.describe(trained.saved)["resize"]
    assert words.startswith(
        "a face to 48x48 pixels, grey, bilinear, antialiased, as by Pillow; from there to "
    )


def test_keras_loads_it_by_the_readme_predicts_the_same_and_gives_every_bit_back(
    trained, tmp_path, monkeypatch
):
    done = export.export(trained.directory, "keras", tmp_path / "model.keras")
    assert done.difference <= 1e-5
    monkeypatch.chdir(tmp_path)
    probabilities = run_snippet("model.keras", trained.images)["probabilities"]
    np.testing.assert_allclose(probabilities, trained.expected, rtol=0, atol=1e-5)

    spec, read = trained.saved.spec, keras_h5.read("model.keras")
    assert read.named
    ours = flatten_dict(trained.saved.variables)
    by_layer: dict[str, dict[str, np.ndarray]] = {}
    for (_, part, layer, tensor), array in ours.items():
        name = f"head_{layer}" if part == "head" else layer
        by_layer.setdefault(name, {})[tensor] = array
    assert read.layers.keys() == by_layer.keys()
    for layer, tensors in by_layer.items():
        in_order = [tensors[name] for name in sorted(tensors, key=convert.TENSOR_ORDER.index)]
        for theirs, array in zip(read.layers[layer].values(), in_order, strict=True):
            np.testing.assert_array_equal(theirs, array, strict=True)

    metadata = convert.convert(spec.backbone, "model.keras", "back", alpha=spec.alpha)
    assert metadata["left_out"] == ["head_batch_normalization", "head_dense", "head_predictions"]
    back = flatten_dict(convert.store.load("back"))
    assert back.keys() == {(c, layer, t) for c, part, layer, t in ours if part == "backbone"}
    for (collection, layer, tensor), array in back.items():
        np.testing.assert_array_equal(array, ours[collection, "backbone", layer, tensor], strict=True)


def test_keras_loads_resnet_s_scaling_too(tmp_path):
    # As small a network as any, on inputs a hundred times those of its calibration: hence 1e-4.
    spec = spec_of("mobilenet", scaling="caffe")
    saved_model.save(tmp_path / saved_model.FILE, spec, variables_of("mobilenet"))
    export.export(tmp_path, "keras", tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    colour = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)
    expected = spec.predictor()(saved_model.load(tmp_path).variables, colour)
    np.testing.assert_allclose(model.predict(colour, verbose=0), expected, rtol=0, atol=1e-4)
    assert np.abs(model.predict(colour[..., ::-1], verbose=0) - expected).max() > 1e-3, "channels count"


def test_onnx_runtime_loads_it_by_the_readme_and_predicts_the_same(trained, tmp_path, monkeypatch):
    export.export(trained.directory, "onnx", tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    results = run_snippet("model.onnx", trained.images)
    np.testing.assert_allclose(results["probabilities"], trained.expected, rtol=0, atol=1e-5)
    assert json.loads(results["classes"]) == list(faces.PROTOTYPES)
    assert results["session"].get_modelmeta().custom_metadata_map["licence"] == LICENCE
    one = results["session"].run(None, {"images": trained.images[:1]})[0]
    np.testing.assert_allclose(one, trained.expected[:1], rtol=0, atol=1e-5)


def test_jax_alone_loads_stablehlo_by_the_readme_and_predicts_the_same(trained, tmp_path):
    export.export(trained.directory, "stablehlo", tmp_path / "model.stablehlo")
    np.save(tmp_path / "images.npy", trained.images)
    program = [
        "import sys",
        "import numpy as np",
        "images = np.load('images.npy')",
        snippet("model.stablehlo"),
        "assert model.platforms == ('cpu', 'cuda', 'tpu')",
        "assert not {'fer_jax', 'weights_conversion', 'flax', 'keras'} & set(sys.modules)",
        "np.save('probabilities.npy', probabilities)",
    ]
    cache = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    subprocess.run([sys.executable, "-c", "\n".join(program)], check=True, cwd=tmp_path, env=cache)
    probabilities = np.load(tmp_path / "probabilities.npy")
    np.testing.assert_allclose(probabilities, trained.expected, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "model.stablehlo.json").read_text())["licence"] == LICENCE


def test_safetensors_hold_all_that_predicting_takes(trained, tmp_path, monkeypatch):
    done = export.export(trained.directory / saved_model.FILE, "safetensors", tmp_path / "model.safetensors")
    assert [path.name for path in done.files] == ["model.safetensors"]
    monkeypatch.chdir(tmp_path)
    metadata = run_snippet("model.safetensors", trained.images)["metadata"]
    assert metadata.keys() == formats.describe(trained.saved).keys()
    assert (metadata["licence"], json.loads(metadata["classes"])) == (LICENCE, list(faces.PROTOTYPES))
    with safe_open("model.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    predict = saved_model.Spec.from_json(metadata["spec"]).predictor()
    probabilities = jax.jit(predict)(safetensors_file.to_variables(tensors), trained.images)
    np.testing.assert_allclose(probabilities, trained.expected, rtol=0, atol=1e-5)


def test_what_is_exported_is_the_forward_pass_on_prepared_faces():
    spec, variables = spec_of("mobilenet"), variables_of("mobilenet")
    drawn = jax.numpy.asarray(faces.draw(4, seed=3)[0])
    logits = jax.jit(spec.module().apply)(variables, preprocessing.prepare(drawn, 32, "tf"))
    images = preprocessing.to_images(drawn, 32)
    probabilities = jax.jit(spec.predictor())(variables, images)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)  # 1.4e-6 without AVX-512


@pytest.mark.parametrize("backbone", models.BACKBONES)
def test_every_backbone_in_keras_has_our_tensors_and_scaling(backbone):
    spec = spec_of(backbone)
    model = keras_file.build(spec)
    shapes = {
        f"{layer.name}/{keras_models.tensor_name(layer, weight)}": tuple(weight.shape)
        for layer in model.layers
        for weight in layer.weights
    }
    size = spec.image_size
    abstract = formats.named_tensors(spec.abstract_variables())
    assert shapes == {name: leaf.shape for name, leaf in abstract.items()}
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    scaled = keras.Model(model.input, model.get_layer("scaling").output)([images])
    np.testing.assert_allclose(scaled, preprocessing.scale(images, spec.scaling), atol=1e-5)
    assert not [layer for layer in model.layers if isinstance(layer, keras.layers.Lambda)]


@pytest.fixture
def run(tmp_path) -> Path:
    saved_model.save(tmp_path / saved_model.FILE, spec_of("mobilenet"), variables_of("mobilenet"))
    return tmp_path


@pytest.mark.parametrize("value", [1.1e-4, np.nan])
def test_a_file_that_would_predict_otherwise_is_not_left(value, run, monkeypatch):
    right = safetensors_file.predict
    monkeypatch.setattr(safetensors_file, "predict", lambda path, images: right(path, images) + value)
    (run / "out").mkdir()
    with pytest.raises(InputError, match="it would predict otherwise"):
        export.export(run, "safetensors", run / "out" / "model.safetensors")
    assert not list((run / "out").iterdir())


def test_weights_from_random_ones_claim_no_licence():
    assert formats.licence(spec_of("openface", provenance={})) == "no pretrained weights inside"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--format=keras", "--output=model.h5"], "expected a name in .keras"),
        (["--format=onnx", "--output=none/model.onnx"], "none is no directory"),
        (["--format=safetensors", "--output=."], "--output: ., expected the name of a file"),
        (["--format=keras", "--output=/"], "--output: /, expected the name of a file"),
        (["--format=stablehlo", "--output="], "--output: ., expected the name of a file"),
        (["--format=onnx", "--output=..", "--overwrite"], ".. exists already"),
        (
            ["--format=safetensors", "--output=model.safetensors"],
            "exists already, expected a new file or --o",
        ),
        (["--format=keras", "--output=taken.keras"], "taken.keras.json exists already"),
        (["--format=safetensors", "--output=x", "--model=none"], "no such file, expected a trained model"),
    ],
)
def test_what_cannot_be_exported_ends_in_one_line_and_status_2(arguments, reason, run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    (run / "taken.keras.json").touch()
    before = sorted(run.iterdir())
    with pytest.raises(SystemExit, match="2"):
        export.main(["--model=.", *arguments])
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert sorted(run.iterdir()) == before


def test_a_missing_package_is_named_with_the_command_that_installs_it(run, monkeypatch):
    find = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(
        InputError, match=r"onnxruntime is not installed, try: .*python.* -m pip install -e '\.\[export\]'"
    ):
        export.export(run, "onnx", run / "model.onnx")


def test_the_command_says_what_it_wrote(run, capsys):
    arguments = [f"--model={run}", "--format=safetensors", f"--output={run / 'new'}"]
    export.main(arguments)
    line = capsys.readouterr().out
    for part in (str(run / "new"), f"{(run / 'new').stat().st_size:,} bytes", "0.0e+00", LICENCE):
        assert part in line
    export.main([*arguments, "--overwrite"])


def test_a_file_whose_name_is_no_text_is_told_escaped(run):
    output = run / os.fsdecode(b"v\xe9")
    command = [sys.executable, "-m", "weights_conversion.export", f"--model={run}", "--format=safetensors"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [*command, f"--output={output}"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert r"v\udce9: " in done.stdout


def test_help_waits_for_no_jax():
    code = "import sys, weights_conversion.export; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
