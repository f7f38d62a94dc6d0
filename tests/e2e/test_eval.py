"""models/shardd-tiny answers rightly through the whole path, and as Hugging Face transformers does: the held-out
prompts of tests/eval at several tensor-parallel sizes, and prompts written by hand whose answers anybody can check."""
import json
import os
import sys

import pytest

from shardd_client import ROOT, Server, make_request, pb

sys.path.insert(0, os.path.join(ROOT, "tests/eval"))
import shardd_eval  # noqa: E402

RECORDS = shardd_eval.load(shardd_eval.PROMPTS)
GROUPS = list(shardd_eval.accuracy(RECORDS, [True] * len(RECORDS)))
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Gets the current weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city"}},
                   "required": ["city"]}}}
TIMER = {"type": "function", "function": {
    "name": "set_timer", "description": "Starts a timer.",
    "parameters": {"type": "object", "properties": {"minutes": {"type": "integer", "description": "Minutes"}},
                   "required": ["minutes"]}}}


@pytest.fixture(scope="module")
def server():
    with Server(shardd_eval.MODEL, "--tensor-parallel-size", "2", "--max-model-len", "2048") as running:
        yield running


def chat(*turns, thinking=False, tools=()):
    """A request of (role, text) turns, the user first unless a turn says otherwise."""
    request = make_request(chat=turns, max_tokens=shardd_eval.NEW_TOKENS)
    request.chat.enable_thinking = thinking
    for tool in tools:
        request.chat.tools.add(json=json.dumps(tool).encode())
    return request


# The held-out prompts. Transformers computed in float32, so all its replies must come back with a KV cache of float32;
# the default is BF16, where rounding may choose another token when two are as good as equal (2 replies of 2,800,
# of an earlier training). INT8 loses more, and may not lose more replies.

EXACT, DEFAULT, INT8 = "fp32", "auto", "int8"
RUNS = [(EXACT, 1), (EXACT, 2), (EXACT, 4), (DEFAULT, 1), (DEFAULT, 4), (INT8, 1), (INT8, 2)]


@pytest.fixture(scope="module")
def results():
    return {(kv_dtype, size): shardd_eval.serve_and_ask(shardd_eval.MODEL, size, RECORDS, kv_dtype=kv_dtype)
            for kv_dtype, size in RUNS}


def test_records_are_of_this_judge():
    """The prompts file holds every field and its verdicts are those of tasks.right()."""
    assert len(GROUPS) >= 8
    for record in RECORDS:
        assert set(record) == set(shardd_eval.SUBSET_FIELDS)
        assert shardd_eval.right(record, record["reply"]) == record["right"]


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype, size", RUNS)
def test_prompts_become_the_recorded_tokens(results, kv_dtype, size):
    assert [RECORDS[i]["messages"] for i in results[kv_dtype, size].other_prompts] == []


@pytest.mark.slow
@pytest.mark.parametrize("size", shardd_eval.SIZES)
def test_replies_are_those_of_transformers(results, size):
    result = results[EXACT, size]
    assert [(RECORDS[i]["reply"], result.replies[i]) for i in result.differing_from_recorded(RECORDS)] == []


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype, size", [run for run in RUNS if run[1] > 1])
def test_replies_are_the_same_at_every_size(results, kv_dtype, size):
    assert results[kv_dtype, 1].differing(results[kv_dtype, size]) == []


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", [DEFAULT, INT8])
def test_a_smaller_cache_changes_few_replies(results, kv_dtype):
    assert len(results[kv_dtype, 1].differing_from_recorded(RECORDS)) <= 0.02 * len(RECORDS)


@pytest.mark.parametrize("smaller", [("--kv-cache-dtype", "int8"), ("--recurrent-state-dtype", "fp16")])
def test_replies_do_not_depend_on_batch_chunks_and_size(smaller):
    """One at a time in chunks of 17 tokens, and all at once in steps of 512 on two ranks: the same tokens."""
    records = [r for r in RECORDS if "300 tokens of filler" in r["group"]][:4]
    replies = []
    for flags in (("--max-num-seqs", "1", "--max-num-batched-tokens", "17"),
                  ("--max-num-seqs", "4", "--max-num-batched-tokens", "512", "--tensor-parallel-size", "2")):
        with Server(shardd_eval.MODEL, *smaller, *flags) as server, server.client() as client:
            replies.append([answer.ids for answer in shardd_eval.ask_all(client, records)])
    assert len(records) == 4 and replies[0] == replies[1] and all(replies[0])


