"""The addresses that URLs may lead to: every spelling, every range, and resolvers that lie."""

import socket
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.shared.security import egress
from arkloop.shared.security.egress import Policy, Refused

PUBLIC = Policy()
LOOPBACK = Policy.of(["127.0.0.0/8", "::1/128"])

REFUSED = [
    # schemes, and what is no address at all
    *("", "example.com", "//example.com", "http:example.com", "http:/example.com", "http://"),
    *("file:///etc/passwd", "gopher://example.com/", "ftp://example.com/", "data:text/plain,x"),
    *("javascript:alert(1)", "unix:///run/docker.sock", "http+unix://%2Frun%2Fd/", "dict://x:1/"),
    *("ws://example.com/", "https ://example.com/", "http://?q", "http:///path", "http://:80/"),
    # who asks, and where
    *("http://a@example.com/", "http://a:b@example.com/", "http://8.8.8.8@127.0.0.1/"),
    *("http://example.com@127.0.0.1/", "http://@example.com/", "http://example.com:@127.0.0.1/"),
    *("http://example.com:22/", "http://example.com:25/", "http://example.com:0/"),
    *("http://example.com:65536/", "http://example.com:99999999/", "http://example.com:-80/"),
    *("http://example.com:+80/", "http://example.com:8 0/", "http://example.com:٨٠/"),
    *("http://example.com:/", "http://example.com:80:80/", "http://8.8.8.8:6/"),
    # characters that two readers see differently
    *("http://example.com\\@127.0.0.1/", "http:\\\\127.0.0.1/", "http://example.com\t/"),
    *("http://exa\nmple.com/", "http://example.com/\r\nHost: x", " http://example.com/"),
    *("http://example.com/a b", "http://example.com/\x00", "http://exam%70le.com/"),
    *("http://127.0.0.1%2f@example.com/", "http://example.com#@127.0.0.1:22@/\x7f"),
    *("http://exa mple.com/", "http://[example.com]/", "http://[::1/", "http://::1/"),
    *(
        "http://example..com/",
        "http://.example.com/",
        "http://-example.com/",
        "http://a" + "b" * 63,
    ),
    *("http://" + "a." * 127 + "com/", "http://example.com/" + "a" * 4096, "http://a,b/"),
    # international spellings
    *("http://①②⑦.0.0.1/", "http://127。0。0。1/", "http://ⓔxample.com/", "http://münchen.de/"),
    *("http://１２７.0.0.1/", "http://ex\u00adample.com/", "http://exam\u200bple.com/"),
    *("http://example.com/\ud800",),
    # IPv4, in every spelling that some reader knows
    *("http://127.0.0.1/", "http://127.0.0.1:8080/", "http://2130706433/", "http://0x7f000001/"),
    *("http://0X7F.1/", "http://017700000001/", "http://0177.0.0.1/", "http://127.1/"),
    *("http://127.0.1/", "http://0/", "http://0.0.0.0/", "http://00000127.0.0.1/", "http://0x/"),
    *("http://127.0.0.1./", "http://127.0.0.0x1/", "http://134744072/", "http://010.8.8.8/"),
    *("http://8.8.8/", "http://8.8.8.8.8/", "http://8.8.8.256/", "http://foo.0x7f/"),
    *("http://10.1.2.3/", "http://100.64.0.1/", "http://100.100.100.200/latest/"),
    *("http://169.254.169.254/latest/meta-data/", "http://169.254.169.254:80/"),
    *("http://172.31.255.255/", "http://192.168.0.1/", "http://192.0.0.192/", "http://192.0.2.1/"),
    *("http://168.63.129.16/", "http://192.88.99.1/", "http://198.19.0.1/", "http://198.51.100.1/"),
    *("http://203.0.113.9/", "http://224.0.0.1/", "http://240.0.0.1/", "http://255.255.255.255/"),
    # IPv6
    *("http://[::]/", "http://[::1]/", "http://[0:0:0:0:0:0:0:1]/", "http://[::127.0.0.1]/"),
    *("http://[::8.8.8.8]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"),
    *("http://[::ffff:169.254.169.254]/", "http://[::ffff:0:127.0.0.1]/", "http://[fe80::1]/"),
    *("http://[fe80::1%eth0]/", "http://[fe80::1%25eth0]/", "http://[2606:4700::1%25x]/"),
    *("http://[fec0::1]/", "http://[fc00::1]/", "http://[fd00:ec2::254]/", "http://[ff02::1]/"),
    *("http://[64:ff9b::7f00:1]/", "http://[64:ff9b:1::1]/", "http://[2002:7f00:1::]/"),
    *("http://[2001::1]/", "http://[2001:db8::1]/", "http://[2001:2::1]/", "http://[3fff::1]/"),
    *("http://[5f00::1]/", "http://[100::1]/", "http://[2620:4f:8000::1]/", "http://[4000::1]/"),
    *("http://[8.8.8.8]/", "http://[]/", "http://[1::2::3]/", "http://[::1]x/"),
    # names that are this machine's by definition
    *("http://localhost/", "http://LOCALHOST./", "http://a.localhost:8080/"),
]

