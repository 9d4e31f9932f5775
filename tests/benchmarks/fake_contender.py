"""A contender for tests: calls last a given time, batches above 8 do not fit, one variant is broken."""

import os
import time

LAYOUT = "NHWC"


def describe():
    return {"device": "cpu", "versions": "fake 1"}


def peak_memory():
    return 5_000_000


def variants(work):
    if work.backbone == "vggface" and not os.environ.get("FAKE_IS_MENDED"):
        raise ValueError("no such model")

    def slow(batches):
        time.sleep(0.02 * batches)

    def fast(batches):
        if work.batch_size > 8:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        time.sleep(0.001 * batches)

    def broken(batches):
        raise RuntimeError("no compiler")

    return {"slow": slow, "fast": fast, "broken": broken} if work.batch_size <= 8 else {"fast": fast}
