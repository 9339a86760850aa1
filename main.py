"""`python main.py`: the API, as `ncr api`; with `--reload` for development."""

from __future__ import annotations

import sys

from ncr_worker.cli import main

if __name__ == "__main__":
    main(["api", *sys.argv[1:]])
