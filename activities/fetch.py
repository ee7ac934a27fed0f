"""Web pages by one guarded client: public addresses only, within limits, and as robots.txt allows."""

import asyncio
import email.message
import email.utils
import re
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore2
import httpx2
from protego import Protego

from activities.errors import failure

USER_AGENT = f"durable-context/{version('durable-context')}"
"""How this client calls itself; robots.txt may name it by the part before the slash."""

CONNECT_SECONDS = 10.0
FETCH_SECONDS = 60.0
REDIRECTS = 10
ROBOTS_BYTES = 500 * 1024
ROBOTS_SECONDS = 3600.0
CRAWL_DELAY_SECONDS = 30.0
"""The longest Crawl-delay that is kept."""
RETRY_AFTER = timedelta(minutes=10)
"""The longest Retry-After that is kept."""
URL_CHARACTERS = 4_096
"""Length of an address, at most."""
SITEMAPS = 1000
"""Sitemaps that an index may name."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_SPECIAL_4 = tuple(map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
_SPECIAL_6 = tuple(map(IPv6Network, ("2001::/23", "3fff::/20")))
"""What Python, depending on its version, takes to be global: networks of IANA's registries of special-purpose
addresses, and the address at which Azure tells a machine of itself."""
_WEB_ENCODINGS = {"iso-8859-1": "cp1252", "us-ascii": "cp1252", "gb2312": "gb18030", "shift_jis": "cp932"}
"""What browsers take for the names that pages give to their encodings (WHATWG Encoding Standard)."""
_ENCODING_NAME = re.compile(
    r"utf-16(le|be)?|utf-32|(windows-|cp|iso-8859-|latin-?)\d+|koi8-[ru]|gbk|gb18030|big5|euc-\w+|iso-2022-jp"
)
_PASSING = frozenset({408, 425, 429})


@dataclass(frozen=True)
class Page:
    """What an address answered.

    Attributes:
        url: Where it was found after all redirects.
        media_type: Lower case, without parameters.
        filename: What the server calls it, or the last segment of its path.
        content: Its bytes, decoded; those of a text in UTF-8 where the server says what they are.
    """

    url: str
    media_type: str
    filename: str
    content: bytes


def check_url(url: str) -> str:
    """An address that may be fetched, without its fragment.

    Raises:
        ApplicationError: `rejected` for one that may not, whatever is behind it.
    """
    if len(url) > URL_CHARACTERS:
        raise failure("rejected", f"The URL is longer than {URL_CHARACTERS:,} characters.")
    try:
        parsed = httpx2.URL(url.strip())
        host, port = parsed.host, parsed.port or 0
    except (httpx2.InvalidURL, UnicodeError, ValueError):
        raise failure("rejected", "It isn't a valid URL.") from None
    if port > 65535 or "%" in host:
        raise failure("rejected", "It isn't a valid URL.")
    if parsed.scheme not in ("http", "https"):
        raise failure("rejected", "Only http and https URLs can be fetched.")
    if not host:
        raise failure("rejected", "The URL names no host.")
    if parsed.userinfo:
        raise failure("rejected", "The URL holds a user or password. Take it out; pages behind a login can't be read.")
    return str(parsed.copy_with(fragment=None))


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, and every IPv4 address that it stands for does too."""
    if isinstance(address, IPv4Address):
        is_special = address.is_multicast or address.is_reserved or any(address in network for network in _SPECIAL_4)
        return address.is_global and not is_special
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    # Mapped, site-local, unique local, link-local and multicast addresses are all outside of global unicast.
    if address not in _UNICAST or not address.is_global or any(address in network for network in _SPECIAL_6):
        return False
    return address.sixtofour is None or is_public(address.sixtofour)


class _RefusedError(Exception):
    """A connection that may not be made."""


