"""A counter whose process is renewed after every job: the worker forks all the time."""

from __future__ import annotations

from dataclasses import replace

from faults.counter import PIPELINE as COUNTER

PIPELINE = replace(COUNTER, kind="brief", max_jobs_per_child=1)
