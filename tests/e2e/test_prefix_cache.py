"""The prefix cache over real workers: conversations of several turns say the same with it and without, to the bit of
their log probabilities, and compute only what is new."""
import json
import os
import time

import pytest

from shardd_client import METRICS, ROOT, Refused, Server, make_request, shardd

# A turn of ids: how many are new, and how many the answer may have.
TURNS = [(150, 70), (17, 65), (64, 1), (1, 130), (95, 66)]
SAYS = ["Tell me of ships, slowly, and of harbours, and of the weather that both of them wait for. ",
        "And then, and after that, and in the end? ", "Why would anybody do that, when the tide is out? ",
        "One word, and not a long one, please. "]


def sampled(request, turn):
    """Every other turn with what depends on which tokens were seen, and how often."""
    request.sampling.temperature = 0.7
    request.output.logprobs = True
    request.output.top_logprobs = 2
    request.stopping.ignore_eos = True
    if turn % 2:
        request.sampling.repetition_penalty = 1.3
        request.sampling.presence_penalty = 0.5
        request.sampling.frequency_penalty = 0.25
    return request


def said(answer):
    return answer.ids, [(p.logprob, [(t.token_id, t.logprob) for t in p.top]) for p in answer.logprobs]


def talk_in_ids(client, salt=""):
    """Each turn is the one before, its answer and something new. Returns what was said and what came from the cache."""
    prompt, answers, cached, rows = [], [], [], []
    for turn, (new, most) in enumerate(TURNS):
        prompt += [(7 * i + 13 * turn) % 250 for i in range(new)]
        answer = client.generate(sampled(make_request(ids=prompt, max_tokens=most, seed=turn, cache_salt=salt), turn))
        answers.append(said(answer))
        cached.append(answer.finish.usage.cached_tokens)
        rows.append(len(prompt))
        prompt += answer.ids
    return answers, cached, rows


def talk_in_messages(client):
    """A chat whose client sends what it was told, and no reasoning."""
    messages, answers, cached = [("system", "You are a harbour pilot. " * 6)], [], []
    for turn, text in enumerate(SAYS):
        messages.append(("user", text * 2))
        answer = client.generate(sampled(make_request(chat=messages, max_tokens=40, seed=turn), turn))
        answers.append(said(answer))
        cached.append((answer.finish.usage.cached_tokens, answer.started.prompt_tokens))
        messages.append(("assistant", "Well, %d." % turn))
    return answers, cached


@pytest.mark.parametrize("tp", ["1", "2"])
def test_same_answers(model, tp):
    flags = ("--tensor-parallel-size", tp, "--max-model-len", "1500", "--max-num-seqs", "4", "--prefix-cache-memory",
             "64MiB")
    with Server(model, *flags, "--prefix-cache", "off") as plain:
        with plain.client() as client:
            expected, none, _ = talk_in_ids(client)
            expected_chat, none_in_chat = talk_in_messages(client)
            assert not client.call("GetServerInfo").HasField("prefix_cache")
    with Server(model, *flags, *METRICS) as running:
        assert "states of prefixes" in running.log_text()
        with running.client() as client:
            answers, cached, rows = talk_in_ids(client)
            again, cached_again, _ = talk_in_ids(client)
            salted, cached_salted, _ = talk_in_ids(client, salt="mine")
            chat, cached_in_chat = talk_in_messages(client)
            client.wait_idle()
            info = client.call("GetServerInfo").prefix_cache
        status = json.loads(shardd("status", "--server", running.address, "--json").stdout)["server"]["prefix_cache"]
        text = shardd("status", "--server", running.address).stdout
        metrics = running.metrics().read().decode()
    assert answers == again == salted == expected and chat == expected_chat
    assert set(none) == {0} and {c for c, _ in none_in_chat} == {0}

    # A turn goes on from the end of the answer before it, whose last token was never a row.
    assert cached == cached_salted == [0] + [n + most - 1 for n, (_, most) in zip(rows, TURNS)][:-1]
    # The second time nothing but the last rows of a prompt is computed, if its end was kept.
    assert all(b >= a for a, b in zip(cached, cached_again)) and cached_again[0] >= rows[0] - 16

    # In a chat it goes on from the end of the last message that both prompts have.
    assert cached_in_chat[0][0] == 0
    behind = {before - hit for (hit, _), (_, before) in zip(cached_in_chat[1:], cached_in_chat)}
    assert len(behind) == 1 and behind < set(range(1, 40))  # what begins an answer

    total = sum(cached) + sum(cached_again) + sum(cached_salted) + sum(c for c, _ in cached_in_chat)
    assert info.cached_tokens == status["cached_tokens"] == total
    assert info.hits == status["hits"] == 4 + 5 + 4 + 3
    assert "prefix cache" in text
    assert "\nshardd_prefix_cached_tokens_total %d\n" % total in metrics
    assert "\nshardd_prefix_states %d\n" % info.states in metrics


