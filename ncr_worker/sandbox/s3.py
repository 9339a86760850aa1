"""SeaweedFS as S3. It checks signatures, so wrong keys fail here as they do at a real store."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ncr_worker.sandbox.process import LOOPBACK, ServerProcess, free_port, http_ok, throw_away_secret

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

GRPC_OFFSET = 10_000
"""SeaweedFS listens on each of its ports plus this."""
SOCKETS = Path("/tmp")


class S3(ServerProcess):
    """One bucket, made at the start."""

    name = "s3"
    region = "us-east-1"

    def __init__(self, folder: Path, port: int | None = None, bucket: str = "jobs") -> None:
        super().__init__(folder)
        self.port = port or free_port(GRPC_OFFSET)
        self.bucket = bucket
        self.access_key = throw_away_secret()
        self.secret_key = throw_away_secret()
        self.endpoint_url = f"http://{LOOPBACK}:{self.port}"
        self._inner_ports = {name: free_port(GRPC_OFFSET) for name in ("master", "volume", "filer", "admin")}

    def command(self) -> Sequence[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        return [
            str(Path(sysconfig.get_path("scripts"), "weed")),
            f"-logdir={self.folder}",  # else wherever TMPDIR points, for ever
            "mini",
            f"-dir={data}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-bucket={self.bucket}",
            f"-s3.port={self.port}",
            *(f"-{name}.port={port}" for name, port in self._inner_ports.items()),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            "-master.telemetry=false",
        ]

    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def clean_up(self) -> None:
        """SeaweedFS makes these outside of its folder, wherever TMPDIR points, and leaves them there."""
        for port in (self.port, *self._inner_ports.values()):
            for number in (port, port + GRPC_OFFSET):
                for left in SOCKETS.glob(f"seaweedfs-*-{number}.sock"):
                    left.unlink(missing_ok=True)

    def ready(self) -> bool:
        """It answers health checks before it can store anything: only a signed PUT and GET prove it."""
        if not http_ok(f"{self.endpoint_url}/healthz"):
            return False
        client = self.client()
        probe = ".ready"
        try:
            client.put_object(Bucket=self.bucket, Key=probe, Body=b"ready")
            answer = client.get_object(Bucket=self.bucket, Key=probe)["Body"].read()
            client.delete_object(Bucket=self.bucket, Key=probe)
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return answer == b"ready"

    def client(self) -> S3Client:
        """A client that does not retry; the caller closes it."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                connect_timeout=2,
                read_timeout=10,
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",  # S3-compatible stores reject the newer default
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
            ),
        )

    def env(self) -> dict[str, str]:
        return {
            "S3_ENDPOINT_URL": self.endpoint_url,
            "S3_REGION": self.region,
            "S3_BUCKET": self.bucket,
            "S3_ACCESS_KEY_ID": self.access_key,
            "S3_SECRET_ACCESS_KEY": self.secret_key,
        }
