"""Servers that fail on purpose: a web server, and a proxy before an S3 server."""

import http.client
import random
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Faults:
    """Decides, from a seed, what happens to each response: nothing, a 503, a reset connection, or half a body."""

    def __init__(self, share: float, seed: int = 0) -> None:
        self.share, self.random, self.lock = share, random.Random(seed), threading.Lock()
        self.injected = 0

    def draw(self) -> str:
        with self.lock:
            if self.random.random() >= self.share:
                return ""
            self.injected += 1
            return self.random.choice(["503", "reset", "truncated"])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, headers: dict[str, str], body: bytes, fault: str) -> None:
        if fault == "503":
            status, headers, body = 503, {}, b"busy"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("reset", "truncated"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR) if fault == "truncated" else self.connection.close()
        elif self.command != "HEAD":
            self.wfile.write(body)


class FileHandler(Handler):
    def do_GET(self) -> None:
        server = self.server
        path = unquote(self.path.split("?")[0])
        server.requests.append((path, self.headers.get("Range", "")))
        body = server.files.get(path)
        if body is None:
            self.answer(404, {}, b"", "")
            return
        version = f'"{hash(body)}"'
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range", version) == version:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers = {"ETag": version, "Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
            self.answer(206, headers, body[first:], server.faults.draw())
        else:
            self.answer(200, {"ETag": version}, body, server.faults.draw())


class ProxyHandler(Handler):
    def forward(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        left = getattr(self.server, "left_to_answer", -1)
        if left == 0:
            self.answer(503, {}, b"busy", "503")
            return
        self.server.left_to_answer = left - 1
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.port_behind)
        upstream.request(self.command, self.path, body, dict(self.headers.items()))
        response = upstream.getresponse()
        data = response.read()
        headers = {name: value for name, value in response.getheaders() if name.lower() not in ("connection", "transfer-encoding")}
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(data))
        failing = getattr(self.server, "failing", ("GET",))
        # A write that fails may have been done all the same, as with a real server.
        self.answer(response.status, headers, data, self.server.faults.draw() if self.command in failing else "")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward


def serve(handler: type[BaseHTTPRequestHandler], **attributes: object) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    for name, value in attributes.items():
        setattr(server, name, value)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server
