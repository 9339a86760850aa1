"""The plain way, as most scripts do it: boto3, zipfile, an HTTP client and paramiko, each with its defaults, one file
after another. `python plain.py PREFIX SKU TARGET`, in an empty folder; the settings come from the environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from pathlib import Path

import boto3
import httpx2
import paramiko
from botocore.config import Config

FILES = Path("files")
ZIP = Path("delivery.zip")


def fetch(prefix: str) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=os.environ["S3_ENDPOINT_URL"],
        region_name=os.environ["S3_REGION"],
        aws_access_key_id=os.environ["S3_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["S3_SECRET_ACCESS_KEY"],
        config=Config(s3={"addressing_style": "path"}),
    )
    bucket = os.environ["S3_BUCKET"]
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page["Contents"]:
            path = FILES / found["Key"].removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, found["Key"], str(path))


def pack() -> None:
    with zipfile.ZipFile(ZIP, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(FILES.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(FILES))


def validate(sku: str) -> None:
    headers = {os.environ["VALIDATOR_API_KEY_HEADER"]: os.environ["VALIDATOR_API_KEY"]}
    with ZIP.open("rb") as content:
        url = f"{os.environ['VALIDATOR_URL']}/{sku}"
        answer = httpx2.post(url, headers=headers, files={"zip_file": content}, timeout=600)
    answer.raise_for_status()
    if answer.json()["data"][0]["result"] not in ("Valid", "Warning"):
        sys.exit(answer.text)


def upload(target: str) -> None:
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect(
        os.environ["SFTP_HOST"],
        int(os.environ["SFTP_PORT"]),
        os.environ["SFTP_USER"],
        key_filename=os.environ["SFTP_KEY_PATH"],
    )
    sftp = client.open_sftp()
    sftp.mkdir(target)
    for path in sorted(FILES.rglob("*")):
        remote = f"{target}/{path.relative_to(FILES)}"
        if path.is_dir():
            sftp.mkdir(remote)
        else:
            sftp.put(str(path), remote)
    client.close()


def main() -> None:
    prefix, sku, target = sys.argv[1:]
    seconds = {}
    for stage, arguments in ((fetch, (prefix,)), (pack, ()), (validate, (sku,)), (upload, (target,))):
        began = time.monotonic()
        stage(*arguments)
        seconds[stage.__name__] = time.monotonic() - began
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
