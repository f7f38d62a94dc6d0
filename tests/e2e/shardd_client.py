"""shardd_client.py - a small outside client for the tests: Debian's grpcio, messages from protoc --python_out, generic
handlers (no generated stubs), and a server that runs as a user would run it: `shardd serve`."""
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import grpc

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("SHARDD_BIN", os.path.join(ROOT, "build/release/bin"))
# Sanitized builds are several times slower; limits that guard against hanging grow with them.
PATIENCE = 5 if os.environ.get("SHARDD_SANITIZED") else 1
START_SECONDS_MAX = 120 * PATIENCE
LATE_SECONDS_MAX = 60 * PATIENCE


def load_messages():
    """Compiles the public .proto files once per test run and imports the modules."""
    out = tempfile.mkdtemp(prefix="shardd-proto-")
    proto = os.path.join(ROOT, "proto")
    files = []
    for folder, _, names in os.walk(proto):
        files += [os.path.relpath(os.path.join(folder, n), proto) for n in names if n.endswith(".proto")]
    subprocess.run(["protoc", "-I", proto, "--python_out", out] + sorted(files), check=True)
    sys.path.insert(0, out)
    modules = {}
    for name in sorted(files):
        # "grpc" is also the name of the client library: those files are imported from their own place.
        if name.startswith("grpc/"):
            continue
        modules[name] = importlib.import_module(name[:-6].replace("/", ".") + "_pb2")
    return out, modules


PROTO_DIR, MODULES = load_messages()
pb = MODULES["shardd/v1/shardd.proto"]


class Refused(Exception):
    """A call that ended with a status other than OK: code, sentence and the two trailers."""

    def __init__(self, error):
        trailers = dict(error.trailing_metadata() or ())
        self.code = error.code()
        self.sentence = error.details() or ""
        self.word = trailers.get("shardd-code", "")
        self.retryable = trailers.get("shardd-retryable", "")
        super().__init__("%s: %s [%s]" % (self.code, self.sentence, self.word))


class Watched:
    """A stream that fails where grpcio does not tell its end: 1.51 once waited for ever for a server that was dead,
    long after the deadline. cancel() does not end such a wait, so it is done on a thread that nobody waits for."""

    def __init__(self, call, seconds):
        self.call, self.end = call, time.monotonic() + seconds

    def __iter__(self):
        return self

    def __next__(self):
        got = []

        def wait():
            try:
                got.append((next(self.call), None))
            except BaseException as error:
                got.append((None, error))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        thread.join(max(0, self.end - time.monotonic()))
        if not got:
            self.call.cancel()
            raise AssertionError("the client was not told the end of a stream, though its deadline is long over")
        value, error = got[0]
        if error is not None:
            raise error
        return value

    def __getattr__(self, name):
        return getattr(self.call, name)


class Client:
    def __init__(self, address, options=()):
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)] + list(options))
        method = "/shardd.v1.Shardd/"
        self.unwatched = self.channel.unary_stream(method + "Generate", pb.GenerateRequest.SerializeToString,
                                                   pb.GenerateChunk.FromString)
        self.methods = {}
        for name in ("Tokenize", "Detokenize", "GetModelInfo", "GetServerInfo", "Abort"):
            request, response = getattr(pb, name + "Request"), getattr(pb, name + "Response")
            self.methods[name] = self.channel.unary_unary(method + name, request.SerializeToString,
                                                          response.FromString)

    def close(self):
        self.channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, name, timeout=30 * PATIENCE, **fields):
        call = self.methods[name].future(getattr(pb, name + "Request")(**fields), timeout=timeout)
        try:
            return call.result(timeout + LATE_SECONDS_MAX)
        except grpc.FutureTimeoutError:
            raise AssertionError("the client was not told the end of %s, long after its deadline" % name) from None
        except grpc.RpcError as error:
            raise Refused(error) from None

    def wait_idle(self):
        """Waits for the moment when nothing runs: then every page must be free again. A stream's end reaches its client
        before the steps that were in flight have retired, so this takes a moment."""
        end = time.monotonic() + 60 * PATIENCE
        while time.monotonic() < end:
            info = self.call("GetServerInfo")
            if info.running == 0 and info.waiting == 0 and info.kv_pages_free == info.kv_pages_total:
                return
            time.sleep(0.02)
        raise AssertionError("not idle after a minute: %s" % info)

    def stream(self, request, timeout=240 * PATIENCE):
        return Watched(self.unwatched(request, timeout=timeout), timeout + LATE_SECONDS_MAX)

    def chunks(self, request, timeout=120 * PATIENCE):
        try:
            yield from self.stream(request, timeout=timeout)
        except grpc.RpcError as error:
            raise Refused(error) from None

    def generate(self, request=None, timeout=120 * PATIENCE, **fields):
        """Runs a request to its end; returns an Answer."""
        return Answer(self.chunks(request or make_request(**fields), timeout))


