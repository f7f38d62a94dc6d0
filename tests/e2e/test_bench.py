"""shardd bench: it measures what was asked for and says so consistently, for a model and for a service. Not speed."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

from shardd_client import BIN, PATIENCE, shardd


@pytest.fixture(scope="module")
def sizes_only():
    """A folder without weights, as a person makes it to try a size."""
    folder = tempfile.mkdtemp(prefix="shardd-sizes-")
    path = os.path.join(folder, "tiny")
    done = shardd("synth", path, "--config", "tiny", "--weights", "int4", "--lm-head", "int8", "--config-only")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [name for name in os.listdir(path) if name.endswith(".safetensors")]
    yield path
    shutil.rmtree(folder)


def bench_model(path, *arguments):
    done = shardd("bench", "--model", path, "--device", "cpu", "--speed-memory", "16MB", "--repeat", "2", "--json", "-",
                  *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("tp", ["1", "2"])
def test_a_model(sizes_only, tp):
    told, table = bench_model(sizes_only, "--load-format", "dummy", "-tp", tp, "--prompt", "20,70", "--decode", "5",
                              "--depth", "0,100", "--batch", "1,3", "--max-num-batched-tokens", "32")
    assert told["tensor_parallel_size"] == int(tp) and told["gpu"] is None
    tests = told["tests"]
    assert [(t["kind"], t["tokens"], t["depth"], t["batch"]) for t in tests] == [
        (kind, tokens, depth, batch) for depth in (0, 100)
        for kind, tokens, batch in (("prompt", 20, 1), ("prompt", 70, 1), ("decode", 5, 1), ("decode", 5, 3))]
    assert [t["steps"] for t in tests] == [1, 3, 5, 5] * 2
    for t in tests:
        rate = t["tokens_per_second"]
        assert len(rate["samples"]) == 2 and abs(sum(rate["samples"]) / 2 - rate["mean"]) < 1e-6 * rate["mean"]
        if t["kind"] == "decode":
            cost = told["cost"]
            length = t["depth"] + 1 + (t["tokens"] + 1) / 2
            step = cost["weights"] + t["batch"] * (cost["kv_per_position"] * (length + 1) + cost["state_per_sequence"]
                                                   + cost["embedding_row"])
            assert abs(t["bytes_per_step"] - step) < 1
            assert abs(t["part_of_memory"] * t["memory_bytes_per_second"] / t["bytes_per_second"] - 1) < 1e-6
    assert table.count("decode 5") == 4 and table.count("prompt") == 4


def test_rounds_with_drafts(sizes_only):
    tests = bench_model(sizes_only, "--load-format", "dummy", "--prompt", "0", "--decode", "10", "--drafts", "2,0",
                        "--acceptance", "0.5", "--mtp", "on")[0]["tests"]
    assert [t["drafts"] for t in tests] == [0, 2]
    assert tests[1]["tokens_per_round"] == 2 and tests[1]["speed_up"] > 0


def test_forms_of_dummy_weights(sizes_only):
    flags = ("--load-format", "dummy", "--prompt", "0", "--decode", "2")
    as_said = bench_model(sizes_only, *flags)[0]["weights"]["bytes"]
    int4 = bench_model(sizes_only, *flags, "--weights", "int4")[0]["weights"]["bytes"]
    bf16 = bench_model(sizes_only, *flags, "--weights", "bf16")[0]["weights"]["bytes"]
    assert int4 < as_said < bf16


def test_a_checkpoint_and_what_does_not_fit(model):
    tests = bench_model(model, "--prompt", "0", "--decode", "2", "--depth", "0,9000")[0]["tests"]
    assert "skipped" not in tests[0] and "tokens" in tests[1]["skipped"]


def bench_service(server, tmp_path, *arguments):
    path = tmp_path / "told.json"
    done = shardd("bench", "--serve", server.address, "--json", str(path), *arguments)
    return done, json.loads(path.read_text())


def test_a_service(server, tmp_path):
    done, told = bench_service(server, tmp_path, "--requests", "9", "--concurrency", "3", "--input-len", "5-40",
                               "--output-len", "6", "--goodput", "ttft:60000,tpot:60000")
    assert done.returncode == 0, done.stderr
    assert told["requests"] == {"sent": 9, "completed": 9, "errors": {}}
    assert told["tokens"]["output"] == 54 and 45 <= told["tokens"]["prompt"] <= 360
    assert told["goodput"]["requests"] == 9
    rate = told["throughput"]
    assert abs(rate["output_tokens_per_second"] * told["seconds"] - 54) < 1e-6
    for name in ("ttft", "tpot", "itl", "e2e"):
        spread = told["latency_ms"][name]
        assert 0 < spread["p50"] <= spread["p90"] <= spread["p99"]
    assert told["latency_ms"]["ttft"]["mean"] < told["latency_ms"]["e2e"]["mean"]
    assert "TTFT" in done.stdout and "9 of 9" in done.stdout


def test_arrivals_and_prompts_of_a_file(server, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello\nA second prompt\n")
    done, told = bench_service(server, tmp_path, "--requests", "6", "--rate", "50", "--prompts", str(prompts),
                               "--output-len", "3", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert told["requests"]["completed"] == 6 and told["tokens"]["output"] == 18


def test_errors_are_counted(server, tmp_path):
    done, told = bench_service(server, tmp_path, "--requests", "3", "--timeout", "1ms", "--input-len", "400",
                               "--output-len", "100")
    assert done.returncode == 1
    assert told["requests"]["errors"] == {"DEADLINE_EXCEEDED": 3}


@pytest.mark.parametrize("requests", ["4", "400"])
def test_interrupted(server, tmp_path, requests):
    """Ctrl-C when all requests are under way, and when some are still to come: what came so far is told."""
    path = tmp_path / "told.json"
    with server.client() as client:
        client.wait_idle()  # a step that is in flight when the workers stop keeps its request among those that run
    # The four would be over before a busy machine sends the signal, if their workers did not stand still.
    workers = [pid for pid, name in server.children().items() if name.startswith("shardd-worker") and requests == "4"]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    running = subprocess.Popen([os.path.join(BIN, "shardd"), "bench", "--serve", server.address, "--json", str(path),
                                "--requests", requests, "--concurrency", "4", "--output-len", "1500", "--input-len",
                                "8"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(100 * PATIENCE):
        status = json.loads(shardd("status", "--server", server.address, "--json").stdout)
        if status["server"]["running"] + status["server"]["waiting"] == 4:
            break
        time.sleep(0.1)
    else:
        raise AssertionError(status)
    running.send_signal(signal.SIGINT)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    running.communicate(timeout=20 * PATIENCE)
    assert running.returncode == 130
    told = json.loads(path.read_text())
    assert told["requests"]["sent"] <= 40
    assert told["requests"]["errors"].get("CANCELLED", 0) >= 1


def test_used_wrongly():
    done = shardd("bench")
    assert done.returncode == 2 and "--model" in done.stderr and "--serve" in done.stderr
    done = shardd("bench", "--serve", "unix:/nonexistent/shardd.sock")
    assert done.returncode == 3 and "/nonexistent/shardd.sock" in done.stderr
    done = shardd("bench", "--model", "/no/such/model", "--device", "cpu")
    assert done.returncode != 0 and "/no/such/model" in done.stderr
