"""/metrics as a scraper reads it: the format to the letter, numbers that are those of the requests, vLLM's names."""
import re

import pytest

from shardd_client import METRICS, Refused, Server, make_request

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(r"^(%s)(?:\{(.*)\})? (\S+)$" % NAME)
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')


@pytest.fixture(scope="module")
def server(model):
    with Server(model, "--max-model-len", "1024", "--max-num-seqs", "8", *METRICS,
                "--served-model-name", 'a "quoted" name') as running:
        yield running


def parse(text):
    """Kind of each family, and samples by name and labels; refuses what a scraper would."""
    kinds, samples, helped = {}, {}, set()
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name not in helped, "%s is explained twice" % name
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name in helped and kind in ("counter", "gauge", "histogram")
            kinds[name] = kind
        else:
            match = SAMPLE.match(line)
            assert match, line
            labels = LABEL.findall(match.group(2) or "")
            assert ",".join('%s="%s"' % pair for pair in labels) == (match.group(2) or ""), line
            name = match.group(1)
            family = name if name in kinds else re.sub("_(bucket|sum|count)$", "", name)
            assert kinds[family] != "histogram" or name != family, line
            key = (name, tuple(labels))
            assert key not in samples, "%s is there twice" % line
            samples[key] = float(match.group(3))
    return kinds, samples


def check_histograms(kinds, samples):
    """Each has ascending bounds, counts that do not fall, and +Inf equal to its count."""
    seen = 0
    for name in [n for n, kind in kinds.items() if kind == "histogram"]:
        buckets = [(float(dict(labels)["le"].replace("+Inf", "inf")), value)
                   for (sample, labels), value in samples.items() if sample == name + "_bucket"]
        assert buckets == sorted(buckets) and buckets[-1][0] == float("inf")
        assert [v for _, v in buckets] == sorted(v for _, v in buckets)
        count, = [v for (sample, _), v in samples.items() if sample == name + "_count"]
        assert count == buckets[-1][1]
        assert any(sample == name + "_sum" for sample, _ in samples)
        seen += 1
    return seen


def scrape(server):
    with server.metrics() as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        kinds, samples = parse(answer.read().decode())
    assert check_histograms(kinds, samples) >= 20
    return samples


def value(samples, name, **labels):
    """The only sample of this name that has these labels."""
    found, = [v for (sample, all_labels), v in samples.items()
              if sample == name and labels.items() <= dict(all_labels).items()]
    return found


def test_numbers_are_those_of_the_requests(client, server):
    client.wait_idle()
    before = scrape(server)
    prompts = answers = 0
    for i in range(5):
        answer = client.generate(make_request(text="Count me " * (i + 1), max_tokens=3 + i))
        prompts += answer.started.prompt_tokens
        answers += answer.n_tokens
    client.wait_idle()
    after = scrape(server)

    def grew(name, **labels):
        return value(after, name, **labels) - value(before, name, **labels)

    for prefix in ("shardd_", "vllm:"):
        assert grew(prefix + "time_to_first_token_seconds_count") == 5
        assert grew(prefix + "inter_token_latency_seconds_count") == answers - 5
        assert grew(prefix + "e2e_request_latency_seconds_count") == 5
        assert grew(prefix + "request_queue_time_seconds_count") == 5
        assert grew(prefix + "request_prompt_tokens_sum") == prompts
        assert grew(prefix + "request_generation_tokens_sum") == answers
        assert grew(prefix + "prompt_tokens_total") == prompts
    assert grew("vllm:generation_tokens_total") == grew("shardd_generated_tokens_total") == answers
    assert grew("shardd_requests_finished_total", reason="length") \
        + grew("shardd_requests_finished_total", reason="stop") == 5
    assert value(after, "vllm:num_requests_running") == value(after, "vllm:num_requests_waiting") == 0
    assert value(after, "vllm:kv_cache_usage_perc") == 0


def test_endings_are_told_apart(client, server):
    client.wait_idle()
    before = scrape(server)
    request = make_request(text="Stay", max_tokens=900, request_id="abort-me")
    request.stopping.ignore_eos = True
    request.output.logprobs = True
    request.output.top_logprobs = 20  # what nobody reads fills the stream's window: it cannot end before the abort
    stream = client.stream(request)
    next(stream)
    client.call("Abort", request_ids=["abort-me"])
    list(stream)
    with pytest.raises(Refused):
        client.generate(make_request(text=""))
    client.wait_idle()
    after = scrape(server)
    for name, labels in (("shardd_requests_finished_total", {"reason": "aborted"}),
                         ("shardd_requests_refused_total", {}),
                         ("vllm:request_success_total", {"finished_reason": "abort"})):
        assert value(after, name, **labels) == value(before, name, **labels) + 1


def test_labels_are_escaped(client, server):
    assert client.call("GetModelInfo").served_names == ['a "quoted" name']
    samples = scrape(server)
    value(samples, "vllm:num_requests_running", model_name='a \\"quoted\\" name', engine="0")


def test_bounds_of_vllm(client, server):
    samples = scrape(server)

    def bounds(name):
        return [dict(labels)["le"] for sample, labels in samples if sample == name + "_bucket"]

    assert bounds("vllm:inter_token_latency_seconds") == (
        "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 +Inf").split()
    assert bounds("vllm:time_to_first_token_seconds") == (
        "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 640.0 "
        "2560.0 +Inf").split()
    assert bounds("vllm:e2e_request_latency_seconds") == bounds("vllm:request_queue_time_seconds") == (
        "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 1920.0 7680.0 "
        "+Inf").split()
