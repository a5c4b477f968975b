# A hub for tests: the layout of Hugging Face's, on this machine, with every fault that a network and a server can have.
"""Serves made-up files at http://127.0.0.1:PORT in the hub's layout, and their bytes from a second server at another
host (localhost) and port, to which the hub leads large files. Faults are given for each file, and used up in order.

Of every version of a file it counts which bytes were sent, how often.
"""

import hashlib
import http.server
import random
import re
import socket
import struct
import threading
import time


def made_up(name, version, size):
    """Bytes that depend on name and version alone."""
    return random.Random(f"{name}/{version}").randbytes(size)


class File:
    def __init__(self, name, size, is_large=True, faults=(), head_faults=(), changes_after=None):
        self.name, self.is_large = name, is_large
        self.size = size
        # Used up in order, one a request: for bytes, and for questions to the hub.
        self.faults, self.head_faults = list(faults), list(head_faults)
        # Another version after so many requests for bytes.
        self.changes_after = changes_after
        self.permanent = None
        self.requests = self.heads = 0
        self.given_token = set()
        self.sent = {}
        self.version = -1
        self.lock = threading.Lock()
        self.change()

    def change(self, size=None):
        self.version += 1
        self.size = size or self.size
        self.bytes = made_up(self.name, self.version, self.size)
        self.sha256 = hashlib.sha256(self.bytes).hexdigest()
        self.etag = '"' + (self.sha256 if self.is_large else hashlib.sha1(self.bytes).hexdigest()) + '"'
        self.sent[self.version] = bytearray(self.size)

    def count(self, version, start, count):
        with self.lock:
            times = self.sent[version]
            for index in range(start, start + count, 1 << 12):
                times[index] = min(255, times[index] + 1)

    def total(self):
        """Bytes that were sent, in blocks of 4 KiB, and those of them that were sent before."""
        sent = sum(sum(times[::1 << 12]) for times in self.sent.values()) << 12
        again = sum(sum(max(0, n - 1) for n in times[::1 << 12]) for times in self.sent.values()) << 12
        return sent, again


