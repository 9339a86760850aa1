"""Deliveries. `PIPELINE` is what the engine runs."""

from ncr_worker.pipelines.deliver.pipeline import PIPELINE

__all__ = ["PIPELINE"]