def test_pages_of_the_host(model):
    """A pool that holds one conversation: the others' pages are on the host when they go on."""
    flags = ("--max-model-len", "1100", "--max-num-seqs", "1", "--prefix-cache-memory", "64MiB")
    prompts = [[(7 * i + 13 * k) % 250 for i in range(900)] for k in range(4)]

    def ask(client, k, more):
        request = sampled(make_request(ids=prompts[k] + [9] * more, max_tokens=9, seed=k), turn=k)
        answer = client.generate(request)
        return said(answer), answer.finish.usage.cached_tokens

    with Server(model, *flags, "--prefix-cache", "off") as plain:
        with plain.client() as client:
            expected = [ask(client, k, more) for more in (0, 33) for k in range(4)]
    with Server(model, *flags) as running:
        assert "of their pages" in running.log_text()
        with running.client() as client:
            answers = [ask(client, k, more) for more in (0, 33) for k in range(4)]
            client.wait_idle()
            info = client.call("GetServerInfo").prefix_cache
    assert [a for a, _ in answers] == [a for a, _ in expected]
    assert [c for _, c in answers] == [0] * 4 + [896] * 4
    assert 0 < info.host_pages <= info.host_pages_max


def ask_of_disk(client, salts=("", "mine")):
    """Conversations of three turns, with a salt and without: what was said, and what came from the cache."""
    said_all, cached = [], []
    for salt in salts:
        prompt = [(11 * i + 3) % 250 for i in range(700)]
        for turn in range(3):
            answer = client.generate(sampled(make_request(ids=prompt, max_tokens=70, seed=turn, cache_salt=salt), turn))
            said_all.append(said(answer))
            cached.append(answer.finish.usage.cached_tokens)
            prompt += answer.ids + [3] * 20
    return said_all, cached


def wait_written(running, states):
    """Until the background is done."""
    for _ in range(600):
        text = running.metrics().read().decode()
        has = {name: int(value) for name, value in (line.rsplit(" ", 1) for line in text.split("\n")
                                                    if line.startswith("shardd_prefix_disk"))}
        kept = has["shardd_prefix_disk_states"]
        if kept >= states and has["shardd_prefix_disk_writes_total"] >= kept + has["shardd_prefix_disk_pages"]:
            return
        time.sleep(0.1)
    raise AssertionError(has)


def damage(path):
    """A byte of every piece of the file that holds anything."""
    with open(path, "r+b") as f:
        for at in range(4096, path.stat().st_size, 4096):
            f.seek(at + 64)
            byte = f.read(1)
            if byte != b"\0":
                f.seek(at + 64)
                f.write(bytes([byte[0] ^ 0x55]))


