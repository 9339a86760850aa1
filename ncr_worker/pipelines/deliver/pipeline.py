"""Pipeline `deliver`: files of a job from S3, through the validator, to the SFTP server."""

from __future__ import annotations

from ncr_worker.pipeline import MIB, Pipeline
from ncr_worker.pipelines.deliver.collect import fetch, pack, validate
from ncr_worker.pipelines.deliver.model import DeliverArgs, Delivery
from ncr_worker.pipelines.deliver.plan import plan
from ncr_worker.pipelines.deliver.publish import abandon, confirm, prepare, publish, upload

PIPELINE = Pipeline(
    "deliver",
    DeliverArgs,
    Delivery,
    (plan, fetch, pack, validate, prepare, upload, publish, confirm),
    memory=64 * MIB,  # measured: 46 MiB above a new child, libraries included, whatever the size (make bench-delivery)
    exclusive=lambda args: f"deliver:{args.job_id}",
    words={
        "prepare": "validation_passed",
        "upload": "uploading",
        "publish": "uploading",
        "confirm": "uploading",
    },
    abandon=abandon,
)