class _GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses that it has checked, so that a name can't change its meaning in between.

    Args:
        allowed: Networks that may be reached although they aren't public.
    """

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = allowed
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        for address in addresses:
            if not is_public(address) and not any(address in network for network in self._allowed):
                raise _RefusedError(host)
        failed: Exception = httpcore2.ConnectError("no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        raise failed

    @staticmethod
    async def _resolve(host: str, port: int) -> list[Address]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(str(error)) from None
        # An address with a zone (fe80::1%eth0) is link-local: it is refused by what is before the zone.
        return list(dict.fromkeys(ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found))


class _GuardedTransport(httpx2.AsyncHTTPTransport):
    def __init__(self, allowed: Sequence[Network]) -> None:
        super().__init__(trust_env=False)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(trust_env=False),
            max_connections=20,
            keepalive_expiry=5.0,
            network_backend=_GuardedNetwork(allowed),
        )


@dataclass
class _Host:
    """What is known of one scheme, host and port."""

    turn: asyncio.Lock
    robots: Protego | None = None
    read_at: float = 0.0
    last: float = 0.0


class WebClient:
    """
    Args:
        allowed_networks: Networks that may be reached although they aren't public.
        max_bytes: Size of a page, at most, after decoding.
        seconds: How long a page may take.
    """

    def __init__(self, allowed_networks: Sequence[Network], max_bytes: int, seconds: float = FETCH_SECONDS) -> None:
        self._allowed = allowed_networks
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._made: httpx2.AsyncClient | None = None
        self._hosts: dict[str, _Host] = {}

    async def fetch(self, url: str, accepts: Callable[[str, str], bool]) -> Page:
        """A page.

        Args:
            url: Its address.
            accepts: Whether a media type and a filename belong to a format that can be read; asked before it is.

        Raises:
            ApplicationError: `rejected` for an address that may not be fetched or answers with something that can't be
                read, `over_limit` for what is too large, `throttled` or `unavailable` for what passes by itself.
        """
        for _ in range(REDIRECTS + 1):
            url = check_url(url)
            await self._check_robots(url)
            async with self._turn(url), self._response(url) as response:
                if response.has_redirect_location:
                    url = urljoin(url, response.headers["location"])
                    continue
                _check_status(response)
                media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                filename = _filename(response)
                if not accepts(media_type, filename):
                    raise failure("rejected", f"Pages of type {media_type or '(none)'} can't be read.")
                content = await self._body(response, self._max_bytes)
                if media_type.startswith("text/") or media_type == "application/xhtml+xml":
                    content = _in_utf8(content, response.charset_encoding)
                return Page(url, media_type, filename, content)
        raise failure("rejected", f"It redirects more than {REDIRECTS} times.")

    async def sitemap(self, url: str, limit: int) -> list[str]:
        """The pages that a sitemap lists, or the sitemaps of an index, each once.

        Raises:
            ApplicationError: as `fetch`; `over_limit` where there are more than `limit`.
        """
        pages: dict[str, None] = {}
        names, inner = await self._locations(url)
        maps = [names] if not inner else []
        if inner:
            if len(names) > SITEMAPS:
                raise failure("over_limit", f"The index names more than {SITEMAPS:,} sitemaps.")
            for name in names:
                found, nested = await self._locations(name)
                if nested:
                    raise failure("rejected", "An index of sitemaps names another index, which no sitemap may.")
                maps.append(found)
        for found in maps:
            pages.update(dict.fromkeys(found))
            if len(pages) > limit:
                raise failure("over_limit", f"The sitemap lists more than {limit:,} pages.")
        return list(pages)

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        made, self._made = self._made, None
        if made is not None:
            await made.aclose()

    async def _locations(self, url: str) -> tuple[list[str], bool]:
        """What a sitemap lists, and whether those are sitemaps themselves."""
        types = (
            "application/xml",
            "text/xml",
            "application/gzip",
            "application/x-gzip",
            "application/octet-stream",
            "",
        )
        page = await self.fetch(url, lambda media_type, _: media_type in types)
        return await asyncio.to_thread(_read_sitemap, page.content, self._max_bytes)

    def _client(self) -> httpx2.AsyncClient:
        if self._made is None:
            self._made = httpx2.AsyncClient(
                transport=_GuardedTransport(self._allowed),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, deflate"},
                timeout=httpx2.Timeout(self._seconds, connect=min(CONNECT_SECONDS, self._seconds)),
                follow_redirects=False,
                trust_env=False,
            )
        return self._made

    @asynccontextmanager
    async def _response(self, url: str) -> AsyncIterator[httpx2.Response]:
        """An answer whose body hasn't been read; errors of the network leave the block as failures."""
        try:
            async with asyncio.timeout(self._seconds):
                async with self._client().stream("GET", url) as response:
                    # Cookies would make one page's answer depend on another's.
                    self._client().cookies.clear()
                    yield response
        except _RefusedError:
            raise failure(
                "rejected",
                f"{urlsplit(url).hostname} has an address that isn't public: loopback, private, link-local or "
                "reserved. FETCH_ALLOWED_NETWORKS can allow its network.",
            ) from None
        except (TimeoutError, httpx2.TimeoutException):
            raise failure("unavailable", f"{urlsplit(url).hostname} doesn't answer in time.") from None
        except httpx2.DecodingError:
            raise failure("rejected", "Its compressed content is damaged.") from None
        except (httpx2.HTTPError, OSError) as error:
            host = urlsplit(url).hostname
            raise failure("unavailable", f"{host} can't be reached ({type(error).__name__}).") from None

    @staticmethod
    async def _body(response: httpx2.Response, most: int, cut: bool = False) -> bytes:
        """The decoded body; what is beyond `most` bytes is cut off, or refused."""
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > most:
                if cut:
                    return bytes(content[:most])
                raise failure("over_limit", f"The page is larger than INGEST_MAX_BYTES ({most:,} bytes).")
        return bytes(content)

    # Politeness

    def _host(self, url: str) -> _Host:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if len(self._hosts) > 10_000:
            self._hosts.clear()
        return self._hosts.setdefault(origin, _Host(asyncio.Lock()))

    @asynccontextmanager
    async def _turn(self, url: str) -> AsyncIterator[None]:
        """One request at a time to a host, and those as far apart as it wishes."""
        host = self._host(url)
        async with host.turn:
            wished = host.robots.crawl_delay(USER_AGENT) if host.robots is not None else None
            rest = host.last + min(float(wished or 0), CRAWL_DELAY_SECONDS) - time.monotonic()
            if host.last and rest > 0:
                await asyncio.sleep(rest)
            try:
                yield
            finally:
                host.last = time.monotonic()

    async def _check_robots(self, url: str) -> None:
        """Make sure that robots.txt allows a page (RFC 9309).

        Raises:
            ApplicationError: `rejected` where it doesn't, `unavailable` where it can't be read.
        """
        host = self._host(url)
        async with host.turn:
            if host.robots is None or time.monotonic() - host.read_at > ROBOTS_SECONDS:
                host.robots = await self._read_robots(urljoin(url, "/robots.txt"))
                host.read_at = time.monotonic()
        if not host.robots.can_fetch(url, USER_AGENT):
            raise failure("rejected", f"robots.txt of {urlsplit(url).hostname} doesn't allow {USER_AGENT} to read it.")

    async def _read_robots(self, url: str) -> Protego:
        for _ in range(5):
            async with self._response(check_url(url)) as response:
                if response.has_redirect_location:
                    url = urljoin(url, response.headers["location"])
                    continue
                if response.status_code in _PASSING or response.status_code >= 500:
                    raise failure(
                        "unavailable",
                        f"robots.txt of {urlsplit(url).hostname} can't be read (status {response.status_code}), so "
                        "nothing else of it may be.",
                    )
                if response.status_code >= 300:
                    return Protego.parse("")
                content = await self._body(response, ROBOTS_BYTES, cut=True)
                return Protego.parse(content.decode(errors="replace"))
        # Five redirects in a row are as good as no such file.
        return Protego.parse("")


