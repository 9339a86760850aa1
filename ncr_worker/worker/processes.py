"""Watching pool children from the main process, by pid descriptors: a death is seen at once, also of a zombie."""

from __future__ import annotations

import os
import select


def pid_of(claimant: str | None) -> int:
    """The pid in a claimant, as the runner writes it: `{pid}-{nonce}`."""
    return int((claimant or "0").split("-")[0])


def open_pid(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None when it is gone already."""
    try:
        return os.pidfd_open(pid) if pid > 0 else None
    except ProcessLookupError:
        return None


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie."""
    pidfd = open_pid(pid)
    if pidfd is None:
        return True
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    ended = bool(poller.poll(0))
    os.close(pidfd)
    return ended
