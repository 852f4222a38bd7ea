"""A judge: a chat model behind an OpenAI-compatible endpoint, asked one question at a time.

The address is given by the user, the key comes from the environment and appears nowhere else. A key is sent
over https only, or within this machine. Redirections are not followed.
"""

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_REPLY_BYTES = 2**22
MAX_TOKENS = 1024
"""Of a reply; some judges think aloud first."""
TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP states after which asking again may help."""
LONGEST_PAUSE = 60.0


class JudgeError(Exception):
    """The judge cannot be asked; str() says what it answered."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """`url`: the address that /chat/completions is added to, as in http://127.0.0.1:8000/v1; `key_env`: name
    of the environment variable with the key, which may be unset."""

    url: str
    model: str
    key_env: str = "JUDGE_API_KEY"
    timeout: float = 60.0
    retries: int = 5
    pause: float = 1.0
    """Seconds before the first repetition; doubled before each further one."""

    def __post_init__(self):
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--judge-url must be an http or https address, got {self.url!r}")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "--judge-url holds a name, a key or a query; the key belongs into the environment"
            )
        if not self.model:
            raise ValueError("--judge-model must name the model of the judge")
        if self.timeout <= 0 or self.retries < 0:
            raise ValueError(f"bad timeout={self.timeout} or retries={self.retries} of the judge")
        if os.environ.get(self.key_env) and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError(f"{self.url}: the key in ${self.key_env} is sent over https only")

    def ask(self, system: str, user: str) -> tuple[str, str]:
        """The reply, and the name of the model that it says it is. JudgeError when there is none."""
        body = {"model": self.model, "temperature": 0, "max_tokens": MAX_TOKENS}
        body |= {"messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}
        for attempt in range(self.retries + 1):
            try:
                return self._post(json.dumps(body).encode())
            except _Again as error:
                if attempt == self.retries:
                    raise JudgeError(f"{self.url}: {error}, also when asked {attempt + 1} times") from None
                pause = error.pause or self.pause * 2**attempt * random.uniform(1.0, 1.25)
                time.sleep(min(pause, LONGEST_PAUSE))
        raise AssertionError("unreachable")

    def _post(self, body: bytes) -> tuple[str, str]:
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", body, method="POST")
        request.add_header("Content-Type", "application/json")
        if key := os.environ.get(self.key_env):
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with _opener(self.url).open(request, timeout=self.timeout) as response:
                return _read(response.read(MAX_REPLY_BYTES))
        except urllib.error.HTTPError as error:
            said = f"HTTP {error.code} {error.reason}: {error.read(300).decode(errors='replace')}".strip()
            if error.code in TRANSIENT:
                raise _Again(said, _seconds(error.headers.get("Retry-After"))) from None
            raise JudgeError(f"{self.url}: {said}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Again(f"{type(error).__name__}: {getattr(error, 'reason', error)}") from None


class _Again(Exception):
    """Something that may pass; `pause`: the seconds that the judge has asked for."""

    def __init__(self, said: str, pause: float | None = None):
        super().__init__(said)
        self.pause = pause


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Within this machine no proxy is asked."""
    direct = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in LOOPBACK else []
    return urllib.request.build_opener(_NoRedirection, *direct)


def _read(body: bytes) -> tuple[str, str]:
    try:
        reply = json.loads(body)
        return str(reply["choices"][0]["message"]["content"] or ""), str(reply.get("model", ""))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _Again(f"no chat completion: {body[:200].decode(errors='replace')}") from None


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None