def _check_status(response: httpx2.Response) -> None:
    status = response.status_code
    if status < 300:
        return
    where = response.url.host
    if status == 429:
        raise failure("throttled", f"{where} asks for fewer requests (status 429).", _retry_after(response))
    if status >= 500 or status in _PASSING:
        raise failure("unavailable", f"{where} answers with status {status}.", _retry_after(response))
    if status in (401, 403):
        raise failure("rejected", f"{where} doesn't give it to everybody (status {status}).")
    if status in (404, 410):
        raise failure("rejected", f"{where} has no such page (status {status}).")
    raise failure("rejected", f"{where} answers with status {status}.")


def _retry_after(response: httpx2.Response) -> timedelta | None:
    """How long a server asks to wait, in seconds or as a date."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return min(timedelta(seconds=min(int(value[:9]), 10**8)), RETRY_AFTER)
    try:
        wait = email.utils.parsedate_to_datetime(value) - datetime.now(UTC)
    except (ValueError, TypeError):
        return None
    return min(max(wait, timedelta()), RETRY_AFTER)


def _in_utf8(content: bytes, encoding: str | None) -> bytes:
    """A text in UTF-8, if it is in the encoding that the server says it has."""
    name = (encoding or "").lower()
    name = _WEB_ENCODINGS.get(name, name)
    if not _ENCODING_NAME.fullmatch(name):
        return content
    try:
        # Many a server says of all of its texts what was the default once.
        if not content.isascii() and content.decode():
            return content
    except UnicodeDecodeError:
        pass
    try:
        return content.decode(name).encode()
    except (LookupError, UnicodeError):
        return content


def _filename(response: httpx2.Response) -> str:
    header = email.message.Message()
    header["content-disposition"] = response.headers.get("content-disposition", "")
    named = header.get_filename()
    return named or response.url.path.rstrip("/").rpartition("/")[2]


def _read_sitemap(content: bytes, most: int) -> tuple[list[str], bool]:
    """The addresses in a sitemap, and whether it is an index (sitemaps.org, 0.9)."""
    from lxml import etree

    if content.startswith(b"\x1f\x8b"):
        unpacking = zlib.decompressobj(wbits=31)
        try:
            content = unpacking.decompress(content, most)
        except zlib.error:
            raise failure("rejected", "The sitemap's compressed content is damaged.") from None
        if unpacking.unconsumed_tail:
            raise failure("over_limit", f"The sitemap unpacks to more than INGEST_MAX_BYTES ({most:,} bytes).")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(content, parser)
    except (etree.XMLSyntaxError, ValueError):
        raise failure("rejected", "It isn't a sitemap: no well-formed XML.") from None
    kind = etree.QName(root).localname
    if kind not in ("urlset", "sitemapindex"):
        raise failure("rejected", f"It isn't a sitemap, but XML with the root {kind}.")
    found = [
        location.text.strip()
        for entry in root
        if isinstance(entry.tag, str)
        for location in entry
        if isinstance(location.tag, str) and etree.QName(location).localname == "loc" and location.text
    ]
    return found, kind == "sitemapindex"
