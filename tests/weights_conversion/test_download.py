"""Downloads against a local server that cuts, stalls, redirects and serves wrong bytes."""

import hashlib
import io
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest

import weights_conversion
from fer_jax.errors import InputError
from fer_jax.files import digest
from weights_conversion import convert, download, sources
from weights_conversion.sources import Source


def hdf5_file() -> bytes:
    """Of 1 MB and a little."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["kernel"] = np.arange(1 << 18, dtype=np.float32)
    return memory.getvalue()


CONTENT = hdf5_file()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT in the way that the path names; `requests` has (path, Range) of each request."""

    requests: list
    release: threading.Event
    content = CONTENT

    def log_message(self, *args):
        pass

    def do_GET(self):
        kind, wanted = self.path.split("/")[1], self.headers.get("Range")
        kind, _, onward = kind.partition("-")
        self.requests.append((kind, wanted))
        first = sum(k == kind for k, _ in self.requests) == 1
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", f"/{onward}/file.h5")
            self.end_headers()
            return
        if kind == "missing":
            self.send_error(404)
            return
        body = b"x" * len(CONTENT) if kind == "wrong" else self.content
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        start = 0
        if wanted and kind != "norange" and self.headers.get("If-Range") == tag:
            start = int(wanted.split("=")[1].rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = kind in ("cut", "norange", "alwayscut", "stall") and (first or kind == "alwayscut")
        self.wfile.write(body[start : start + 300_000] if cut else body[start:])
        if cut and kind == "stall":
            self.wfile.flush()
            self.release.wait(20)
        self.close_connection = True


@pytest.fixture
def server():
    handler = type("OwnHandler", (Handler,), {"requests": [], "release": threading.Event()})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    handler.address = f"http://127.0.0.1:{running.server_port}"
    yield handler
    handler.release.set()
    running.shutdown()
    running.server_close()


def source(server, *kinds, md5=MD5):
    return Source("file.h5", tuple(f"{server.address}/{kind}/file.h5" for kind in kinds), md5)


def assert_whole(path):
    assert path.read_bytes() == CONTENT
    assert {p.name for p in path.parent.iterdir()} - {"pins.json"} == {"file.h5", "file.h5.lock"}


def test_a_file_comes_once_and_then_from_the_cache(server, tmp_path):
    for _ in range(2):
        assert_whole(download.fetch(source(server, "good"), tmp_path))
    assert server.requests == [("good", None)]


def test_a_redirect_is_followed(server, tmp_path):
    assert_whole(download.fetch(source(server, "redirect-good"), tmp_path))


def test_a_connection_that_is_cut_goes_on_where_it_stopped(server, tmp_path):
    assert_whole(download.fetch(source(server, "cut"), tmp_path))
    assert server.requests == [("cut", None), ("cut", "bytes=300000-")]


def test_a_connection_that_is_cut_behind_a_redirect_goes_on_where_it_stopped(server, tmp_path):
    assert_whole(download.fetch(source(server, "redirect-cut"), tmp_path))
    ranges = (None, "bytes=300000-")
    assert server.requests == [(kind, wanted) for wanted in ranges for kind in ("redirect", "cut")]


def test_a_download_that_was_given_up_goes_on_at_the_next_start(server, tmp_path):
    with pytest.raises(InputError, match=rf"broke off at .* of {len(CONTENT):,} bytes"):
        download.fetch(source(server, "alwayscut"), tmp_path)
    have = (tmp_path / "file.h5.part").stat().st_size
    assert have == 900_000
    assert not (tmp_path / "file.h5").exists()
    assert_whole(download.fetch(source(server, "alwayscut"), tmp_path))
    assert server.requests[-1] == ("alwayscut", "bytes=900000-")


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    assert_whole(download.fetch(source(server, "norange"), tmp_path))


def test_a_stalled_connection_is_given_up_and_taken_up_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.5)
    assert_whole(download.fetch(source(server, "stall"), tmp_path))
    assert len(server.requests) == 2


def test_wrong_bytes_are_thrown_away_and_the_next_address_is_tried(server, tmp_path):
    assert_whole(download.fetch(source(server, "wrong", "missing", "good"), tmp_path))
    assert [kind for kind, _ in server.requests] == ["wrong", "missing", "good"]


