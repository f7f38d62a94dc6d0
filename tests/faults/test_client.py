"""The client verbs against a scripted service: what they print where, exit codes, Ctrl-C, conversations."""
import json
import os
import pty
import re
import select
import signal
import subprocess
import tempfile
import threading
import time
from concurrent import futures

import grpc
import pytest

from client import pb
from common import PATIENCE, SHARDD, Scripted, alive, wait_for

HEALTH = "/grpc.health.v1.Health/Check"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


class Service(grpc.GenericRpcHandler):
    """Answers Generate with self.script(request, context), a generator of chunks; keeps the requests."""

    def __init__(self):
        self.requests, self.cancelled = [], threading.Event()
        self.script = lambda request, context: chunks(["Hello", " world"])
        self.health, self.state = SERVING, "serving"
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        self.server.add_generic_rpc_handlers((self,))
        self.folder = tempfile.mkdtemp(prefix="shardd-service-")
        self.address = "unix:%s/s" % self.folder
        assert self.server.add_insecure_port(self.address)
        self.server.start()

    def service(self, details):
        name = details.method.rsplit("/", 1)[1]
        if details.method == HEALTH:
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: self.health)
        if name == "Generate":
            return grpc.unary_stream_rpc_method_handler(self.generate, pb.GenerateRequest.FromString,
                                                        pb.GenerateChunk.SerializeToString)
        if name == "GetServerInfo":
            answer = pb.GetServerInfoResponse(version="9.9", state=self.state, devices=["a device"], max_num_seqs=7)
        elif name == "GetModelInfo":
            answer = pb.GetModelInfoResponse(served_names=["the-model"], vocab_size=12, default_sampling={"top_k": 3})
        else:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer.SerializeToString())

    def generate(self, request, context):
        self.requests.append(request)
        context.add_callback(self.cancelled.set)
        yield from self.script(request, context)

    def close(self):
        self.server.stop(0).wait()


def chunks(pieces, reason="STOP", first=0):
    """One token per piece; ("thinking", text) is reasoning."""
    for i, piece in enumerate(pieces):
        chunk = pb.GenerateChunk(index=first + i, first_token_index=i, n_tokens=1, token_ids=[10 + i])
        if i == 0:
            chunk.started.prompt_tokens = 5
            chunk.started.sampling.seed = 2 ** 63
        if isinstance(piece, tuple):
            chunk.deltas.add(reasoning=piece[1])
        else:
            chunk.deltas.add(text=piece)
        if i + 1 == len(pieces):
            chunk.finish.reason = pb.FinishReason.Value("FINISH_REASON_" + reason)
            chunk.finish.usage.prompt_tokens = 5
        yield chunk


def endless(request, context):
    index = 0
    while context.is_active():
        chunk = pb.GenerateChunk(index=index, n_tokens=1)
        chunk.deltas.add(text="on ")
        yield chunk
        index += 1
        time.sleep(0.01)


def refuse(code, sentence, **trailers):
    def script(_request, context):
        context.set_trailing_metadata([(k.replace("_", "-"), v) for k, v in trailers.items()])
        context.abort(code, sentence)
        yield
    return script


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """What nohup and & have the tests ignore, and so every program that they start, ends it again."""
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT) if signal.getsignal(n) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(name="service")
def make_service():
    running = Service()
    yield running
    running.close()


def shardd(*words, stdin="", env=None):
    return subprocess.run([SHARDD] + list(words), input=stdin, capture_output=True, text=True, timeout=PATIENCE,
                          check=False, env={**os.environ, **(env or {})})


def test_text_to_stdout_figures_to_stderr(service):
    done = shardd("generate", "--server", service.address, "-n", "9", "two", "words")
    assert (done.returncode, done.stdout) == (0, "Hello world\n")
    assert "5 prompt + 2 answer tokens" in done.stderr and "tokens/s" in done.stderr
    request = service.requests[0]
    assert request.text == "two words" and request.stopping.max_tokens == 9 and request.output.raw
    assert shardd("generate", "-q", "--server", service.address, "x").stderr == ""


def test_the_server_from_the_environment(service):
    done = shardd("generate", "-", stdin="from\na pipe", env={"SHARDD_SERVER": service.address})
    assert done.stdout == "Hello world\n" and service.requests[0].text == "from\na pipe"


def test_ids_and_json(service):
    done = shardd("generate", "--server", service.address, "--prompt-token-ids", "--token-ids", "1, 2 3")
    assert done.stdout == "10 11\n" and list(service.requests[0].token_ids.ids) == [1, 2, 3]
    done = shardd("generate", "--server", service.address, "--json", "x")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["deltas"][0]["text"] for line in lines] == ["Hello", " world"]
    assert lines[0]["started"]["sampling"]["seed"] == str(2 ** 63) and lines[1]["finish"]["reason"] == "stop"


