"""Every refusal: the right gRPC status, a sentence that names the field and what to do, a stable word and whether to
try again; and the daemon goes on."""
import grpc
import pytest

from shardd_client import Refused, make_request, pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def expect(client, request, code, *words, timeout=30):
    with pytest.raises(Refused) as caught:
        client.generate(request, timeout=timeout)
    refused = caught.value
    assert refused.code == code, str(refused)
    for word in words:
        assert word in refused.sentence, "'%s' should name '%s'" % (refused.sentence, word)
    assert refused.word and refused.retryable in ("true", "false"), str(refused)
    return refused


@pytest.fixture(autouse=True)
def goes_on(client):
    yield
    assert client.generate(text="Still here?", max_tokens=2).n_tokens == 2
    client.wait_idle()


def test_no_input(client):
    request = pb.GenerateRequest()
    expect(client, request, INVALID, "text", "token_ids", "chat")


def test_empty_prompts(client):
    expect(client, make_request(text=""), INVALID, "text", "empty")
    expect(client, pb.GenerateRequest(token_ids=pb.TokenIds()), INVALID, "token_ids")
    expect(client, pb.GenerateRequest(chat=pb.ChatInput()), INVALID, "messages")


def test_unknown_model(client):
    refused = expect(client, make_request(text="x", model="no-such-model"), grpc.StatusCode.NOT_FOUND, "no-such-model")
    assert refused.retryable == "false"


def test_ids_out_of_range(client):
    vocab = client.call("GetModelInfo").vocab_size
    expect(client, make_request(ids=[1, vocab]), INVALID, "token_ids", str(vocab))


def test_context_too_long(client):
    limit = client.call("GetModelInfo").max_model_len
    expect(client, make_request(ids=[5] * (limit + 10)), INVALID, str(limit), str(limit + 10))
    expect(client, make_request(ids=[5] * (limit - 4), max_tokens=100), INVALID, "max_tokens", str(limit))


SAMPLING = [
    ("temperature", float("nan")), ("temperature", -1.0), ("temperature", float("inf")), ("temperature", 1000.0),
    ("top_p", 0.0), ("top_p", 1.5), ("top_p", float("nan")), ("min_p", -0.1), ("min_p", 1.1),
    ("repetition_penalty", 0.0), ("repetition_penalty", float("nan")), ("repetition_penalty", 11.0),
    ("presence_penalty", 3.0), ("presence_penalty", float("inf")), ("frequency_penalty", -3.0),
]


@pytest.mark.parametrize("field,value", SAMPLING)
def test_sampling_out_of_range(client, field, value):
    request = make_request(text="x")
    setattr(request.sampling, field, value)
    expect(client, request, INVALID, field)


def test_logit_bias(client):
    vocab = client.call("GetModelInfo").vocab_size
    request = make_request(text="x")
    request.sampling.logit_bias[vocab] = 1.0
    expect(client, request, INVALID, "logit_bias", str(vocab))
    request = make_request(text="x")
    request.sampling.logit_bias[3] = float("nan")
    expect(client, request, INVALID, "logit_bias")
    request = make_request(text="x")
    for token in range(1025):
        request.sampling.logit_bias[token] = 1.0
    expect(client, request, INVALID, "logit_bias", "1024")


def test_stopping(client):
    request = make_request(text="x", max_tokens=0)
    expect(client, request, INVALID, "max_tokens")
    request = make_request(text="x", max_tokens=4)
    request.stopping.min_tokens = 5
    expect(client, request, INVALID, "min_tokens", "max_tokens")
    request = make_request(text="x")
    request.stopping.stop.append("")
    expect(client, request, INVALID, "stop")
    request = make_request(text="x")
    request.stopping.stop.extend(["s%d" % i for i in range(33)])
    expect(client, request, INVALID, "stop", "32")
    request = make_request(text="x")
    request.stopping.stop.append("s" * 257)
    expect(client, request, INVALID, "stop", "256")
    request = make_request(text="x")
    request.stopping.stop_token_ids.append(client.call("GetModelInfo").vocab_size)
    expect(client, request, INVALID, "stop_token_ids")


def test_output_contradictions(client):
    request = make_request(text="x")
    request.output.top_logprobs = 5
    expect(client, request, INVALID, "top_logprobs", "logprobs")
    request = make_request(text="x")
    request.output.logprobs = True
    request.output.top_logprobs = 21
    expect(client, request, INVALID, "top_logprobs", "20")
    request = make_request(text="x")
    request.output.skip_text = True
    request.stopping.stop.append("y")
    expect(client, request, INVALID, "skip_text", "stop")


def test_request_id(client):
    expect(client, make_request(text="x", request_id="a b"), INVALID, "request_id")
    expect(client, make_request(text="x", request_id="r" * 129), INVALID, "request_id", "128")


def test_priority(client):
    expect(client, make_request(text="x", priority=101), INVALID, "priority")


def test_chat_messages(client):
    expect(client, make_request(chat=[("narrator", "hi")]), INVALID, "messages[0].role")
    expect(client, make_request(chat=[("user", "hi"), ("system", "late")]), INVALID, "ystem")
    request = make_request(chat=[("user", "hi")])
    request.chat.tools.add(json=b'{"type": "function", "function": ')
    expect(client, request, INVALID, "tools[0]")
    request = make_request(chat=[("user", "hi")])
    request.chat.tools.add(json=b"[" * 5000)
    expect(client, request, INVALID, "tools[0]")
    request = make_request(chat=[("user", "hi"), ("assistant", "calling"), ("user", "and?")])
    request.chat.messages[1].tool_calls.add(name="f", arguments_json=b"[1, 2]")
    expect(client, request, INVALID, "arguments")


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def raw_call(client, payload, method="/shardd.v1.Shardd/Generate"):
    call = client.channel.unary_stream(method, lambda b: b, lambda b: b)
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call(payload, timeout=30):
            pass
    return Refused(caught.value)


def test_invalid_utf8_names_field_and_offset(client):
    text = b"good \xff bad"
    refused = raw_call(client, b"\x1a" + varint(len(text)) + text)
    assert refused.code == INVALID and "text" in refused.sentence and "UTF-8" in refused.sentence
    assert "5" in refused.sentence


def test_nul_bytes_are_text(client):
    assert client.call("Detokenize", ids=client.call("Tokenize", text="a\0b").ids).text == "a\0b"


def test_bytes_that_do_not_parse(client):
    assert raw_call(client, b"\xff\xff\xff\xff").code == INVALID


def test_message_of_100_megabytes(client):
    refused = raw_call(client, b"\x1a" + varint(100 << 20) + b"a" * (100 << 20))
    assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_detokenize_and_tokenize_refuse(client):
    vocab = client.call("GetModelInfo").vocab_size
    with pytest.raises(Refused) as caught:
        client.call("Detokenize", ids=[0, vocab + 5])
    assert caught.value.code == INVALID and str(vocab + 5) in caught.value.sentence
    with pytest.raises(Refused) as caught:
        client.call("Tokenize")
    assert caught.value.code == INVALID
    with pytest.raises(Refused) as caught:
        client.call("GetModelInfo", model="other")
    assert caught.value.code == grpc.StatusCode.NOT_FOUND


def test_abort_needs_something(client):
    with pytest.raises(Refused) as caught:
        client.call("Abort")
    assert caught.value.code == INVALID
