"""Serve the page: `quicksviewer demo`, or `python playground/demo.py`.

    python -m quicksviewer demo --model-path output/quickstart/stage3         http://127.0.0.1:6123/
    QUICKSVIEWER_TOKEN=... python -m quicksviewer demo --model-path DIR --server_name 0.0.0.0
    QUICKSVIEWER_TOKEN=... python -m quicksviewer demo --model-path DIR --public-name video.example.org

It listens on this machine alone; on another address it needs a token, which visitors are asked for. Uploads
lie in a folder of their own that is removed in the end (docs/chat.md).
"""

import argparse
import ipaddress
import os
import re
import signal
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from quicksviewer.serve.cli import add_model_flags, decoding_of, load
from quicksviewer.serve.desk import Desk, DeskLimits
from quicksviewer.serve.guard import Guard, GuardConfig
from quicksviewer.serve.rooms import RoomLimits
from quicksviewer.serve.uploads import UploadLimits
from quicksviewer.utils.registry import require

TOKEN_VARIABLE = "QUICKSVIEWER_TOKEN"
SHORTEST_TOKEN = 16
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
PUBLIC_NAME = re.compile(r"(?!-)[a-z0-9.-]+(:\d{1,5})?")
ALLOWANCE = 2**16
"""Bytes of a request that uploads, beside its file."""
OFF = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Gradio sends and fetches nothing."""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 ended, 1 it could not listen, 2 wrong usage."""
    args = _parser().parse_args(argv)
    try:
        args.public_name = public_name(args.public_name)
        token, limits = read_token(args), limits_of(args)
        require("gradio", "serve")
        desk = Desk(loaded_for_page(args), decoding_of(args), limits)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what is below is left in order
    try:
        with socket.create_server((args.server_name, args.port), family=_family(args.server_name)) as door:
            serve(desk, door, args, token)
    except OSError as error:
        print(f"error: {args.server_name} port {args.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer demo", description=__doc__.splitlines()[0])
    add_model_flags(parser)
    add = parser.add_argument
    add(
        "--server_name",
        default="127.0.0.1",
        help="address to listen on; any but this machine's needs a token",
    )
    add("--port", type=int, default=6123, help="0: any that is free")
    add("--public-name", help="NAME or NAME:PORT of the proxy with TLS that stands before the page")
    add("--token-file", help=f"file that holds the token (default: the variable {TOKEN_VARIABLE}, if set)")
    add("--max-upload-mb", type=float, default=256, help="of one file")
    add("--max-video-seconds", type=float, default=3600)
    add("--max-megapixels", type=float, default=32, help="of one picture")
    add("--max-answer-seconds", type=float, default=120)
    add("--max-visitors", type=int, default=8, help="conversations that are held at a time")
    add("--idle-minutes", type=float, default=30, help="after which an unused conversation is forgotten")
    return parser


def read_token(args) -> str | None:
    """The token that visitors must know. ValueError where there is none and one is needed, or it is short."""
    token = os.environ.get(TOKEN_VARIABLE)
    if args.token_file:
        token = Path(args.token_file).read_text(encoding="utf-8").strip()
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise ValueError(f"the token has {len(token)} characters; give it {SHORTEST_TOKEN} or more")
    open_by = f"--server_name {args.server_name}" if not is_loopback(args.server_name) else None
    open_by = f"--public-name {args.public_name}" if args.public_name else open_by
    if token is None and open_by:
        raise ValueError(
            f"{open_by} can be reached from other machines: set a token, with the "
            f"variable {TOKEN_VARIABLE} or --token-file (for one: openssl rand -hex 24)"
        )
    return token


def public_name(given: str | None) -> str | None:
    """The name as browsers write it in their requests. ValueError for what is no name."""
    if given is None:
        return None
    name = given.lower().removesuffix(":443")
    if not PUBLIC_NAME.fullmatch(name):
        raise ValueError(f"--public-name {given}: expected NAME or NAME:PORT alone, as in video.example.org")
    return name


def is_loopback(name: str) -> bool:
    """Whether an address can be reached from this machine alone. Of names only localhost is known to be."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def limits_of(args) -> DeskLimits:
    """What visitors may ask for, from the flags. Raises ValueError."""
    upload = UploadLimits(
        max_bytes=round(args.max_upload_mb * 2**20),
        max_seconds=args.max_video_seconds,
        max_pixels=round(args.max_megapixels * 1e6),
    )
    rooms = RoomLimits(max_rooms=args.max_visitors, idle_seconds=60 * args.idle_minutes)
    return DeskLimits(upload=upload, rooms=rooms, answer_seconds=args.max_answer_seconds)


def loaded_for_page(args):
    """The model; its media are decoded in children, whatever the checkpoint says."""
    loaded = load(args)
    return replace(loaded, processor=loaded.processor.with_media(isolation="process"))


def serve(desk: Desk, door: socket.socket, args, token: str | None) -> None:
    """Listen until a signal comes; then nothing is left of what visitors brought."""
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="quicksviewer-page-") as folder, desk.kept_tidy():
        host, port = door.getsockname()[:2]
        config = uvicorn.Config(
            application(desk, Path(folder), args, token),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            limit_concurrency=32 * desk.limits.rooms.max_rooms,
        )
        shown = f"[{host}]" if ":" in host else host
        print(f"the page is at http://{shown}:{port}/  (Ctrl-C ends it)", flush=True)
        uvicorn.Server(config).run(sockets=[door])


def application(desk: Desk, folder: Path, args, token: str | None) -> Guard:
    """The guarded page as an ASGI application. Uploads go to `folder`."""
    os.environ.update(OFF, GRADIO_TEMP_DIR=str(folder))  # before gradio is imported, which reads them then
    gr = require("gradio", "serve")
    from fastapi import FastAPI

    from quicksviewer.serve.look import CSS, theme
    from quicksviewer.serve.page import build

    max_file = desk.limits.upload.max_bytes
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build(desk, Path(args.model_path).resolve().name),
        path="/",
        root_path=f"https://{args.public_name}" if args.public_name else None,
        server_name=args.server_name,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=max_file,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(gr),
        css=CSS,
    )
    limits = GuardConfig(
        folder=folder,
        token=token,
        hosts=LOOPBACK_NAMES | {args.server_name} if is_loopback(args.server_name) else None,
        public=args.public_name,
        max_upload=max_file + ALLOWANCE,
        max_folder=desk.limits.rooms.max_rooms * 4 * max_file,
    )
    return Guard(app, limits)


def _family(name: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in name else socket.AF_INET


if __name__ == "__main__":
    sys.exit(main())