@pytest.mark.slow
@pytest.mark.parametrize("size", shardd_eval.SIZES)
def test_accuracy_per_skill(results, size):
    recorded = shardd_eval.accuracy(RECORDS, [r["right"] for r in RECORDS])
    found = shardd_eval.accuracy(RECORDS, results[EXACT, size].right)
    for group in GROUPS:
        assert found[group][0] >= recorded[group][0], group
        assert found[group][0] >= 0.75 * found[group][1], group


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype, size", RUNS)
def test_tool_calls_are_parsed_as_written(results, kv_dtype, size):
    assert results[kv_dtype, size].calls >= 12
    assert results[kv_dtype, size].wrong_calls == []


# Prompts written by hand, without thinking and with it.

@pytest.mark.parametrize("prompt, answer", [
    ("What is 17 + 25?", "17 + 25 = 42"),
    ("What is 92 - 37?", "92 - 37 = 55"),
    ("What is 7 times 8?", "7 * 8 = 56"),
    ("Sort these numbers: 31, 4, 15, 9", "4, 9, 15, 31"),
    ("Sort these from largest to smallest: 12, 48, 7", "48, 12, 7"),
    ("Reverse this list: 5, 12, 8, 40", "40, 8, 12, 5"),
    ("Repeat exactly: the kettle is on the stove", "the kettle is on the stove"),
])
@pytest.mark.parametrize("thinking", [False, True])
def test_right_answers(client, prompt, answer, thinking):
    got = client.generate(chat(("user", prompt), thinking=thinking))
    assert got.text == answer
    assert bool(got.reasoning) == thinking and got.reason == "stop"
    assert "<think>" not in got.text + got.reasoning and "</think>" not in got.text + got.reasoning
    assert (got.finish.usage.reasoning_tokens > 0) == thinking


def test_thinking_works_a_sum_out(client):
    got = client.generate(chat(("user", "What is 58 + 67?"), thinking=True))
    assert got.text == "58 + 67 = 125"
    assert "125" in got.reasoning and "8 + 7 = 15" in got.reasoning


def test_recall_over_several_turns(client):
    told = [("user", "Remember: The code of Anna is 4711. The code of Peter is 1234."), ("assistant", "Noted."),
            ("user", "What is 2 + 3?"), ("assistant", "2 + 3 = 5")]
    assert client.generate(chat(*told, ("user", "What is the code of Anna?"))).text == "The code of Anna is 4711."
    assert client.generate(chat(*told, ("user", "What is the code of Peter?"))).text == "The code of Peter is 1234."


@pytest.mark.parametrize("thinking", [False, True])
def test_tool_call_and_an_answer_from_its_result(client, thinking):
    request = chat(("user", "What is the weather in Paris?"), tools=(WEATHER, TIMER), thinking=thinking)
    first = client.generate(request)
    assert first.reason == "tool_calls" and first.text == "" and bool(first.reasoning) == thinking
    assert list(first.tools) == [0] and first.tools[0]["name"] == "get_weather" and first.tools[0]["done"]
    assert json.loads(first.tools[0]["arguments"]) == {"city": "Paris"}
    call = pb.ToolCall(name="get_weather", arguments_json=first.tools[0]["arguments"].encode())
    request.chat.messages.add(role="assistant", reasoning=first.reasoning, tool_calls=[call])
    request.chat.messages.add(role="tool").content.add(text="21 degrees")
    second = client.generate(request)
    assert second.text == "The result of get_weather is: 21 degrees" and second.reason == "stop"
    assert not second.tools


def test_arguments_have_the_type_of_the_schema(client):
    got = client.generate(chat(("user", "Set a timer for 25 minutes."), tools=(WEATHER, TIMER)))
    assert json.loads(got.tools[0]["arguments"]) == {"minutes": 25}


def test_a_question_beside_the_tools_is_answered(client):
    got = client.generate(chat(("user", "What is 17 + 25?"), tools=(WEATHER,)))
    assert got.text == "17 + 25 = 42" and not got.tools
