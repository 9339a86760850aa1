"""`python start_worker.py worker|beat|flower|api`: the same as `ncr worker|beat|flower|api`."""

from __future__ import annotations

from ncr_worker.cli import main

if __name__ == "__main__":
    main()
