"""Mistakes in the settings: exit code 2 and a sentence that names the thing, from every program and verb. What another
try may get through (a port that is taken, a broken file) is 1."""
import json
import os
import shutil
import socket
import subprocess

import pytest

from common import BIN, PATIENCE, Scripted, Serve

TINY = ["--model", "{tiny}"]
SERVE = ["shardd", "serve", "--port", "0"]
WORKER = ["shardd-worker-cpu"] + TINY + ["--generate-ids", "1,2,3"]

MISTAKES = [
    # words, what stderr says
    (["shardd", "srve"], "no verb 'srve'"),
    (["shardd"], "usage"),
    (SERVE, "no model is given"),
    (SERVE + ["--model", "/no/such/model"], "does not exist"),
    (SERVE + ["--model", "{tiny}/config.json"], "neither a folder nor a GGUF file"),
    (SERVE + ["--model", "{empty}"], "neither a config.json"),
    (SERVE + TINY + ["{tiny}"], "given twice"),
    (SERVE + ["--model", ""], "empty"),
    (SERVE + TINY + ["--max-num-sequences", "4"], "did you mean --max-num-seqs"),
    (SERVE + TINY + ["--max-num-seqs", "0"], "'0' is out of range; it takes 1 to 1024"),
    (SERVE + TINY + ["--max-num-seqs", "+1"], "not a whole number"),
    (SERVE + TINY + ["--max-num-seqs", " 1"], "not a whole number"),
    (SERVE + TINY + ["--max-num-seqs", "1.0"], "not a whole number"),
    (SERVE + TINY + ["--max-num-seqs"], "needs a value"),
    (SERVE + TINY + ["--max-model-len", "99999999"], "out of range"),
    (SERVE + TINY + ["--max-model-len", "1"], "2 tokens at least"),
    (SERVE + TINY + ["-tp", "3"], "1, 2, 4 or 8"),
    (SERVE + TINY + ["-tp", "2", "--ranks-per-process", "4"], "does not divide"),
    (SERVE + TINY + ["--max-num-seqs", "9", "--max-num-batched-tokens", "8"], "is less than --max-num-seqs"),
    (SERVE + TINY + ["--kv-cache-memory", "8 GiB"], "write it like 8GiB"),
    (SERVE + TINY + ["--kv-cache-memory", "-1"], "is no size"),
    (SERVE + TINY + ["--kv-cache-memory", "1gib"], "is no size"),
    (SERVE + TINY + ["--kv-cache-memory", "1.5"], "is no part"),
    (SERVE + TINY + ["--kv-cache-memory", "1"], "is needed for one sequence"),
    (SERVE + TINY + ["--kv-cache-memory", "1kB"], "is needed for one sequence"),
    (SERVE + TINY + ["--kv-cache-memory", "0.0000001"], "is needed for one sequence"),
    (SERVE + TINY + ["--step-timeout", "soon"], "write it like"),
    (SERVE + TINY + ["--step-timeout", "1ms"], "out of range"),
    (SERVE + TINY + ["--restart-window", "0"], "out of range"),
    (SERVE + TINY + ["--max-restarts", "1000"], "out of range"),
    (SERVE + TINY + ["--device", "tpu"], "not one of"),
    (SERVE + TINY + ["--log-level", "loud"], "not one of"),
    (SERVE + TINY + ["--host", "no host"], "--host"),
    (SERVE + TINY + ["--uds", "/no/such/folder/s"], "folder must exist"),
    (SERVE + TINY + ["--uds", "/tmp/" + "x" * 200], "107 bytes"),
    (SERVE + TINY + ["--libexec-dir", "/no/such/folder"], "--libexec-dir"),
    (SERVE + TINY + ["--metrics-listen", "nowhere"], "nowhere"),
    (SERVE + TINY + ["--config", "/no/such/file"], "/no/such/file"),
    (SERVE + ["--config", "{conf}"], "there is no setting 'max-num-sequences'"),
    (["shardd", "generate"], "PROMPT"),
    (["shardd", "generate", "--temperature", "hot", "x"], "not a number"),
    (["shardd", "generate", "--temperature", "nan", "x"], "not a number"),
    (["shardd", "generate", "--top-p", "0", "x"], "1 turns it off"),
    (["shardd", "generate", "--logit-bias", "x", "x"], "--logit-bias"),
    (["shardd", "generate", "--logprobs", "3", "x"], "--json"),
    (["shardd", "generate", "--max-num-seqs", "3", "x"], "--model DIR"),
    (["shardd", "generate", "--model", "/no/such/model", "x"], "does not exist"),
    (["shardd", "chat", "--frob"], "unknown option --frob"),
    (["shardd", "chat", "hello"], "'hello' is too much"),
    (["shardd", "generate", "--server", "localhost:99999", "x"], "the port: '99999' is out of range"),
    (["shardd", "generate", "--server", "localhost:http", "x"], "the port: 'http' is not a whole number"),
    (["shardd", "chat", "--server", "localhost:0"], "the port: '0' is out of range"),
    (["shardd", "status", "--server", "::1"], "in brackets"),
    (["shardd", "status", "--server", "[::1]:"], "the port: "),
    (["shardd", "status", "x"], "'x' is too much"),
    (["shardd", "status", "--timeout", "never"], "write it like"),
    (["shardd", "inspect"], "name one model folder"),
    (["shardd", "inspect", "--memory", "4 GB", "{tiny}"], "--memory: '4 GB' is no size"),
    (["shardd", "inspect", "--tensor-parallel-size", "3", "{tiny}"], "must be 1, 2, 4 or 8"),
    (["shardd", "inspect", "--frob", "{tiny}"], "unknown option --frob"),
    (["shardd", "inspect", "{tiny}", "-q"], "unknown option -q"),
    (["shardd", "inspect", "{tiny}", "--memory"], "--memory needs a value"),
    (["shardd", "inspect", "{tiny}", "--json=yes"], "--json=yes: this option takes no value"),
    (["shardd", "inspect", "{tiny}", "-tp", "3"], "must be 1, 2, 4 or 8"),
    (["shardd", "inspect", "{tiny}", "--max_model_len=x"], "--max-model-len: 'x' is not a whole number"),
    (["shardd", "synth", "--config", "3b", "/tmp/never"], "the names are"),
    (["shardd", "synth", "--vocab", "5", "/tmp/never"], "no room for"),
    (["shardd", "synth", "--format", "gguf", "--weights", "int4", "--group-size", "64", "/tmp/never"], "groups of 32"),
    (["shardd", "synth", "--frob"], "unknown option --frob"),
    (["shardd", "synth", "--group-size", "48", "--weights", "int4", "/tmp/never"], "48"),
    (["shardd", "pack", "--frob"], "unknown option --frob"),
    (["shardd", "pack", "{tiny}", "--layout"], "--layout needs a value"),
    (["shardd", "quantize", "{tiny}", "/tmp/never", "--ignore", "*"], "nothing is left to quantise"),
    (["shardd", "quantize", "--frob"], "unknown option --frob"),
    (["shardd", "synth", "--layers", "-1", "/tmp/never"], "--layers: '-1' is not a whole number"),
    (["shardd", "synth", "--shard-size", "0", "/tmp/never"], "at least 1 byte"),
    (["shardd", "pack", "--threads", "x", "{tiny}"], "--threads: 'x' is not a whole number"),
    (["shardd", "quantize", "--shard-size", "1e9", "{tiny}", "/tmp/never"], "--shard-size: '1e9' is no size"),
    (["shardd", "quantize", "{tiny}"], "name the model's folder"),
    (WORKER + ["--kv-cache-memory", "1"], "is needed for one sequence"),
    (WORKER + ["--max-num-seqs", "0"], "out of range"),
    (WORKER + ["--frob"], "--frob"),
    (["shardd-worker-cpu"], "--model DIR is missing"),
    (["shardd-worker-null", "--frob"], "--frob"),
    (["shardd-tokenize"], "usage"),
    (["shardd-coordinator"], "--model DIR is missing"),
    (["shardd-coordinator"] + TINY, "nowhere to listen"),
    (["shardd-coordinator"] + TINY + ["--max-queue", "0"], "out of range"),
]


