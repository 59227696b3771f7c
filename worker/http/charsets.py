"""Text of other people's servers, decoded by the charset that they name."""

import re

#: Known by name: a codec of Python's can be slow on purpose, and each unknown name is remembered.
_CHARSETS = re.compile(
    r"utf-?8|utf-16(le|be)?|us-ascii|iso-?8859-([1-9]|1[013-6])|latin-?1|(windows-|cp)125[0-8]"
    r"|koi8-[ru]"
    r"|shift[_-]jis|euc-jp|iso-2022-jp|gb2312|gbk|gb18030|big5|euc-kr"
)
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def decoded(body: bytes, charset: str) -> str:
    """Decode a body; a byte order mark counts more than the charset, and UTF-8 is the default.

    What cannot be read becomes U+FFFD.
    """
    if not _CHARSETS.fullmatch(charset.lower()):
        charset = "utf-8"
    for mark, marked_charset in _MARKS:
        if body.startswith(mark):
            charset = marked_charset
    return body.decode(charset, errors="replace")
