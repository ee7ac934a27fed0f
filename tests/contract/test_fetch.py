"""The guarded client, against a real HTTP server on loopback that only an explicit setting lets it reach."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from temporalio.exceptions import ApplicationError

from activities.fetch import Page, WebClient, check_url, is_public
from tests.contract.records import fails
from tests.serving import served

LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1/128")]


@dataclass
class Site:
    """What a web site answers, and what it was asked.

    Attributes:
        url: Where it is.
        pages: By path; a callable is asked anew each time.
        asked: The paths of all requests, in order.
        agents: Who asked.
        most: How many requests were under way at once, at most.
    """

    url: str = ""
    pages: dict[str, Response | Callable[[], Response]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    under_way: int = 0
    most: int = 0

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        self.asked.append(path)
        self.agents.add(request.headers["user-agent"])
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.01)
        self.under_way -= 1
        page = self.pages.get(path, PlainTextResponse("missing", 404))
        return page() if callable(page) and not isinstance(page, Response) else page


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with served(Starlette(routes=[Route("/{path:path}", site.answer)])) as site.url:
        yield site


@pytest.fixture
async def client() -> AsyncIterator[WebClient]:
    client = WebClient(LOOPBACK, 100_000)
    yield client
    await client.close()


@pytest.fixture
async def guarded() -> AsyncIterator[WebClient]:
    """A client as it is without any setting."""
    client = WebClient([], 100_000)
    yield client
    await client.close()


async def fetch(client: WebClient, url: str) -> Page:
    return await client.fetch(url, lambda media_type, filename: media_type == "text/plain")


# What may be reached


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.1.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::127.0.0.1", "2002:7f00:1::", "2001:0:53aa:64c:0:fbff:80ff:fffe"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "5f00::1", "2001:20::1", "3fff::1"),
        # Where Azure, Oracle's older cloud and Alibaba tell a machine of itself, and 6to4's relays.
        *("168.63.129.16", "192.0.0.192", "100.100.100.200", "192.88.99.1", "64:ff9b::a83f:8110"),
    ],
)
def test_an_address_that_is_not_public_is_known(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "2a00:1450::1"])
def test_a_public_address_is_known(address: str) -> None:
    assert is_public(ip_address(address))


LOCAL = [
    *("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0"),
    *("0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "[::ffff:7f00:1]", "127.0.0.1."),
    *("１２７.0.0.1", "127。0。0。1", "%31%32%37.0.0.1"),
]


@pytest.mark.parametrize("host", LOCAL)
async def test_this_machine_is_not_reached_however_it_is_written(site: Site, guarded: WebClient, host: str) -> None:
    port = urlsplit(site.url).port
    with pytest.raises(ApplicationError) as refused:
        await fetch(guarded, f"http://{host}:{port}/secret")
    assert refused.value.type in ("rejected", "unavailable")
    if refused.value.type == "rejected":
        assert "isn't public" in refused.value.message or "isn't a valid URL" in refused.value.message
    else:
        assert "can't be reached" in refused.value.message
    assert site.asked == []


async def test_the_rule_names_the_setting_that_would_allow_it(site: Site, guarded: WebClient) -> None:
    with fails("rejected", "127.0.0.1", "isn't public", "FETCH_ALLOWED_NETWORKS"):
        await fetch(guarded, f"{site.url}/secret")
    site.pages["/page"] = PlainTextResponse("fine")
    allowed = WebClient([ip_network("127.0.0.1/32")], 1000)
    assert (await fetch(allowed, f"{site.url}/page")).content == b"fine"
    await allowed.close()
    elsewhere = WebClient([ip_network("10.0.0.0/8")], 1000)
    with fails("rejected", "isn't public"):
        await fetch(elsewhere, f"{site.url}/page")
    await elsewhere.close()


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.org/", "gopher://example.org/", "data:,x", "x", ""]
)
async def test_only_http_is_spoken(guarded: WebClient, url: str) -> None:
    with fails("rejected", "http"):
        await fetch(guarded, url)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://ann:secret@example.org/", "user or password"),
        ("http:///path", "host"),
        ("http://exa mple.org/", "valid URL"),
        ("http://[::1/", "valid URL"),
        ("http://example.org:99999/", "valid URL"),
        ("http://example.org/" + "a" * 5000, "longer than 4,096 characters"),
    ],
)
def test_an_address_that_is_wrong_is_refused_by_its_rule(url: str, rule: str) -> None:
    with pytest.raises(ApplicationError, match=rule) as refused:
        check_url(url)
    assert "secret" not in refused.value.message


def test_an_address_has_no_fragment() -> None:
    assert check_url(" HTTP://Example.org/a?b#c ") == "http://example.org/a?b"


class Names:
    """What names resolve to, in place of the network's resolver: one answer after the other, the last for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.real = asyncio.BaseEventLoop.getaddrinfo
        self.asked = 0
        names = self

        async def getaddrinfo(loop: Any, host: str, port: int, **options: Any) -> Any:
            if host not in names.answers:
                return await names.real(loop, host, port, **options)
            names.asked += 1
            found = names.answers[host]
            addresses = found.pop(0) if len(found) > 1 else found[0]
            return [
                (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
                for one in addresses
            ]

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["10.0.0.1"], ["::ffff:169.254.169.254"]]
)
async def test_a_name_that_resolves_to_a_private_address_is_refused(
    site: Site, guarded: WebClient, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    Names(monkeypatch, evil=[addresses])
    with fails("rejected", "evil", "isn't public"):
        await fetch(guarded, f"http://evil:{urlsplit(site.url).port}/")
    assert site.asked == []


async def test_a_name_cannot_change_its_meaning_once_it_is_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    port = urlsplit(site.url).port
    site.pages["/"] = PlainTextResponse("inside")
    # As rebinding does it: allowed at the first look, another at the second.
    names = Names(monkeypatch, evil=[["127.0.0.2"], ["127.0.0.1"]])
    client = WebClient([ip_network("127.0.0.2/32")], 1000)
    with fails("unavailable", "can't be reached"):
        await fetch(client, f"http://evil:{port}/")
    assert names.asked == 1
    with fails("rejected", "isn't public"):
        await fetch(client, f"http://evil:{port}/")
    assert site.asked == []
    await client.close()


@pytest.mark.parametrize("target", ["http://localhost:{port}/secret", "http://[::ffff:127.0.0.1]:{port}/secret"])
async def test_a_redirect_to_this_machine_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    port = urlsplit(site.url).port
    Names(monkeypatch, public=[["127.0.0.2"]])
    site.pages["/"] = RedirectResponse(target.format(port=port))
    with socket.create_server(("127.0.0.2", 0)) as listener:
        pass
    # The only address that is allowed is that of the site under another name.
    client = WebClient([ip_network("127.0.0.1/32")], 1000)
    allowed = f"http://127.0.0.1:{port}/"
    if "ffff" in target:
        with fails("rejected", "isn't public"):
            await fetch(client, allowed)
    else:
        Names(monkeypatch, localhost=[["::1"]])
        with fails("rejected", "isn't public"):
            await fetch(client, allowed)
    assert "/secret" not in site.asked
    await client.close()
    del listener


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://u:p@127.0.0.1/"])
async def test_a_redirect_to_what_may_not_be_fetched_is_refused(site: Site, client: WebClient, target: str) -> None:
    site.pages["/"] = RedirectResponse(target)
    with fails("rejected"):
        await fetch(client, site.url)


async def test_redirects_are_followed_to_their_end(site: Site, client: WebClient) -> None:
    site.pages |= {
        "/a": RedirectResponse("b?x=1"),
        "/b": RedirectResponse("/notes/c.txt"),
        "/loop": RedirectResponse("/loop"),
    }
    site.pages["/notes/c.txt"] = PlainTextResponse("end")
    page = await fetch(client, f"{site.url}/a#top")
    assert (page.url, page.filename, page.content) == (f"{site.url}/notes/c.txt", "c.txt", b"end")
    with fails("rejected", "redirects more than 10 times"):
        await fetch(client, f"{site.url}/loop")


# Limits


async def test_a_page_that_is_too_large_is_cut_off(site: Site, client: WebClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield b"x" * 10_000
            # So that the server notices that nobody listens any more.
            await asyncio.sleep(0.001)

    bomb = gzip.compress(bytes(50_000_000))
    site.pages |= {
        "/endless": lambda: StreamingResponse(endless(), media_type="text/plain"),
        "/bomb": Response(bomb, media_type="text/plain", headers={"content-encoding": "gzip"}),
        "/most": PlainTextResponse("x" * 100_000),
        "/more": PlainTextResponse("x" * 100_001),
    }
    assert len(bomb) < 100_000
    for path in ("/endless", "/bomb", "/more"):
        with fails("over_limit", "INGEST_MAX_BYTES (100,000 bytes)"):
            await fetch(client, site.url + path)
    assert len((await fetch(client, f"{site.url}/most")).content) == 100_000


async def test_a_page_that_takes_too_long_is_given_up(site: Site) -> None:
    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.05)

    site.pages["/slow"] = lambda: StreamingResponse(slow(), media_type="text/plain")
    client = WebClient(LOOPBACK, 100_000, seconds=0.5)
    with fails("unavailable", "in time"):
        await fetch(client, f"{site.url}/slow")
    await client.close()


async def test_what_cannot_be_read_is_refused_before_it_is_sent(site: Site, client: WebClient) -> None:
    site.pages["/film"] = Response(b"x", media_type="video/mp4")
    with fails("rejected", "video/mp4"):
        await fetch(client, f"{site.url}/film")
    site.pages["/damaged"] = Response(b"no gzip", media_type="text/plain", headers={"content-encoding": "gzip"})
    with fails("rejected", "damaged"):
        await fetch(client, f"{site.url}/damaged")


@pytest.mark.parametrize(
    ("charset", "content", "text"),
    [
        ("windows-1251", "Маяк".encode("cp1251"), "Маяк"),
        ('"ISO-8859-1"', "5 £ – “so”".encode("cp1252"), "5 £ – “so”"),
        ("iso-2022-jp", "灯台".encode("iso-2022-jp"), "灯台"),
        ("Shift_JIS", "灯台".encode("shift_jis"), "灯台"),
        ("utf-16le", "Möwe".encode("utf-16-le"), "Möwe"),
        # What the server says is wrong, or no encoding of texts.
        ("iso-8859-1", "Möwe — 灯台".encode(), "Möwe — 灯台"),
        ("us-ascii", b"plain", "plain"),
        ("big5", b"plain \xff", b"plain \xff"),
        *((name, b"a\\ud800", "a\\ud800") for name in ("unicode_escape", "zlib", "punycode", "nonsense", "cp99999")),
    ],
)
async def test_a_text_is_in_the_encoding_that_its_server_says(
    site: Site, client: WebClient, charset: str, content: bytes, text: str | bytes
) -> None:
    site.pages["/page"] = Response(content, headers={"content-type": f"text/plain; charset={charset}"})
    expected = text if isinstance(text, bytes) else text.encode()
    assert (await fetch(client, f"{site.url}/page")).content == expected


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, "rejected") for status in (401, 403, 404, 410, 418)),
        *((status, "unavailable") for status in (408, 500, 503)),
    ],
)
async def test_a_status_says_whether_it_passes(site: Site, client: WebClient, status: int, kind: str) -> None:
    site.pages["/page"] = PlainTextResponse("secret detail", status)
    with fails(kind, f"status {status}"):
        await fetch(client, f"{site.url}/page")


