"""A job's curves, thinned if they have more points than wanted."""

from __future__ import annotations

import math
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

Series = dict[str, list[tuple[int, float | None]]]

# The first and the last point are kept. The rest is cut into equal intervals, of which the lowest and the highest point are
# kept: so a spike of one iteration stays visible, which would be lost if every n-th point were kept.
_THINNED = text("""
    WITH numbered AS (
        SELECT name, step, value,
               row_number() OVER (PARTITION BY name ORDER BY step) - 1 AS i,
               count(*) OVER (PARTITION BY name) AS n
        FROM metrics
        WHERE job_id = :job_id AND step >= :from_step AND (CAST(:name AS text) IS NULL OR name = :name)
    ), ranked AS (
        SELECT *,
               row_number() OVER (PARTITION BY name, i * :intervals / n ORDER BY value, step) AS from_lowest,
               row_number() OVER (PARTITION BY name, i * :intervals / n ORDER BY value DESC, step) AS from_highest
        FROM numbered
    )
    SELECT name, step, value FROM ranked
    WHERE n <= :max_points OR i = 0 OR i = n - 1 OR from_lowest = 1 OR from_highest = 1
    ORDER BY name, step
""")


def series(session: Session, job_id: UUID, name: str | None, from_step: int, max_points: int) -> Series:
    """Name → points (step, value) from `from_step` on, at most `max_points` (4 or more) a name.

    A value that isn't finite is None, as JSON can't represent it.
    """
    rows = session.execute(
        _THINNED,
        {
            "job_id": job_id,
            "name": name,
            "from_step": from_step,
            "max_points": max_points,
            "intervals": (max_points - 2) // 2,
        },
    )
    found: Series = {}
    for metric, step, value in rows:
        found.setdefault(metric, []).append((step, value if math.isfinite(value) else None))
    return found
