"""The guard before the page: routes, names, tokens, sizes, files and headers, asked as a browser would."""

import asyncio
import json
import time

import pytest

from quicksviewer.serve import guard
from quicksviewer.serve.guard import COOKIE, Guard, GuardConfig, is_equal

TOKEN = "0123456789abcdef"
HOST = {"host": "127.0.0.1:6123"}


async def inner(scope, receive, send):
    """Answers what was sent to it."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-reached", b"yes")]})
    await send({"type": "http.response.body", "body": body})


class Answer:
    def __init__(self, messages):
        self.status = messages[0].get("status")
        self.headers = {name.decode(): value.decode() for name, value in messages[0].get("headers", [])}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])
        self.reached = self.headers.get("x-reached") == "yes"


def ask(app, method="GET", path="/", body=b"", headers=HOST, pieces=1, length=True) -> Answer:
    size = -(-len(body) // pieces) or 1
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": place < len(parts) - 1}
        for place, part in enumerate(parts)
    ]
    given = {**headers, **({"content-length": str(len(body))} if length and body else {})}
    encoded = [(name.encode(), value.encode()) for name, value in given.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": encoded}
    out = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        out.append(message)

    asyncio.run(app(scope, receive, send))
    return Answer(out)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "up").mkdir()
    return tmp_path / "up"


@pytest.fixture
def make(folder):
    def make(**settings) -> Guard:
        return Guard(inner, GuardConfig(folder=folder, **settings))

    return make


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(guard, "WRONG_PAUSE", 0.0)


# --- routes ---


@pytest.mark.parametrize(
    ("method", "path", "reached"),
    [
        ("GET", "/", True),
        ("HEAD", "/", True),
        ("GET", "/config", True),
        ("GET", "/assets/index-DphvyggB.js", True),
        ("GET", "/static/img/logo.svg", True),
        ("GET", "/gradio_api/queue/data", True),
        ("GET", "/gradio_api/heartbeat/abc123", True),
        ("POST", "/gradio_api/upload", True),
        ("POST", "/", False),
        ("GET", "/gradio_api/upload", False),
        ("GET", "/gradio_api/proxy=http://127.0.0.1:22/", False),
        ("POST", "/gradio_api/process_recording", False),
        ("POST", "/gradio_api/vibe-edit/", False),
        ("POST", "/gradio_api/run/predict", False),
        ("POST", "/gradio_api/stream/abc", False),
        ("GET", "/monitoring", False),
        ("GET", "/docs", False),
        ("GET", "/openapi.json", False),
        ("GET", "/assets/../../etc/passwd/..%2f", False),
        ("PUT", "/gradio_api/upload", False),
        ("DELETE", "/", False),
    ],
)
def test_only_the_routes_of_the_page(make, method, path, reached):
    answer = ask(make(), method, path)
    assert answer.reached == reached and answer.status == (200 if reached else 404)


def test_sockets_are_closed(make):
    out = []

    async def send(message):
        out.append(message)

    asyncio.run(make()({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert out == [{"type": "websocket.close", "code": 1008}]


# --- files ---


@pytest.mark.parametrize("name", ["a.mp4", "deep/er/b.png", "with%20blank.mp4"])
def test_uploads_are_served(make, folder, name):
    assert ask(make(), path=f"/gradio_api/file={folder}/{name}").reached


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{folder}/../secret",
        "{folder}/%2e%2e/secret",
        "http://127.0.0.1:1/x",
        "{folder}x/a",
        "",
    ],
)
def test_other_files_are_not(make, folder, path):
    answer = ask(make(), path="/gradio_api/file=" + path.format(folder=folder))
    assert answer.status == 404 and not answer.reached


@pytest.mark.parametrize(
    ("path", "reached"),
    [
        ("{folder}/a.mp4", True),
        ("http://169.254.169.254/latest", False),
        ("/etc/passwd", False),
        ("{folder}/../x", False),
        (["a"], False),
        (7, False),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_calls_name_uploads_only(make, folder, path, reached, deep):
    path = path.format(folder=folder) if isinstance(path, str) else path
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    call = {"data": [{"text": "a", "files": [file]} if deep else file], "fn_index": 1}
    body = json.dumps(call).encode()
    answer = ask(make(), "POST", "/gradio_api/queue/join", body, pieces=3)
    assert answer.reached == reached and answer.status == (200 if reached else 400)
    assert not reached or answer.body == body


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_call_is_refused(make, body):
    assert ask(make(), "POST", "/gradio_api/queue/join", body).status == 400


# --- sizes ---


@pytest.mark.parametrize("length", [True, False], ids=["announced", "in pieces"])
@pytest.mark.parametrize(
    ("path", "limit"), [("/gradio_api/upload", "max_upload"), ("/gradio_api/queue/join", "max_body")]
)
def test_bodies_are_bounded(make, path, limit, length):
    body = json.dumps({"data": "x" * 100}).encode()
    allowed = ask(make(**{limit: len(body)}), "POST", path, body, pieces=5, length=length)
    assert allowed.reached and allowed.body == body
    refused = ask(make(**{limit: len(body) - 1}), "POST", path, body, pieces=5, length=length)
    assert refused.status == 413 and not refused.reached


@pytest.mark.parametrize("length", ["-1", "many", "1e9", "99999999999999999999"])
def test_a_strange_length_is_refused(make, length):
    answer = ask(make(), "POST", "/gradio_api/upload", headers={**HOST, "content-length": length})
    assert answer.status == 413


def test_all_uploads_together_are_bounded(make, folder):
    app = make(max_folder=1000)
    assert ask(app, "POST", "/gradio_api/upload", b"x" * 600).reached
    (folder / "a").write_bytes(b"x" * 600)
    assert ask(app, "POST", "/gradio_api/upload", b"x" * 600).status == 507
    (folder / "a").unlink()
    assert ask(app, "POST", "/gradio_api/upload", b"x" * 600).reached


# --- names and sites ---


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:6123", 200),
        ("localhost:1", 200),
        ("[::1]:6123", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:6123", 421),
        ("", 421),
    ],
)
def test_without_a_token_only_own_names(make, host, status):
    app = make(hosts=frozenset({"localhost", "127.0.0.1", "::1"}))
    assert ask(app, headers={"host": host}).status == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [(None, 200), ("http://127.0.0.1:6123", 200), ("http://evil.example", 403), ("null", 403)],
)
def test_other_sites_are_refused(make, origin, status):
    headers = HOST if origin is None else {**HOST, "origin": origin}
    assert ask(make(), "POST", "/gradio_api/upload", b"x", headers).status == status


@pytest.mark.parametrize("host", ["video.example.org", "127.0.0.1:6123"], ids=["keeps Host", "upstream Host"])
@pytest.mark.parametrize(
    ("name", "origin", "status"),
    [
        ("video.example.org", "https://video.example.org", 200),
        ("video.example.org", None, 200),
        ("video.example.org", "http://video.example.org", 403),
        ("video.example.org", "https://video.example.org:8443", 403),
        ("video.example.org", "https://evil.example", 403),
        ("video.example.org", "null", 403),
        ("video.example.org:8443", "https://video.example.org:8443", 200),
    ],
)
def test_behind_a_proxy_with_tls(make, host, name, origin, status):
    """Whether it passes on the name by which browsers call it, or the address of the page."""
    app = make(hosts=frozenset({"127.0.0.1"}), token=TOKEN, public=name)
    headers = {"host": host} if origin is None else {"host": host, "origin": origin}
    entered = ask(app, "POST", "/login", f"token={TOKEN}".encode(), headers)
    assert entered.status == (303 if status == 200 else status)
    if status == 200:
        first, *rest = entered.headers["set-cookie"].split("; ")
        assert {"Secure", "HttpOnly", "SameSite=Strict"} <= set(rest)
        assert ask(app, "POST", "/gradio_api/upload", b"x", {**headers, "cookie": first}).reached


@pytest.mark.parametrize("public", [None, "video.example.org"])
def test_a_public_name_opens_no_other(make, public):
    app = make(hosts=frozenset({"127.0.0.1"}), token=TOKEN, public=public)
    statuses = [ask(app, headers={"host": host}).status for host in ("evil.example", "", "video.example.org")]
    assert statuses == [421, 421, 401 if public else 421]
    if public is None:
        assert "Secure" not in enter(app, TOKEN).headers["set-cookie"]


# --- the token ---


def enter(app, token: str) -> Answer:
    return ask(app, "POST", "/login", f"token={token}".encode())


def test_nothing_is_reached_without_the_token(make):
    app = make(token=TOKEN)
    for method, path in (
        ("GET", "/"),
        ("GET", "/config"),
        ("POST", "/gradio_api/queue/join"),
        ("GET", "/login"),
    ):
        answer = ask(app, method, path)
        assert answer.status == 401 and not answer.reached
    assert b'name="token"' in ask(app).body


def test_the_token_opens_the_page(make):
    app = make(token=TOKEN)
    answer = enter(app, TOKEN)
    assert answer.status == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    known = {**HOST, "cookie": cookie.split(";")[0]}
    assert ask(app, headers=known).reached
    assert not ask(app, headers={**HOST, "cookie": f"{COOKIE}=guess"}).reached
    assert not ask(app, headers={**HOST, "cookie": f"{COOKIE}="}).reached
    assert ask(app, path="/monitoring", headers=known).status == 404


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "%ff"])
def test_a_wrong_token_is_refused(make, quick, token):
    app = make(token=TOKEN)
    answer = enter(app, token)
    assert answer.status == 403 and "set-cookie" not in answer.headers and not app.visits
    assert b"not the token" in answer.body and TOKEN.encode() not in answer.body


def test_wrong_tokens_are_few_in_a_minute(make, quick, monkeypatch):
    app = make(token=TOKEN)
    told = [enter(app, "wrong").status for _ in range(guard.WRONG_PER_MINUTE + 1)]
    assert told == [403] * guard.WRONG_PER_MINUTE + [429] and enter(app, TOKEN).status == 429
    later = time.monotonic() + 61
    monkeypatch.setattr(guard.time, "monotonic", lambda: later)
    assert enter(app, TOKEN).status == 303


def test_visits_are_bounded(make, monkeypatch):
    monkeypatch.setattr(guard, "MAX_VISITS", 2)
    app = make(token=TOKEN)
    cookies = [enter(app, TOKEN).headers["set-cookie"].split(";")[0] for _ in range(3)]
    assert [ask(app, headers={**HOST, "cookie": one}).reached for one in cookies] == [False, True, True]


def test_a_long_token_is_not_read_to_its_end(make):
    assert enter(make(token=TOKEN), "x" * 5000).status == 413


@pytest.mark.parametrize(("one", "other"), [("a", "a"), ("ä\udcff", "ä\udcff"), ("", "")])
def test_equal_secrets(one, other):
    assert is_equal(one, other) and not is_equal(one, other + " ")


# --- headers ---


@pytest.mark.parametrize("path", ["/", "/monitoring", "/gradio_api/file={folder}/a.svg"])
def test_every_answer_forbids_what_is_elsewhere(make, folder, path):
    headers = ask(make(), path=path.format(folder=folder)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy or "sandbox; default-src 'none'" in policy
    assert "http" not in policy and "*" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"
    assert policy.startswith("sandbox") == ("file=" in path)
