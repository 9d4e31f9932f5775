"""Published files into the cache: resumed, checked against a checksum, whole or not there.

Beside a file NAME stand, while it is under way, NAME.part with what has come, and NAME.part.json with where
it comes from. pins.json has the sha256 of every file whose publisher gives no checksum, from the first on
that fits its backbone.
"""

import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import h5py
from tqdm import tqdm

from fer_jax import cache
from fer_jax.errors import InputError
from fer_jax.files import digest, replacing
from weights_conversion.sources import Source

Misfit = Callable[[Path], str]

log = logging.getLogger(__name__)

STALL_SECONDS = 30.0  # without a byte, after which a connection is given up
ATTEMPTS = 3  # at one address, as long as each brings something new
_BLOCK = 1 << 20


class _Failed(Exception):
    """An attempt failed; the words say how."""


def fetch(source: Source, folder: Path | None = None, misfit: Misfit = lambda path: "") -> Path:
    """The published file, from the cache or downloaded into it.

    Args:
      misfit: says why a file is not what is wanted, or nothing.
      folder: None for the cache's directory `published`.

    Returns:
      its path; its checksum is the publisher's, or that of the first that fitted. A file that does
      not fit is given only where no address has a better one, and is replaced as soon as one has.

    Raises:
      InputError: no address gave it, or the cache cannot be written.
    """
    folder = folder or cache.cache_dir() / "published"
    target = folder / source.name
    with cache.locked(folder / f"{source.name}.lock"), cache.writing(folder):
        if target.exists():
            problem = _wrong(target, source) or _unfit(target, source, misfit)
            if not problem:
                _pin(target, source)
                return target
            log.warning("%s: %s; it is downloaded again", target, problem)
        reasons = []
        for address in source.addresses:
            try:
                _download(address, target, source, misfit)
                return target
            except _Failed as failure:
                reasons.append(f"{address} ({failure})")
        failed = f"{source.name} could not be downloaded: {'; '.join(reasons)}"
        if target.exists() and not _wrong(target, source):
            log.warning("%s", failed)
            return target  # the conversion lists what does not fit
    raise InputError(f"{failed}; get it and put it at {target}")


def _download(address: str, target: Path, source: Source, misfit: Misfit) -> None:
    part = target.with_name(target.name + ".part")
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(address, part)
            break
        except _Failed:
            gained = part.exists() and part.stat().st_size > before
            if not gained or attempt == ATTEMPTS - 1:
                raise
            log.info("%s: broke off, going on", address)
    problem = _wrong(part, source)
    if problem:
        part.unlink()
        raise _Failed(problem)
    problem = _unfit(part, source, misfit)
    if problem and target.exists() and not _wrong(target, source):
        part.unlink()  # what is there is no worse
        raise _Failed(problem)
    part.replace(target)
    _notes(part).unlink(missing_ok=True)
    if problem:
        raise _Failed(problem)
    _pin(target, source)


def _transfer(address: str, part: Path) -> None:
    """Appends to `part` what is missing; anew where the server may have another file by now."""
    known = _read_strings(_notes(part))
    have = part.stat().st_size if part.exists() and known.get("address") == address else 0
    headers = {"User-Agent": "fer-jax"}
    if have and known.get("tag"):
        headers |= {"Range": f"bytes={have}-", "If-Range": known["tag"]}
    else:
        have = 0
    try:
        try:
            request = urllib.request.Request(address, headers=headers)
            opened = urllib.request.urlopen(request, timeout=STALL_SECONDS)
        except ValueError as error:
            raise _Failed(f"malformed address: {error}") from error
        with opened as response:
            if response.status != 206:
                have = 0
            length = response.headers["Content-Length"] or ""
            total = have + int(length) if length.isdecimal() else None
            with replacing(_notes(part)) as notes:
                notes.write_text(json.dumps({"address": address, "tag": response.headers["ETag"] or ""}))
            _copy(response, part, have, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # all of it had come
            return
        raise _Failed(f"HTTP {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _Failed(" ".join(str(reason).split()) or type(error).__name__) from error


def _copy(response: http.client.HTTPResponse, part: Path, have: int, total: int | None) -> None:
    bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, delay=1)
    with bar, part.open("ab" if have else "wb") as file:
        while block := response.read1(_BLOCK):
            file.write(block)
            bar.update(len(block))
        if total is not None and file.tell() < total:
            raise _Failed(f"broke off at {file.tell():,} of {total:,} bytes")


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_strings(path: Path) -> dict[str, str]:
    """The strings of a JSON object; none of a file that is damaged or not there."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in items if isinstance(value, str)}


def _wrong(path: Path, source: Source) -> str:
    """What is wrong with a file; empty for nothing, whatever its checksum where none is known yet."""
    with path.open("rb") as file:
        try:
            h5py.File(file, "r").close()  # it has its own length in it
        except Exception:  # h5py raises nearly anything on a damaged file
            return "not a whole HDF5 file"
    if source.md5:
        found = digest(path, "md5")
        return "" if found == source.md5 else f"md5 is {found}, the publisher's is {source.md5}"
    pinned = _read_strings(_pins(path)).get(source.name)
    if not pinned or (found := digest(path)) == pinned:
        return ""
    return f"sha256 is {found}, that of the first was {pinned} (in {_pins(path)})"


def _unfit(path: Path, source: Source, misfit: Misfit) -> str:
    """What `misfit` says, where no checksum says which file is right."""
    known = source.md5 or source.name in _read_strings(_pins(path))
    return "" if known else misfit(path)


def _pins(path: Path) -> Path:
    return path.with_name("pins.json")


def _pin(path: Path, source: Source) -> None:
    """Keeps the checksum of a file whose publisher gives none, the first time."""
    known = _read_strings(_pins(path))
    if source.md5 or source.name in known:
        return
    pins = known | {source.name: digest(path)}
    with replacing(_pins(path)) as temporary:
        temporary.write_text(json.dumps(pins, indent=2, sort_keys=True) + "\n")