def test_a_part_from_another_file_is_not_gone_on_with(server, tmp_path):
    with pytest.raises(InputError):
        download.fetch(source(server, "alwayscut"), tmp_path)
    other = bytes(reversed(CONTENT))
    server.content = other
    with pytest.raises(InputError):
        download.fetch(source(server, "alwayscut", md5=hashlib.md5(other).hexdigest()), tmp_path)
    assert other.startswith((tmp_path / "file.h5.part").read_bytes())


def test_without_a_publishers_checksum_the_first_download_is_pinned(server, tmp_path):
    path = download.fetch(source(server, "good", md5=""), tmp_path)
    assert json.loads((tmp_path / "pins.json").read_text()) == {
        "file.h5": hashlib.sha256(CONTENT).hexdigest()
    }
    path.unlink()
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(InputError, match=r"that of the first was .* \(in .*pins\.json\)"):
        download.fetch(source(server, "good", md5=""), tmp_path)
    assert not path.exists()
    server.content = CONTENT
    path.write_bytes(b"damaged")
    assert_whole(download.fetch(source(server, "good", md5=""), tmp_path))


def test_what_is_no_hdf5_file_is_never_pinned(server, tmp_path):
    with pytest.raises(InputError, match="not a whole HDF5 file"):
        download.fetch(source(server, "wrong", md5=""), tmp_path)
    assert not (tmp_path / "pins.json").exists()
    assert_whole(download.fetch(source(server, "good", md5=""), tmp_path))


NOT_OF_STRINGS = ["[1]", "[[1, 2]]", "5", "null", '"text"', '{"file.h5": 5, "address": 5, "tag": 5}', "{"]


@pytest.mark.parametrize("damaged", NOT_OF_STRINGS)
def test_damaged_pins_and_notes_of_a_download_count_as_none(damaged, server, tmp_path):
    for name in ("pins.json", "file.h5.part.json"):
        (tmp_path / name).write_text(damaged)
    (tmp_path / "file.h5.part").write_bytes(b"begun")
    assert_whole(download.fetch(source(server, "good", md5=""), tmp_path))
    assert server.requests == [("good", None)]
    assert pinned(tmp_path / "file.h5") == hashlib.sha256(CONTENT).hexdigest()


def test_a_file_put_there_by_hand_is_taken_and_pinned(server, tmp_path):
    (tmp_path / "file.h5").write_bytes(CONTENT)
    assert_whole(download.fetch(source(server, "missing", md5=""), tmp_path))
    assert "file.h5" in json.loads((tmp_path / "pins.json").read_text())


def test_a_truncated_file_put_there_by_hand_is_never_pinned_and_downloaded_again(server, tmp_path, caplog):
    (tmp_path / "file.h5").write_bytes(CONTENT[:-1000])
    with pytest.raises(InputError, match="could not be downloaded"):
        download.fetch(source(server, "missing", md5=""), tmp_path)
    assert "not a whole HDF5 file" in caplog.text
    assert not (tmp_path / "pins.json").exists()
    assert_whole(download.fetch(source(server, "good", md5=""), tmp_path))


@pytest.fixture
def published(mobilenet_layers, write_keras_2, tmp_path, monkeypatch):
    """published(place, kind) puts a file under the published name of MobileNet alpha 0.25, and says which.

    The kinds: "right" and "other" fit, "incomplete" lacks a tensor, "wrong" is of something else.
    """
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    name = sources.published("mobilenet", 0.25).name
    other = {
        layer: {tensor: array + 1 for tensor, array in each.items()}
        for layer, each in mobilenet_layers.items()
    }
    incomplete = {layer: each for layer, each in mobilenet_layers.items() if layer != "conv_pw_13"}
    kinds = {"right": mobilenet_layers, "other": other, "incomplete": incomplete}

    def put(place, kind):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        path = tmp_path / place / name
        if kind == "wrong":
            path.write_bytes(CONTENT)
        else:
            write_keras_2(path, kinds[kind])
        return path

    return put


CACHED = "cache/published"
COMMAND = ["--backbone=mobilenet", "--alpha=0.25", "--download", "--output=out", "--overwrite"]