#: None of them repeats anything.
REASONS = {
    "The address is longer than 4096 characters.",
    "The address contains a space, a backslash or a control character.",
    "The address must begin with http:// or https://.",
    "The address must not contain a user name or password.",
    "The address does not have a valid host and port.",
    "The address does not have a valid host name.",
    "The address does not contain a valid IPv6 address.",
    "The address is not valid Unicode.",
    "The address is not on the public network. The operator of this installation can allow its"
    " network with ARKLOOP_ALLOWED_NETWORKS.",
    "The port must be 80, 443 or one from 1024 on.",
    "Only an IPv6 address may be in brackets.",
    "An IPv4 address must be written as four decimal numbers.",
    "An IPv6 address must not contain a zone.",
    "A host name must be ASCII: write an international one in its xn-- (Punycode) form.",
}

PASSED = {
    "http://example.com": "http://example.com/",
    "HTTPS://EXAMPLE.com.:443/a?b=c#d": "https://example.com/a?b=c",
    "http://example.com:80?x": "http://example.com/?x",
    "http://example.com#x?y": "http://example.com/",
    "https://example.com:8443/": "https://example.com:8443/",
    "http://example.com:443/": "http://example.com:443/",
    "http://example.com:1024/": "http://example.com:1024/",
    "http://8.8.8.8/": "http://8.8.8.8/",
    "http://[2606:4700::1111]:8080/x": "http://[2606:4700::1111]:8080/x",
    "http://[2606:4700:0:0::1111]/": "http://[2606:4700::1111]/",
    "http://[::ffff:8.8.8.8]/": "http://8.8.8.8/",
    "http://xn--mnchen-3ya.de/": "http://xn--mnchen-3ya.de/",
    "http://a_b.example.com/~x/%20/é?q=ü&r=[1]": (
        "http://a_b.example.com/~x/%20/%C3%A9?q=%C3%BC&r=[1]"
    ),
    "http://example.com/a'b\"c<d>": "http://example.com/a'b%22c%3Cd%3E",
    "http://1.example/": "http://1.example/",
    "http://example.com/?u=http://a@127.0.0.1/": "http://example.com/?u=http://a@127.0.0.1/",
}


@pytest.mark.parametrize("url", REFUSED)
def test_what_may_lead_inside_is_refused(url: str) -> None:
    """A URL that may lead inside is refused by its spelling, without resolving it, and the reason
    names no address.
    """
    with pytest.raises(Refused) as refusal:
        egress.check_url(url, PUBLIC)

    assert str(refusal.value) in REASONS


@pytest.mark.parametrize(("url", "text"), PASSED.items())
def test_what_passes_has_one_spelling(url: str, text: str) -> None:
    """An accepted URL has one spelling, which is accepted again unchanged."""
    checked = egress.check_url(url, PUBLIC)

    assert text == checked.text
    assert text == egress.check_url(checked.text, PUBLIC).text


def test_the_parts_are_what_a_client_needs() -> None:
    """Host and port as a socket takes them; the fragment is left out."""
    checked = egress.check_url("https://[2606:4700::1]:8443/a?b#c", PUBLIC)

    assert ("https", "2606:4700::1", 8443) == (checked.scheme, checked.host, checked.port)
    assert ("/a", "b") == (checked.path, checked.query)
    assert "https://[2606:4700::1]:8443" == checked.origin


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:22/", "http://localhost:11434/v1", "http://[::1]:1/", "http://model:22/"],
)
def test_a_network_that_the_operator_allows_may_be_reached_on_any_port(url: str) -> None:
    """A name is judged when it is resolved; the old spellings stay refused."""
    assert url.removesuffix("/") == egress.check_url(url, LOOPBACK).text.removesuffix("/")
    for other in ("http://127.1/", "http://10.0.0.1/", "http://8.8.8.8:22/"):
        with pytest.raises(Refused):
            egress.check_url(other, LOOPBACK)


def test_a_policy_is_made_of_networks_alone() -> None:
    """A text that is no network raises an error that names it."""
    assert (ip_network("10.0.0.0/8"),) == Policy.of(["10.0.0.0/8"]).allowed
    with pytest.raises(ValueError, match="10.0.0.1/8"):
        Policy.of(["10.0.0.1/8"])


# Resolving.


class Resolver:
    """Answers in turn, and counts how often it was asked."""

    def __init__(self, *answers: list[str]) -> None:
        self.asked: list[Any] = []
        self._answers = iter(answers)

    def __call__(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        self.asked.append(host)
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in next(self._answers)
        ]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Resolver]:
    """Call it with the answers that the system's resolver is to give."""

    def answering(*answers: list[str]) -> Resolver:
        made = Resolver(*answers)
        monkeypatch.setattr(socket, "getaddrinfo", made)
        return made

    return answering


