"""Generate through the whole path: what a client asks for is what it gets, and equal requests get equal tokens."""
import threading

import grpc
import pytest

from shardd_client import Answer, Refused, Server, make_request, pb


def test_text_streams_and_ends(client):
    answer = client.generate(text="Hello, shardd.", max_tokens=12)
    assert answer.n_tokens == 12 and len(answer.ids) == 12
    assert answer.reason in ("length", "stop")
    assert answer.finish.usage.prompt_tokens == answer.started.prompt_tokens > 0
    assert answer.finish.usage.completion_tokens == answer.n_tokens
    assert answer.finish.usage.first_token_ms > 0


def test_same_request_same_tokens(client):
    first = client.generate(text="Same again?", temperature=0.8, seed=42, max_tokens=24)
    second = client.generate(text="Same again?", temperature=0.8, seed=42, max_tokens=24)
    other = client.generate(text="Same again?", temperature=0.8, seed=43, max_tokens=24)
    assert first.ids == second.ids and first.text == second.text
    assert first.ids != other.ids


def test_ids_and_text_agree(client):
    ids = list(client.call("Tokenize", text="The ids of this prompt").ids)
    by_text = client.generate(text="The ids of this prompt")
    by_ids = client.generate(ids=ids)
    assert by_text.ids == by_ids.ids
    assert by_text.started.prompt_tokens == len(ids)


def test_detokenize_gives_the_text_back(client):
    for text in ("plain", "naïve café — 東京 🙂", "  spaces\n\ttabs\r\n"):
        ids = client.call("Tokenize", text=text).ids
        assert client.call("Detokenize", ids=ids).text == text


def test_generated_text_is_the_ids_text(client):
    request = make_request(text="Text and ids", max_tokens=32, temperature=1.0, seed=5)
    request.stopping.ignore_eos = True
    answer = client.generate(request)
    assert answer.text == client.call("Detokenize", ids=answer.ids).text


def test_chat_and_tokenize_agree(client):
    request = pb.TokenizeRequest()
    request.chat.messages.add(role="user").content.add(text="Hi there")
    tokens = client.methods["Tokenize"](request)
    assert tokens.rendered.startswith("<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n")
    answer = client.generate(chat=[("user", "Hi there")], max_tokens=4)
    assert answer.started.prompt_tokens == len(tokens.ids)


def test_numbers_of_any_length_in_arguments(client):
    request = pb.TokenizeRequest()
    for role, text in (("user", "go"), ("assistant", "")):
        request.chat.messages.add(role=role).content.add(text=text)
    request.chat.messages[1].tool_calls.add(name="f", arguments_json=b'{"n": 123456789012345678901234567890}')
    assert "123456789012345678901234567890" in client.methods["Tokenize"](request).rendered


@pytest.mark.parametrize("arguments", [b"", b" ", b"null", b"{}"])
def test_a_call_without_arguments_in_history(client, arguments):
    request = pb.TokenizeRequest()
    for role, text in (("user", "go"), ("assistant", ""), ("tool", "12:00")):
        request.chat.messages.add(role=role).content.add(text=text)
    request.chat.messages[1].tool_calls.add(name="now", arguments_json=arguments)
    assert "<tool_call>\n<function=now>\n</function>\n</tool_call>" in client.methods["Tokenize"](request).rendered


def test_user_text_never_becomes_control_tokens(client):
    control = client.call("Tokenize", text="<|im_end|>", parse_special=True).ids
    plain = client.call("Tokenize", text="<|im_end|>").ids
    assert len(control) == 1 and len(plain) > 1
    request = pb.TokenizeRequest()
    request.chat.messages.add(role="user").content.add(text="ignore <|im_end|> this")
    ids = list(client.methods["Tokenize"](request).ids)
    request.chat.messages[0].content[0].text = "ignore  this"
    assert ids.count(control[0]) == list(client.methods["Tokenize"](request).ids).count(control[0])


def test_logprobs(client):
    request = make_request(text="Numbers", max_tokens=6)
    request.output.logprobs = True
    request.output.top_logprobs = 5
    answer = client.generate(request)
    assert len(answer.logprobs) == 6
    for token, entry in zip(answer.ids, answer.logprobs):
        assert entry.token_id == token and entry.logprob <= 0
        assert len(entry.top) == 5
        assert entry.top[0].token_id == token  # greedy takes the most likely one
        assert abs(entry.top[0].logprob - entry.logprob) == 0
        values = [t.logprob for t in entry.top]
        assert values == sorted(values, reverse=True)


def test_logit_bias_forces_and_forbids(client):
    free = client.generate(text="Bias", max_tokens=1).ids[0]
    forced = 65 if free != 65 else 66
    request = make_request(text="Bias", max_tokens=5)
    request.sampling.logit_bias[forced] = 100.0
    assert client.generate(request).ids == [forced] * 5
    request = make_request(text="Bias", max_tokens=1)
    request.sampling.logit_bias[free] = -100.0
    assert client.generate(request).ids != [free]


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 0.9, 100.0])
def test_banned_ids_never_come_and_change_nothing_else(client, temperature):
    request = make_request(text="Banned", max_tokens=24, temperature=temperature, seed=5)
    request.stopping.ignore_eos = True
    request.sampling.top_k, request.sampling.top_p = 0, 1.0
    free = client.generate(request).ids
    request.sampling.banned_token_ids.extend(sorted(set(range(200)) - set(free)))
    assert client.generate(request).ids == free  # what does not come is not missed: equal noise, equal tokens
    request.sampling.banned_token_ids[:] = sorted(set(free))
    request.sampling.repetition_penalty = 0.5
    answer = client.generate(request)
    assert len(answer.ids) == 24 and not set(answer.ids) & set(free)
    assert list(answer.started.sampling.banned_token_ids) == sorted(set(free))


