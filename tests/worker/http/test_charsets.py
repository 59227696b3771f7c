"""Charsets by name, and the marks that count more."""

import pytest

from arkloop.worker.http.charsets import decoded


@pytest.mark.parametrize(
    ("body", "charset", "text"),
    [
        (b"caf\xe9", "ISO-8859-1", "café"),
        (b"caf\xe9", "latin-1", "café"),
        (b"\x80", "cp1252", "€"),
        ("日本".encode("shift_jis"), "Shift_JIS", "日本"),
        ("é".encode(), "", "é"),
        ("é".encode("utf-16"), "utf-8", "é"),
        (b"\xef\xbb\xbfx", "latin1", "x"),
        (b"\xff", "utf-8", "\ufffd"),
        ("é".encode(), "punycode", "é"),
    ],
)
def test_a_body_is_decoded_by_its_charset(body: bytes, charset: str, text: str) -> None:
    """Unknown names, and codecs that are no charsets, are UTF-8."""
    assert text == decoded(body, charset)


@pytest.mark.parametrize(
    "charset",
    [
        *("utf8", "utf-8", "utf-16", "utf-16le", "utf-16be", "us-ascii", "latin1", "iso8859-15"),
        *(f"iso-8859-{part}" for part in range(17)),
        *(f"windows-125{page}" for page in range(10)),
        *("koi8-r", "koi8-u", "shift_jis", "shift-jis", "euc-jp", "iso-2022-jp"),
        *("gb2312", "gbk", "gb18030", "big5", "euc-kr"),
    ],
)
def test_each_charset_can_be_decoded(charset: str) -> None:
    """ISO 8859 has no part 12, and Python no codec of that name: it is read as UTF-8."""
    assert "\ufffd" not in decoded(b"text", charset)
