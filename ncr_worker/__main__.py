"""`python -m ncr_worker` is the command `ncr`."""

from __future__ import annotations

from ncr_worker.cli import main

main()