def test_a_name_is_resolved_once(resolver: Callable[..., Resolver]) -> None:
    """All its addresses, each once, in the resolver's order."""
    asked = resolver(["8.8.8.8", "2606:4700::1111", "8.8.8.8", "::ffff:8.8.4.4"], ["127.0.0.1"])

    assert ["8.8.8.8", "2606:4700::1111", "8.8.4.4"] == egress.resolve("Example.com.", 443, PUBLIC)
    assert ["example.com"] == asked.asked


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["10.0.0.1", "8.8.8.8"],
        ["8.8.8.8", "::1"],
        ["2606:4700::1111", "::ffff:10.0.0.1"],
        ["64:ff9b::a00:1"],
        ["fe80::1%2"],
        ["0.0.0.0"],
    ],
)
def test_one_forbidden_address_refuses_the_name(
    resolver: Callable[..., Resolver], answer: list[str]
) -> None:
    """The other records do not save it, and the reason tells nobody what they are."""
    resolver(answer)

    with pytest.raises(Refused, match="^The address is not on the public network. [^0-9:]+$"):
        egress.resolve("example.com", 80, PUBLIC)


def test_the_setting_that_would_allow_it_is_told() -> None:
    """The policy names it, since there is one for the model's fetches and one for the rest."""
    for_fetches = egress.Policy.of(["10.0.0.0/8"], egress.FETCH_ALLOWED_NETWORKS)

    with pytest.raises(Refused, match=" with ARKLOOP_FETCH_ALLOWED_NETWORKS.$"):
        egress.check_url("http://127.0.0.1/", for_fetches)


def test_a_second_answer_is_judged_anew(resolver: Callable[..., Resolver]) -> None:
    """A name that was public once is not public for ever."""
    resolver(["8.8.8.8"], ["127.0.0.1"])

    assert ["8.8.8.8"] == egress.resolve("example.com", 80, PUBLIC)
    with pytest.raises(Refused):
        egress.resolve("example.com", 80, PUBLIC)


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "[::1]", "a b", "::1", "localhost", "", "a@b"])
def test_a_host_that_was_not_checked_is_never_looked_up(
    resolver: Callable[..., Resolver], host: str
) -> None:
    """A caller without `check_url` is refused all the same."""
    asked = resolver(["8.8.8.8"])

    with pytest.raises(Refused):
        egress.resolve(host, 80, PUBLIC)
    assert [] == asked.asked


def test_a_name_in_an_allowed_network_has_every_port(resolver: Callable[..., Resolver]) -> None:
    """A public one beside it has not."""
    resolver(["127.0.0.1"], ["8.8.8.8"], ["127.0.0.1", "10.0.0.1"])

    assert ["127.0.0.1"] == egress.resolve("model.internal", 22, LOOPBACK)
    with pytest.raises(Refused, match="port"):
        egress.resolve("model.internal", 22, LOOPBACK)
    with pytest.raises(Refused, match="public"):
        egress.resolve("model.internal", 80, LOOPBACK)


def test_an_unknown_name_is_a_failure_and_no_refusal() -> None:
    """It may exist later: the caller can try again."""
    with pytest.raises(OSError):
        egress.resolve("nowhere.invalid", 80, PUBLIC)


def test_this_machine_s_own_addresses_are_refused(
    resolver: Callable[..., Resolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public address may be our own; without the ranges, it still is."""
    resolver(["127.0.0.1"], ["127.0.0.1"])
    monkeypatch.setattr(egress, "_REFUSED_IPV4", ())

    with pytest.raises(Refused):
        egress.resolve("example.com", 8080, PUBLIC)
    assert ["127.0.0.1"] == egress.resolve("example.com", 8080, LOOPBACK)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_whatever_passes_is_global(address: Any) -> None:
    """Our list is no shorter than this Python's."""
    host = f"[{address}]" if address.version == 6 else str(address)
    try:
        checked = egress.check_url(f"http://{host}/", PUBLIC)
    except Refused:
        return
    assert ip_address(checked.host).is_global
    assert not ip_address(checked.host).is_multicast


@given(st.text(max_size=60), st.sampled_from(["http://", "https://", "http://example.com", ""]))
def test_any_text_is_refused_or_has_one_spelling(text: str, before: str) -> None:
    """Nothing else is raised, and a second reading finds what the first one found."""
    try:
        checked = egress.check_url(before + text, PUBLIC)
    except Refused:
        return
    again = egress.check_url(checked.text, PUBLIC)
    assert (checked.host, checked.port, checked.text) == (again.host, again.port, again.text)
    assert checked.text.isascii()
