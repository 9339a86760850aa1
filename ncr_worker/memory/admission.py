"""Whether a job may be taken in now. Our own reservations are not pressure: a queued job costs no memory."""

from __future__ import annotations

from dataclasses import dataclass

from ncr_worker.errors import Busy, NeverFits
from ncr_worker.ledger import Host, Ledger


@dataclass(frozen=True, slots=True)
class Verdict:
    """`accepting`: whether a job of the asked size would be taken in. `reason`: in plain words."""

    accepting: bool
    reason: str
    hosts: tuple[Host, ...]


class Admission:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def judge(self, need: int) -> Verdict:
        """For a job that needs `need` bytes. Raises Busy, NeverFits, DatabaseAway."""
        verdict = self.explain(need)
        if verdict.accepting:
            return verdict
        if all(need > host.figures.limit_bytes for host in verdict.hosts):
            raise NeverFits(verdict.reason)
        raise Busy(verdict.reason, code="memory_short", retry_in=15)

    def explain(self, need: int) -> Verdict:
        """The same without raising."""
        hosts = tuple(self.ledger.hosts.live())
        if not hosts:
            return Verdict(True, "no worker is up; the job waits for one", hosts)
        limit = max(host.figures.limit_bytes for host in hosts)
        if need > limit:
            return Verdict(False, f"needs {need:,} bytes, the largest worker host has {limit:,}", hosts)
        budget = max(host.figures.budget for host in hosts)
        if need > budget:
            text = f"other programs leave {budget:,} bytes on the freest worker host, this needs {need:,}"
            return Verdict(False, text, hosts)
        return Verdict(True, f"{len(hosts)} worker host(s) up", hosts)
