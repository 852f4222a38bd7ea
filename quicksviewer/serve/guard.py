"""What stands before the page: which requests reach it at all, and what its answers forbid a browser.

An ASGI application around another. It knows the few routes that the page needs and refuses the rest, asks
for a token where one is set, bounds what is sent, lets no file be named but those that were uploaded, and
says in every answer that nothing may be loaded from elsewhere.
"""

import asyncio
import hashlib
import hmac
import json
import re
import secrets
import time
from collections import deque
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ROUTES = (
    ("GET HEAD", r"/|/theme\.css|/favicon\.ico|/manifest\.json|/config/?|/robots\.txt"),
    ("GET HEAD", r"/(assets|static)/[\w./-]+"),
    ("GET HEAD", r"/gradio_api/file=.+"),
    ("GET", r"/gradio_api/(info|queue/data|upload_progress|startup-events|app_id|heartbeat/\w+)/?"),
    ("POST", r"/gradio_api/(queue/join|upload|cancel|reset)/?"),
)
"""Methods and paths of the page. Gradio has many more: proxies, recordings, editors."""
UPLOAD, JOIN, FILE, LOGIN = "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/file=", "/login"
COOKIE = "quicksviewer_visit"
WRONG_PAUSE, WRONG_PER_MINUTE = 0.5, 20
"""Seconds that a wrong token waits for its answer, and how many are looked at in a minute."""
MAX_VISITS = 1000
"""Cookies that are known at a time; the oldest is forgotten first."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "font-src 'self' data:; connect-src 'self' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Nothing from elsewhere. Gradio's own scripts are inline or made by itself (blob:), and its
templates are evaluated."""
FILE_POLICY = "sandbox; default-src 'none'; media-src 'self'; img-src 'self'; style-src 'unsafe-inline'"
"""For what visitors uploaded: nothing in it runs."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""Referrers stay within the page; without any, browsers would call the origin of its own form \"null\"."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What is let through."""

    folder: Path
    """Of the uploads."""
    token: str | None = None
    """What a visitor must know; None: nothing."""
    hosts: frozenset[str] | None = None
    """Names by which the page may be called; None: any. Protects a page without a token from foreign sites
    that point a name of theirs at this machine."""
    public: str | None = None
    """NAME or NAME:PORT of a proxy with TLS before the page: browsers call it https://NAME. The proxy may
    pass that name on as Host, or its own name for the page."""
    max_upload: int = 2**28
    """Bytes of one request that uploads."""
    max_folder: int = 2**32
    """Bytes of all uploads that are there at a time."""
    max_body: int = 2**20
    """Bytes of any other request."""


class Turned(Exception):
    """A request that is turned away: status and what is said."""

    def __init__(self, status: int, text: str):
        super().__init__(status, text)
        self.status, self.text = status, text


