"""The real coordinator and real workers, killed and hung while they stream: what it costs whom."""
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from concurrent import futures

import grpc
import pytest

from client import Client
from common import BIN, PATIENCE, SHARDD, Serve, alive, wait_for

TOKENS = 600
CONTEXT = 32768
ENDLESS = CONTEXT - 200  # tokens that no request comes to: it is still running whenever a fault comes, and is cut
PROMPTS = [[1 + i, 2, 3, 100 + 7 * i] * (1 + 5 * i) for i in range(6)]
SLOW_NULL = "--step-us 500"  # a null worker answers at once; a fault needs a stream that is still running


@pytest.fixture(scope="session", name="model")
def make_model():
    folder = tempfile.mkdtemp(prefix="shardd-model-")
    command = [SHARDD, "synth", folder + "/tiny", "--config", "tiny", "--seed", "7"]
    subprocess.run(command, check=True, capture_output=True)
    with open(folder + "/tiny/config.json", "r+", encoding="utf-8") as f:
        config = json.load(f)
        config["max_position_embeddings"] = CONTEXT
        f.seek(0)
        json.dump(config, f)
        f.truncate()
    yield folder + "/tiny"
    shutil.rmtree(folder)


@pytest.fixture(name="device", params=["cpu", "null"])
def choose_device(request):
    if not os.path.exists(os.path.join(BIN, "shardd-worker-" + request.param)):
        pytest.skip("shardd-worker-%s is not built" % request.param)
    return request.param


class Running(Serve):
    def __init__(self, model, device, *flags, null_args=SLOW_NULL):
        self.socket = tempfile.mktemp(prefix="shardd-", suffix=".sock")
        super().__init__("--model", model, "--device", device, "--uds", self.socket, "-tp", "2",
                         "--max-model-len", str(CONTEXT), *flags, env={"SHARDD_NULL_ARGS": null_args})
        try:
            self.wait_log("serving tiny")
        except BaseException:
            self.close()
            raise
        self.children()

    def program(self, name):
        """Pids of the children that run this program, lowest first."""
        found = []
        for pid in self.children():
            try:
                if os.path.basename(os.readlink("/proc/%d/exe" % pid)).startswith(name):
                    found.append(pid)
            except OSError:
                continue
        return sorted(found)

    def client(self):
        return Client("unix:" + self.socket)


def group_serves(client, epoch):
    return wait_for(lambda: client.info().group_epoch >= epoch and client.state() == "serving" and client.info(),
                    "the group of epoch %d" % epoch)


