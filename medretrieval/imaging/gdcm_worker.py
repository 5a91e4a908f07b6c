"""Decode DICOM pixels with GDCM in a process of its own; run by `medretrieval.imaging.decode`.

On damaged data GDCM's C++ code may end the process that it runs in, which must not be that of the
user. Reads one JSON object a line ({"path", "frame"}), answers each with a line ("ok" and a number
of bytes, or what was wrong) and, after "ok", an array in NumPy's format. Ends when its input ends.
"""

from __future__ import annotations

import io
import json
import os
import sys

import numpy as np
from pydicom.pixels.utils import pixel_array


def main() -> None:
    """Answer requests until standard input closes."""
    # The answers get a descriptor of their own, as C libraries may write to standard output.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        for line in sys.stdin.buffer:
            request = json.loads(line)
            try:
                pixels = pixel_array(
                    request["path"], index=request["frame"], decoding_plugin="gdcm"
                )
            except Exception as error:
                # Whatever GDCM or pydicom raise; the caller words it for the user.
                reason = " ".join(str(error).split()) or type(error).__name__
                answers.write(reason.encode() + b"\n")
            else:
                # Through memory: NumPy cannot write to a pipe.
                buffer = io.BytesIO()
                np.save(buffer, pixels, allow_pickle=False)
                answers.write(b"ok %d\n" % buffer.tell())
                answers.write(buffer.getbuffer())
            answers.flush()


if __name__ == "__main__":
    main()
