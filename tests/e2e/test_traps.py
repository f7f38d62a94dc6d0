"""The traps of a gRPC C core server, each with a test: descriptors run out, a compressed bomb, deep recursion,
unknown methods, pings during silence, a reader that never reads, shutdown under load."""
import gzip
import os
import resource
import socket
import struct
import threading
import time

import grpc
import pytest

from shardd_client import PATIENCE, Refused, Server, make_request


def coordinator_pid(server):
    pids = [pid for pid, name in server.children().items() if name == "shardd-coordinator"]
    assert len(pids) == 1
    return pids[0]


def memory_kib(pid, key="VmHWM"):
    with open("/proc/%d/status" % pid, encoding="utf-8") as f:
        for line in f:
            if line.startswith(key + ":"):
                return int(line.split()[1])
    raise AssertionError(key)


def works(server):
    with server.client() as client:
        return client.generate(text="Works?", max_tokens=2).n_tokens == 2


def test_descriptors_run_out_and_come_back(model):
    with Server(model) as server:
        pid = coordinator_pid(server)
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir("/proc/%d/fd" % pid))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 8, hard))
        crowd = []
        for _ in range(64):
            one = socket.socket(socket.AF_UNIX)
            one.connect(server.socket)
            crowd.append(one)
        time.sleep(0.5)
        for one in crowd:
            one.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert works(server)


def test_compressed_bomb(server):
    """~1 MB of gzip that grows to 900 MB: refused as a message in a compression that is off, memory stays small."""
    pid = coordinator_pid(server)
    before = memory_kib(pid)
    bomb = gzip.compress(b"\0" * (900 << 20), 9)
    frame = bytes([1]) + struct.pack(">I", len(bomb)) + bomb
    headers = hpack([(":method", "POST"), (":scheme", "http"), (":path", "/shardd.v1.Shardd/Generate"),
                     (":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc"),
                     ("grpc-encoding", "gzip")])
    talk_http2(server.socket, headers, frame)
    assert memory_kib(pid) - before < 64 * 1024
    assert works(server)


def hpack(pairs):
    """Literal headers without indexing and without Huffman: the simplest legal block."""
    def text(value):
        data = value.encode()
        assert len(data) < 127
        return bytes([len(data)]) + data
    return b"".join(b"\0" + text(name) + text(value) for name, value in pairs)


def talk_http2(path, headers, body):
    """One request over a bare socket, respecting flow control, until the server ends the stream."""
    def frame(kind, flags, stream, payload):
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.connect(path)
        s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers))
        window, conn, at, buffered = 65535, 65535, 0, b""
        while True:
            size = min(16384, window, conn, len(body) - at)
            if size > 0:
                at += size
                window, conn = window - size, conn - size
                try:
                    s.sendall(frame(0, 1 if at == len(body) else 0, 1, body[at - size:at]))
                except OSError:
                    return
                continue
            try:
                got = s.recv(65536)
            except OSError:
                return
            if not got:
                return
            buffered += got
            while len(buffered) >= 9 and len(buffered) >= 9 + int.from_bytes(buffered[:3], "big"):
                length, kind, flags = int.from_bytes(buffered[:3], "big"), buffered[3], buffered[4]
                stream = int.from_bytes(buffered[5:9], "big")
                payload, buffered = buffered[9:9 + length], buffered[9 + length:]
                if kind == 4 and not flags & 1:
                    for i in range(0, length, 6):
                        key, value = struct.unpack(">HI", payload[i:i + 6])
                        if key == 4:
                            window += value - 65535
                    s.sendall(frame(4, 1, 0, b""))
                elif kind == 8:
                    grow = struct.unpack(">I", payload)[0]
                    if stream:
                        window += grow
                    else:
                        conn += grow
                elif stream == 1 and (kind == 3 or kind in (0, 1) and flags & 1):
                    return


def test_deep_recursion(server):
    """Nested length-delimited fields, deep enough to overflow the stack of a decoder that follows a recursive type."""
    payload = b""
    for level in range(12000):
        size = len(payload)
        length = b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        payload = (b"\x2a" if level == 11999 else b"\x0a") + length + bytes([size]) + payload
    with server.client() as client:
        call = client.channel.unary_stream("/shardd.v1.Shardd/Generate", lambda b: b, lambda b: b)
        with pytest.raises(grpc.RpcError) as caught:
            next(call(payload, timeout=30))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        request = make_request(chat=[("user", "hi")])
        request.chat.tools.add(json=b'{"a":' * 20000 + b"1" + b"}" * 20000)
        with pytest.raises(Refused) as refused:
            client.generate(request)
        assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert works(server)


@pytest.mark.parametrize("method", ["/shardd.v1.Shardd/NoSuch", "/no.Such/Method", "/nonsense"])
def test_unknown_method(client, method):
    call = client.channel.unary_unary(method, lambda b: b, lambda b: b)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.slow
def test_pings_during_a_long_silence(server):
    """A health Watch says nothing for as long as nothing changes; a client that pings must not be hung up on."""
    options = [("grpc.keepalive_time_ms", 10500), ("grpc.keepalive_timeout_ms", 5000),
               ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0)]
    with server.client(options) as client:
        stream = client.channel.unary_stream("/grpc.health.v1.Health/Watch", lambda b: b, lambda b: b)(b"", timeout=300)
        next(stream)
        ended = []
        stream.add_callback(lambda: ended.append(stream.code()))
        time.sleep(45)
        assert not ended, "the silent stream was closed: %s" % ended
        stream.cancel()


def test_a_reader_that_never_reads(server):
    """Its stream stalls; everyone else goes on, and memory stays bounded."""
    pid = coordinator_pid(server)
    with server.client() as lazy:
        stalled = []
        for i in range(4):
            request = make_request(text="Never read %d" % i, max_tokens=1800)
            request.stopping.ignore_eos = True
            request.output.logprobs = True
            request.output.top_logprobs = 20
            stalled.append(lazy.stream(request))
        with server.client() as client:
            for i in range(8):
                assert client.generate(text="Reader %d" % i, max_tokens=16).n_tokens > 0
        assert memory_kib(pid, "VmRSS") < 600 * 1024 * PATIENCE
        for stream in stalled:
            stream.cancel()
    assert works(server)


def shutdown_once(model, round_number):
    """Streams are running when SIGTERM comes: each must get every one of its tokens and an OK."""
    server = Server(model, "--device", "null", "--shutdown-grace", "30s")
    count, results, begun = 24, {}, threading.Barrier(25)

    def one(i):
        with server.client() as client:
            request = make_request(text="Drain %d" % i, max_tokens=60, seed=round_number)
            request.stopping.ignore_eos = True
            stream = client.chunks(request)
            first = next(stream)
            begun.wait(60 * PATIENCE)
            tokens = len(first.token_ids)
            try:
                for chunk in stream:
                    tokens += len(chunk.token_ids)
                results[i] = tokens
            except Refused as refused:
                results[i] = str(refused)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    begun.wait(60 * PATIENCE)
    code = server.stop()
    for thread in threads:
        thread.join()
    assert code == 0
    assert results == {i: 60 for i in range(count)}


@pytest.mark.slow
def test_shutdown_under_load_loses_nothing(model):
    for round_number in range(20):
        shutdown_once(model, round_number)
