"""Stage plan: the catalog says which files, S3 their sizes, the layout their targets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ncr_worker.pipeline import Run, stage
from ncr_worker.pipelines.deliver.catalog import Catalog, catalog
from ncr_worker.pipelines.deliver.layout import Layout, load_layout
from ncr_worker.pipelines.deliver.model import DeliverArgs, Delivery, Item, with_names
from ncr_worker.stores import Store, source

HEADS = 8
"""Sizes asked for at once: each is a round trip without data."""


@stage(weight=1)
def plan(run: Run, parcel: Delivery) -> Delivery:
    planned = draw_plan(parcel.args, run.use(catalog), run.use(source), run.use(load_layout))
    run.hold(f"deliver-target:{planned.folder}")
    run.advance(files=len(planned.items), total_files=len(planned.items))
    return with_names(planned, run.job.id)


def draw_plan(args: DeliverArgs, files: Catalog, store: Store, layout: Layout) -> Delivery:
    """What a delivery of this job would be now, without doing anything.

    Raises Rejected: not in the catalog, an unsafe or doubtful layout, a missing file (named).
    """
    sku = files.sku(args.job_id, args.row_id)
    placement = layout.place(args.job_id, sku, files.keys(args.job_id))
    with ThreadPoolExecutor(HEADS, thread_name_prefix="plan") as pool:
        try:
            entries = list(pool.map(store.head, (key for key, _ in placement.files)))
        finally:
            pool.shutdown(cancel_futures=True)
    items = tuple(
        Item(key=key, target=target, size=entry.size, etag=entry.etag)
        for (key, target), entry in zip(placement.files, entries, strict=True)
    )
    return Delivery(args=args, sku=sku, folder=placement.folder, items=items, left_out=placement.left_out)
