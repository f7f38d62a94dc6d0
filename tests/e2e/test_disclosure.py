"""Nothing that a client did not send is ever in a reply to it. One client fills the server's memory with a secret, in
every field there is; another is then refused in every way there is. What it is told must be text of ours and bytes of
its own: never the secret, never bytes from beside its own (the same request is told the same thing each time), always
UTF-8 that can be printed, and short."""
import grpc
import pytest

from shardd_client import pb

SECRET = "Zq7Wx9Kj"
ROUNDS = 2
SENTENCE_BYTES_MAX = 640
TOOL = '{"type":"function","function":{"name":"f"}}'


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def raw(number, data):
    """A field as it goes over the wire, where Python's own messages would not take the value."""
    data = data.encode() if isinstance(data, str) else data
    return varint(number << 3 | 2) + varint(len(data)) + data


def generate(**fields):
    """A GenerateRequest on the wire; fields as its messages have them, with dicts and lists."""
    return pb.GenerateRequest(**fields).SerializeToString()


def said(role, text, **more):
    return {"role": role, "content": [{"text": text}], **more}


def chat(messages=(said("user", "hi"),), tools=(), **more):
    tools = [{"json": t if isinstance(t, bytes) else t.encode()} for t in tools]
    return pb.ChatInput(messages=messages, tools=tools, **more)


def history(*calls):
    calls = [{"name": "f", "arguments_json": c if isinstance(c, bytes) else c.encode()} for c in calls]
    return chat([said("user", "hi"), {"role": "assistant", "tool_calls": calls}, said("tool", "ok")])


def bad_json():
    """JSON that is refused, and how the sentence about it ends."""
    return [
        ('{"k":1,"k":2}', 'duplicate key "k"'), ('{"":1,"":2}', 'duplicate key ""'),
        ('{"a":{"k":1,"k":2}}', 'duplicate key "k"'), ('{"a":[{"k\\n":1,"k\\n":2}]}', 'duplicate key "k\n"'),
        ('{"%s":1,"%s":2}' % ("n" * 70, "n" * 70), 'duplicate key "%s"' % ("n" * 64)),
        ('{"%sü":1,"%sü":2}' % ("n" * 63, "n" * 63), 'duplicate key "%s"' % ("n" * 63)),
        ('{"%s":1,"%s":2}' % ("\u20ac" * 40, "\u20ac" * 40), 'duplicate key "%s"' % ("\u20ac" * 21)),
        ("", "the text ends where a value should be"), ("{", "the text ends where a key in quotes should be"),
        ('{"k"', "the text ends where ':' after the key should be"),
        ('{"k":1', "the text ends where ',' or '}' should be"), ('{"k":-', "the text ends where a digit should be"),
        ('{"k":"open', "this string has no closing quote"), ('{"k":"\\', "the text ends where an escape should be"),
        ('{"k":"\\u12', "\\u needs four hex digits"), ('{"k":"\\ud800"}', "without the other half"),
        ('{"k":1e999}', "too large for double precision"), ('{"k":01}', "may not begin with a zero"),
        ('{"k":tru', "expected a value, found 't'"), ('{"k":"\\u0000"}', "U+0000"), ('{"\\u0000":1}', "U+0000"),
        ('{"k":1}x', "found 'x'"), ("[1]", "must be a JSON object: {...}"), ('"k"', "must be a JSON object: {...}"),
        ("[" * 100, "nested more than 64 levels deep"), (b'{"k":"\xff"}', "byte 0xff is not UTF-8"),
        (b'{"k\xc3', "byte 0xc3 is not UTF-8"),
        (b'{"k":1}\0', "found byte 0x00"), ('{"k":1.%s}' % ("9" * 300), "too large for double precision"),
    ]