class Hub:
    """Two servers and their files. `token`: what a repository in `private` asks for."""

    def __init__(self, token=None):
        self.token = token
        self.files = {}
        self.private, self.terms = set(), set()
        self.leaked = []
        # Hosts that were asked for through this one.
        self.proxied = []
        self.other = Server(self, is_hub=False)
        self.main = Server(self, is_hub=True)
        self.endpoint = f"http://127.0.0.1:{self.main.server_port}"
        self.place = f"http://localhost:{self.other.server_port}"
        for server in (self.main, self.other):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def add(self, repository, path, *arguments, **keywords):
        file = File(f"{repository}/{path}", *arguments, **keywords)
        self.files[f"{repository}/{path}"] = file
        return file

    def put(self, repository, path, content, is_large=True):
        """A file with these bytes."""
        file = self.add(repository, path, 1, is_large)
        file.bytes, file.size, file.sent[0] = content, len(content), bytearray(len(content))
        file.sha256 = hashlib.sha256(content).hexdigest()
        file.etag = f'"{file.sha256}"' if is_large else f'"{hashlib.sha1(content).hexdigest()}"'
        return file

    def close(self):
        for server in (self.main, self.other):
            server.shutdown()
            server.server_close()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub, is_hub):
        self.hub, self.is_hub = hub, is_hub
        super().__init__(("127.0.0.1", 0), Handler)

    def get_request(self):
        connection, address = super().get_request()
        # What waits in buffers when a client leaves counts as sent.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def handle_error(self, request, address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "test-hub"

    def log_message(self, *arguments):
        pass

    @property
    def hub(self):
        return self.server.hub

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self, reset=False):
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.connection.close()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        try:
            # As a proxy it is asked for whole addresses; the hub of that test is http://hub.invalid.
            is_hub = self.server.is_hub
            if self.path.startswith("http://"):
                host, _, path = self.path[7:].partition("/")
                self.hub.proxied.append(host)
                self.path, is_hub = "/" + path, host == "hub.invalid"
            if is_hub:
                self.ask()
            else:
                self.bytes_of_place()
        except (BrokenPipeError, ConnectionResetError, OSError):
            self.close_connection = True

    # The hub.

    def ask(self):
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        name = match and f"{match[1]}/{match[3]}"
        file = self.hub.files.get(name)
        authorization = self.headers.get("Authorization")
        if match and match[1] in self.hub.private and authorization != f"Bearer {self.hub.token}":
            return self.answer(401, [("X-Error-Message", "Invalid username or password.")], b"no")
        if match and match[1] in self.hub.terms:
            return self.answer(403, [("X-Error-Message", "Access to model is restricted.")], b"no")
        if file is None:
            return self.answer(404, [("X-Error-Code", "EntryNotFound")], b"Entry not found")
        if file.permanent:
            return self.answer(file.permanent)
        if self.command == "HEAD":
            with file.lock:
                file.heads += 1
                fault = file.head_faults.pop(0) if file.head_faults else None
            if fault == "drop":
                return self.hang_up()
            if fault == "stall":
                time.sleep(2.5)
                return self.hang_up()
            if isinstance(fault, tuple) and fault[0] == "status":
                return self.answer(fault[1], fault[2])
            size = fault[1] if isinstance(fault, tuple) and fault[0] == "lie" else file.size
        if not file.is_large:
            if self.command == "HEAD":
                self.send_response(200)
                self.send_header("ETag", file.etag)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(size))
                return self.end_headers()
            return self.give(file)
        headers = [("Location", f"{self.hub.place}/{name}?signed={time.time()}"), ("ETag", '"of-the-address"')]
        if self.command == "HEAD":
            headers += [("X-Linked-Size", str(size)), ("X-Linked-Etag", file.etag)]
        self.answer(302, headers, b"Found. Redirecting")

    # The other host.

    def bytes_of_place(self):
        if self.headers.get("Authorization") or self.headers.get("Cookie"):
            self.hub.leaked.append(self.path)
        file = self.hub.files.get(self.path[1:].split("?")[0])
        if file is None:
            return self.answer(404)
        self.give(file)

    def give(self, file):
        with file.lock:
            file.requests += 1
            if file.changes_after is not None and file.requests > file.changes_after:
                file.changes_after = None
                file.change()
            fault = file.faults.pop(0) if file.faults else None
            version, content, etag = file.version, file.bytes, file.etag
        kind = fault[0] if fault else None
        if kind == "status":
            return self.answer(fault[1], fault[2], b"x" * 100)
        if kind == "reset":
            return self.hang_up(reset=True)
        size = len(content)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        is_part = match and (condition is None or condition == etag) and kind != "whole"
        start, end = (int(match[1]), min(int(match[2]) + 1, size)) if is_part else (0, size)
        if start >= size:
            return self.answer(416, [("Content-Range", f"bytes */{size}")])
        told_start, told_end, told_size = start, end, size
        length = end - start
        if kind == "wrong-start":
            told_start += 1
        elif kind == "wrong-total":
            told_size += fault[1]
        elif kind == "short":
            end = told_end = start + max(1, int(length * fault[1]))
            length = end - start
        elif kind == "lie-more":
            length += fault[1]
        elif kind == "lie-less":
            length = max(1, int(length * fault[1]))
        self.send_response(206 if is_part else 200)
        self.send_header("ETag", etag)
        if is_part:
            self.send_header("Content-Range", f"bytes {told_start}-{told_end - 1}/{told_size}")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        stop = end
        if kind in ("drop", "stall", "drop-reset"):
            stop = start + int((end - start) * fault[1])
        if kind == "lie-less":
            stop = start + length
        damaged = kind == "damage"
        position = start
        while position < stop:
            # Whole blocks, so that what is counted is what was sent.
            count = min(stop, (position >> 12) + 4 << 12) - position
            piece = content[position:position + count]
            if damaged:
                piece, damaged = bytes([piece[0] ^ 1]) + piece[1:], False
            self.wfile.write(piece)
            file.count(version, position + 4095 >> 12 << 12, max(0, position + count - (position + 4095 >> 12 << 12)))
            position += count
            if position - start <= 1 << 14:
                # Over a network the first packets are answered before more are sent.
                self.wfile.flush()
                time.sleep(0.01)
        if kind == "stall":
            # Longer than clients of the tests wait.
            time.sleep(fault[2] if len(fault) > 2 else 2.5)
            return self.hang_up()
        if kind in ("drop", "lie-more", "lie-less"):
            return self.hang_up()
        if kind == "drop-reset":
            # What is still in this machine's buffers would be counted, and never be sent.
            time.sleep(0.02)
            return self.hang_up(reset=True)
        if kind == "extra":
            self.wfile.write(b"more than was asked for")
            return self.hang_up()
