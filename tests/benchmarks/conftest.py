"""A study of made-up runs."""

import made_up_study as made_up
import pytest
from made_up_study import curve, group, saturating

from benchmarks.study import cells, results


@pytest.fixture
def made(tmp_path):
    """One group degenerate, one without weights."""
    groups = [
        group("openface", "random", curve(0.14, 0.35), curve(0.14, 0.33)),
        group("openface", "scratch", saturating(0.14, 0.9), curve(0.14, 0.5), seeds=1),
        group("mobilenet", "pretrained", saturating(0.2, 0.95), curve(0.2, 0.55), alpha=0.75),
        group(
            "mobilenet",
            "pretrained",
            saturating(0.2, 0.95),
            curve(0.2, 0.53),
            alpha=0.75,
            variant="deduplicated",
        ),
        group("mobilenet", "random", curve(0.25, 0.25), curve(0.25, 0.25), degenerate=True, seeds=1),
    ]
    made_up.write(tmp_path / "results", groups)
    absent = cells.Cell(cells.Setting("vggface"), "pretrained", 0)
    results.remember_absent(
        tmp_path / "results", {absent: "weights not supplied: python -m weights_conversion.convert --x"}
    )
    return tmp_path
