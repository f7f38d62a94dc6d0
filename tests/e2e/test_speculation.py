"""Speculation as a user sees it: tokens as without it, and what the service says of its drafters. On null workers."""
import json
import os
import signal
import time

import pytest

from shardd_client import METRICS, ROOT, Answer, Server, make_request, shardd

WORKER = "--drafts-max 7 --draft-odds 80 --has-mtp 1 --step-us 2000 --id-first 1000 --id-count %d"
LENGTHS = [1, 2, 17, 150]


def run_all(running):
    with running.client() as client:
        answers = [client.generate(make_request(ids=list(range(5, 5 + n)), max_tokens=n, seed=n)) for n in LENGTHS]
        return [answer.ids for answer in answers], client.call("GetServerInfo")


def answers_without(model, ids):
    with Server(model, "--device", "null", "--speculation", "off", env={"SHARDD_NULL_ARGS": WORKER % ids}) as running:
        expected, info = run_all(running)
    assert [len(e) for e in expected] == LENGTHS
    assert not info.drafters
    return expected


@pytest.mark.parametrize("how,ids,names", [("auto", 5000, ["mtp", "lookup"]), ("mtp", 5000, ["mtp"]),
                                           ("lookup", 2, ["lookup"])])
def test_same_tokens(model, how, ids, names):
    with Server(model, "--device", "null", "--speculation", how, *METRICS,
                env={"SHARDD_NULL_ARGS": WORKER % ids}) as running:
        ids_now, info = run_all(running)
        status = shardd("status", "--server", running.address, "--json")
        text = shardd("status", "--server", running.address).stdout
        metrics = running.metrics().read().decode()
    assert ids_now == answers_without(model, ids)
    assert [d.name for d in info.drafters] == names
    assert all(d.drafts_max == 7 and d.drafts_accepted <= d.drafts_proposed for d in info.drafters)
    drafters = json.loads(status.stdout)["server"]["drafters"]
    assert [d["name"] for d in drafters] == names
    proposed = sum(d["drafts_proposed"] for d in drafters)
    assert proposed > 0
    for name in names:
        assert "drafts of %s" % name in text
        assert 'shardd_drafts_proposed_total{drafter="%s",position="6"}' % name in metrics
        assert 'shardd_drafter_silent{drafter="%s"} 0' % name in metrics
    assert "\nvllm:spec_decode_num_draft_tokens_total{" in metrics


def test_fewer_drafts(model):
    """The least of what is asked for and what the workers take."""
    for flags, most in ((["--speculative-tokens", "3"], 3), ([], None), (["--speculation", "auto"], 7)):
        with Server(model, "--device", "null", *flags, env={"SHARDD_NULL_ARGS": WORKER % 5000}) as running:
            with running.client() as client:
                assert {d.drafts_max for d in client.call("GetServerInfo").drafters} == ({most} if most else set())


BUNDLED = os.path.join(ROOT, "models/shardd-tiny")
TEXT = "The quick brown fox jumps over the lazy dog. def add(a, b):\n    return a + b\n\n"


def answers_of(tp, *flags):
    """Greedy and sampled answers with their logprobs, alone and together, and how many drafts were made for them."""
    requests = []
    for copies in (1, 3, 5):
        for temperature in (0.0, 0.9):
            request = make_request(text=TEXT * copies, max_tokens=90, temperature=temperature, seed=11)
            request.output.logprobs = True
            request.stopping.ignore_eos = True
            requests.append(request)
    with Server(BUNDLED, "--device", "cpu", "--tensor-parallel-size", str(tp), "--max-model-len", "1024",
                *flags) as running:
        with running.client() as client:
            alone = [client.generate(request) for request in requests]
            streams = [client.stream(request) for request in requests]
            together = [Answer(stream) for stream in streams]
            drafters = client.call("GetServerInfo").drafters
    said = [[(a.ids, [p.logprob for p in a.logprobs]) for a in answers] for answers in (alone, together)]
    assert said[0] == said[1]
    return said[0], sum(d.drafts_proposed for d in drafters)


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2])
def test_a_model_says_the_same(tp):
    expected, none = answers_of(tp)
    assert none == 0
    for how in ("auto", "lookup"):
        said, drafts = answers_of(tp, "--speculation", how)
        assert said == expected
        assert drafts > 0 or how == "lookup"  # which waits for tokens, so that it depends on the machine if it pays


@pytest.mark.slow
def test_a_death():
    """Workers that are killed between drafts: their streams go on with the tokens that would have come."""
    requests = [make_request(text=TEXT * 4, max_tokens=800, temperature=t, seed=3) for t in (0.0, 0.9)]
    for request in requests:
        request.stopping.ignore_eos = True
    said = []
    for flags in ([], ["--speculation", "auto"]):
        with Server(BUNDLED, "--device", "cpu", "--tensor-parallel-size", "2", "--max-model-len", "2048",
                    *flags) as running:
            with running.client() as client:
                streams = [client.stream(request) for request in requests]
                first = [[next(stream) for _ in range(3)] for stream in streams]
                if flags:
                    workers = [pid for pid, name in running.children().items() if name == "shardd-worker-cpu"]
                    os.kill(workers[-1], signal.SIGKILL)
                said.append([Answer(head + list(rest)).ids for head, rest in zip(first, streams)])
                while client.call("GetServerInfo").group_epoch < (2 if flags else 1):
                    time.sleep(0.02)
    assert said[0] == said[1]
    assert [len(ids) for ids in said[0]] == [800, 800]


def test_a_draft_vocabulary(tmp_path):
    """Counted from texts, served with; no answer changes. A file that is none is refused by name."""
    chat, ids = tmp_path / "chat.jsonl", str(tmp_path / "ids.txt")
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": TEXT}]}) + "\n" + json.dumps({"text": TEXT}))
    corpus = os.path.join(ROOT, "docs", "architecture.md")
    done = shardd("draft-vocab", BUNDLED, ids, corpus, str(chat), "--ids", "1000")
    assert done.returncode == 0 and "1000 of 3" in done.stdout, done.stdout + done.stderr
    with open(ids, encoding="ascii") as f:
        first, *lines = f.read().splitlines()
    assert first.startswith("# 1000 of 3") and len(set(lines)) == 1000
    plain = answers_of(1)[0]
    said, drafts = answers_of(2, "--speculation", "mtp", "--draft-vocab", ids)
    assert said == plain and drafts > 0
    few = tmp_path / "few.txt"
    few.write_text("1\n2\n99999\n")
    done = shardd("serve", "--model", BUNDLED, "--device", "cpu", "--uds", str(tmp_path / "s"), "--speculation", "mtp",
                  "--draft-vocab", str(few))
    assert done.returncode != 0 and "few.txt, line 3: '99999' is no id" in done.stdout + done.stderr
    for wrong in ([BUNDLED, ids], [BUNDLED, ids, corpus, "--ids", "x"], [BUNDLED, ids, corpus, "--id", "5"]):
        done = shardd("draft-vocab", *wrong)
        assert done.returncode == 2 and "shardd draft-vocab --help" in done.stderr
    done = shardd("draft-vocab", BUNDLED, ids, str(tmp_path / "none.txt"))
    assert done.returncode == 1 and "none.txt" in done.stderr