def test_reasoning_is_not_the_answer(service):
    service.script = lambda *_: chunks([("thinking", "hm"), "yes"])
    done = shardd("generate", "--server", service.address, "--chat", "--system", "be brief", "--thinking", "on", "x")
    assert done.stdout == "yes\n"
    chat = service.requests[0].chat
    assert [(m.role, m.content[0].text) for m in chat.messages] == [("system", "be brief"), ("user", "x")]
    assert chat.enable_thinking and not service.requests[0].output.raw


def test_refusals_are_told_whole(service):
    service.script = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "1024 requests wait already", shardd_code="queue_full",
                            shardd_retryable="true")
    done = shardd("generate", "--server", service.address, "x")
    assert done.returncode == 1
    assert "RESOURCE_EXHAUSTED: 1024 requests wait already [queue_full]" in done.stderr
    assert "try again" in done.stderr
    service.script = refuse(grpc.StatusCode.UNAVAILABLE, "the service is stopping", shardd_code="draining")
    assert shardd("generate", "--server", service.address, "x").returncode == 1


def test_an_answer_without_its_end_is_an_error(service):
    service.script = lambda *_: list(chunks(["a", "b"]))[:1]
    done = shardd("generate", "--server", service.address, "x")
    assert done.returncode == 1 and "without its finish" in done.stderr and done.stdout == "a\n"


def test_a_deadline(service):
    service.script = endless
    done = shardd("generate", "--server", service.address, "--timeout", "300ms", "x")
    assert done.returncode == 1 and "DEADLINE_EXCEEDED" in done.stderr and "--timeout" in done.stderr


