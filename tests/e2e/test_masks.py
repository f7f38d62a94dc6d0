"""What a client may keep from being sampled, and what it is told of its prompt: allowed ids, bad words, logprobs of the
prompt and its text."""
import json
import os
import random

import grpc
import pytest

from shardd_client import ROOT, Answer, Refused, Server, make_request, shardd

BUNDLED = os.path.join(ROOT, "models/shardd-tiny")
FLAGS = ["--device", "cpu", "--max-model-len", "1024", "--max-num-seqs", "32"]
TEXT = "what is 17 + 4? what is 17 + 5? what is 17 + 6? what is 17 + 7? "


def asked(text="Masks", max_tokens=24, temperature=0.0, seed=3, **fields):
    request = make_request(text=text, max_tokens=max_tokens, temperature=temperature, seed=seed, **fields)
    request.stopping.ignore_eos = True
    request.sampling.top_k, request.sampling.top_p = 0, 1.0
    return request


# --- allowed ids ---


@pytest.mark.parametrize("temperature", [0.0, 0.9, 100.0])
def test_only_allowed_ids_come(client, temperature):
    allowed = random.Random(5).sample(range(250), 7)
    request = asked(temperature=temperature)
    request.sampling.allowed_token_ids.extend(allowed)
    request.output.logprobs, request.output.top_logprobs = True, 3
    answer = client.generate(request)
    assert len(answer.ids) == 24 and set(answer.ids) <= set(allowed)
    assert list(answer.started.sampling.allowed_token_ids) == allowed
    # The model's own distribution is reported, which knows of no mask.
    assert any(t.token_id not in allowed for entry in answer.logprobs for t in entry.top)
    request.sampling.banned_token_ids.extend(allowed[1:])
    assert client.generate(request).ids == [allowed[0]] * 24


def test_allowed_ids_that_would_come_anyhow_change_nothing(client):
    request = asked(temperature=0.8)
    free = client.generate(request).ids
    request.sampling.allowed_token_ids.extend(free)
    assert client.generate(request).ids == free


def test_stop_ids_come_only_where_they_are_allowed(client):
    stops = client.call("GetModelInfo").stop_token_ids
    request = make_request(text="Stop", max_tokens=5)
    request.sampling.allowed_token_ids.append(stops[0])
    answer = client.generate(request)
    assert (answer.n_tokens, answer.reason) == (1, "stop")
    request.stopping.min_tokens = 2
    with pytest.raises(Refused) as refused:
        client.generate(request)
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT and "allowed_token_ids" in refused.value.sentence


def test_other_requests_notice_nothing(client):
    """More masks than a step has, beside requests without."""
    plain = [asked(text="Plain %d" % i, temperature=0.7, seed=i) for i in range(8)]
    expected = [client.generate(request).ids for request in plain]
    masked = []
    for i in range(72):
        request = asked(text="Masked %d" % i, temperature=0.7, seed=i)
        request.sampling.allowed_token_ids.extend(range(i, i + 20))
        masked.append(request)
    streams = [client.stream(request) for request in masked + plain]
    answers = [Answer(stream) for stream in streams]
    assert [a.ids for a in answers[72:]] == expected
    for i, answer in enumerate(answers[:72]):
        assert answer.n_tokens == 24 and set(answer.ids) <= set(range(i, i + 20))


@pytest.mark.parametrize("field, value, words", [
    ("allowed_token_ids", [1, 10 ** 9], "sampling.allowed_token_ids names token 1000000000"),
    ("bad_words", [""], "sampling.bad_words[0] has 0 bytes"),
    ("bad_words", ["x"] * 129, "sampling.bad_words has 129 strings; give at most 128"),
    ("bad_words", ["ab c " * 50 + str(i) for i in range(40)], "more than 4096 tokens"),
])
def test_refusals(client, field, value, words):
    request = asked()
    getattr(request.sampling, field).extend(value)
    with pytest.raises(Refused) as refused:
        client.generate(request)
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT and words in refused.value.sentence


def test_refused_output(client):
    for spoil, words in ((lambda r: setattr(r.output, "prompt_logprobs", 21), "output.prompt_logprobs is 21"),
                         (lambda r: (setattr(r.output, "echo", True), setattr(r.output, "skip_text", True)),
                          "output.echo is about text")):
        request = asked()
        spoil(request)
        with pytest.raises(Refused) as refused:
            client.generate(request)
        assert words in refused.value.sentence
    request = make_request(chat=[("user", "Hi")])
    request.output.echo = True
    with pytest.raises(Refused) as refused:
        client.generate(request)
    assert "set output.raw too" in refused.value.sentence


# --- bad words ---


def has(ids, word):
    return any(ids[i:i + len(word)] == word for i in range(len(ids) - len(word) + 1))