def start_streams(client, n=TOKENS):
    return [client.stream(prompt, n, seed) for seed, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_costs_nobody_a_request(model, device, how):
    with Running(model, device, "--step-timeout", "4s") as run, run.client() as client:
        undisturbed = [client.tokens(prompt, TOKENS, seed) for seed, prompt in enumerate(PROMPTS)]
        assert all(len(ids) == TOKENS for ids in undisturbed)
        streams, endless = start_streams(client), client.stream(PROMPTS[1], ENDLESS, 9)
        for stream in streams + [endless]:
            stream.wait_tokens(20)
        coordinator, workers = run.program("shardd-coordinator"), run.program("shardd-worker")
        os.kill(workers[1], how)
        assert [stream.finish() for stream in streams] == undisturbed
        info = group_serves(client, 2)  # nothing but the endless one may have been running when it died
        assert info.group_epoch == 2 and info.coord_epoch == 1
        assert run.program("shardd-coordinator") == coordinator
        assert not set(workers) & set(run.program("shardd-worker"))
        endless.wait_tokens(len(endless.ids) + 20)
        assert client.tokens(PROMPTS[1], len(endless.cut()), 9) == endless.ids
        assert client.tokens(PROMPTS[0], TOKENS, 0) == undisturbed[0]


@pytest.mark.parametrize("device", ["null"], indirect=True)
@pytest.mark.parametrize("fault", ["die", "hang", "fault", "lie"])
def test_a_worker_that_fails_by_itself(model, device, fault):
    """At step 100 of the first group: it exits, hangs with the step, says that it failed, or computes nonsense."""
    with Running(model, device) as run, run.client() as client:
        undisturbed = [client.tokens(prompt, TOKENS, seed) for seed, prompt in enumerate(PROMPTS)]
    null_args = SLOW_NULL + " --%s-at-step 100" % fault
    with Running(model, device, "--step-timeout", "4s", null_args=null_args) as run, run.client() as client:
        streams = start_streams(client)
        assert [stream.finish() for stream in streams] == undisturbed
        assert client.info().group_epoch == 2
        assert "restarting the rank group" in run.log()


def lives_on(client, stream, epoch):
    """The group of this epoch has come and generated 70 tokens, which is more than a trial. They are counted when they
    are sent: 64 may be from before the death."""
    info = group_serves(client, epoch)
    enough = info.generated_tokens_total + 64 + 70
    wait_for(lambda: stream.code or client.info().generated_tokens_total >= enough, "tokens")
    assert stream.code is None, stream.details


def test_deaths_that_are_not_its_own_end_no_request(model, device):
    """The group is killed until the stream was being computed at three deaths, and lives on alone for some tokens after
    each."""
    with Running(model, device, "--max-restarts", "100") as run, run.client() as client:
        stream = client.stream(PROMPTS[0], ENDLESS, 1)
        epoch = 1
        while run.log().count("with 1 sequences running, 1 of them being computed") < 3:
            lives_on(client, stream, epoch)
            os.kill(run.program("shardd-worker")[0], signal.SIGKILL)
            run.wait_log("the rank group of epoch %d is lost while serving, with 1 sequences running" % epoch)
            epoch += 1
        lives_on(client, stream, epoch)
        assert client.tokens(PROMPTS[0], len(stream.cut()), 1) == stream.ids


@pytest.mark.parametrize("device", ["null"], indirect=True)
def test_a_request_that_kills_the_group_alone_is_ended(model, device):
    """The worker dies by itself at step 1 of the first group and of the second, whose step 1 is the replay of the one
    request."""
    null_args = SLOW_NULL + " --die-at-step 1 --fault-epochs 2"
    with Running(model, device, null_args=null_args) as run, run.client() as client:
        stream = client.stream(PROMPTS[0], TOKENS, 1)
        assert stream.join() == grpc.StatusCode.INTERNAL, stream.details
        assert "alone" in stream.details
        assert dict(stream.call.trailing_metadata())["shardd-code"] == "worker_fault"
        assert len(client.tokens(PROMPTS[1], 20, 1)) == 20
        assert client.info().group_epoch == 3
        assert "alone (2 deaths in all): it is ended" in run.log()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_coordinator_comes_back_at_the_same_place(model, device, how):
    with Running(model, device, "--step-timeout", "4s", "--port", "0", "--host", "127.0.0.1") as run:
        address = [word.rstrip(",") for word in run.log().split() if word.startswith("127.0.0.1:")][0]
        with Client(address) as client:
            before = client.tokens(PROMPTS[0], 50, 5)
            streams = start_streams(client, ENDLESS)
            for stream in streams:
                stream.wait_tokens(20)
            workers = run.program("shardd-worker")
            os.kill(run.program("shardd-coordinator")[0], how)
            assert {stream.join() for stream in streams} == {grpc.StatusCode.UNAVAILABLE}
            info = wait_for(lambda: client.state() == "serving" and client.info(), "serving")
            assert client.tokens(PROMPTS[0], 50, 5) == before
            assert info.coord_epoch == 2 and info.group_epoch == 1
            assert run.program("shardd-worker") == workers


def test_requests_wait_for_a_new_coordinator(model, device):
    """They come while the new coordinator has no workers yet (which are stopped here), and are served, not refused."""
    with Running(model, device, "--step-timeout", "30s") as run:
        with run.client() as client:
            before = [client.tokens(prompt, 50, 5) for prompt in PROMPTS]
        workers, old = run.program("shardd-worker"), run.program("shardd-coordinator")
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        os.kill(old[0], signal.SIGKILL)
        wait_for(lambda: run.program("shardd-coordinator") not in ([], old), "another coordinator")
        with run.client() as client:
            streams = [client.stream(prompt, 50, 5, wait_for_ready=False) for prompt in PROMPTS]
            time.sleep(2)  # the old behaviour refuses within this time; the right one does not depend on it
            assert [stream.code for stream in streams] == [None] * len(streams), streams[0].details
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            assert [stream.finish() for stream in streams] == before
            assert client.info().coord_epoch == 2 and client.info().group_epoch == 1


def test_no_orphans(model, device):
    with Running(model, device) as run, run.client() as client:
        start_streams(client, ENDLESS)[0].wait_tokens(5)
        run.children()
        run.process.kill()
        run.process.wait()
        wait_for(lambda: not any(alive(pid) for pid in run.seen), "the children to end")


def test_a_stop_lets_streams_finish(model, device):
    """Those that have begun and, since workers are stopped meanwhile, some that are still whole when it begins."""
    with Running(model, device, "--shutdown-grace", "60s") as run, run.client() as client:
        streams = start_streams(client)
        for stream in streams:
            stream.wait_tokens(5)
        workers = run.program("shardd-worker")
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        streams += start_streams(client)
        wait_for(lambda: client.info().requests_total == len(streams), "the requests")
        run.signal(signal.SIGTERM)
        run.wait_log("draining: ")
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        assert [len(stream.finish()) for stream in streams] == [TOKENS] * len(streams)
        client.close()
        assert run.wait() == 0
        assert not os.path.exists(run.socket)


@pytest.mark.parametrize("device", ["null"], indirect=True)
def test_a_draining_service_says_so(model, device):
    """New connections are answered at once, `shardd status` too; when the grace is over streams end with our status."""
    with Running(model, device, "--shutdown-grace", "5s", null_args="--step-us 20000") as run, run.client() as client:
        streams = [client.stream(PROMPTS[0], 3500, seed) for seed in range(3)]  # 70 s each
        for stream in streams:
            stream.wait_tokens(3)
        run.signal(signal.SIGTERM)
        run.wait_log("draining: ")
        with run.client() as other:
            late = other.stream(PROMPTS[1], 20, 1)
            assert late.join() == grpc.StatusCode.UNAVAILABLE
            assert dict(late.call.trailing_metadata())["shardd-code"] == "draining"
            assert dict(late.call.trailing_metadata())["shardd-retryable"] == "true"
            assert other.info().state == "draining"
        status = subprocess.run([SHARDD, "status", "--server", "unix:" + run.socket], capture_output=True, text=True,
                                check=False)
        assert status.returncode == 1 and "draining" in status.stdout, status
        assert all(stream.code is None for stream in streams), "the grace was over before the answers"
        for stream in streams:
            assert stream.join() == grpc.StatusCode.UNAVAILABLE
            assert "send the request again" in stream.details
            assert dict(stream.call.trailing_metadata())["shardd-code"] == "draining"
            assert dict(stream.call.trailing_metadata())["shardd-retryable"] == "true"
        client.close()
        assert run.wait() == 0
        assert "the grace of 5.0 s is over: 3 requests are ended" in run.log()


@pytest.mark.slow
def test_random_deaths_under_load(model, device):
    """Worker or coordinator, killed or stopped, again and again: every stream that ends OK has the tokens it would have
    had, no status but UNAVAILABLE and INTERNAL is ever seen beside OK, and the service is whole afterwards."""
    chance = random.Random(11)
    with Running(model, device, "--step-timeout", "4s") as run, run.client() as client:
        undisturbed = {seed: client.tokens(PROMPTS[seed], 200, seed) for seed in range(len(PROMPTS))}
        done, codes = threading.Event(), []

        def ask(seed):
            while not done.is_set():
                stream = client.stream(PROMPTS[seed], 200, seed)
                codes.append(stream.join())
                if codes[-1] == grpc.StatusCode.OK:
                    assert stream.finish() == undisturbed[seed]

        with futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
            asking = [pool.submit(ask, seed) for seed in range(len(PROMPTS))]
            try:
                for _ in range(10):
                    wait_for(lambda: client.state() == "serving" and len(run.children()) == 3, "serving")
                    time.sleep(chance.uniform(1.2, 2.5))  # less than that is not having served, and is given up
                    victims = run.program(chance.choice(["shardd-worker", "shardd-worker", "shardd-coordinator"]))
                    if victims:
                        os.kill(chance.choice(victims), chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]))
                wait_for(lambda: client.state() == "serving" and len(run.children()) == 3, "serving")
                wait_for(lambda: codes.count(grpc.StatusCode.OK) > 20, "answers")
            except AssertionError as error:
                raise AssertionError("%s; the service says:\n%s" % (error, run.log()[-6000:])) from None
            finally:
                done.set()
            for future in asking:
                future.result(PATIENCE)
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
        assert client.tokens(PROMPTS[0], 200, 0) == undisturbed[0]


