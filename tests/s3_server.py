"""SeaweedFS, an S3-compatible server that others wrote, on loopback ports of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from arkloop.cli.dev.embedded_server import free_port
from tests.waiting import eventually

PROGRAM = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
KEY_ID, SECRET, BUCKET = "arkloop", "secret-of-the-tests", "files"
PARTS = ("master", "volume", "filer", "s3")


@dataclass(frozen=True)
class S3Server:
    """A running server; `s3` is a client of AWS's SDK for it."""

    url: str
    s3: Any

    @property
    def environ(self) -> Mapping[str, str]:
        """The settings of a service that uses it."""
        return {
            "ARKLOOP_S3_BUCKET": BUCKET,
            "ARKLOOP_S3_ENDPOINT_URL": self.url,
            "ARKLOOP_S3_ACCESS_KEY_ID": KEY_ID,
            "ARKLOOP_S3_SECRET_ACCESS_KEY": SECRET,
        }

    def keys(self, prefix: str = "") -> set[str]:
        """List the objects of the bucket."""
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return {entry["Key"] for entry in found.get("Contents", ())}

    def uploads(self) -> list[str]:
        """List the keys of multipart uploads that were neither completed nor aborted."""
        found = self.s3.list_multipart_uploads(Bucket=BUCKET)
        return [entry["Key"] for entry in found.get("Uploads", ())]


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Start a server with an empty bucket; skips without SeaweedFS, or fails where it is needed."""
    if PROGRAM is None:
        stop = pytest.fail if os.environ.get("NEED_S3") else pytest.skip
        stop("SeaweedFS is not installed: make test-s3")
    folder.mkdir()
    config = folder / "s3.json"
    identity = {"name": "tests", "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}]}
    config.write_text(json.dumps({"identities": [{**identity, "actions": ["Admin"]}]}))
    ports = {part: free_port() for part in PARTS}
    listening = [f"-{part}.port={port}" for part, port in ports.items()]
    listening += [f"-{part}.port.grpc={free_port()}" for part in PARTS]
    # Other protocols, at ports that two servers cannot share.
    listening += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command = [
        *(PROGRAM, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-filer", "-s3", f"-s3.config={config}", "-master.telemetry=false"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=20", *listening),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stderr=log)
    try:
        url = f"http://127.0.0.1:{ports['s3']}"
        s3 = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )
        eventually(lambda: _is_ready(s3))
        yield S3Server(url, s3)
    finally:
        process.kill()  # it would wait for the connections that clients keep open
        process.wait(60)


def _is_ready(s3: Any) -> bool:
    try:
        s3.create_bucket(Bucket=BUCKET)
    except ClientError as error:
        if error.response["Error"]["Code"] not in (
            "BucketAlreadyExists",
            "BucketAlreadyOwnedByYou",
        ):
            return False
    except BotoCoreError:
        return False
    try:
        s3.put_object(Bucket=BUCKET, Key="ready", Body=b"")
        s3.delete_object(Bucket=BUCKET, Key="ready")
    except (BotoCoreError, ClientError):
        return False
    return True