def test_bad_words_do_not_come(client):
    """Of four letters and a space, so that all their words come where nobody minds."""
    request = asked(temperature=1.0, max_tokens=100)
    request.sampling.allowed_token_ids.extend(client.call("Tokenize", text="abcd ").ids)
    text = client.generate(request).text
    words = [w for w in ("ab", "cd", "dcb", "a", "b c", " d") if w.strip() in text]
    assert len(words) > 3
    request.sampling.bad_words.extend(words)
    answer = client.generate(request)
    assert answer.n_tokens == 100 and list(answer.started.sampling.bad_words) == words
    for word in words:
        assert word.strip() not in answer.text


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2])
def test_a_model_says_the_same_with_drafts(tp):
    """Bad words and allowed ids, with every drafter and without, with and without a prefix cache: the same tokens."""
    said = []
    for flags in (["--speculation", "off"], ["--speculation", "auto"],
                  ["--speculation", "lookup", "--prefix-cache", "off"]):
        with Server(BUNDLED, "--tensor-parallel-size", str(tp), *FLAGS, *flags) as running, running.client() as client:
            free = client.generate(asked(text=TEXT, max_tokens=80))
            plain = asked(text=TEXT, max_tokens=80)
            plain.sampling.bad_words.extend(["17", "what is", "? what", free.text[4:9]])
            warm = asked(text=TEXT, max_tokens=80, temperature=0.9)
            warm.sampling.bad_words.extend(["17", "what is", "? what"])
            some = asked(text=TEXT, max_tokens=80, temperature=0.9)
            some.sampling.allowed_token_ids.extend(sorted(set(free.ids)) + list(range(30, 60)))
            streams = [client.stream(request) for request in (plain, warm, some)]
            answers = [Answer(stream) for stream in streams]
            for answer in answers[:2]:
                assert answer.n_tokens == 80
                for word in ("17", "what is", "? what"):
                    assert not has(answer.ids, list(client.call("Tokenize", text=word).ids))
            said.append([free.ids] + [a.ids for a in answers])
    assert said[0] == said[1] == said[2]


# --- the prompt's logprobs and text ---


def test_prompt_logprobs(client):
    ids = list(client.call("Tokenize", text=TEXT * 4).ids)
    request = asked(ids=ids, text=None, max_tokens=3)
    request.output.prompt_logprobs = 4
    answer = client.generate(request)
    told = answer.prompt_logprobs
    assert [t.token_id for t in told] == ids[1:] and answer.n_tokens == 3
    for entry in told:
        assert entry.logprob <= 0 and len(entry.top) == 4
        values = [t.logprob for t in entry.top]
        assert values == sorted(values, reverse=True) and entry.logprob <= values[0]
        assert all(t.logprob == entry.logprob for t in entry.top if t.token_id == entry.token_id)
    # What the model says of a token does not depend on whether it is given or comes: the logprob of the next one.
    for n in (1, 2, len(ids) // 2):
        request = asked(ids=ids[:n], text=None, max_tokens=1)
        request.sampling.allowed_token_ids.append(ids[n])
        request.output.logprobs = True
        assert client.generate(request).logprobs[0].logprob == told[n - 1].logprob


def test_prompt_logprobs_are_of_the_whole_prompt_whatever_is_cached(client):
    request = asked(text=TEXT * 8, max_tokens=2)
    plain = client.generate(request)
    assert client.generate(request).finish.usage.cached_tokens > 0
    request.output.prompt_logprobs = 0
    told = [client.generate(request) for _ in range(2)]
    for answer in told:
        assert answer.ids == plain.ids and answer.finish.usage.cached_tokens == 0
        assert len(answer.prompt_logprobs) == answer.started.prompt_tokens - 1
        assert not any(entry.top for entry in answer.prompt_logprobs)
    assert [e.logprob for e in told[0].prompt_logprobs] == [e.logprob for e in told[1].prompt_logprobs]
    one = asked(ids=[5], text=None)
    one.output.prompt_logprobs = 1
    assert client.generate(one).prompt_logprobs == []


def test_of_several_answers_the_first_one_tells(client):
    request = asked(text=TEXT * 3, max_tokens=4, temperature=0.9)
    request.n = 3
    request.output.prompt_logprobs = 0
    request.output.echo = True
    told, texts = [0] * 3, [""] * 3
    for chunk in client.chunks(request):
        told[chunk.answer] += len(chunk.prompt_logprobs)
        texts[chunk.answer] += "".join(delta.text for delta in chunk.deltas)
        n = chunk.started.prompt_tokens or n
    assert told == [n - 1, 0, 0]
    assert all(text.startswith(TEXT * 3) for text in texts)


@pytest.mark.parametrize("fields", [{"text": "naïve café — 東京 🙂"}, {"ids": [72, 105, 33], "text": None},
                                    {"text": (TEXT * 40)[:1900]}])
def test_echo(client, fields):
    request = asked(max_tokens=4, **fields)
    plain = client.generate(request)
    request.output.echo = True
    answer = client.generate(request)
    assert answer.text == (fields["text"] or client.call("Detokenize", ids=fields["ids"]).text) + plain.text
    assert answer.ids == plain.ids and answer.n_tokens == 4


def test_echo_of_a_chat_and_a_stop_that_only_the_prompt_has(client):
    request = make_request(chat=[("user", "Hi there")], max_tokens=4)
    request.output.raw = request.output.echo = True
    request.stopping.stop.append("Hi there")
    answer = client.generate(request)
    assert answer.text.startswith("<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n")
    assert not answer.finish.HasField("stop_string")


def test_the_command_prints_them(server):
    done = shardd("generate", "--server", server.address, "--json", "--prompt-logprobs", "2", "--echo",
                  "--max-tokens", "2", "--bad-word", "xyzzy", "--allowed-token-id", "65", "--allowed-token-id", "66",
                  "Hello there")
    assert done.returncode == 0, done.stderr
    chunks = [json.loads(line) for line in done.stdout.splitlines()]
    told = [entry for chunk in chunks for entry in chunk.get("prompt_logprobs", [])]
    assert len(told) == chunks[0]["started"]["prompt_tokens"] - 1 and len(told[0]["top"]) == 2
    text = "".join(delta.get("text", "") for chunk in chunks for delta in chunk.get("deltas", []))
    assert text.startswith("Hello there") and set(text[len("Hello there"):]) <= set("bc")
    done = shardd("generate", "--server", server.address, "--prompt-logprobs", "2", "Hello")
    assert done.returncode != 0 and "--prompt-logprobs needs --json" in done.stderr