class Answer:
    """All of a stream put together, with the stream's own promises checked."""

    def __init__(self, chunks):
        self.text = self.reasoning = ""
        self.ids, self.logprobs, self.prompt_logprobs, self.tools = [], [], [], {}
        self.started = self.finish = None
        self.n_tokens = self.n_chunks = 0
        for chunk in chunks:
            assert self.finish is None, "a chunk after the finish"
            assert chunk.index == self.n_chunks, "chunk indices count up from 0"
            assert chunk.HasField("started") == (self.n_chunks == 0), "started is in the first chunk only"
            assert chunk.first_token_index == self.n_tokens
            self.n_chunks += 1
            self.n_tokens += chunk.n_tokens
            if chunk.HasField("started"):
                self.started = chunk.started
            self.ids += list(chunk.token_ids)
            self.logprobs += list(chunk.logprobs)
            if chunk.prompt_logprobs:
                assert chunk.first_prompt_index == 1 + len(self.prompt_logprobs) and self.n_tokens == chunk.n_tokens
                self.prompt_logprobs += list(chunk.prompt_logprobs)
            for delta in chunk.deltas:
                self.add(delta)
            if chunk.HasField("finish"):
                self.finish = chunk.finish
        assert self.finish is not None, "the stream ended OK without a finish"

    def add(self, delta):
        kind = delta.WhichOneof("delta")
        if kind == "text":
            self.text += delta.text
        elif kind == "reasoning":
            self.reasoning += delta.reasoning
        elif kind == "tool_call":
            call = self.tools.setdefault(delta.tool_call.index, {"name": "", "arguments": "", "done": False})
            call["name"] += delta.tool_call.name
            call["arguments"] += delta.tool_call.arguments
            call["done"] = call["done"] or delta.tool_call.done

    @property
    def reason(self):
        return pb.FinishReason.Name(self.finish.reason)[len("FINISH_REASON_"):].lower()


def make_request(text=None, ids=None, chat=None, max_tokens=16, temperature=0.0, seed=1, output_ids=True, **more):
    request = pb.GenerateRequest(**more)
    if text is not None:
        request.text = text
    if ids is not None:
        request.token_ids.ids.extend(ids)
    if chat is not None:
        for role, content in chat:
            message = request.chat.messages.add(role=role)
            message.content.add(text=content)
    request.sampling.temperature = temperature
    request.sampling.seed = seed
    if max_tokens is not None:
        request.stopping.max_tokens = max_tokens
    request.output.token_ids = output_ids
    return request


METRICS = ("--metrics-listen", "127.0.0.1:0")


class Server:
    """`shardd serve` on a Unix socket in a folder of its own."""

    def __init__(self, model, *flags, env=None, wait=True):
        self.folder = tempfile.mkdtemp(prefix="shardd-e2e-")
        self.socket = os.path.join(self.folder, "s")
        self.address = "unix:" + self.socket
        self.log_path = os.path.join(self.folder, "log")
        self.log = open(self.log_path, "wb")
        command = [os.path.join(BIN, "shardd"), "serve", "--model", model, "--uds", self.socket, "--port", "0"]
        self.process = subprocess.Popen(command + list(flags), stdout=self.log, stderr=self.log,
                                        env={**os.environ, **(env or {})}, start_new_session=True)
        if wait:
            try:
                self.wait_serving()
            except BaseException:
                self.stop()
                raise

    def log_text(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def client(self, options=()):
        return Client(self.address, options)

    def metrics(self):
        """The answer to /metrics, open, of a service that found a port for it (METRICS)."""
        return urllib.request.urlopen(re.findall(r"metrics are at (http://\S+)", self.log_text())[-1], timeout=30)

    def wait_serving(self):
        end = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError("shardd serve ended with %s:\n%s" % (self.process.returncode, self.log_text()))
            if os.path.exists(self.socket):
                with self.client() as client:
                    try:
                        if client.call("GetServerInfo", timeout=2).state == "serving":
                            return
                    except Refused:
                        pass
            time.sleep(0.05)
        raise AssertionError("shardd serve is not serving after %d s:\n%s" % (START_SECONDS_MAX, self.log_text()))

    def children(self):
        """pid -> program name of every process that this server started."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open("/proc/%s/stat" % entry, encoding="utf-8", errors="replace") as f:
                        stat = f.read()
                    if int(stat.rsplit(")", 1)[1].split()[1]) == self.process.pid:
                        found[int(entry)] = os.path.basename(os.readlink("/proc/%s/exe" % entry))
                except (OSError, ValueError, IndexError):
                    continue
        return found

    def stop(self, kill=False):
        """Asks nicely (SIGTERM) and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            try:
                self.process.wait(60 * PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise AssertionError("shardd serve did not stop on SIGTERM:\n" + self.log_text()) from None
        self.log.close()
        code = self.process.returncode
        shutil.rmtree(self.folder, ignore_errors=True)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def shardd(*arguments, stdin=None, timeout=120 * PATIENCE, env=None):
    """Runs the command as a person would; returns the finished process with text output."""
    return subprocess.run([os.path.join(BIN, "shardd")] + list(arguments), input=stdin, capture_output=True, text=True,
                          timeout=timeout, env={**os.environ, **(env or {})}, check=False)