def test_the_second_choice_comes_where_the_first_is_banned(client):
    request = make_request(text="Second best", max_tokens=1)
    request.output.logprobs, request.output.top_logprobs = True, 2
    first, second = client.generate(request).logprobs[0].top
    request.sampling.banned_token_ids.append(first.token_id)
    answer = client.generate(request)
    assert answer.ids == [second.token_id] and answer.logprobs[0].logprob == second.logprob


def test_stop_string_is_cut_and_reported(client):
    whole = make_request(text="Stop here", max_tokens=40)
    whole.stopping.ignore_eos = True
    text = client.generate(whole).text
    stop = text[10:13]
    request = make_request(text="Stop here", max_tokens=40)
    request.stopping.ignore_eos = True
    request.stopping.stop.append(stop)
    answer = client.generate(request)
    assert answer.reason == "stop" and answer.finish.stop_string == stop
    assert answer.text == text[:text.index(stop)]
    request.stopping.include_stop = True
    assert client.generate(request).text == text[:text.index(stop) + len(stop)]


def test_stop_ids_and_min_tokens(client):
    request = make_request(text="Stop id", max_tokens=20)
    request.stopping.ignore_eos = True
    ids = client.generate(request).ids
    request.stopping.stop_token_ids.append(ids[3])
    answer = client.generate(request)
    assert answer.ids == ids[:ids.index(ids[3]) + 1] and answer.reason == "stop"
    assert answer.finish.stop_token_id == ids[3]
    request.stopping.min_tokens = 10
    answer = client.generate(request)
    assert ids[3] not in answer.ids[:10] and answer.n_tokens >= 10


def test_unset_sampling_is_reported(client):
    request = pb.GenerateRequest(text="defaults")
    request.stopping.max_tokens = 1
    used = client.generate(request).started.sampling
    for field in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
                  "frequency_penalty", "seed"):
        assert used.HasField(field), field


def test_output_options(client):
    request = make_request(text="Options", max_tokens=4)
    request.output.skip_text = True
    request.output.prompt_token_ids = True
    answer = client.generate(request)
    assert answer.text == "" and len(answer.ids) == 4
    assert list(answer.started.prompt_token_ids) == list(client.call("Tokenize", text="Options").ids)


def run_many(client, count, results, max_tokens=24):
    def one(i):
        try:
            results[i] = client.generate(text="Stream number %d" % i, temperature=0.7, seed=i, max_tokens=max_tokens)
        except Exception as error:  # reported by the caller, with its stream
            results[i] = error
    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_64_concurrent_streams_equal_single_ones(client):
    together = [None] * 64
    run_many(client, 64, together)
    for i in (0, 17, 63):
        alone = client.generate(text="Stream number %d" % i, temperature=0.7, seed=i, max_tokens=24)
        assert together[i].ids == alone.ids
    assert all(isinstance(answer, Answer) for answer in together), together
    client.wait_idle()


def test_cancel_frees_everything(client):
    client.wait_idle()
    streams = []
    for i in range(8):
        request = make_request(text="Cancel me %d" % i, max_tokens=1500)
        request.stopping.ignore_eos = True
        streams.append(client.stream(request))
    for stream in streams:
        next(stream)
        stream.cancel()
    client.wait_idle()


def test_hang_up_frees_everything(server, client):
    leaving = server.client()
    request = make_request(text="Going away", max_tokens=1500)
    request.stopping.ignore_eos = True
    next(leaving.stream(request))
    leaving.close()
    client.wait_idle()


def test_deadline(client):
    request = make_request(text="Too slow", max_tokens=1900)
    request.stopping.ignore_eos = True
    codes = []
    for seconds in (0.3, 0.1, 0.03, 0.01, 0.003):  # a fast machine may be done within the first ones
        try:
            client.generate(request, timeout=seconds)
        except Refused as refused:
            codes.append(refused.code)
            client.wait_idle()
    assert codes and set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}


def test_abort_by_id(client):
    request = make_request(text="Abort me", max_tokens=1500, request_id="abort-me")
    request.stopping.ignore_eos = True
    stream = client.stream(request)
    first = next(stream)
    assert first.started.request_id == "abort-me"
    with pytest.raises(Refused) as refused:
        client.generate(text="twice", request_id="abort-me")
    assert refused.value.code == grpc.StatusCode.ALREADY_EXISTS
    assert client.call("Abort", request_ids=["abort-me", "nobody"]).found == 1
    last = first
    for last in stream:
        pass
    assert last.finish.reason == pb.FINISH_REASON_ABORTED
    client.wait_idle()


def test_long_prompt_in_chunks(client):
    text = "All work and no play makes a long prompt. " * 40
    first = client.generate(text=text, max_tokens=8)
    assert first.started.prompt_tokens > 1024
    assert first.ids == client.generate(text=text, max_tokens=8).ids


@pytest.mark.slow
def test_tensor_parallel_sizes_give_the_same_tokens(model):
    seen = []
    for tp in ("1", "2", "4", "8"):
        with Server(model, "--tensor-parallel-size", tp, "--max-model-len", "512") as running:
            with running.client() as connected:
                request = make_request(text="Any number of ranks", temperature=0.9, seed=3, max_tokens=16)
                request.output.logprobs = True
                answer = connected.generate(request)
                seen.append((answer.ids, [entry.logprob for entry in answer.logprobs]))
    assert seen[0] == seen[1] == seen[2] == seen[3]
