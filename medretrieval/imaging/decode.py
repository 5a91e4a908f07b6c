"""DICOM pixel data to arrays, with the decoders that are installed, none of which may crash us."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from medretrieval.errors import InputError, UnavailableError

_WORKER = Path(__file__).with_name("gdcm_worker.py")


class DecodeError(Exception):
    """No decoder could decode the pixels; the caller turns it into an InputError."""


class _Gdcm:
    """A worker process with GDCM, started when needed and again after it has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, path: Path, frame: int | None) -> NDArray[Any]:
        """Return the array that GDCM decodes; raise DecodeError if it fails or dies."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                # -P: the folder of the script must not hide installed modules.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(_WORKER)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            process = self._process
            if process.stdin is None or process.stdout is None:
                raise DecodeError("gdcm: no connection to its process")
            request = json.dumps({"path": str(path.resolve()), "frame": frame})
            try:
                process.stdin.write(request.encode() + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if answer.startswith(b"ok "):
                    data = process.stdout.read(int(answer[3:]))
                    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
                    return array
            except (OSError, ValueError, EOFError):
                answer = b""
            if not answer.endswith(b"\n"):
                process.kill()
                process.wait()
                raise DecodeError("gdcm: its process died on this data")
            raise DecodeError(_reason("gdcm", answer.decode(errors="replace")))


def _reason(plugin: str, text: str) -> str:
    """Return what a decoder said, in one line, without what pydicom puts before it."""
    return f"{plugin}: {' '.join(text.split()).rpartition(f'{plugin}: ')[2]}"


_gdcm = _Gdcm()


def check_decodable(syntax: Any, what: str) -> None:
    """Refuse a transfer syntax that nothing installed decodes.

    Raises:
        InputError: not one of image pixels.
        UnavailableError: another package would decode it.
    """
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise InputError(
            f"{what} uses the transfer syntax {syntax.name}, which is not an image compression "
            "that can be read; export it uncompressed"
        ) from error
    if syntax.is_encapsulated and not decoder.is_available:
        raise UnavailableError(
            f"{what} is compressed as {syntax.name}, which needs another package: "
            "pip install python-gdcm; or export it uncompressed"
        )


def decode(dataset: Any, path: Path, frame: int | None) -> NDArray[Any]:
    """Decode the pixels of a dataset whose transfer syntax `check_decodable` has accepted.

    Args:
        dataset: with PixelData, read from `path`.
        frame: only this frame; all by default.

    Returns:
        As `pydicom.pixels.pixel_array`: YBR colours converted to RGB, else stored values.

    Raises:
        DecodeError: no installed decoder could.
        Exception: whatever pydicom raises on damaged uncompressed pixels.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return np.asarray(pixel_array(dataset, index=frame))
    reasons = []
    for plugin in sorted(get_decoder(syntax).available_plugins, key=lambda p: p == "gdcm"):
        try:
            if plugin == "gdcm":
                return _gdcm.decode(path, frame)
            return np.asarray(pixel_array(dataset, index=frame, decoding_plugin=plugin))
        except DecodeError as error:
            reasons.append(str(error))
        except Exception as error:
            # Every decoder has its own exceptions; the next one may succeed.
            reasons.append(_reason(plugin, str(error)))
    raise DecodeError("; ".join(reasons))
