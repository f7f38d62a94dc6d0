"""What clients can make the coordinator hold is bounded: thousands of messages that begin and never end."""
import socket
import struct
import threading
import time

import grpc
import pytest

from shardd_client import Refused
from test_traps import coordinator_pid, hpack, memory_kib, works

CONNECTIONS, STREAMS, MESSAGE = 6, 64, 15 << 20  # 5.6 GiB, if it were taken
LIMIT_KIB = 800 * 1024  # without a limit it grows by 100 MiB a second


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Hoarder:
    """A connection with many streams, each in the middle of a message of 16 MiB, as far as flow control lets it."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(2)
        self.socket.connect(path)
        self.connection, self.initial, self.buffered = 65535, 65535, b""
        self.windows = {2 * i + 1: 65535 for i in range(STREAMS)}
        self.sent = dict.fromkeys(self.windows, 0)
        headers = hpack([(":method", "POST"), (":scheme", "http"), (":path", "/shardd.v1.Shardd/Generate"),
                         (":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc")])
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
                            + b"".join(frame(1, 4, stream, headers) for stream in self.windows))

    def push(self):
        for stream in list(self.windows):
            size = min(16384, self.windows[stream], self.connection, MESSAGE - self.sent[stream])
            if size < 5:
                continue
            start = b"" if self.sent[stream] else bytes([0]) + struct.pack(">I", 16 << 20)
            self.socket.sendall(frame(0, 0, stream, start + b"x" * (size - len(start))))
            self.sent[stream] += size
            self.windows[stream] -= size
            self.connection -= size

    def pull(self):
        try:
            got = self.socket.recv(65536)
        except socket.timeout:
            return True
        self.buffered += got
        while len(self.buffered) >= 9 and len(self.buffered) >= 9 + int.from_bytes(self.buffered[:3], "big"):
            length, kind, flags = int.from_bytes(self.buffered[:3], "big"), self.buffered[3], self.buffered[4]
            stream = int.from_bytes(self.buffered[5:9], "big")
            payload, self.buffered = self.buffered[9:9 + length], self.buffered[9 + length:]
            self.take(kind, flags, stream, payload)
        return bool(got)

    def take(self, kind, flags, stream, payload):
        if kind == 4 and not flags & 1:
            for i in range(0, len(payload), 6):
                key, value = struct.unpack(">HI", payload[i:i + 6])
                if key == 4:
                    self.windows = {s: w + value - self.initial for s, w in self.windows.items()}
                    self.initial = value
            self.socket.sendall(frame(4, 1, 0, b""))
        elif kind == 8 and stream == 0:
            self.connection += struct.unpack(">I", payload)[0]
        elif kind == 8 and stream in self.windows:
            self.windows[stream] += struct.unpack(">I", payload)[0]
        elif kind == 6 and not flags & 1:
            self.socket.sendall(frame(6, 1, 0, payload))
        elif kind == 3:
            self.windows.pop(stream, None)

    def run(self, stop):
        try:
            while not stop.is_set():
                self.push()
                self.socket.settimeout(0.05)
                if not self.pull():
                    return
                self.socket.settimeout(2)
        except OSError:
            pass


def others_are_served(server):
    """Under memory pressure the core may also turn away a connection, or one stream with ENHANCE_YOUR_CALM, that did
    nothing; a client tries again."""
    for _ in range(20):
        try:
            return works(server)
        except Refused as refused:
            assert refused.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED), str(refused)
            time.sleep(0.1)
    return False


@pytest.mark.slow
def test_messages_that_never_end(server):
    pid, stop = coordinator_pid(server), threading.Event()
    hoarders = [Hoarder(server.socket) for _ in range(CONNECTIONS)]
    threads = [threading.Thread(target=hoarder.run, args=(stop,)) for hoarder in hoarders]
    for thread in threads:
        thread.start()
    for _ in range(15):
        time.sleep(1)
        assert others_are_served(server)
        assert memory_kib(pid, "VmRSS") < LIMIT_KIB
    stop.set()
    for thread in threads:
        thread.join()
    assert sum(sum(h.sent.values()) for h in hoarders) > 256 << 20, "the test did not push"
    for hoarder in hoarders:
        hoarder.socket.close()
    assert others_are_served(server)
