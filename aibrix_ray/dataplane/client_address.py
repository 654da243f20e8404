"""Whose request it is, where proxies stand between: their word counts only if they are trusted.

Anybody can send `X-Forwarded-For`. Each proxy appends the address that it was called from, so the
list is read from its right end for as long as it was written by proxies we trust: the first address
that is none of theirs is the client.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from aibrix_ray.asgi import AsgiApp, Headers, Receive, Scope, Send

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """The addresses and networks whose word is believed.

    Raises:
        ValueError: one is neither an address nor a network.
    """

    def __init__(self, proxies: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(proxy) for proxy in proxies]
        # Peers repeat; a parsed address costs some microseconds.
        self._trusts = functools.lru_cache(maxsize=4096)(self._is_trusted)

    def client(self, peer: str, headers: Headers) -> tuple[str, str | None]:
        """Return the client's address, and its scheme where a trusted proxy names one."""
        if not self._trusts(peer):
            return peer, None
        address = peer
        hops = 0
        for hop in reversed(_listed(headers, b"x-forwarded-for")):
            parsed = _parse(hop)
            if parsed is None:
                break  # "unknown", or made up: beyond it nobody's word is left
            address = str(parsed)
            hops += 1
            if not self._trusts(address):
                break
        return address, _scheme(headers, hops)

    def _is_trusted(self, address: str) -> bool:
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)


class BehindProxies:
    """Puts the client's address and scheme into the scope of each request."""

    def __init__(self, app: AsgiApp, proxies: TrustedProxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        peer = scope.get("client")
        if peer is not None:
            address, scheme = self._proxies.client(peer[0], scope["headers"])
            if address != peer[0]:
                scope["client"] = (address, 0)
            if scheme is not None:
                scope["scheme"] = scheme
        await self._app(scope, receive, send)


def _listed(headers: Headers, name: bytes) -> list[str]:
    """Return the items of a header that holds a list, over all its lines."""
    lines = [value.decode("latin-1") for key, value in headers if key == name]
    return [item.strip() for line in lines for item in line.split(",") if item.strip()]


def _scheme(headers: Headers, hops: int) -> str | None:
    """Return what the proxy that the client called said; they append to this list too, or set it.

    `hops` is how many entries of `X-Forwarded-For`, from its right, were believed.
    """
    schemes = _listed(headers, b"x-forwarded-proto")
    if not schemes:
        return None
    scheme = schemes[-min(max(hops, 1), len(schemes))].lower()
    return scheme if scheme in ("http", "https") else None


def _parse(text: str) -> _Address | None:
    """Return the address in `text`: bare, in brackets, or with a port."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped  # a listener on :: sees IPv4 clients so
    return address