def test_restart_with_a_folder(model, tmp_path):
    """What was kept is found by the service that comes next, unless the file is damaged, of another kind, or salted."""
    folder = tmp_path / "cache"
    flags = ["--tensor-parallel-size", "2", "--max-model-len", "1500", "--max-num-seqs", "2", "--prefix-cache-memory",
             "64MiB"]
    disk = ["--prefix-cache-dir", str(folder), "--prefix-cache-disk", "256MiB"]
    with Server(model, *flags, "--prefix-cache", "off") as plain:
        with plain.client() as client:
            expected, _ = ask_of_disk(client)
    with Server(model, *flags, *disk, *METRICS) as running:
        with running.client() as client:
            answers, cached = ask_of_disk(client)
            wait_written(running, 4)
    assert answers == expected and cached[0] == cached[3] == 0
    files = sorted(folder.iterdir())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(files) == 2 and all(f.stat().st_mode & 0o777 == 0o600 for f in files)
    with Server(model, *flags, *disk) as running:
        with running.client() as client:
            again, cached_again = ask_of_disk(client)
            assert ask_of_disk(client, salts=("other",))[1][0] == 0
    assert again == expected
    assert cached_again[0] >= 640 and cached_again[3] >= 640
    with Server(model, *flags, *disk, "--kv-cache-dtype", "fp32") as running:
        with running.client() as client:
            assert ask_of_disk(client, salts=("",))[1][0] == 0
    damage(files[0])
    with Server(model, *flags, *disk) as running:
        with running.client() as client:
            damaged, cached_damaged = ask_of_disk(client)
    assert damaged == expected and cached_damaged[0] == 0


def test_salts_are_checked(model):
    with Server(model, "--device", "null") as running:
        with running.client() as client:
            client.generate(make_request(ids=[1, 2, 3], cache_salt="x" * 128))
            with pytest.raises(Refused) as refused:
                client.generate(make_request(ids=[1, 2, 3], cache_salt="x" * 129))
    assert refused.value.word == "invalid_field" and "cache_salt" in refused.value.sentence


def test_workers_die(model):
    """The states end with the workers; the requests do not. The one that was computed when they died is tried alone and
    leaves nothing; those after it do."""
    lengths = (5, 30, 6, 7)
    worker = "--slot-units 20 --die-at-step 12 --id-first 1000 --id-count 5000"
    with Server(model, "--device", "null", "--prefix-cache", "off", env={"SHARDD_NULL_ARGS": "--id-first 1000 "
                                                                        "--id-count 5000"}) as plain:
        with plain.client() as client:
            expected = [client.generate(make_request(ids=list(range(200)), max_tokens=n)).ids for n in lengths]
    with Server(model, "--device", "null", env={"SHARDD_NULL_ARGS": worker}) as running:
        with running.client() as client:
            answers = [client.generate(make_request(ids=list(range(200)), max_tokens=n)) for n in lengths]
            assert client.call("GetServerInfo").group_epoch == 2
    assert [a.ids for a in answers] == expected
    assert [a.finish.usage.cached_tokens for a in answers] == [0, 192, 0, 192]


def say(chat, role, text, reasoning=""):
    message = chat.messages.add(role=role)
    message.content.add(text=text)
    if reasoning:
        message.reasoning = reasoning


def test_reasoning_that_is_dropped():
    """The bundled model's template renders reasoning up to the next question only, so that a prompt is not the
    beginning of the one after it: that goes on from the last message which both have. One whose conversation was never
    seen before finds the ends of its messages, too."""
    long = "What do the harbour, the tide and the pilot wait for, and who waits for them? " * 45
    cached, prompts = [], []
    model = os.path.join(ROOT, "models", "shardd-tiny")
    with Server(model, "--max-model-len", "4000", "--max-num-seqs", "4") as running:
        with running.client() as client:
            def ask(salt, *messages):
                request = make_request(max_tokens=4, cache_salt=salt)
                for message in messages:
                    say(request.chat, *message)
                answer = client.generate(request)
                cached.append(answer.finish.usage.cached_tokens)
                prompts.append(answer.started.prompt_tokens)
            pilot = ("system", "You are a harbour pilot.")
            question = ("user", long)
            thought = ("assistant", "I look it up.", "The user asks of ships. " * 30)
            found = ("tool", "The tide comes at six. " * 5)
            told = ("assistant", "At six.", "That was easy, and I say so. " * 10)
            after = ("user", "And then?")
            ask("seen", pilot, question)
            ask("seen", pilot, question, thought, found)
            ask("seen", pilot, question, thought, found, told, after)
            ask("fresh", pilot, question, thought, found)
            ask("fresh", pilot, question, thought, found, told, after)
    answer_begins = set(range(1, 40))  # tokens of what begins an answer
    assert prompts[1] > prompts[2] and prompts[0] > 512
    assert cached[0] == cached[3] == 0
    assert prompts[0] - cached[1] in answer_begins and prompts[0] - cached[2] in answer_begins
    assert cached[4] == cached[2]
