"""The page in a real browser: a server of its own, Chromium without a window, no mock between them."""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from chatty import chatty
from tiny_world import fresh, videos

from quicksviewer.serve import cli, page_server
from quicksviewer.serve.decoding import Decoding
from quicksviewer.serve.desk import Desk, DeskLimits
from quicksviewer.serve.session import ChatSession
from quicksviewer.serve.strip import cube_spans

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a token for the tests"
QUESTIONS = ("What happens when?", "Which is <b>first</b>?")
LENGTH = ["--max-new-tokens", "300"]
MISSING = [
    *(name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None),
    *([] if shutil.which("chromium") else ["chromium"]),
]
in_browser = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: apt-get install chromium")


STOP_AT_ONCE = """() => new MutationObserver((_, observer) => {
    if (!document.querySelector('#chat .message.bot')) return
    observer.disconnect()
    document.querySelector('#stop').click()
}).observe(document.querySelector('#chat'), {childList: true, subtree: true})"""
"""Clicks Stop when the first of an answer is there: the tiny model has soon said all."""


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "model"
    loaded = chatty(fresh(tiny))
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tiny) -> str:
    return str(videos(tiny)[0])


@pytest.fixture(scope="module")
def picture(tiny) -> str:
    return str(tiny / "data/images/00000_0.png")


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """A running page: its address, its process, its folder of uploads, and what it has logged."""
    place = tmp_path_factory.mktemp("uploads")
    env = os.environ | {"QUICKSVIEWER_TOKEN": TOKEN, "TMPDIR": str(place), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / "playground/demo.py"), "--model-path", str(folder), "--port", "0"]
    log = (place / "log").open("w+")
    process = subprocess.Popen(
        [*words, *LENGTH, "--device", "cpu", "--max-video-seconds", "30"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    line = process.stdout.readline()
    assert "http://" in line, (place / "log").read_text()
    address = re.search(r"http://[\d.]+:\d+", line)[0]
    yield SimpleNamespace(address=address, process=process, place=place, log=place / "log")
    process.kill()
    process.wait()
    log.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def visit(browser, server):
    """A browser that has been let in."""
    context = browser.new_context(viewport={"width": 1360, "height": 1400})
    page = context.new_page()
    page.goto(server.address)
    page.fill("input[name=token]", TOKEN)
    page.click("button")
    page.wait_for_selector("#video input[type=file]", state="attached", timeout=60_000)
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(visit, server):
    """The page anew. What a browser complains of, and every request to elsewhere, fails the test."""
    page, wrong = visit.new_page(), []
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: is_elsewhere(request.url, server) and wrong.append(request.url))
    page.goto(server.address)
    page.wait_for_selector("#video input[type=file]", state="attached", timeout=60_000)
    yield page
    page.close()
    assert wrong == []


def is_elsewhere(url: str, server) -> bool:
    return not url.startswith((server.address + "/", "data:", "blob:" + server.address))


def drop(page, path: str) -> None:
    page.set_input_files("#video input[type=file]", path)


def ask(page, question: str) -> str:
    """Ask and wait for the end of the answer, which the page shows last."""
    done = page.locator("#times .qv-times")
    before = done.inner_text() if done.count() else ""
    page.fill("#box textarea", question)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => { const done = document.querySelector('#times .qv-times');"
        " return done && done.innerText && done.innerText !== before }",
        arg=before,
        timeout=60_000,
    )
    return page.locator("#chat .bot.message, #chat .message.bot").last.text_content()


def readable(text: str) -> str:
    """The letters of a text; a browser takes others, and blanks, in its own way."""
    return "".join(letter for letter in text if letter.isprintable() and not letter.isspace())


# --- in the browser ---


@in_browser
def test_the_door_asks_for_the_token(browser, server):
    context = browser.new_context()
    page = context.new_page()
    assert page.goto(server.address).status == 401
    assert page.locator("#video").count() == 0 and page.get_by_label("Token").count() == 1
    page.fill("input[name=token]", TOKEN[:-1])
    page.click("button")
    page.wait_for_selector("p[role=alert]")
    assert "not the token" in page.inner_text("p[role=alert]")
    assert context.request.get(server.address + "/config").status == 401
    context.close()


@in_browser
def test_a_video_is_cut_and_answers_are_those_of_the_terminal(page, folder, clip):
    told = io.StringIO()
    words = ["--model-path", str(folder), "--device", "cpu", *LENGTH, "--context", clip, "--ask", *QUESTIONS]
    with contextlib.redirect_stdout(told):
        assert cli.main(words) == 0
    _, first, second = re.split(r"(?m)^> .*\n", told.getvalue())
    session = ChatSession(cli.load(cli._parser().parse_args(words)))
    session.see(clip)
    spans = cube_spans(session.encode().cuts.cube_of_frame)
    drop(page, clip)
    page.wait_for_selector(".qv-cube", timeout=60_000)
    starts = page.eval_on_selector_all(".qv-cube", "all => all.map(one => +one.dataset.firstFrame)")
    assert starts == [start for start, _ in spans]
    assert page.locator(".qv-frame img").count() == spans[-1][1] and page.locator(".qv-open").count() == len(
        spans
    )
    loaded = "all => all.every(one => one.complete && one.naturalWidth > 0)"
    assert page.eval_on_selector_all(".qv-frame img", loaded)
    assert page.locator(".qv-thumbnail").count() == 1
    assert readable(ask(page, QUESTIONS[0])) == readable(first)
    stages = page.locator("#figures .qv-stages span").all_inner_texts()
    assert stages == ["decode", "tower", "cubing", "resampler", "first token"]
    assert readable(ask(page, QUESTIONS[1])) == readable(second) != readable(first)
    assert page.locator("#chat b, #chat strong").count() == 0, "what was typed is text"
    assert "prompt tokens were read before" in page.inner_text("#times")
    if shots := os.environ.get("QUICKSVIEWER_SHOTS"):
        page.screenshot(path=f"{shots}/page.png", full_page=True)


@in_browser
def test_two_ways_to_cut_are_compared(page, clip):
    drop(page, clip)
    page.wait_for_selector(".qv-cube", timeout=60_000)
    cubes = page.locator(".qv-cube").count()
    page.get_by_role("tab", name="Compare two cuts").click()
    page.fill("#both textarea", QUESTIONS[0])
    page.click("#compare")
    page.wait_for_selector(".qv-film", timeout=60_000)
    assert page.locator(".qv-method").all_inner_texts() == ["momentum", "optimal"]
    bars = page.locator(".qv-film .qv-blocks")
    assert [bars.nth(place).locator("i").count() for place in range(2)] == [cubes, cubes]
    assert page.locator(".qv-facts blockquote").count() == 2
    if shots := os.environ.get("QUICKSVIEWER_SHOTS"):
        page.screenshot(path=f"{shots}/compare.png", full_page=True)


@in_browser
def test_an_image_an_answer_that_is_stopped_and_a_new_conversation(page, picture):
    page.set_input_files("#box input[type=file]", picture)
    page.wait_for_selector("#box img", timeout=60_000)
    page.fill("#box textarea", "What is this?")
    page.evaluate(STOP_AT_ONCE)
    page.keyboard.press("Enter")
    page.wait_for_selector("#times .qv-times", timeout=60_000)
    assert "stopped" in page.inner_text("#times")
    assert page.locator("#chat img").count() >= 1
    assert ask(page, "And this?")
    page.click("#clear")
    page.wait_for_selector("#chat .bot.message, #chat .message.bot", state="detached", timeout=60_000)


@in_browser
def test_files_that_cannot_be_used_are_explained(page, server, tmp_path, clip):
    (tmp_path / "secret.mp4").write_text("#EXTM3U\nhttp://127.0.0.1:9/\n")
    drop(page, str(tmp_path / "secret.mp4"))
    page.wait_for_selector(".qv-notice", timeout=60_000)
    told = page.inner_text(".qv-notice")
    assert told == "This is not an mp4, mov, mkv, webm or avi video."
    page.wait_for_selector("#video input[type=file]", state="attached", timeout=60_000)
    (tmp_path / "half.mp4").write_bytes(Path(clip).read_bytes()[:3000])
    drop(page, str(tmp_path / "half.mp4"))
    page.get_by_text("The file is damaged, cut off").wait_for(timeout=60_000)
    drop(page, clip)
    page.wait_for_selector(".qv-cube", timeout=60_000)
    assert page.locator(".qv-notice").count() == 0
    assert str(tmp_path) not in page.content() and "Traceback" not in page.content()


@in_browser
def test_the_server_spoke_to_nobody_and_leaves_nothing(server):
    """After all of the above: only this machine was spoken to, and with the process its folder goes."""
    process = psutil.Process(server.process.pid)
    everyone = [process, *process.children(recursive=True)]
    spoken = {link.raddr.ip for one in everyone for link in one.net_connections("inet") if link.raddr}
    assert spoken <= {"127.0.0.1"}
    folders = list(server.place.glob("quicksviewer-page-*"))
    assert len(folders) == 1 and folders[0].stat().st_mode & 0o077 == 0
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=30) == 0
    assert list(server.place.glob("quicksviewer-page-*")) == []
    assert "Traceback" not in server.log.read_text()


