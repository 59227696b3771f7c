"""The storage that the settings name."""

from shared.config import Settings
from shared.files.local_storage import LocalStorage
from shared.files.storage import Storage


def storage_of(settings: Settings) -> Storage:
    """Return the storage of the settings; the SDK for S3 is loaded only where it is used."""
    if settings.s3_bucket is None:
        return LocalStorage(settings.files_dir)
    from shared.files.s3_storage import S3Storage

    return S3Storage(settings)
