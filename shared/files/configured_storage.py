"""The storage that the settings name."""

from arkloop.shared.config import Settings
from arkloop.shared.files.local_storage import LocalStorage
from arkloop.shared.files.storage import Storage


def storage_of(settings: Settings) -> Storage:
    """Return the storage of the settings; the SDK for S3 is loaded only where it is used."""
    if settings.s3_bucket is None:
        return LocalStorage(settings.files_dir)
    from arkloop.shared.files.s3_storage import S3Storage

    return S3Storage(settings)
