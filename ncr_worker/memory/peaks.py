"""How much memory each stage of a job takes, measured in the pool child that runs it."""

from __future__ import annotations

import time
from pathlib import Path

from ncr_worker.memory.slots import JobSlot

SAMPLED = 5.0  # seconds after which main's samples tell the peak of a stage better than the kernel's high-water mark
_SELF = Path("/proc/self")


class StagePeak:
    """From the moment it is made: the most anonymous bytes above the job's baseline, of the job and what it started.

    Samples miss the peak of a short stage. The kernel's high-water mark does not, but counts mapped files too: it is
    used for short stages, less what is mapped at their end.
    """

    def __init__(self, slot: JobSlot) -> None:
        self._slot = slot
        self._began = time.monotonic()
        slot.forget_peak()
        try:
            (_SELF / "clear_refs").write_text("5")  # the mark begins anew
            self._marked = True
        except OSError:  # not allowed here: the mark may be an earlier job's
            self._marked = False

    def end(self) -> tuple[int, float]:
        """Bytes, and the seconds that it took."""
        seconds = time.monotonic() - self._began
        sampled = self._slot.peak
        if not self._marked or seconds > SAMPLED:
            return sampled, seconds
        return max(sampled, _high_water() - self._slot.baseline), seconds


def _high_water() -> int:
    lines = (line.split() for line in (_SELF / "status").read_text().splitlines())
    sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[0] in ("VmHWM:", "RssFile:", "RssShmem:")}
    return sizes["VmHWM:"] - sizes["RssFile:"] - sizes["RssShmem:"]
