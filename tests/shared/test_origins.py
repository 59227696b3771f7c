"""Origins, as browsers write them."""

import pytest

from arkloop.shared import origins


@pytest.mark.parametrize(
    ("origin", "sent"),
    [
        ("https://runs.example.com", "https://runs.example.com"),
        ("https://runs.example.com:443", "https://runs.example.com"),
        ("https://runs.example.com:80", "https://runs.example.com:80"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:443", "http://localhost:443"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("https://[2001:0db8::1]:443", "https://[2001:db8::1]"),
        ("https://[0:0:0:0:0:0:0:1]:8443", "https://[::1]:8443"),
        ("https://[2001:db8::443]", "https://[2001:db8::443]"),
        ("https://[::ffff:1.2.3.4]", "https://[::ffff:102:304]"),
        ("https://[0:0:0:0:0:ffff:0:0]:8443", "https://[::ffff:0:0]:8443"),
        ("https://[1:2]:443", "https://[1:2]"),
        ("http://127.000.000.001:8080", "http://127.0.0.1:8080"),
        ("https://192.168.1", "https://192.168.0.1"),
        ("https://010.0.0.1:443", "https://8.0.0.1"),
        ("https://0x7f.1", "https://127.0.0.1"),
        ("https://1:8081", "https://0.0.0.1:8081"),
        ("https://256.1.1.1", "https://256.1.1.1"),
        ("https://10.example.com", "https://10.example.com"),
    ],
)
def test_an_origin_has_the_form_that_browsers_send(origin: str, sent: str) -> None:
    """Neither the default port nor another form of an address is a part of it."""
    assert sent == origins.as_sent(origin)
    assert None is origins.problem_of_public_url(sent.replace("http:", "https:"))
