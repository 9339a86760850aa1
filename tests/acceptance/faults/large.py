"""A counter that needs more memory than MAX_MEMORY_USAGE_PERCENT of the tests' hosts, but less than all of it."""

from __future__ import annotations

from dataclasses import replace

from faults.counter import PIPELINE as COUNTER
from ncr_worker.pipeline import GIB

HOST = 100 * GIB  # what the tests' hosts say they have
PIPELINE = replace(COUNTER, kind="large", memory=HOST * 9 // 10)
