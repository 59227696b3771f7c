"""Files in S3 instead of a directory, in the processes that production runs."""

from collections.abc import Callable, Iterator

import pytest

from tests.acceptance.test_files import said, shown, text, upload
from tests.contents import png
from tests.s3_server import S3Server, s3_server
from tests.system import System, running_system
from tests.waiting import eventually

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "data") as started:
        yield started


@pytest.fixture(scope="module")
def on_s3(
    new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory, s3: S3Server
) -> Iterator[System]:
    """A system whose processes share nothing but the bucket."""
    folder = tmp_path_factory.mktemp("system")
    with running_system(new_database, folder, web=1, environ=s3.environ) as started:
        yield started


def test_a_file_goes_through_the_bucket(on_s3: System, s3: S3Server) -> None:
    """The worker reads from it what the web process wrote; a deleted file is removed from it."""
    user = on_s3.caller()
    file_id = upload(user, png())
    key = f"{user.org_id}/{file_id}"
    assert {key} == s3.keys(user.org_id)

    answer = said(user, text("Look:"), {"type": "image", "file_id": file_id})

    assert f"You said: Look: {shown(png())}" == answer
    assert 204 == user.http.delete(f"/v1/files/{file_id}").status_code
    eventually(lambda: set() == s3.keys(user.org_id))


def test_a_large_file_comes_back_as_it_was(on_s3: System, s3: S3Server) -> None:
    """It is sent in several parts, and none of them is left over."""
    user = on_s3.caller()
    content = b"0123456789abcdef" * (2 * 1024 * 1024)

    file_id = upload(user, content, "large.txt")

    assert content == user.http.get(f"/v1/files/{file_id}/content").content
    assert [] == s3.uploads()