class Guard:
    """The guarded application."""

    def __init__(self, app, config: GuardConfig):
        self.app, self.config = app, config
        self.visits: dict[str, None] = {}
        self.wrong: deque[float] = deque(maxlen=WRONG_PER_MINUTE)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page has no sockets
            return await send({"type": "websocket.close", "code": 1008})
        send = _with_headers(send, scope["path"])
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_origin(headers)
            if self.config.token is not None and not self._is_known(headers):
                return await self._let_in(scope, receive, send)
            self._check_route(scope)
            receive = await self._bounded(scope, headers, receive)
            await self.app(scope, receive, send)
        except Turned as turned:
            await _say(send, turned.status, turned.text)

    def _check_origin(self, headers: dict[str, str]) -> None:
        """Not called by a foreign name, and not by a page of another site."""
        host, public = headers.get("host", ""), self.config.public or ""
        if self.config.hosts is not None and _name(host) not in self.config.hosts | {_name(public)} - {""}:
            raise Turned(421, "This page is not called by that name.")
        origin = headers.get("origin")
        if origin is None or (public and origin == f"https://{public}"):
            return
        if urlsplit(origin).netloc != host or _name(host) == _name(public):
            raise Turned(403, "Requests from other sites are not taken.")

    def _check_route(self, scope) -> None:
        path, method = scope["path"], scope["method"]
        if not any(method in methods.split() and re.fullmatch(route, path) for methods, route in ROUTES):
            raise Turned(404, "There is nothing here.")
        if path.startswith(FILE) and not self._is_upload(path[len(FILE) :]):
            raise Turned(404, "There is nothing here.")

    def _is_upload(self, path: str) -> bool:
        """Whether a path, however it is written, is that of an uploaded file."""
        return Path(unquote(path)).resolve().is_relative_to(self.config.folder.resolve())

    # Size and content of what is sent

    async def _bounded(self, scope, headers: dict[str, str], receive):
        """`receive` for a request whose body is not too large; that of a call is read and looked at first."""
        path = scope["path"].rstrip("/")
        limit = self.config.max_upload if path == UPLOAD else self.config.max_body
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise Turned(413, "That is too large.")
        if path == UPLOAD and int(length) + folder_bytes(self.config.folder) > self.config.max_folder:
            raise Turned(507, "There is no room for more files. Please try again later.")
        if path != JOIN:
            return _counted(receive, limit)
        body = await _body(_counted(receive, limit))
        self._check_paths(body)
        return _replayed(body, receive)

    def _check_paths(self, body: bytes) -> None:
        """The files that a call names are uploads: a path may also be an address, which would be fetched."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            raise Turned(400, "That is no call.") from None
        rest = [call]
        while rest:
            value = rest.pop()
            if isinstance(value, dict):
                path = value.get("path")
                if path is not None and not (isinstance(path, str) and self._is_upload(path)):
                    raise Turned(400, "That is no upload.")
                rest += value.values()
            elif isinstance(value, list):
                rest += value

    # Who may enter

    def _is_known(self, headers: dict[str, str]) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and cookie.value in self.visits

    async def _let_in(self, scope, receive, send) -> None:
        """The door: a form that asks for the token, and what comes of it."""
        if scope["path"] != LOGIN or scope["method"] != "POST":
            is_page = scope["path"] == "/" and scope["method"] == "GET"
            return await _say(send, 401, DOOR.format(note="") if is_page else "A token is needed.", is_page)
        body = await _body(_counted(receive, 4096))
        given = parse_qs(body.decode("latin-1")).get("token", [""])[0]
        while self.wrong and self.wrong[0] < time.monotonic() - 60:
            self.wrong.popleft()
        if len(self.wrong) == WRONG_PER_MINUTE:
            raise Turned(429, "Too many wrong tokens. Please wait a minute.")
        if not is_equal(given, self.config.token):
            self.wrong.append(time.monotonic())
            await asyncio.sleep(WRONG_PAUSE)
            return await _say(send, 403, DOOR.format(note="<p role=alert>That is not the token.</p>"), True)
        visit = secrets.token_urlsafe(32)
        self.visits[visit] = None
        if len(self.visits) > MAX_VISITS:
            del self.visits[next(iter(self.visits))]
        cookie = f"{COOKIE}={visit}; Path=/; HttpOnly; SameSite=Strict"
        cookie += "; Secure" if self.config.public else ""
        await _say(send, 303, "", extra={"location": "/", "set-cookie": cookie})


def is_equal(given: str, token: str) -> bool:
    """Whether two secrets are the same, in a time that does not depend on where they differ or how long
    they are."""
    one, other = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (given, token))
    return hmac.compare_digest(one, other)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # deleted meanwhile
            continue
    return total


def _name(host: str) -> str:
    """A Host header without its port."""
    return (urlsplit(f"//{host}").hostname or "") if host else ""


def _counted(receive, limit: int):
    """A `receive` that turns a request away when its body grows beyond the limit."""
    seen = 0

    async def counted():
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise Turned(413, "That is too large.")
        return message

    return counted


async def _body(receive) -> bytes:
    pieces, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Turned(400, "The request was cut off.")
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


def _replayed(body: bytes, receive):
    """A `receive` that gives a body that was read before, then what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed():
        return messages.pop() if messages else await receive()

    return replayed


def _with_headers(send, path: str):
    """A `send` whose answers carry HEADERS and the policy for their path."""
    policy = FILE_POLICY if path.startswith(FILE) else POLICY
    own = [(b"content-security-policy", policy.encode())]
    own += [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def headed(message):
        if message["type"] == "http.response.start":
            names = {name for name, _ in own}
            kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in names]
            message = {**message, "headers": [*kept, *own]}
        await send(message)

    return headed


async def _say(send, status: int, text: str, is_page: bool = False, extra: dict[str, str] | None = None):
    kind = "text/html; charset=utf-8" if is_page else "text/plain; charset=utf-8"
    headers = {"content-type": kind, "cache-control": "no-store", **(extra or {})}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": text.encode()})


DOOR = """<!doctype html><html lang="en"><meta charset="utf-8"><title>quicksviewer</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui,sans-serif;background:#f6f7f9;color:#1b2330;display:grid;
place-items:center;min-height:100vh;margin:0}}
form{{background:#fff;border:1px solid #e3e7ee;border-radius:14px;
padding:32px;width:min(340px,90vw);box-sizing:border-box}}h1{{font-size:20px;margin:0 0 4px}}
p{{margin:0 0 16px;color:#5c6675}}p[role=alert]{{color:#b42318}}
input,button{{font:inherit;width:100%;box-sizing:border-box;padding:10px 12px;border-radius:9px;
border:1px solid #cfd6e1}}
button{{margin-top:12px;background:#2f5bea;border-color:#2f5bea;color:#fff;cursor:pointer}}
</style><form method="post" action="/login"><h1>quicksviewer</h1><p>This page asks for its token.</p>{note}
<input type="password" name="token" aria-label="Token" autocomplete="off" autofocus required>
<button>Enter</button></form></html>"""
