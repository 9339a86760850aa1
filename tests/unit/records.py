"""Records that tests start from."""

from __future__ import annotations

import dataclasses
from typing import Any

from ncr_worker.job import Job, State


def a_job(**changes: Any) -> Job:
    """A job as it is right after its submit, with `changes`."""
    nothing: dict[str, Any] = {field.name: None for field in dataclasses.fields(Job)}
    fresh = {"number": 1, "id": "j1", "kind": "deliver", "version": 1, "ref": "A-1", "tenant": "ann", "args": {}}
    figures = {"priority": 0, "attempt": 0, "round": 0, "need": 1, "reserved": 0, "created_at": 0.0, "next_run_at": 0.0}
    return Job(**nothing | fresh | figures | {"state": State.QUEUED} | changes)