def run(words, **kwargs):
    return subprocess.run([os.path.join(BIN, words[0])] + words[1:], capture_output=True, text=True, timeout=PATIENCE,
                          check=False, stdin=subprocess.DEVNULL, **kwargs)


@pytest.fixture(scope="module", name="places")
def make_places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    (folder / "empty").mkdir()
    (folder / "conf").write_text("[engine]\nmax-num-sequences = 3\n")
    assert run(["shardd", "synth", str(folder / "tiny"), "--config", "tiny"]).returncode == 0
    return {name: str(folder / name) for name in ("tiny", "empty", "conf")}


@pytest.mark.parametrize("words,says", MISTAKES, ids=lambda v: " ".join(v)[-60:] if isinstance(v, list) else "")
def test_mistakes_are_exit_code_2(places, words, says):
    done = run([word.format(**places) for word in words])
    assert (done.returncode, says in done.stderr) == (2, True), (done.returncode, done.stderr)
    assert "serving" not in done.stdout
    if words[0] == "shardd" and words[1:]:
        assert says in done.stderr.splitlines()[-1], "the reason is what is read last"


@pytest.mark.parametrize("settings,says", [
    ({"tensor-parallel-size": "3"}, "%s 3: every layer"),
    ({"tensor-parallel-size": "2", "ranks-per-process": "4"}, "%s 4 does not divide %s 2"),
    ({"max-num-seqs": "9", "max-num-batched-tokens": "8"}, "%s 8 is less than %s 9"),
    ({"max-model-len": "1"}, "%s 1: a prompt"),
    ({"port": "none"}, "%s: 'none' is not a whole number"),
], ids=str)
def test_a_sentence_names_what_was_given(places, tmp_path, settings, says):
    """Not a flag that nobody wrote."""
    names = list(reversed(settings))
    words = ["shardd", "serve", "--model", places["tiny"]]
    done = run(words, env=dict(os.environ, **{"SHARDD_" + n.upper().replace("-", "_"): v for n, v in settings.items()}))
    expected = says % tuple("SHARDD_" + n.upper().replace("-", "_") for n in names[:says.count("%s")])
    assert done.returncode == 2 and expected in done.stderr, done.stderr
    conf = tmp_path / "conf"
    conf.write_text("".join("%s = %s\n" % item for item in settings.items()))
    done = run(words + ["--config", str(conf)])
    places_of = ["%s:%d: %s" % (conf, 1 + list(settings).index(n), n) for n in names]
    assert done.returncode == 2 and says % tuple(places_of[:says.count("%s")]) in done.stderr, done.stderr