def json_requests():
    for json, end in bad_json():
        yield "tool", "Generate", generate(chat=chat(tools=[TOOL, json])), end
        yield "tool", "Tokenize", pb.TokenizeRequest(chat=chat(tools=[json])).SerializeToString(), end
        if json:  # none are {}
            yield "arguments", "Generate", generate(chat=history("{}", json)), end
    for json in ("{}", '{"type":"function"}', '{"type":7,"function":{"name":"f"}}', TOOL.replace('"f"', '""')):
        yield "tool", "Generate", generate(chat=chat(tools=[json])), None


def name_requests():
    for name in ("other", "x" * 300, "n" * 99 + "\u20ac", "a\0b", "%s%n%d", b"\xff\xfe", b"ok\xc3", b"\xed\xa0\x80"):
        yield "model", "Generate", raw(1, name) + raw(3, "x"), None
        for method in ("Tokenize", "Detokenize", "GetModelInfo"):
            yield "model", method, raw(1, name), None
    for name in ("a b", "x" * 129, "a\0b", "\u20ac", "%s", b"\xff"):
        yield "request_id", "Generate", raw(2, name) + raw(3, "x"), None
        yield "request_ids", "Abort", raw(1, name), None


def utf8_requests():
    for bad in (b"\xff", b"good \xff bad", b"cut \xe2\x82", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"):
        yield "text", "Generate", raw(3, bad), None
        yield "text", "Tokenize", raw(2, bad), None
        yield "stop", "Generate", raw(3, "x") + raw(7, raw(3, bad)), None
        for message in (raw(1, bad) + raw(2, raw(1, "x")), raw(1, "user") + raw(2, raw(1, bad)),
                        raw(1, "assistant") + raw(3, bad), raw(1, "tool") + raw(2, raw(1, "x")) + raw(5, bad),
                        raw(1, "assistant") + raw(4, raw(2, bad) + raw(3, "{}")),
                        raw(1, "assistant") + raw(4, raw(1, bad) + raw(2, "f") + raw(3, "{}"))):
            yield "message", "Generate", raw(5, raw(1, message)), None


def chat_requests():
    user = said("user", "hi")
    for message in (said("robot", "x"), said("user\0", "x"), said("user", "x", reasoning="r"), said("system", "late"),
                    said("user", "x", tool_call_id="t"), {"role": "user", "content": [{}]},
                    said("user", "x", tool_calls=[{"name": "f", "arguments_json": b"{}"}]),
                    said("assistant", "x", tool_calls=[{"name": "", "arguments_json": b"{}"}])):
        yield "message", "Generate", generate(chat=chat([user, message])), None
    yield "no question", "Generate", generate(chat=chat([said("assistant", "x")])), None
    yield "no messages", "Generate", generate(chat=pb.ChatInput()), None
    yield "parse_special", "Generate", generate(chat=chat(), parse_special=True), None


def option_requests():
    for options in ({"temperature": -1}, {"top_p": float("nan")}, {"min_p": 9}, {"repetition_penalty": 0},
                    {"logit_bias": {1 << 30: 1.0}}, {"logit_bias": {1: float("inf")}}):
        yield "sampling", "Generate", generate(text="x", sampling=options), None
    for options in ({"stop": [""]}, {"stop": ["s" * 257]}, {"stop": ["s"] * 33}, {"stop_token_ids": [1 << 30]},
                    {"max_tokens": 0}, {"max_tokens": 3, "min_tokens": 4}, {"stop_token_ids": [1] * 65}):
        yield "stopping", "Generate", generate(text="x", stopping=options), None
    for options in ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 99},
                    {"skip_text": True, "show_special": True}):
        yield "output", "Generate", generate(text="x", output=options), None
    yield "priority", "Generate", generate(text="x", priority=101), None
    yield "ids", "Generate", generate(token_ids={"ids": [1 << 31]}), None
    yield "ids", "Detokenize", pb.DetokenizeRequest(ids=[1, 4000000000]).SerializeToString(), None
    yield "all", "Abort", pb.AbortRequest(all=True, request_ids=["a"]).SerializeToString(), None


