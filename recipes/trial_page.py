"""The page beside the robot: the live picture over the reference of the placement, what is asked, buttons for the keys.

It is served on 127.0.0.1 alone, under a path that nobody can guess, and asks for nothing from elsewhere.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from recipes.trial_operator import MOST_REASON, Operator
from toolkit.base.errors import UserError
from toolkit.data.images import encode_jpeg
from toolkit.reporting.pages import page

QUALITY = 85
MOST_BODY = 4 * MOST_REASON + 100  # bytes


class TrialPage:
    """Context manager: inside, the page is served. The control loop only hands over pictures; they are coded on
    request."""

    def __init__(self, operator: Operator, port: int = 0) -> None:
        self.operator, self.token = operator, secrets.token_urlsafe(16)
        self.title, self.code_word, self.live, self.reference = "", "", dict[str, np.ndarray](), dict[str, np.ndarray]()
        self.references = 0  # how many there were: the page loads a picture anew when it is another
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), type("PageHandler", (Handler,), {"served": self}))
        except OSError as error:
            raise UserError(f"trial: page_port={port}: {error.strerror}; choose another, or page=false") from error
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def __enter__(self) -> TrialPage:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{self.token}/"

    def show(self, pictures: Mapping[str, np.ndarray]) -> None:
        """The live pictures (H, W, 3) uint8 by camera."""
        self.live = dict(pictures)

    def begin_trial(self, title: str, code_word: str, reference: Mapping[str, np.ndarray] | None) -> None:
        """reference: pictures of the placement, None where there are none yet."""
        self.title, self.code_word, self.reference = title, code_word, dict(reference or {})
        self.references += 1

    def state(self) -> dict[str, Any]:
        """What the page asks for again and again."""
        return {
            "title": self.title,
            "code_word": self.code_word,
            "prompt": self.operator.prompt,
            "keys": self.operator.keys,
            "typing": self.operator.typing,
            "cameras": list(self.live),
            "reference": self.references if self.reference else 0,
        }


class Handler(BaseHTTPRequestHandler):
    """One request; `served` is the page, of a subclass that is made for it."""

    served: TrialPage

    def do_GET(self) -> None:
        place = self._place()
        if place == "":
            nonce = secrets.token_urlsafe(12)
            text = page("trial.html.j2", nonce=nonce, most_letters=MOST_REASON)
            policy = f"default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'nonce-{nonce}'"
            self._answer(text.encode(), "text/html; charset=utf-8", f"{policy}; script-src 'nonce-{nonce}'")
        elif place == "state":
            self._answer(json.dumps(self.served.state()).encode(), "application/json")
        elif place is not None and (picture := self._picture(place)) is not None:
            self._answer(encode_jpeg(np.ascontiguousarray(picture), QUALITY).tobytes(), "image/jpeg")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self._place() != "key" or not length.isdecimal() or int(length) > MOST_BODY:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            text = json.loads(self.rfile.read(int(length)))
        except ValueError:
            text = None
        if not isinstance(text, str):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        for letter in text:
            self.served.operator.press(letter)
        self._answer(b"{}", "application/json")

    def _place(self) -> str | None:
        """What is asked for below the secret path, without the query; None for anybody who does not know it."""
        host = self.headers.get("Host", "").rpartition(":")[0]
        head, path = f"/{self.served.token}/", self.path.partition("?")[0]
        return path.removeprefix(head) if host in ("127.0.0.1", "localhost") and path.startswith(head) else None

    def _picture(self, place: str) -> np.ndarray | None:
        kind, _, number = place.partition("/")
        pictures = {"live": self.served.live, "reference": self.served.reference}.get(kind, {})
        cameras = list(self.served.live)
        return pictures.get(cameras[int(number)]) if number.isdecimal() and int(number) < len(cameras) else None

    def _answer(self, data: bytes, kind: str, policy: str = "default-src 'none'") -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(data))),
            ("Content-Security-Policy", policy),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """The terminal is the operator's."""