def refusal(capsys, *arguments):
    """What the command says on stderr, which writes nothing."""
    with pytest.raises(SystemExit) as stop:
        convert.main([*COMMAND, *arguments])
    assert stop.value.code == 2
    assert not Path("out").exists()
    return capsys.readouterr().err


def pinned(path):
    return json.loads(path.with_name("pins.json").read_text())[path.name]


def test_a_file_put_there_by_hand_that_does_not_fit_is_not_pinned_and_the_right_one_may_follow(
    published, capsys
):
    path = published(CACHED, "wrong")
    assert f"error: {path}: " in refusal(capsys)
    assert path.read_bytes() == CONTENT
    assert not path.with_name("pins.json").exists()
    published(CACHED, "incomplete")
    assert "1 tensor at fault:\n  conv_pw_13/kernel: missing" in refusal(capsys)
    published(CACHED, "right")
    convert.main(COMMAND)
    assert pinned(path) == digest(path)


def test_a_mirrors_file_that_does_not_fit_is_replaced_once_the_mirror_has_the_right_one(
    published, capsys, monkeypatch
):
    monkeypatch.setenv("FER_JAX_MIRROR", "mirror")
    published("mirror", "wrong")
    refusal(capsys)
    right = published("mirror", "right")
    convert.main(COMMAND)
    cached = Path(CACHED, right.name)
    assert cached.read_bytes() == right.read_bytes()
    assert pinned(cached) == digest(right)


def test_a_mirrors_file_that_does_not_fit_gives_way_to_the_next_address(published, monkeypatch):
    monkeypatch.setenv("FER_JAX_MIRROR", "one two")
    published("one", "wrong")
    right = published("two", "right")
    path = convert.fetch("mobilenet", 0.25)
    assert path.read_bytes() == right.read_bytes()
    assert pinned(path) == digest(right)


def test_a_file_put_there_by_hand_with_gaps_is_not_replaced_by_a_mirrors_that_does_not_fit(
    published, capsys, monkeypatch
):
    monkeypatch.setenv("FER_JAX_MIRROR", "mirror")
    mine = published(CACHED, "incomplete")
    before = mine.read_bytes()
    published("mirror", "wrong")
    assert "conv_pw_13/kernel: missing" in refusal(capsys)
    assert mine.read_bytes() == before


def test_a_file_that_fits_but_is_not_the_first_that_did_is_noticed(published, capsys, monkeypatch):
    monkeypatch.setenv("FER_JAX_MIRROR", "mirror")
    published("mirror", "wrong")
    refusal(capsys)
    name = published("mirror", "right").name
    convert.main(COMMAND)
    shutil.rmtree("out")
    Path(CACHED, name).unlink()
    published("mirror", "other")
    assert "that of the first was" in refusal(capsys)
    assert not Path(CACHED, name).exists()


def test_a_file_whose_gaps_are_allowed_is_converted_and_not_pinned(published):
    path = published(CACHED, "incomplete")
    convert.main([*COMMAND, "--allow_missing=conv_pw_13/kernel"])
    assert weights_conversion.load_metadata("out")["initialised"]
    assert not path.with_name("pins.json").exists()


