"""What a worker host may spend: its limit times the allowed share, less what others on it use."""

from __future__ import annotations

from collections.abc import Iterable

from ncr_worker.ledger import HostFigures
from ncr_worker.memory.domain import Domain
from ncr_worker.memory.slots import Phase, Slots


class Budget:
    """`share`: 0..1 of the limit that jobs and others may use together. Kept in the worker's main process."""

    def __init__(self, domain: Domain, slots: Slots, share: float) -> None:
        self.domain = domain
        self.slots = slots
        self.share = share

    def figures(self, held: Iterable[int]) -> HostFigures:
        """The host now, with jobs in the slots `held`."""
        reading = self.domain.read()
        slots = {index: self.slots.read(index) for index in held}
        observed = {index: self.slots.sample(index) for index, slot in slots.items() if slot.phase is Phase.RUNNING}
        others = max(reading.anonymous - sum(observed.values()), 0)
        return HostFigures(
            limit_bytes=reading.limit,
            limit_source=reading.source,
            budget=max(int(reading.limit * self.share) - others, 0),
            others=others,
            reserved=sum(max(slot.reserved, observed.get(index, 0)) for index, slot in slots.items()),
            slots=self.slots.count,
            running=len(slots),
        )