async def test_a_server_says_when_to_come_again(site: Site, client: WebClient) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    for value, least, most in (("7", 7, 7), (later, 60, 90), ("99999999", 600, 600), ("soon", None, None)):
        site.pages["/page"] = PlainTextResponse("", 429, {"retry-after": value})
        with pytest.raises(ApplicationError) as error:
            await fetch(client, f"{site.url}/page")
        assert error.value.type == "throttled"
        assert not error.value.non_retryable
        wait = error.value.next_retry_delay
        assert (wait is None) == (least is None)
        if wait is not None and least is not None and most is not None:
            assert least <= wait.total_seconds() <= most


async def test_a_server_that_is_not_there_may_come_back(client: WebClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with fails("unavailable", "can't be reached"):
        await fetch(client, f"http://127.0.0.1:{port}/")
    with fails("unavailable", "can't be reached"):
        await fetch(client, "http://no-such-name.invalid/")


async def test_a_file_has_the_name_that_the_server_gives_it(site: Site, client: WebClient) -> None:
    site.pages["/get"] = PlainTextResponse(
        "x", headers={"content-disposition": "attachment; filename*=utf-8''n%C3%B6tes.md"}
    )
    site.pages["/a%20b/c.txt"] = site.pages["/a b/c.txt"] = PlainTextResponse("x")
    assert (await fetch(client, f"{site.url}/get")).filename == "nötes.md"
    assert (await fetch(client, f"{site.url}/a%20b/c.txt")).filename == "c.txt"


# robots.txt


async def test_robots_txt_is_respected_by_name(site: Site, client: WebClient) -> None:
    site.pages["/robots.txt"] = PlainTextResponse(
        "User-agent: *\nDisallow: /\n\n"
        "User-agent: durable-context\nDisallow: /private/*.txt$\nAllow: /private/open.txt\n"
    )
    site.pages |= {path: PlainTextResponse("x") for path in ("/page", "/private/a.txt", "/private/open.txt")}
    await fetch(client, f"{site.url}/page")
    await fetch(client, f"{site.url}/private/open.txt")
    with fails("rejected", "robots.txt", "durable-context/"):
        await fetch(client, f"{site.url}/private/a.txt")
    assert site.asked.count("/robots.txt") == 1
    assert "/private/a.txt" not in site.asked
    assert all(agent.startswith("durable-context/") for agent in site.agents)


async def test_a_redirect_to_what_robots_txt_forbids_is_not_followed(site: Site, client: WebClient) -> None:
    site.pages |= {"/robots.txt": PlainTextResponse("User-agent: *\nDisallow: /no"), "/yes": RedirectResponse("/no")}
    with fails("rejected", "robots.txt"):
        await fetch(client, f"{site.url}/yes")
    assert "/no" not in site.asked


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_nothing_is_read_where_robots_txt_is_not_known(site: Site, client: WebClient, status: int) -> None:
    site.pages |= {"/robots.txt": PlainTextResponse("", status), "/page": PlainTextResponse("x")}
    with fails("unavailable", "robots.txt", str(status)):
        await fetch(client, f"{site.url}/page")
    assert "/page" not in site.asked
    site.pages["/robots.txt"] = PlainTextResponse("", 404)
    assert (await fetch(client, f"{site.url}/page")).content == b"x"


async def test_a_huge_robots_txt_is_read_by_its_beginning(site: Site, client: WebClient) -> None:
    site.pages |= {"/robots.txt": PlainTextResponse("User-agent: *\nDisallow: /no\n" + "# x\n" * 300_000)}
    with fails("rejected", "robots.txt"):
        await fetch(client, f"{site.url}/no")


async def test_a_host_is_asked_one_thing_at_a_time(site: Site, client: WebClient) -> None:
    site.pages |= {f"/{n}": PlainTextResponse("x") for n in range(8)}
    await asyncio.gather(*(fetch(client, f"{site.url}/{n}") for n in range(8)))
    assert site.most == 1


async def test_a_crawl_delay_is_kept(site: Site, client: WebClient, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real(0)

    site.pages |= {
        "/robots.txt": PlainTextResponse("User-agent: *\nCrawl-delay: 9\n"),
        "/a": PlainTextResponse("x"),
        "/b": PlainTextResponse("x"),
    }
    monkeypatch.setattr("activities.fetch.asyncio.sleep", sleep)
    await fetch(client, f"{site.url}/a")
    await fetch(client, f"{site.url}/b")
    assert any(8 < wait <= 9 for wait in waits)


# Sitemaps


def urlset(*urls: str) -> bytes:
    entries = "".join(f"<url><loc> {url} </loc><lastmod>2026-01-01</lastmod></url>" for url in urls)
    return (
        f'<?xml version="1.0"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</urlset>'.encode()
    )


def index_of(*urls: str) -> bytes:
    entries = "".join(f"<sitemap><loc>{url}</loc></sitemap>" for url in urls)
    return f'<sitemapindex xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</sitemapindex>'.encode()


def xml(content: bytes) -> Response:
    return Response(content, media_type="application/xml")


async def test_a_sitemap_lists_its_pages_once(site: Site, client: WebClient) -> None:
    site.pages |= {
        "/sitemap.xml": xml(index_of(f"{site.url}/one.xml", f"{site.url}/two.xml.gz")),
        "/one.xml": xml(urlset("http://a.example/1", "http://a.example/2")),
        "/two.xml.gz": Response(
            gzip.compress(urlset("http://a.example/2", "http://a.example/3?x=1&amp;y")), media_type="application/gzip"
        ),
    }
    pages = await client.sitemap(f"{site.url}/sitemap.xml", 10)
    assert pages == ["http://a.example/1", "http://a.example/2", "http://a.example/3?x=1&y"]
    with fails("over_limit", "more than 2 pages"):
        await client.sitemap(f"{site.url}/sitemap.xml", 2)


async def test_what_is_no_sitemap_is_refused(site: Site, client: WebClient) -> None:
    laughs = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    bomb = f'<!DOCTYPE urlset [<!ENTITY e0 "ha">{laughs}]><urlset><url><loc>http://a/&e9;</loc></url></urlset>'
    outside = (
        '<!DOCTYPE urlset [<!ENTITY e SYSTEM "file:///etc/passwd">]><urlset><url><loc>http://a/&e;</loc></url></urlset>'
    )
    site.pages |= {
        "/html.xml": xml(b"<html/>"),
        "/text.xml": xml(b"nothing"),
        "/nested.xml": xml(index_of(f"{site.url}/inner.xml")),
        "/inner.xml": xml(index_of(f"{site.url}/nested.xml")),
        "/bomb.xml.gz": xml(gzip.compress(bytes(10_000_000))),
        "/laughs.xml": xml(bomb.encode()),
        "/outside.xml": xml(outside.encode()),
    }
    for path, kind, rule in (
        ("/html.xml", "rejected", "root html"),
        ("/text.xml", "rejected", "well-formed"),
        ("/nested.xml", "rejected", "another index"),
        ("/bomb.xml.gz", "over_limit", "unpacks"),
    ):
        with fails(kind, rule):
            await client.sitemap(site.url + path, 10)
    for path in ("/laughs.xml", "/outside.xml"):
        try:
            found = await client.sitemap(site.url + path, 10)
        except ApplicationError as refused:
            found = [refused.message]
        assert not any("haha" in one or "root:" in one for one in found)
