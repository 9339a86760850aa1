"""What a delivery is: what the user asks for, and the parcel that travels through the stages."""

from __future__ import annotations

import hashlib
import posixpath
import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ncr_worker.pipeline import Args, Parcel
from ncr_worker.validator import Verdict

JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""It is part of keys and of names on the target server."""
Label = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""As long as the ledger's column for it."""


class DeliverArgs(Args):
    """`row_id`: the catalog row of the job, when the user knows it."""

    job_id: JobId
    username: Label
    campaign: Label
    row_id: int | None = Field(default=None, ge=0, le=2**63 - 1)

    @property
    def ref(self) -> str:
        return self.job_id

    @property
    def tenant(self) -> str:
        return self.username


class PlanArgs(DeliverArgs):
    """Whose plan it is makes no difference to it."""

    username: Label = "nobody"
    campaign: Label = "none"


class Item(BaseModel):
    """One file. `target` is relative to the SFTP root; `size` in bytes; `sha256` (hex) is known once fetched."""

    model_config = ConfigDict(frozen=True)

    key: str
    target: str
    size: int
    etag: str
    sha256: str = ""

    @property
    def local_name(self) -> str:
        """Name in the job's folder: none of the user's, and another one for another content."""
        return hashlib.sha256(f"{self.key}\0{self.etag}".encode()).hexdigest()[:32]


def moment(at: float | None = None) -> str:
    """RFC 3339 UTC of `at` (epoch seconds), or of now."""
    when = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Receipt(BaseModel):
    """Proof of a delivery, kept with the job. `host_key`: the server's fingerprint. Times: RFC 3339 UTC.

    `published_at`: when the set was found whole at its target; `delivered_at`: when that was written down.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    server: str
    host_key: str
    files: tuple[Item, ...]
    total_files: int
    total_bytes: int
    verdict: Verdict
    submitted_at: str
    validated_at: str
    published_at: str
    delivered_at: str


class Delivery(Parcel):
    """`folder`, `staging`, `backup`: relative to the SFTP root, in one parent folder, so that renames publish.

    The two latter are known from the plan on: whatever happens later, it is clear what may lie on the server.
    `replaces`: an earlier delivery was at the target when this one was uploaded; with the names above it is the
    publishing record.
    """

    args: DeliverArgs
    sku: str = ""
    folder: str = ""
    staging: str = ""
    backup: str = ""
    items: tuple[Item, ...] = ()
    left_out: tuple[str, ...] = ()
    archive_bytes: int = 0
    verdict: Verdict | None = None
    validated_at: str = ""
    replaces: bool = False
    published_at: str = ""
    receipt: Receipt | None = None

    @property
    def total_bytes(self) -> int:
        return sum(item.size for item in self.items)

    @property
    def size(self) -> int | None:
        return self.total_bytes or None

    @property
    def manifest(self) -> dict[str, int]:
        """What must lie in the target folder: path relative to it -> bytes."""
        return {posixpath.relpath(item.target, self.folder): item.size for item in self.items}


_LONGEST_SHOWN = 120
_SUFFIX = r"[0-9a-f-]{36}-[0-9a-f]{12}"


def _hidden(folder: str, purpose: str) -> str:
    """Beginning of the name of a hidden sibling of `folder`; leaves room in the 255 bytes that names may have."""
    parent, name = posixpath.split(folder)
    if len(name.encode()) > _LONGEST_SHOWN:
        name = hashlib.sha256(name.encode()).hexdigest()[:32]
    return posixpath.join(parent, f".{name}.{purpose}-")


def is_backup(folder: str, path: str) -> bool:
    """Whether `path` is the backup of an earlier delivery to `folder`."""
    return re.fullmatch(re.escape(_hidden(folder, "ncr-old")) + _SUFFIX, path) is not None


def is_version(folder: str, path: str) -> bool:
    """Whether `path` is a folder that a link at `folder` names or named, or a backup."""
    staging = re.fullmatch(re.escape(_hidden(folder, "ncr-new")) + _SUFFIX, path)
    return staging is not None or is_backup(folder, path)


def with_names(parcel: Delivery, job_id: str) -> Delivery:
    """`parcel` with its names on the target server; `job_id` is the engine's.

    They contain a digest of the plan: what an earlier run of the same plan left there has the same content, so an
    upload may go on after it; another plan never meets it.
    """
    plan = "\0".join(f"{item.target}\0{item.size}\0{item.etag}" for item in parcel.items)
    suffix = f"{job_id}-{hashlib.sha256(plan.encode()).hexdigest()[:12]}"
    return parcel.evolve(
        staging=_hidden(parcel.folder, "ncr-new") + suffix, backup=_hidden(parcel.folder, "ncr-old") + suffix
    )
