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
    request = make_request(ids=[5] * 10, max_tokens=3000, **more)
    request.stopping.ignore_eos = True
    return request


def until(client, condition):
    """Polls the server's own account of itself; a minute is for ever."""
    end = time.monotonic() + 60 * PATIENCE
    while not condition(client.call("GetServerInfo")):
        assert time.monotonic() < end, client.call("GetServerInfo")
        time.sleep(0.01)


@pytest.fixture()
def busy(client):
    """Somebody has the only place."""
    client.wait_idle()
    stream = client.stream(endless(request_id="busy"))
    next(stream)
    until(client, lambda info: info.running == 1)
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
    until(client, lambda info: info.waiting == count)
    refused, trailers = refused_by(client, make_request(ids=[7] * length, max_tokens=2))
    assert (refused.code, refused.word, refused.retryable) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_full", "true"), refused
    assert ("300 prompt tokens wait" if how == "tokens" else "7 requests are running or waiting") in refused.sentence
    assert 100 <= int(trailers["shardd-retry-after-ms"]) <= 60000
    assert trailers["grpc-retry-pushback-ms"] == trailers["shardd-retry-after-ms"]
    client.call("Abort", request_ids=["busy"])
    assert all(sum(chunk.n_tokens for chunk in stream) == 2 for stream in waiting)


def test_answers_of_one_request_come_in_together(client, busy):
    with pytest.raises(Refused) as refused:
        client.generate(ids=[7], max_tokens=2, n=8)
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT and "takes 7 requests" in refused.value.sentence
    many = client.stream(make_request(ids=[7] * 150, max_tokens=2, n=3))  # nobody waits before them
    until(client, lambda info: info.waiting == 3)
    refused, _ = refused_by(client, make_request(ids=[7], max_tokens=2, n=4))
    assert refused.word == "queue_full" and "and with 4 more" in refused.sentence
    assert client.call("GetServerInfo").waiting == 3  # none of them has begun
    client.call("Abort", request_ids=["busy"])
    assert sum(chunk.n_tokens for chunk in many) == 6


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
    until(client, lambda info: info.waiting == 0)  # while the place is still taken


def test_priorities_hold(server, client, busy):
    """Who waits is served by priority, then in the order of arrival; a full queue changes nothing about it. They have
    the place one after another, each for longer than a reader's thread may be late."""
    done, lock, threads = [], threading.Lock(), []

    def one(name, priority):
        request = make_request(ids=[3] * 4, max_tokens=60, priority=priority)
        request.stopping.ignore_eos = True
        with Client(server.address) as own:
            own.generate(request)
        with lock:
            done.append(name)

    for i, (name, priority) in enumerate([("a", 0), ("b", -5), ("c", 7), ("d", 0), ("e", 100), ("f", -100)]):
        threads.append(threading.Thread(target=one, args=(name, priority)))
        threads[-1].start()
        until(client, lambda info, n=i + 1: info.waiting == n)
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