@pytest.mark.parametrize("program", ["shardd", "shardd-coordinator", "shardd-worker-cpu", "shardd-worker-null",
                                     "shardd-checkpoint", "shardd-tokenize"])
def test_every_program_helps(program):
    done = run([program, "--help"])
    assert done.returncode == 0 and "shardd" in done.stdout and not done.stderr, done.stderr


def test_accidents_are_exit_code_1(places):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(["shardd", "serve", "--model", places["tiny"], "--port", str(port)])
        assert done.returncode == 1 and "is in use" in done.stderr
        done = run(["shardd", "serve", "--model", places["tiny"], "--port", "0", "--metrics-listen",
                    "127.0.0.1:%d" % port])
        assert done.returncode == 1 and str(port) in done.stderr.splitlines()[-1]
    assert run(["shardd", "inspect", "/no/such/model"]).returncode == 1


def test_the_last_line_of_a_failed_start_is_its_reason(places):
    """Whatever ends a child: what it said last is what the person reads last."""
    done = run(["shardd", "serve", "--model", places["tiny"], "--port", "0", "--kv-cache-memory", "1"])
    assert "--kv-cache-memory: 1 byte; at least" in done.stderr.splitlines()[-1]
    os.rename(places["tiny"] + "/tokenizer.json", places["tiny"] + "/other.json")
    try:
        done = run(["shardd", "serve", "--model", places["tiny"], "--port", "0"])
    finally:
        os.rename(places["tiny"] + "/other.json", places["tiny"] + "/tokenizer.json")
    assert done.returncode == 1 and "tokenizer.json" in done.stderr.splitlines()[-1]
    for _ in range(20):  # the child's last words and its end arrive together
        with Scripted(script={"shardd-coordinator": {"fault": "the moon is in the way"}}, tp=1) as service:
            assert service.wait() == 1
            assert service.log().splitlines()[-1].endswith("the moon is in the way")


def test_a_child_that_blames_the_settings_makes_it_exit_code_2():
    with Scripted(script={"worker-1": {"fault": "--frob: no", "code": 2}}) as service:
        assert service.wait() == 2
        assert service.log().splitlines()[-1].endswith("--frob: no")


def test_a_model_of_no_rank_count_is_not_blamed_on_a_flag(places, tmp_path):
    folder = str(tmp_path / "odd")
    shutil.copytree(places["tiny"], folder)
    with open(folder + "/config.json", encoding="utf-8") as f:
        config = json.load(f)
    config.get("text_config", config)["intermediate_size"] = 1003
    with open(folder + "/config.json", "w", encoding="utf-8") as f:
        json.dump(config, f)
    done = run(["shardd", "serve", "--model", folder, "--port", "0"])
    assert done.returncode == 1 and "--tensor-parallel-size 1" not in done.stderr, done.stderr
    assert "intermediate_size of this model is 1003" in done.stderr.splitlines()[-1]


def test_a_clamped_length_warns(places):
    with Serve("--model", places["tiny"], "--port", "0", "--max-model-len", "1000000") as service:
        service.wait_log("serving ")
        assert "--max-model-len 1000000 is clamped to" in service.log()
    with Serve("--model", places["tiny"], "--port", "0", "--max-model-len", "100") as service:
        service.wait_log("serving ")
        assert "--max-model-len" not in service.log()


def test_a_clamped_cache_warns(places):
    with Serve("--model", places["tiny"], "--port", "0", "--kv-cache-memory", "900TB") as service:
        service.wait_log("serving ")
        lines = [line for line in service.log().splitlines() if "--kv-cache-memory is clamped" in line]
        assert len(lines) == 1 and " warning " in lines[0]
    with Serve("--model", places["tiny"], "--port", "0", "--kv-cache-memory", "50MB") as service:
        service.wait_log("serving ")
        assert "--kv-cache-memory" not in service.log()


def test_log_lines_of_a_file_have_times(places):
    done = run(["shardd", "serve", "--model", places["tiny"], "--port", "70000"])
    assert "<" not in done.stderr
    done = run(["shardd", "serve", "--port", "0"])
    assert done.stderr[4] == done.stderr[7] == "-" and done.stderr[23:35] == "Z error shar", done.stderr
