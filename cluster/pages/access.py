"""Who may read the pages: names that a browser may use for this server, and the token.

On a loopback address only this machine's users reach it. A web page of somebody else's must not, by
a name of its own that it lets point here: so the Host header has to be a name of this machine.
On other addresses a token is asked for, once: `?token=...`, then a cookie.
"""

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from cluster.serve.token import digest_of

VARIABLE = "ATTUNE_PAGES_TOKEN"
COOKIE = "attune_pages"
COOKIE_S = 30 * 24 * 3600
EVERYWHERE = ("0.0.0.0", "::")
"""Not a name, but all addresses of a machine."""
LOOPBACK = ("localhost", "localhost.localdomain", "ip6-localhost")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-site",
}
"""Of every answer. No X-Frame-Options: the Ray dashboard shows pages in frames."""


@dataclass(frozen=True)
class Access:
    """The rules for one address."""

    names: frozenset[str]
    """That a browser may use; addresses in numbers may be used as well."""
    token: str | None

    def knows(self, header: str) -> bool:
        """Whether a Host header names this machine."""
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        return name in self.names or _is_address(name)

    def admits(self, cookies: Mapping[str, str], given: str) -> bool:
        """Whether a token, or the cookie that stands for it, is the right one."""
        if self.token is None:
            return True
        right = digest_of(self.token)
        return hmac.compare_digest(digest_of(given), right) or hmac.compare_digest(
            cookies.get(COOKIE, ""), right
        )


def access_to(host: str, token: str | None) -> Access:
    """The rules for a server that listens on `host`."""
    own = [socket.gethostname(), socket.getfqdn()] if host in EVERYWHERE else []
    return Access(frozenset(name.lower() for name in (*LOOPBACK, host, *own)), token)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_for(host: str, environment: Mapping[str, str]) -> str | None:
    """The user's token, or one made now; None for a loopback address without one."""
    given = environment.get(VARIABLE, "").strip()
    return given or (None if is_loopback(host) else secrets.token_urlsafe(24))


def guard(access: Access) -> Middleware:
    """The middleware that stands before everything."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await _checked(access, request, handler)
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return check


async def _checked(access: Access, request: web.Request, handler: Handler) -> web.StreamResponse:
    if isinstance(request.match_info.http_exception, web.HTTPNotFound):
        # Whoever asks: any other answer would stand in for the whole dashboard's own.
        return web.Response(status=404)
    if access.token is None and not access.knows(request.headers.get("Host", "")):
        return web.Response(status=421, text="This name is not one of this server's.\n")
    given = request.query.get("token", "")
    if not access.admits(request.cookies, given):
        return web.Response(
            status=401, text="Give the token that the command printed: ?token=...\n"
        )
    try:
        if given and access.token is not None:
            response: web.StreamResponse = _remember(access.token, request)
        else:
            response = await handler(request)
    except web.HTTPException as error:
        # Nothing is said of it: the dashboard logs a 404's body, and answers itself.
        response = web.Response(status=error.status)
    return response


def _remember(token: str, request: web.Request) -> web.Response:
    """To the same page without the token in its address, which histories and logs would keep."""
    rest = [(name, value) for name, value in request.query.items() if name != "token"]
    here = request.rel_url.with_query(rest)
    response = web.Response(status=303, headers={"Location": str(here)})
    response.set_cookie(
        COOKIE, digest_of(token), max_age=COOKIE_S, httponly=True, samesite="Strict", path="/"
    )
    return response


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
