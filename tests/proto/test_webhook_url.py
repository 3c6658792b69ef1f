"""Which URLs a webhook may have; the texts are those of a real daemon."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.errors import DecodeError
from pilot_trio.proto.webhook_url import URL_MAX, check_webhook_url

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates too: a settings file may hold such


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/x",
        "HTTP://x",
        "https://user:secret@host.example:443/a?b=c#d",
        "http://[::1]:80/",
        "http://10.0.0.1/",
        "http://192.168.1.1",
        "http://0.0.0.0/",
        "http://224.0.1.1/",
        "http://x:/",
        "http://x/%20",
        "http://bücher.example/",
        "http://x/" + "y" * (URL_MAX - 9),
    ],
)
def test_allowed(url: str) -> None:
    check_webhook_url(url)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ftp://x", 'URL must use http or https scheme, got "ftp"'),
        ("x", 'URL must use http or https scheme, got ""'),
        ("http://", "URL must have a host"),
        ("http:///x", "URL must have a host"),
        ("http:x", "URL must have a host"),
        ("http://169.254.169.254/x", "URL cannot target link-local address 169.254.169.254"),
        ("http://user@169.254.1.1:80/", "URL cannot target link-local address 169.254.1.1"),
        ("http://[fe80::1]/", "URL cannot target link-local address fe80::1"),
        ("http://[fe80::1%25eth0]/", "URL cannot target link-local address fe80::1%eth0"),
        ("http://[::ffff:169.254.169.254]/", "URL cannot target link-local address ::ffff:169.254.169.254"),
        ("http://224.0.0.1/", "URL cannot target link-local address 224.0.0.1"),
        ("http://[ff02::1]/", "URL cannot target link-local address ff02::1"),
        ("http://METADATA.google.internal/", "URL cannot target cloud metadata endpoint METADATA.google.internal"),
        ("http://metadata.azure.com./", "URL cannot target cloud metadata endpoint metadata.azure.com."),
        ("http://ec2.internal", "URL cannot target cloud metadata endpoint ec2.internal"),
        ("http://a b/", 'invalid URL: parse "http://a b/": invalid character " " in host name'),
        ("http://x:y/", 'invalid URL: parse "http://x:y/": invalid port ":y" after host'),
        ("http://x:65536/", 'invalid URL: parse "http://x:65536/": invalid port ":65536" after host'),
        ("http://[::1]x/", 'invalid URL: parse "http://[::1]x/": invalid port "x" after host'),
        ("http://%zz/", 'invalid URL: parse "http://%zz/": invalid URL escape "%zz"'),
        ("http://x/%", 'invalid URL: parse "http://x/%": invalid URL escape "%"'),
        ("://x", 'invalid URL: parse "://x": missing protocol scheme'),
        ("http://x\x01/", 'invalid URL: parse "http://x\\x01/": net/url: invalid control character in URL'),
        ("http://x\n/", 'invalid URL: parse "http://x\\n/": net/url: invalid control character in URL'),
        ("http://x/" + "y" * URL_MAX, f"invalid URL: longer than {URL_MAX} bytes"),
    ],
)
def test_refused(url: str, text: str) -> None:
    with pytest.raises(DecodeError, match=f"^{re.escape(text)}$"):
        check_webhook_url(url)


@given(ANY_TEXT | ANY_TEXT.map("http://".__add__) | ANY_TEXT.map("http://[".__add__))
def test_any_text_is_allowed_or_refused(url: str) -> None:
    refused = ""
    try:
        check_webhook_url(url)
    except DecodeError as exc:
        refused = str(exc)
    assert not refused or refused.startswith(("URL ", "invalid URL: "))