def shape_requests():
    for method in ("Generate", "Tokenize", "Abort"):
        yield "nothing", method, b"", None
    yield "empty text", "Generate", raw(3, ""), None
    for method in ("Generate", "Tokenize", "Detokenize", "GetModelInfo", "GetServerInfo", "Abort"):
        yield "malformed", method, b"\xff\xff\xff", None
        yield "unknown field", method, raw(1000, "x"), None
        yield "cut short", method, b"\x0a\x50abc", None


def requests():
    """(what is wrong, method, the message on the wire, how the sentence about it ends or None)."""
    return [r for make in (json_requests, name_requests, utf8_requests, chat_requests, option_requests, shape_requests)
            for r in make()]


def call(channel, method, message):
    """The refusal of a call: code, sentence, all trailers."""
    stream = channel.unary_stream("/shardd.v1.Shardd/" + method, lambda b: b, lambda b: b)(message, timeout=60)
    with pytest.raises(grpc.RpcError) as caught:
        for _ in stream:
            pass
    error = caught.value
    trailers = sorted((k, v) for k, v in error.trailing_metadata() or ())
    return error.code(), error.details() or "", [t for t in trailers if t[0] != "grpc-status"]


def flood(channel):
    """The secret in every field, in requests that are served and in requests that are refused."""
    words = (SECRET + "-") * 8
    tool = '{"type":"function","function":{"name":"%s","description":"%s"},"%s":["%s"]}' % ((words,) * 4)
    called = {"id": words, "name": words, "arguments_json": ('{"%s":"%s"}' % (words, words)).encode()}
    messages = [said("system", words), said("user", words), said("tool", words, tool_call_id=words),
                said("assistant", words, reasoning=words, tool_calls=[called])]
    one = {"max_tokens": 1, "stop": [words]}
    sent = [("Generate", generate(chat=chat(messages, [tool]), request_id=words, stopping=one)),
            ("Generate", generate(text=words, stopping=one)), ("Generate", generate(text=words, model=words)),
            ("Tokenize", pb.TokenizeRequest(chat=chat(messages, [tool])).SerializeToString()),
            ("Tokenize", pb.TokenizeRequest(text=words, with_pieces=True).SerializeToString()),
            ("Tokenize", pb.TokenizeRequest(chat=chat(tools=['{"%s":1,"%s":2}' % (words, words)])).SerializeToString()),
            ("Abort", pb.AbortRequest(request_ids=[words * 2]).SerializeToString())]
    refused = []
    for method, message in sent:
        try:
            for _ in channel.unary_stream("/shardd.v1.Shardd/" + method, lambda b: b, lambda b: b)(message, timeout=60):
                pass
        except grpc.RpcError as error:
            refused.append(error.details())
    assert len(refused) == 3, refused  # the unknown model, the key that is there twice, the bad id


def check_told(name, message, code, sentence, trailers):
    whole = sentence + "".join("%s=%s" % t for t in trailers)
    assert SECRET not in whole, "%s: another client's text: %r" % (name, whole)
    assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), (name, code, sentence)
    assert 0 < len(sentence.encode()) < SENTENCE_BYTES_MAX, (name, sentence)
    for letter in set(whole):
        own = letter.encode() in message or letter == "\n"  # which a key's \n stands for
        assert 32 <= ord(letter) < 127 or own, "%s: %r is in %r, and was not sent" % (name, letter, whole)


def test_a_refusal_tells_nothing_of_others(server):
    told = {}
    cases = requests()
    assert len(cases) > 200
    with server.client() as a, server.client() as b:
        for _ in range(ROUNDS):
            for number, (name, method, message, end) in enumerate(cases):
                if number % 64 == 0:
                    flood(a.channel)
                assert SECRET.encode() not in message
                code, sentence, trailers = call(b.channel, method, message)
                check_told(name, message, code, sentence, trailers)
                assert end is None or sentence.endswith(end), (name, sentence, end)
                first = told.setdefault(number, (code, sentence, trailers))
                assert first == (code, sentence, trailers), "%s is told %r, then %r" % (name, first[1], sentence)
        b.wait_idle()
        assert b.generate(text="Still here?", max_tokens=2).n_tokens == 2
