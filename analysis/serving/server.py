"""Who may read the page, and on which port: loopback alone, and only with the token in the printed address."""

import importlib.util
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from analysis.reading.doors import say
from analysis.reading.runs import Runs
from analysis.serving.downloads import Downloads
from analysis.serving.watching import Watched

HOST = "127.0.0.1"
PORT = 8050  # if nobody names one; where it is taken, any free one
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # of another name, a page elsewhere may have led the browser here
REFUSED = b"This page opens at the address that `python -m analysis serve` printed, on the machine where it runs.\n"
HEADERS = (
    ("Referrer-Policy", "same-origin"),  # the address holds the token
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)
# plotly.js draws many points by WebGL, for which it makes functions of text: that is `unsafe-eval`
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval' {scripts}; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; connect-src 'self'; font-src 'self' data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


class Gate:
    """WSGI: answers 403 to whoever does not name this machine, comes from another page, or lacks the token."""

    def __init__(self, app: Callable[..., Iterable[bytes]], token: str, policy: str) -> None:
        self._app, self._token = app, token.encode()
        self._headers = [*HEADERS, ("Content-Security-Policy", policy)]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        if not self._lets_in(environ):
            start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8"), *self._headers])
            return [REFUSED]

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, *self._headers], *rest)

        return self._app(environ, start)

    def _lets_in(self, environ: dict[str, Any]) -> bool:
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if name not in LOOPBACK or (origin is not None and origin != f"http://{host}"):
            return False
        first = environ.get("PATH_INFO", "").split("/", 2)[1:2]
        return bool(first) and secrets.compare_digest(first[0].encode("utf-8", "replace"), self._token)


def serve_page(read: Callable[[str | None], Runs], tracking_uri: str, *, out: Path, port: int | None) -> None:
    """Serve the page until Ctrl-C.

    Args:
        read: reads the sweep of a name from `tracking_uri`; without a name, the one that is to be served.
        tracking_uri: the MLflow store, for curves and files.
        out: folder of the sweeps; files are offered from below it.
        port: None for 8050, or any free one if that is taken.

    Raises:
        ValueError: if Dash is not installed, the port cannot be had, or the sweep cannot be read.
    """
    if importlib.util.find_spec("dash") is None:
        raise ValueError("The page needs Dash: `pip install 'compression-sweeps[serve]'` or `uv sync --extra serve`.")
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"`1 <= port <= 65535` must hold, but got port={port}.")
    with _listening(port) as listener:
        watched = Watched(tracking_uri, read)
        token = secrets.token_urlsafe(32)
        application = page_of(watched, Downloads(tracking_uri, out), tracking_uri, token)
        name, bound = watched.standing.runs.name, listener.getsockname()[1]
        say(f"The page of sweep {name}, for you on this machine alone: http://{HOST}:{bound}/{token}/")
        say("It follows the sweep while it is open. Ctrl-C ends it.")
        sys.stdout.flush()
        _run(application, listener)


def page_of(watched: Watched, downloads: Downloads, tracking_uri: str, token: str) -> Gate:
    """The page as a WSGI application."""
    # Dash takes a second to import: too long for a port that is taken.
    from dash import Dash
    from flask import Response, abort, send_file

    from analysis.serving import page, wiring

    prefix = f"/{token}/"
    app = Dash(
        __name__,
        assets_folder=str(Path(__file__).with_name("assets")),
        use_pages=False,
        pages_folder="",
        url_base_pathname=prefix,
        serve_locally=True,
        title=page.title_of(watched.standing),
        update_title="",
        index_string=page.TEMPLATE,
        add_log_handler=False,
        enable_mcp=False,
    )
    wiring.Wiring(watched, downloads, tracking_uri, prefix).connect(app)

    def file(run_id: str, name: str) -> Response:
        runs = watched.standing.runs
        path = downloads.find(runs, run_id, name)
        if path is None:
            abort(404)
        kind = "application/octet-stream"
        return send_file(path.resolve(), mimetype=kind, as_attachment=True, download_name=name, max_age=0)

    app.server.add_url_rule(f"{prefix}file/<run_id>/<name>", "file", file)
    return Gate(app.server.wsgi_app, token, POLICY.format(scripts=" ".join(app.csp_hashes())))


def _listening(port: int | None) -> socket.socket:
    try:
        return socket.create_server((HOST, PORT if port is None else port))
    except OSError as error:
        if port is None:
            return socket.create_server((HOST, 0))
        why = os.strerror(error.errno or 0)
        raise ValueError(f"port={port} cannot be had ({why}); name another, or none for any free one.") from error


def _run(application: Gate, listener: socket.socket) -> None:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        """Requests hold the token: none is logged."""

        def log_request(self, *_: Any) -> None:
            """Say nothing."""

    host, port = listener.getsockname()[:2]
    server = make_server(host, port, application, threaded=True, request_handler=Quiet, fd=listener.fileno())
    # by Ctrl-C also where a shell has started this in the background, which ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    server.serve_forever()
