"""A storm of small jobs on a small host: nothing is lost, and nothing is done by the kernel."""

from __future__ import annotations

import json

import pytest
import storm
from memory_group import NoMemoryGroup

pytestmark = pytest.mark.slow


def test_a_storm_on_a_small_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As `make storm QUICK=1` has it."""
    monkeypatch.setenv("QUICK", "1")
    try:
        storm.main()
    except SystemExit as ended:
        if isinstance(ended.__cause__, NoMemoryGroup):
            pytest.skip(f"NOT TESTED: {ended}")
        raise
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.pop("feeder_cpu_ms_per_job") > 0  # how much depends on the machine
    assert found == {"jobs": 500, "ended_once": 500, "kernel_kills": 0, "budget_exceeded": 0}
