"""What a worker host may spend, who holds how much of it, and who has to go. Pure: no I/O, no clock.

The budget is the limit times the allowed share, less what others use. A job is charged what it has reserved, or what
it was seen to use when that is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

HEADROOM = 0.05  # of the limit: with less left, the kernel may soon choose a victim, so we do
LEAST_HEADROOM = 80 << 20  # two cores touch as much until the next sample, and until what they run has ended
REACTION = 0.1  # seconds from a sample to the end of a hundred processes: what grows fast is ended that much earlier
FASTEST = 2 << 30  # bytes a second that one core touches at most
SOONEST, AT_EASE = 0.01, 0.5  # seconds between two samples
SLACK = 0.03  # of the limit: the worker's own processes grow between two samples, above all a new child's,
MOST_SLACK = 64 << 20  # ... but no more than some of them can


@dataclass(frozen=True, slots=True)
class Charge:
    """One job on this host. Sizes in bytes; `since`: monotonic seconds; `ending`: it was told to leave."""

    index: int
    token: int
    reserved: int
    observed: int = 0
    pid: int = 0  # 0: no child has claimed it yet
    since: float = 0.0
    ending: bool = False

    @property
    def bytes(self) -> int:
        return max(self.reserved, self.observed)

    @property
    def over(self) -> bool:
        return self.observed > self.reserved


@dataclass(frozen=True)
class Load:
    """A host's memory at one moment. `anonymous`: what all its processes use; `share`: 0..1 of `limit`."""

    limit: int
    source: str
    anonymous: int
    share: float
    charges: tuple[Charge, ...] = ()
    rising: float = 0.0  # the fill rate of `anonymous`, bytes a second
    expected: int = 0  # what pool children will need for themselves that have not loaded all they use
    gone: int = 0  # what jobs used, as `anonymous` was read, that have ended since: it is free now

    @cached_property
    def observed(self) -> int:
        return sum(charge.observed for charge in self.charges)

    @cached_property
    def others(self) -> int:
        return max(self.anonymous - self.observed - self.gone, 0)

    @cached_property
    def budget(self) -> int:
        return max(int(self.limit * self.share) - self.others, 0)

    @cached_property
    def charged(self) -> int:
        return sum(charge.bytes for charge in self.charges)

    @property
    def free(self) -> int:
        """Bytes for further jobs, but for what is expected, and a little slack. Less than nothing beside a job that
        has the host alone: nothing joins it, be its need 0."""
        return self.budget - self.charged - self.expected - self.slack

    @property
    def slack(self) -> int:
        return min(int(self.limit * SLACK), MOST_SLACK)

    @cached_property
    def danger(self) -> int:
        """Bytes in use above which somebody has to end at once. On a small host it stays well above what may be given
        out: nobody who keeps to his word comes near it."""
        beyond = self.limit * (1 - self.share)
        return int(self.limit - max(self.limit * HEADROOM, min(LEAST_HEADROOM, beyond / 2)))

    @property
    def in_danger(self) -> bool:
        """What would start now would be ended at once."""
        return self.anonymous > self.danger

    @property
    def exceeded(self) -> bool:
        """More is charged than may be, and not for a job that has the host alone. What is ending counts no more."""
        staying = [charge.bytes for charge in self.charges if not charge.ending]
        return len(staying) > 1 and sum(staying) > self.budget

    def may_grow(self, charge: Charge, need: int) -> bool:
        """Whether the job may go on with `need` bytes; alone on the host it may have all there is."""
        if len(self.charges) == 1:
            return need <= self.limit
        return need - charge.bytes <= self.free


def victims(load: Load, now: float) -> list[Charge]:
    """Who has to leave because more is charged than the host may spend: only those that use more than they reserved.

    The one whose loss costs least goes first: the smallest elapsed time x reserved bytes.
    """
    staying = [charge for charge in load.charges if not charge.ending]
    charged, left = sum(charge.bytes for charge in staying), len(staying)
    chosen = []
    for charge in _cheapest_first(staying, now):
        if left <= 1 or charged <= load.budget or not charge.over:
            break
        chosen.append(charge)
        charged -= charge.bytes
        left -= 1
    return chosen


def doomed(load: Load, now: float) -> list[Charge]:
    """Who has to end at once, or the kernel would choose: those over their reservation first, whoever was told to
    leave among them, then others. Where memory fills fast they end earlier, but not who will stop in time: he keeps
    to what he reserved, and there is room for all that was."""
    used, chosen = load.anonymous, []
    early = min(load.danger, load.limit - load.rising * REACTION)
    overbooked = load.others + load.charged > load.danger
    for charge in _cheapest_first(load.charges, now):
        if used > (early if charge.over or overbooked else load.danger) and charge.observed:
            chosen.append(charge)
            used -= charge.observed
    return chosen


def fill_rate(before: float, grown: int, elapsed: float) -> float:
    """Bytes a second at which memory fills, as a mean over about the time of a reaction: growth within a moment says
    little of what comes. `before`: the rate so far; `grown`: bytes since, in `elapsed` seconds."""
    fresh = min(elapsed / REACTION, 1.0)
    return max(before * (1 - fresh) + grown / max(elapsed, REACTION), 0.0)


def next_look(load: Load, cores: int) -> float:
    """Seconds in which half of what is left can be touched, at most: one job may keep all cores busy."""
    left = load.danger - load.anonymous
    return min(max(left / (2 * FASTEST * cores), SOONEST), AT_EASE)


def _cheapest_first(charges: Sequence[Charge], now: float) -> list[Charge]:
    running = [charge for charge in charges if charge.pid]
    return sorted(running, key=lambda one: (not one.ending, not one.over, (now - one.since) * one.reserved))
