"""What `make bench-memory` says in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from memory_course import Outcome
from memory_replay import GBH
from rich.table import Table

Found = Mapping[str, Sequence[Outcome]]
"""Arm -> its outcome with each seed."""


def ratios(found: Found, arm: str) -> list[float]:
    """Makespan over that of the oracle, for each seed. An arm that has lost jobs has had less to do."""
    return [
        mine.seconds / known.seconds
        for mine, known in zip(found[arm], found.get("oracle", ()), strict=False)
        if known.seconds
    ]


def report(found: Found) -> dict[str, Any]:
    """The last line. Makespan and GB·h are medians over the seeds; kills, lost and doubled jobs are sums."""
    return {
        "seeds": len(next(iter(found.values()))),
        **{
            arm: {
                "makespan_over_clairvoyant": round(median(ratios(found, arm) or [0.0]), 4),
                "kernel_kills": sum(each.kernel_kills for each in outcomes),
                "lost": sum(each.lost for each in outcomes),
                "duplicated": sum(each.duplicated for each in outcomes),
                "gbh_reserved": round(median(each.reserved for each in outcomes) / GBH, 5),
                "gbh_used": round(median(each.used for each in outcomes) / GBH, 5),
            }
            for arm, outcomes in found.items()
            if arm != "oracle"
        },
    }


def told(found: Found, names: Mapping[str, str], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("", "makespan s", "÷ oracle", "worst", "kernel kills", "lost", "doubled", "GB·h reserved", "used"):
        table.add_column(heading, justify="right" if heading else "left")
    for arm, outcomes in found.items():
        over = ratios(found, arm) or [0.0]
        table.add_row(
            names[arm],
            f"{median(each.seconds for each in outcomes):.1f}",
            f"{median(over):.2f}",
            f"{max(over):.2f}",
            *(str(sum(getattr(each, name) for each in outcomes)) for name in ("kernel_kills", "lost", "duplicated")),
            f"{median(each.reserved for each in outcomes) / GBH:.4f}",
            f"{median(each.used for each in outcomes) / GBH:.4f}",
        )
    return table