# --- behind a proxy ---


@pytest.mark.parametrize("host", ["video.example.org", "127.0.0.1:6123"], ids=["keeps Host", "upstream Host"])
def test_behind_a_proxy_the_page_calls_itself_by_its_public_name(tiny, tmp_path, monkeypatch, host):
    pytest.importorskip("gradio")
    from starlette.testclient import TestClient

    for name in (*page_server.OFF, "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # what the page sets is set back
    args = page_server._parser().parse_args(["--model-path", "x", "--public-name", "video.example.org"])
    desk = Desk(chatty(fresh(tiny)), Decoding(), DeskLimits())
    client = TestClient(page_server.application(desk, tmp_path, args, TOKEN), base_url=f"https://{host}")
    headers = {"origin": "https://video.example.org"}
    assert client.post("/login", data={"token": TOKEN}, headers=headers).status_code == 200
    assert client.get("/config", headers=headers).json()["root"] == "https://video.example.org"
    call = {"data": [], "fn_index": 0, "session_hash": "one"}
    assert client.post("/gradio_api/queue/join", json=call, headers=headers).status_code == 200


# --- starting ---


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (["--server_name", "0.0.0.0"], None, "can be reached from other machines"),
        (["--server_name", "::"], None, "can be reached from other machines"),
        (["--server_name", "example.org"], None, "set a token"),
        (["--public-name", "video.example.org"], None, "--public-name video.example.org can be reached"),
        (["--public-name", "https://video.example.org"], TOKEN, "expected NAME or NAME:PORT alone"),
        (["--public-name", "video.example.org/page"], TOKEN, "expected NAME or NAME:PORT alone"),
        ([], "short", "has 5 characters"),
        (["--token-file", "nowhere"], None, "nowhere"),
        (["--max-upload-mb", "0"], None, "limits of uploads must be positive"),
        (["--max-visitors", "0"], None, "limits of rooms must be positive"),
        (["--model-path", "nowhere"], None, "nowhere is no checkpoint folder"),
    ],
)
def test_it_does_not_start_when_it_should_not(words, token, message, monkeypatch, capsys):
    monkeypatch.delenv("QUICKSVIEWER_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("QUICKSVIEWER_TOKEN", token)
    assert page_server.main(["--model-path", "nowhere", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_token_comes_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("QUICKSVIEWER_TOKEN", "of the environment")
    (tmp_path / "token").write_text(TOKEN + "\n")
    words = ["--model-path", "x", "--server_name", "0.0.0.0"]
    parse = page_server._parser().parse_args
    assert page_server.read_token(parse([*words, "--token-file", str(tmp_path / "token")])) == TOKEN
    assert page_server.read_token(parse(words)) == "of the environment"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, None),
        ("Video.Example.org", "video.example.org"),
        ("a.b:443", "a.b"),
        ("a.b:8443", "a.b:8443"),
    ],
)
def test_a_public_name_is_what_browsers_send(given, name):
    assert page_server.public_name(given) == name


@pytest.mark.parametrize(
    ("name", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_which_addresses_are_this_machine_alone(name, loopback):
    assert page_server.is_loopback(name) == loopback
