"""ncr_worker: a memory-aware batch job orchestrator."""

__version__ = "0.1.0"