def test_a_pause_of_everything_costs_nobody_a_restart(model, device):
    """Every process stopped for longer than the step timeout, with a step under way: nothing was wrong with anybody."""
    with Running(model, device, "--step-timeout", "2s") as run, run.client() as client:
        undisturbed = [client.tokens(prompt, TOKENS, seed) for seed, prompt in enumerate(PROMPTS)]
        streams, endless = start_streams(client), client.stream(PROMPTS[1], ENDLESS, 9)
        for stream in streams + [endless]:
            stream.wait_tokens(10)
        everybody = run.children() + [run.pid]
        for order in (everybody, everybody[::-1]):
            for pid in order:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(3)
            for pid in order:
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.2)
        assert [stream.finish() for stream in streams] == undisturbed
        assert client.tokens(PROMPTS[1], len(endless.cut()), 9) == endless.ids
        assert "does not answer" not in run.log() and "no progress" not in run.log()
        info = client.info()
        assert info.group_epoch == 1 and info.coord_epoch == 1


def test_other_weights_are_served_after_a_restart_only(model, tmp_path):
    """The files were replaced under a running service and its workers came back with them: nobody gets another model's
    text by surprise. It stays, says that it does not serve, and why; restarted, it serves the new model."""
    folder = str(tmp_path / "tiny")
    shutil.copytree(model, folder)
    with Running(folder, "cpu") as run, run.client() as client:
        before = client.tokens(PROMPTS[0], 20, 1)
        shutil.rmtree(folder)
        subprocess.run([SHARDD, "synth", folder, "--config", "tiny", "--seed", "8"], check=True, capture_output=True)
        coordinator = run.program("shardd-coordinator")
        os.kill(run.program("shardd-worker")[0], signal.SIGKILL)
        run.wait_log("restart the service to change the model")
        wait_for(lambda: client.state() == "failed", "the state")
        status = subprocess.run([SHARDD, "status", "--server", "unix:" + run.socket], capture_output=True, text=True,
                                check=False)
        assert status.returncode == 1 and "NOT_SERVING" in status.stdout, status.stdout
        stream = client.stream(PROMPTS[0], 20, 1)
        assert stream.join() != grpc.StatusCode.OK and "restarted" in stream.details
        os.kill(run.program("shardd-worker")[0], signal.SIGKILL)  # whatever else happens: no loop, no change of mind
        time.sleep(2)
        assert client.state() == "failed" and run.program("shardd-coordinator") == coordinator
        assert run.log().count("restart the service to change the model") == 1
        assert "serving again" not in run.log()
        run.signal(signal.SIGTERM)
        assert run.wait() == 0
    with Running(folder, "cpu") as run, run.client() as client:
        assert client.tokens(PROMPTS[0], 20, 1) != before
