"""Several answers of one request: each is what a request of its own would have got, and they live and end together."""
import json

import grpc
import pytest

from shardd_client import Answer, Refused, make_request, pb, shardd


def split(chunks):
    """The chunks of each answer as a stream of its own, and the total."""
    answers, started, total, index = {}, None, None, 0
    for chunk in chunks:
        assert total is None, "a chunk after the last"
        assert chunk.index == index
        index += 1
        if chunk.HasField("started"):
            started = chunk.started
        own = answers.setdefault(chunk.answer, [])
        chunk.index = len(own)
        if not chunk.HasField("started") and not own:  # as if it were alone
            chunk.started.CopyFrom(started)
        own.append(chunk)
        if chunk.HasField("total"):
            total = chunk.total
    return [Answer(answers[i]) for i in sorted(answers)], total


def test_each_is_the_answer_of_its_seed(client):
    answers, total = split(client.chunks(make_request(text="Many ways", temperature=0.9, seed=11, max_tokens=24, n=5)))
    assert len(answers) == 5
    for i, answer in enumerate(answers):
        alone = client.generate(text="Many ways", temperature=0.9, seed=11 + i, max_tokens=24)
        assert answer.ids == alone.ids and answer.text == alone.text and answer.reason == alone.reason
    assert len({tuple(answer.ids) for answer in answers}) == 5
    assert total.completion_tokens == sum(answer.n_tokens for answer in answers)
    assert total.prompt_tokens == answers[0].finish.usage.prompt_tokens == answers[0].started.prompt_tokens
    assert total.total_ms >= max(answer.finish.usage.total_ms for answer in answers)
    assert total.first_token_ms == min(answer.finish.usage.first_token_ms for answer in answers)


def test_one_answer_has_no_total(client):
    for n in (0, 1):
        chunks = list(client.chunks(make_request(text="One", max_tokens=3, n=n)))
        assert not any(chunk.HasField("total") for chunk in chunks)
        assert Answer(chunks).n_tokens == 3


def endless(**more):
    request = make_request(text="On and on", max_tokens=1800, temperature=1.0, n=3, **more)
    request.stopping.ignore_eos = True
    return request


def test_abort_ends_all(client):
    stream = client.stream(endless(request_id="three"))
    chunks = [next(stream)]
    with pytest.raises(Refused) as refused:
        client.generate(text="twice", request_id="three")
    assert refused.value.code == grpc.StatusCode.ALREADY_EXISTS
    assert client.call("Abort", request_ids=["three"]).found == 1
    answers, _ = split(chunks + list(stream))
    assert [answer.finish.reason for answer in answers] == [pb.FINISH_REASON_ABORTED] * 3
    client.wait_idle()


def test_cancel_and_hang_up_end_all(server, client):
    stream = client.stream(endless())
    next(stream)
    stream.cancel()
    client.wait_idle()
    leaving = server.client()
    next(leaving.stream(endless()))
    leaving.close()
    client.wait_idle()


def test_too_many(client):
    with pytest.raises(Refused) as refused:
        client.generate(text="x", n=17)
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT and "16" in refused.value.sentence


def test_the_command_shows_all(server, client):
    done = shardd("generate", "--server", server.address, "--json", "--answers", "3", "--seed", "11",
                  "-t", "0.9", "-n", "9", "Many ways")
    chunks = [json.loads(line) for line in done.stdout.splitlines()]
    assert {chunk["answer"] for chunk in chunks if "finish" in chunk} == {0, 1, 2}
    last = chunks[-1]["total"]
    assert last["completion_tokens"] == sum(chunk["n_tokens"] for chunk in chunks)
    for i in range(3):
        text = "".join(d["text"] for chunk in chunks if chunk["answer"] == i for d in chunk.get("deltas", []))
        assert text == client.generate(text="Many ways", temperature=0.9, seed=11 + i, max_tokens=9).text
    refused = shardd("generate", "--server", server.address, "--answers", "3", "x")
    assert refused.returncode == 2 and "--json" in refused.stderr


def test_the_prompt_is_read_once(client):
    request = make_request(ids=[7 + i % 90 for i in range(1000)], temperature=1.0, seed=3, max_tokens=4, n=4)
    answers, total = split(client.chunks(request))
    assert [answer.finish.usage.cached_tokens > 900 for answer in answers] == [False, True, True, True]
    assert total.prompt_tokens == 1000 and total.cached_tokens == 0
    client.wait_idle()
