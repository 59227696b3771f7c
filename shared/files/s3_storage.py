"""Files in a bucket of S3, or of a server that speaks its protocol, through AWS's own SDK."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import boto3
from botocore import session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    InvalidRegionError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnection
from urllib3.util.ssl_match_hostname import CertificateError

from arkloop.shared import certificate_settings
from arkloop.shared.config import Settings
from arkloop.shared.errors import StorageUnavailable
from arkloop.shared.files.storage import PIECE_BYTES, ObjectMissing, UnusableStorage
from arkloop.shared.security.checked_http import tls_failure

log = logging.getLogger(__name__)

#: The least that S3 takes as a part of a larger object; an upload has this much in memory.
PART_BYTES = 5 * 1024 * 1024
CONNECT_SECONDS = 5
SILENT_SECONDS = 20
CHECK_SECONDS = 5
_MISSING = ("NoSuchKey", "404", "NoSuchUpload")
_DOWN = "Start it, or correct ARKLOOP_S3_ENDPOINT_URL."
_ANOTHER_HOST = "Correct the host in ARKLOOP_S3_ENDPOINT_URL, or the server's certificate."


class S3Storage:
    def __init__(self, settings: Settings) -> None:
        """Make the SDK's client. Raises: UnusableStorage: the SDK refuses a setting."""
        self._bucket = settings.s3_bucket
        self._is_plain = (settings.s3_endpoint_url or "").startswith("http:")
        #: AWS_CA_BUNDLE, or `ca_bundle` of a profile: if there is one, no other authorities count.
        self._bundle: str | None
        # Without a user and password, which S3 has no use for and the SDK's messages would repeat.
        url = re.sub("//[^/@]*@", "//", settings.s3_endpoint_url or "") or None
        with _naming_settings(url):
            self._bundle = session.Session().get_config_variable("ca_bundle")
        # The SDK has a list of its own, and without our file it reads REQUESTS_CA_BUNDLE, too.
        is_ours = settings.s3_endpoint_url and not self._bundle
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=SILENT_SECONDS,
            retries={"mode": "standard", "max_attempts": 3},
            max_pool_connections=50,
            # Servers other than AWS often have no host name for each bucket, and know no checksums
            # but those that the protocol requires.
            s3={"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._make_client = partial(
            boto3.client,
            "s3",
            endpoint_url=url,
            region_name=settings.s3_region or "us-east-1",
            aws_access_key_id=settings.s3_access_key_id,
            aws_secret_access_key=settings.s3_secret_access_key,
            verify=settings.certificate_file if is_ours else None,
        )
        self._config = config
        self._s3: Any
        with _naming_settings(url):
            self._s3 = self._make_client(config=config)

    def check(self) -> str | None:
        """Ask for the bucket, once.

        Raises:
            UnusableStorage: it does not exist, the keys do not open it, or the file of authorities
                for S3 alone cannot be read.
        """
        if self._bundle and not self._is_plain:
            why_not = certificate_settings.unusable(self._bundle)
            if why_not is not None:
                raise UnusableStorage(f"AWS_CA_BUNDLE, or `ca_bundle` of a profile: {why_not}")
        # A process that starts waits for this: a server that is silent is attempted once.
        once = Config(
            read_timeout=CHECK_SECONDS,
            retries={"mode": "standard", "total_max_attempts": 1},
        )
        try:
            client = self._make_client(config=self._config.merge(once))
            client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status >= 500 or status == 429:
                log.warning("the S3 server responds with %s: files are unavailable", status)
                return _DOWN
            why = "does not exist" if status == 404 else f"cannot be used (HTTP status {status})"
            raise UnusableStorage(f"ARKLOOP_S3_BUCKET: {self._bucket!r} {why}") from None
        except (NoConnection, HTTPClientError) as error:
            why, advice = str(error), _DOWN
            if isinstance(error, SSLError):
                why, advice = self._failed_handshake(error)
            log.warning("the S3 server cannot be reached: files are unavailable: %s", why)
            return advice
        except (BotoCoreError, OSError) as error:  # no credentials or file of them, a wrong region
            raise UnusableStorage(f"ARKLOOP_S3_BUCKET: {error}") from None
        return None

    def _failed_handshake(self, error: SSLError) -> tuple[str, str]:
        """Return what failed, and what to do about it."""
        cause = error.kwargs["error"]
        if any(isinstance(found, CertificateError) for found in (cause, *cause.args)):
            return f"TLS error: {error}", _ANOTHER_HOST  # urllib3 compares names itself
        why = tls_failure(error)
        if why == "certificate is not trusted":
            advice = (
                f"Add its authority to {self._bundle}, which AWS_CA_BUNDLE (or `ca_bundle` of a"
                " profile) names: no other file counts for S3."
                if self._bundle
                else "Name a file with its authority in AWS_CA_BUNDLE, which counts for S3"
                " alone, or correct the server's certificate."
            )
        elif why == "certificate is for another host":
            advice = _ANOTHER_HOST
        elif why in ("certificate has expired", "certificate is not valid yet"):
            advice = "Renew the server's certificate, or correct the clock of this machine."
        else:
            why = str(error)
            advice = "Correct ARKLOOP_S3_ENDPOINT_URL, if no TLS is spoken there; see its log."
        return f"TLS error: {why}", advice

    @contextmanager
    def writing(self, key: str) -> Iterator["_S3Writer"]:
        writer = _S3Writer(self._s3, {"Bucket": self._bucket, "Key": key})
        try:
            yield writer
        finally:
            writer.close()

    def read(self, key: str) -> Iterator[bytes]:
        with _failing():
            body = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"]
        return _pieces(body)

    def remove(self, key: str) -> None:
        # AWS answers 204 for an absent object; some other servers answer 404.
        with suppress(ObjectMissing), _failing():
            self._s3.delete_object(Bucket=self._bucket, Key=key)
        with _failing(may_miss=False):
            found = self._s3.list_multipart_uploads(Bucket=self._bucket, Prefix=key)
        for upload in found.get("Uploads", ()):
            with suppress(ObjectMissing), _failing():  # its writer may end it meanwhile
                self._s3.abort_multipart_upload(
                    Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )


