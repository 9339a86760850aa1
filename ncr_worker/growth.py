"""How much memory a job gets that ran out of it. Pure."""

from __future__ import annotations

import math

MARGIN = 0.1  # above the largest that was seen: two runs of the same work differ


def grown(reserved: int, used: int, largest: int, declared: int) -> int:
    """Bytes for the next attempt: what the largest of its kind took; where that cannot be enough, twice as much.

    `used`: the most the attempt was seen to use; `largest`: peak of the jobs of its kind so far, 0 for none;
    `declared`: what its pipeline says. A job has few attempts: one that is ended twice on its way up costs more than
    some memory once.
    """
    least, known = max(used, reserved), int(largest * (1 + MARGIN))
    if known > least:
        return known
    doubled = max(2 * reserved, used * 5 // 4)
    if least > 2 * largest:  # its predecessors were so small that they say nothing
        return max(doubled, math.isqrt(least * declared))
    return doubled