def test_two_downloads_at_once_fetch_a_file_once(server, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        for path in pool.map(lambda _: download.fetch(source(server, "good", md5=""), tmp_path), range(2)):
            assert_whole(path)
    assert server.requests == [("good", None)]


def test_a_mirror_may_be_a_folder(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("FER_JAX_MIRROR", str(tmp_path / "mirror"))
    wanted = sources.published("openface")
    (tmp_path / "mirror" / wanted.name).write_bytes(CONTENT)
    assert download.fetch(wanted, tmp_path / "cache").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "address", ["http://localhost:1/für", "http://[bad", "http://localhost:abc", "none://x"]
)
def test_a_malformed_address_fails_like_one_out_of_reach_and_the_next_is_tried(
    address, server, tmp_path, monkeypatch
):
    good = source(server, "good").addresses
    assert_whole(download.fetch(Source("file.h5", (f"{address}/file.h5", *good), MD5), tmp_path))
    monkeypatch.setenv("FER_JAX_MIRROR", address)
    with pytest.raises(InputError, match=rf"downloaded: {re.escape(address)}.* \(.+\); https") as error:
        download.fetch(sources.published("openface"), tmp_path / "empty")
    assert "\n" not in str(error.value)


def test_offline_says_in_a_line_what_to_get_and_where_to_put_it(tmp_path):
    nowhere = Source("file.h5", ("http://127.0.0.1:9/file.h5",), MD5)
    with pytest.raises(InputError) as error:
        download.fetch(nowhere, tmp_path)
    text = str(error.value)
    assert "http://127.0.0.1:9/file.h5 (" in text
    assert text.endswith(f"get it and put it at {tmp_path / 'file.h5'}")
    assert "\n" not in text


def test_every_backbone_has_a_published_file_and_mirrors_go_first(monkeypatch):
    monkeypatch.setenv("FER_JAX_MIRROR", "http://a/ http://b")
    for backbone in convert.LICENCES:
        found = sources.published(backbone)
        assert found.addresses[:2] == (f"http://a/{found.name}", f"http://b/{found.name}")
        assert len(found.addresses) == (4 if backbone == "mobilenet" else 3)
        assert all(each.startswith("https://") and each.endswith(found.name) for each in found.addresses[2:])
    assert sources.published("mobilenet", 0.25).name == "mobilenet_2_5_224_tf_no_top.h5"
    with pytest.raises(
        InputError, match=r"^no weights of MobileNet alpha 0.3 were published, only 1, 0.75, 0.5, 0.25"
    ):
        sources.published("mobilenet", 0.3)


def test_the_command_downloads_converts_and_names_the_licence(shared, server, tmp_path, monkeypatch, capsys):
    server.content = (shared / "weights" / "mobilenet_2_5_224_tf_no_top.h5").read_bytes()
    monkeypatch.setenv("FER_JAX_MIRROR", f"{server.address}/good")
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    convert.main(["--backbone=mobilenet", "--alpha=0.25", "--download"])
    out = capsys.readouterr().out
    assert "Apache-2.0" in out
    assert (tmp_path / "weights" / "mobilenet_0.25" / "weights.safetensors").exists()


def test_vggfaces_non_commercial_licence_is_printed_and_stored(write_keras_2, tmp_path, monkeypatch, capsys):
    layers = {"conv1_1": {"kernel": np.zeros((3, 3, 3, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    shapes = {
        layer: {name: array.shape for name, array in tensors.items()} for layer, tensors in layers.items()
    }
    monkeypatch.setattr(convert, "expected_shapes", lambda *_, **__: shapes)  # of 580 MB a few bytes
    (tmp_path / "mirror").mkdir()
    write_keras_2(tmp_path / "mirror" / "vgg_face_weights.h5", layers)
    monkeypatch.setenv("FER_JAX_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    convert.main(["--backbone=vggface", "--download", f"--output={tmp_path / 'out'}"])
    licence = weights_conversion.load_metadata(tmp_path / "out")["licence"]
    assert "CC BY-NC 4.0, non-commercial" in licence
    assert licence in capsys.readouterr().out


def test_the_command_takes_either_a_file_or_the_published_one(capsys):
    for arguments in (["--backbone=openface"], ["--backbone=openface", "--input=x.h5", "--download"]):
        with pytest.raises(SystemExit) as stop:
            convert.main(arguments)
        assert stop.value.code == 2
        assert "one of --input and --download" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--seed=-1"], "--seed: expected 0 to 4294967295, got -1"),
        (["--alpha=nan"], "alpha: nan, expected 0.03125"),
        (["--backbone=openface", "--alpha=0.5"], "alpha: openface has no width multiplier"),
        (["--backbone=openface", "--include_top"], "--include_top: openface has no classifier"),
        (["--include_top"], "--include_top: the published files have no classifier"),
        (
            ["--backbone=resnet50", "--include_top"],
            "--include_top: the published files have no classifier",
        ),
        (["--allow_missing=conv_pw_14/kernel"], "--allow_missing: no such tensor conv_pw_14/kernel"),
    ],
)
def test_the_command_refuses_wrong_options_before_it_downloads(
    arguments, reason, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "fetch", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(SystemExit) as stop:
        convert.main(["--backbone=mobilenet", "--download", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {reason}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