@contextmanager
def _naming_settings(url: str | None) -> Iterator[None]:
    """Convert the SDK's errors about settings to `UnusableStorage`, naming the setting."""
    try:
        yield
    except InvalidRegionError as error:
        raise UnusableStorage(f"ARKLOOP_S3_REGION: {error}") from None
    except CredentialRetrievalError as error:  # their server may be down
        raise UnusableStorage(f"ARKLOOP_S3_BUCKET: {error}") from None
    except (BotoCoreError, ValueError, OSError, AttributeError) as error:
        if url is not None and url in str(error):
            raise UnusableStorage(
                f"ARKLOOP_S3_ENDPOINT_URL: AWS's SDK refuses {url!r}: its host must consist of"
                " letters, digits, hyphens and dots"
            ) from None
        raise UnusableStorage(
            "ARKLOOP_S3_BUCKET: AWS's SDK cannot use its own settings (AWS_… and its files):"
            f" {error}"
        ) from None


class _S3Writer:
    """Sends one request for a small object, and a part of each `PART_BYTES` for a larger one."""

    def __init__(self, s3: Any, place: dict[str, Any]) -> None:
        self._s3 = s3
        self._place = place
        self._buffer = bytearray()
        self._size = 0
        self._upload_id: str | None = None
        self._parts: list[dict[str, Any]] = []

    def write(self, data: bytes) -> None:
        self._buffer += data
        self._size += len(data)
        if len(self._buffer) >= PART_BYTES:
            with _failing(may_miss=False):
                self._send_part()

    def commit(self) -> None:
        with _failing(may_miss=False):
            if self._upload_id is None:
                self._s3.put_object(**self._place, Body=bytes(self._buffer))
                return
            if self._buffer:
                self._send_part()
            try:
                self._complete()
            except ObjectMissing:
                # The SDK repeats a request whose response was lost. Servers may answer that the
                # upload is absent: it was completed by the first one.
                if self._s3.head_object(**self._place)["ContentLength"] != self._size:
                    raise StorageUnavailable() from None
            self._upload_id = None

    def close(self) -> None:
        """Abort what was not committed; the sweep does it where the server is out of reach."""
        if self._upload_id is None:
            return
        try:
            self._s3.abort_multipart_upload(**self._place, UploadId=self._upload_id)
        except (BotoCoreError, ClientError) as error:
            log.warning("an upload to S3 could not be aborted: %s", error)

    def _complete(self) -> None:
        with _failing():
            self._s3.complete_multipart_upload(
                **self._place, UploadId=self._upload_id, MultipartUpload={"Parts": self._parts}
            )

    def _send_part(self) -> None:
        if self._upload_id is None:
            self._upload_id = self._s3.create_multipart_upload(**self._place)["UploadId"]
        number = len(self._parts) + 1
        sent = self._s3.upload_part(
            **self._place, UploadId=self._upload_id, PartNumber=number, Body=bytes(self._buffer)
        )
        self._parts.append({"ETag": sent["ETag"], "PartNumber": number})
        self._buffer.clear()


def _pieces(body: Any) -> Iterator[bytes]:
    try:
        pieces = body.iter_chunks(PIECE_BYTES)
        while True:
            with _failing():
                piece = next(pieces, b"")
            if not piece:
                return
            yield piece
    finally:
        body.close()


@contextmanager
def _failing(*, may_miss: bool = True) -> Iterator[None]:
    """Raise errors of the SDK as those of a storage: `ObjectMissing` only if something `may_miss`.

    Writers look for nothing: to them a 404 means that the storage does not work.
    """
    try:
        yield
    except ClientError as error:
        if may_miss and error.response["Error"]["Code"] in _MISSING:
            raise ObjectMissing() from None
        raise StorageUnavailable() from error
    except BotoCoreError as error:
        raise StorageUnavailable() from error
