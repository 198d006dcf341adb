"""Images of a request: data URLs, and public http(s) addresses, which are checked before they are fetched. Never a local path."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import socket
from urllib.parse import unquote_to_bytes, urlsplit

import httpx

from duet.errors import InvalidRequest

MAX_IMAGE_BYTES = 20 << 20
MAX_REDIRECTS = 3
FETCH_TIMEOUT_SECONDS = 20.0
# NAT64's well-known prefix (RFC 6052) and the old IPv4-compatible addresses (RFC 4291).
_IPV4_AT_THE_END = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))


async def load_image(url: str, param: str) -> bytes:
    """The bytes of an image. Raises `InvalidRequest` naming `param`."""
    # Not by urlsplit, which keeps its argument in a cache: a data: URL is megabytes of private data.
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        return _data_url(url, param)
    if scheme in ("http", "https"):
        return await _fetch(url, param)
    raise InvalidRequest("an image URL is a data: URL or a public http(s) address", param=param)


def _data_url(url: str, param: str) -> bytes:
    """RFC 2397."""
    head, comma, body = url.partition(",")
    if not comma:
        raise InvalidRequest("the data: URL has no comma", param=param)
    try:
        data = base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("the data: URL is not valid base64", param=param) from error
    if not data or len(data) > MAX_IMAGE_BYTES:
        raise InvalidRequest(f"an image has between 1 and {MAX_IMAGE_BYTES} bytes", param=param)
    return data


async def _fetch(url: str, param: str) -> bytes:
    """Every hop is resolved once and checked, and then reached at exactly the address that was checked."""
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_SECONDS), httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
            for _ in range(MAX_REDIRECTS + 1):
                parts = urlsplit(url)
                if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
                    raise InvalidRequest("the image's address is not a plain http(s) one", param=param)
                address = await _public_address(
                    parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme], param
                )
                request = client.build_request(
                    "GET",
                    httpx.URL(url).copy_with(host=address),
                    headers={"Host": parts.netloc},
                    extensions={"sni_hostname": parts.hostname},
                )
                response = await client.send(request, stream=True)
                try:
                    if response.has_redirect_location:
                        url = str(httpx.URL(url).join(response.headers["location"]))
                        continue
                    if response.status_code != 200:
                        raise InvalidRequest(f"the image's address answered {response.status_code}", param=param)
                    return await _bounded(response, param)
                finally:
                    await response.aclose()
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
        raise InvalidRequest(f"the image could not be fetched: {type(error).__name__}", param=param) from error
    raise InvalidRequest("the image's address redirects too often", param=param)


async def _bounded(response: httpx.Response, param: str) -> bytes:
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > MAX_IMAGE_BYTES:
            raise InvalidRequest(f"the image is larger than {MAX_IMAGE_BYTES} bytes", param=param)
    return bytes(data)


async def _public_address(host: str, port: int, param: str) -> str:
    """An address of `host` on the public internet. A host is refused if one of its addresses is private."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidRequest(f"the image's host {host!r} cannot be resolved", param=param) from error
    addresses = [str(item[4][0]).partition("%")[0] for item in found]
    if not addresses or any(not is_public(address) for address in addresses):
        raise InvalidRequest("the image's address is on this machine or in a private network", param=param)
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is routed on the public internet. For IPv4 within IPv6 the inner address counts."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if any(parsed in network for network in _IPV4_AT_THE_END):
            inner = ipaddress.IPv4Address(parsed.packed[-4:])
        if inner is not None:
            parsed = inner
    return parsed.is_global and not parsed.is_multicast
