"""The metrics' names for the dashboard's pages, written from where they are declared.

`python -m service.dashboard.metric_names` writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from amaml import metrics

FILE: Final = Path(__file__).with_name("static") / "metrics.js"
_SHOWN: Final = (
    metrics.META_LOSS, metrics.GRADIENT_NORM, metrics.NRMSE, metrics.ACCURACY, metrics.FLOW, metrics.TUNED, metrics.RANDOM,
)  # fmt: skip


def written() -> str:
    """The module: a constant a name, and how a score's name is made of two of them."""
    return "\n".join(
        [
            "// The names of metrics, written by `python -m service.dashboard.metric_names` from amaml/metrics.py.",
            "",
            *(f'export const {name.upper()} = "{name}";' for name in _SHOWN),
            "",
            "/** What tasks score by a metric, adapted in one way. */",
            f"export const score = (metric, how) => `{metrics.score('${metric}', '${how}')}`;",
            "",
        ]
    )


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
