"""A queue that is full, too slow or in order: who is refused, when to come back, and who is served first."""
import threading
import time

import grpc
import pytest

from shardd_client import PATIENCE, Client, Refused, Server, make_request, shardd


@pytest.fixture(scope="module")
def server(model):
    """One sequence at a time, 10 ms a step."""
    with Server(model, "--device", "null", "--max-num-seqs", "1", "--max-queue", "6", "--max-queue-tokens", "400",
                env={"SHARDD_NULL_ARGS": "--step-us 10000"}) as running:
        yield running


@pytest.mark.parametrize("target,least,most", [("1ms", 20, 1000000), ("0", 1, 12)])
def test_prompts_are_read_in_steps_of_the_target(model, target, least, most):
    """A row takes 100 us: 1 ms is fewer rows than the least that is taken, and without a target a step is full."""
    with Server(model, "--device", "null", "--prefill-target", target,
                env={"SHARDD_NULL_ARGS": "--row-ns 100000"}) as running, running.client() as connected:
        connected.generate(ids=[5] * 1500, max_tokens=1)
        connected.wait_idle()
        assert least <= connected.call("GetServerInfo").steps_total <= most


def endless(**more):
    request = make_request(ids=[5] * 10, max_tokens=1500, **more)
    request.stopping.ignore_eos = True
    return request


@pytest.fixture()
def busy(client):
    """Somebody has the only place."""
    client.wait_idle()
    stream = client.stream(endless(request_id="busy"))
    next(stream)
    while client.call("GetServerInfo").running < 1:
        time.sleep(0.01)
    yield stream
    stream.cancel()
    client.wait_idle()


def refused_by(client, request, timeout=60):
    with pytest.raises(grpc.RpcError) as caught:
        list(client.stream(request, timeout=timeout))
    return Refused(caught.value), dict(caught.value.trailing_metadata() or ())


@pytest.mark.parametrize("how", ["tokens", "count"])
def test_full(client, busy, how):
    count, length = (2, 150) if how == "tokens" else (6, 1)
    waiting = [client.stream(make_request(ids=[7] * length, max_tokens=2)) for _ in range(count)]
    while client.call("GetServerInfo").waiting < count:
        time.sleep(0.01)
    refused, trailers = refused_by(client, make_request(ids=[7] * length, max_tokens=2))
    assert (refused.code, refused.word, refused.retryable) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_full", "true"), refused
    assert ("300 prompt tokens wait" if how == "tokens" else "7 requests are running or waiting") in refused.sentence
    assert 100 <= int(trailers["shardd-retry-after-ms"]) <= 60000
    assert trailers["grpc-retry-pushback-ms"] == trailers["shardd-retry-after-ms"]
    client.call("Abort", request_ids=["busy"])
    assert all(sum(chunk.n_tokens for chunk in stream) == 2 for stream in waiting)


def test_time_in_the_queue(client, busy):
    refused, trailers = refused_by(client, make_request(ids=[1], queue_timeout_ms=30))
    assert (refused.code, refused.word, refused.retryable) == (grpc.StatusCode.UNAVAILABLE, "queue_timeout", "true")
    assert int(trailers["shardd-retry-after-ms"]) >= 100 and "queue_timeout_ms" in refused.sentence
    assert client.call("GetServerInfo").waiting == 0


def test_time_in_the_queue_is_over_with_the_first_step(client):
    client.wait_idle()
    request = make_request(ids=[1], max_tokens=150 * PATIENCE, queue_timeout_ms=1000 * PATIENCE)  # half as long again
    request.stopping.ignore_eos = True
    assert client.generate(request).n_tokens == 150 * PATIENCE


def test_deadline_in_the_queue(client, busy):
    refused, _ = refused_by(client, make_request(ids=[1]), timeout=0.05)
    assert refused.code == grpc.StatusCode.DEADLINE_EXCEEDED
    while client.call("GetServerInfo").waiting > 0:  # while the place is still taken
        time.sleep(0.01)


def test_priorities_hold(server, client, busy):
    """Who waits is served by priority, then in the order of arrival; a full queue changes nothing about it."""
    done, lock, threads = [], threading.Lock(), []

    def one(name, priority):
        with Client(server.address) as own:
            own.generate(make_request(ids=[3] * 4, max_tokens=8, priority=priority))
        with lock:
            done.append(name)

    for i, (name, priority) in enumerate([("a", 0), ("b", -5), ("c", 7), ("d", 0), ("e", 100), ("f", -100)]):
        threads.append(threading.Thread(target=one, args=(name, priority)))
        threads[-1].start()
        while client.call("GetServerInfo").waiting < i + 1:
            time.sleep(0.01)
    refused, _ = refused_by(client, make_request(ids=[3], priority=100))
    assert refused.word == "queue_full"
    client.call("Abort", request_ids=["busy"])
    for thread in threads:
        thread.join()
    assert "".join(done) == "ecadbf"


def test_the_command_says_when_to_try_again(server, client, busy):
    done = shardd("generate", "--server", server.address, "--queue-timeout", "50ms", "x")
    assert done.returncode == 1 and "[queue_timeout]" in done.stderr, done.stderr
    assert "Hint: try again in about " in done.stderr