def test_nobody_there():
    for verb in (["generate", "x"], ["status"], ["chat"]):
        done = shardd(*verb, "--server", "unix:/no/such/socket", stdin="hello\n")
        assert done.returncode == 3 and "/no/such/socket" in done.stderr and "shardd serve" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_ctrl_c_cancels_the_request(service, number):
    service.script = endless
    run = subprocess.Popen([SHARDD, "generate", "--server", service.address, "x"], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
    assert run.stdout.read(6) == b"on on "
    run.send_signal(number)
    run.communicate(timeout=PATIENCE)
    assert run.returncode == 130
    assert service.cancelled.wait(PATIENCE)


def test_a_closed_pipe_cancels_the_request(service):
    service.script = endless
    run = subprocess.Popen([SHARDD, "generate", "--server", service.address, "x"], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
    assert run.stdout.read(3) == b"on "
    run.stdout.close()
    assert run.wait(PATIENCE) == 1
    assert service.cancelled.wait(PATIENCE)
    run.stderr.close()


def test_wrong_use(service):
    for words, text in [(["generate"], "no prompt"), (["generate", "--temperature", "nan", "x"], "temperature"),
                        (["generate", "--stop-token-id", "x", "x"], "--stop-token-id"),
                        (["generate", "--server", "http://a:1", "x"], "without a scheme"),
                        (["chat", "hello"], "'hello'"), (["status", "now"], "'now'"), (["generat", "x"], "generat")]:
        done = shardd(*words)
        assert done.returncode == 2 and text in done.stderr, (words, done.stderr)
    assert not service.requests


def test_status(service):
    done = shardd("status", "--server", service.address)
    assert done.returncode == 0
    for text in ("serving", "the-model", "9.9", "a device", "0 running of 7"):
        assert text in done.stdout
    shown = json.loads(shardd("status", "--server", service.address, "--json").stdout)
    assert shown["healthy"] and shown["server"]["state"] == "serving"
    assert shown["model"]["default_sampling"] == {"top_k": 3}
    service.health, service.state = NOT_SERVING, "draining"
    done = shardd("status", "--server", service.address)
    assert done.returncode == 1 and "draining" in done.stdout and "NOT_SERVING" in done.stdout


# ---------------------------------------------------------------- chat


def turns(request):
    return [(m.role, m.content[0].text) for m in request.chat.messages]


def test_a_conversation_over_a_pipe(service, tmp_path):
    service.script = lambda *_: chunks([("thinking", "hm"), "fine"])
    saved = tmp_path / "saved.json"
    done = shardd("chat", "--server", service.address, "--system", "s", stdin="one\n\ntwo \\\nlines\n/save %s\n/reset\n"
                  "three\n/system t\nfour\n/what\n/quit\nnot read\n" % saved)
    assert (done.returncode, done.stdout) == (0, "fine\n" * 4)
    assert [turns(r) for r in service.requests] == [
        [("system", "s"), ("user", "one")],
        [("system", "s"), ("user", "one"), ("assistant", "fine"), ("user", "two \nlines")],
        [("system", "s"), ("user", "three")],
        [("system", "t"), ("user", "four")]]
    assert [m["role"] for m in json.loads(saved.read_text())] == ["system", "user", "assistant", "user", "assistant"]
    assert "there is no command /what" in done.stderr


def test_a_refused_turn_is_taken_back(service):
    answers = iter([refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "full"), lambda *_: chunks(["ok"])])
    service.script = lambda request, context: next(answers)(request, context)
    done = shardd("chat", "--server", service.address, stdin="one\ntwo\n")
    assert done.returncode == 1 and "full" in done.stderr
    assert turns(service.requests[1]) == [("user", "two")]


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *words):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(SHARDD, [SHARDD] + list(words))
        self.seen = ""

    def expect(self, text):
        def seen():
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
            return text in self.seen
        try:
            wait_for(seen, repr(text))
        except AssertionError as error:
            raise AssertionError("%s in %r" % (error, self.seen)) from None
        before, _, self.seen = self.seen.partition(text)
        return before

    def send(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code


def test_a_conversation_in_a_terminal(service):
    scripts = iter([lambda *_: chunks([("thinking", "hm"), "fine"]), endless, lambda *_: chunks(["bye"])])
    service.script = lambda request, context: next(scripts)(request, context)
    t = Terminal("chat", "--server", service.address)
    t.expect("> ")
    t.send("half a line\x03")  # Ctrl-C drops it
    t.expect("\n> ")
    t.send("one\n")
    t.expect("\033[2mhm\033[0m")
    t.expect("fine")
    t.expect("> ")
    t.send("two\n")
    t.expect("on on ")
    t.send("\x03")  # stops the answer only
    t.expect("> ")
    assert service.cancelled.wait(PATIENCE)
    t.send("three\n")
    t.expect("bye")
    t.expect("> ")
    t.send("\x04")
    assert t.end() == 0
    assert turns(service.requests[0]) == [("user", "one")]
    last = turns(service.requests[2])
    assert [role for role, _ in last] == ["user", "assistant", "user", "assistant", "user"]
    assert re.fullmatch("(on )+", last[3][1])


# ---------------------------------------------------------------- a private service


def private(home, *words):
    return [SHARDD, "generate", "--model", home + "/model", "--libexec-dir", home, "--device", "cpu", *words, "x"]


def folders():
    base = os.environ.get("XDG_RUNTIME_DIR", "/tmp")
    return {name for name in os.listdir(base) if re.fullmatch("shardd-[A-Za-z0-9]{6}", name)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL])
def test_a_private_service_ends_with_its_command(number):
    with Scripted(tp=1) as run:
        run.wait_log("serving ")
        run.script({"shardd-worker-cpu": {"load": True}})
        before = folders()
        asking = subprocess.Popen(private(run.home), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        worker = run.wait_event(2, who="worker-0", kind="START")["pid"]
        coordinator = run.wait_event(2, who="coordinator", kind="START")["pid"]
        asking.send_signal(number)
        asking.communicate(timeout=PATIENCE)
        wait_for(lambda: not alive(worker) and not alive(coordinator), "the private service to end")
        if number != signal.SIGKILL:
            assert asking.returncode == 130
            assert folders() <= before


def test_a_private_service_that_cannot_start():
    with Scripted(tp=1) as run:
        run.wait_log("serving ")
        run.script({"shardd-worker-cpu": {"fault": "model.safetensors: is cut short"}})
        before = folders()
        done = subprocess.run(private(run.home), capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 1 and "is cut short" in done.stderr and done.stdout == ""
        assert folders() <= before


def test_settings_reach_a_private_service():
    with Scripted(tp=1) as run:
        run.wait_log("serving ")
        run.script({"shardd-worker-cpu": {"load": True}})
        words = private(run.home, "-tp", "2", "--max-num-seqs", "3", "--served-model-name", "a b")
        asking = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        arguments = run.wait_event(who="worker-1", kind="START")["arguments"]
        assert arguments[arguments.index("--max-num-seqs") + 1] == "3"
        arguments = run.wait_event(2, who="coordinator", kind="START")["arguments"]
        assert arguments[arguments.index("--served-model-name") + 1] == "a b"
        asking.send_signal(signal.SIGINT)
        asking.communicate(timeout=PATIENCE)
