"""The CUDA worker over the emulation of tests/cuda_emu: what it says of a machine, what `shardd serve` makes of that,
and that its answers are the CPU worker's."""
import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shardd_client import BIN, PATIENCE, ROOT, Answer, Server, make_request, shardd

WORKER = os.path.join(BIN, "shardd-worker-cuda-emu")
MODEL = os.path.join(ROOT, "models/shardd-tiny")
RECORDS = os.path.join(ROOT, "tests/eval/prompts.jsonl")
NEW_TOKENS = 6  # the emulation is a few thousand times slower than a GPU
pytestmark = [pytest.mark.emulated,
              pytest.mark.skipif(not os.path.exists(WORKER), reason="the emulation is not built (thread sanitizer)")]


def settings(machine):
    return {"CUDA_EMU_" + name: str(value) for name, value in machine.items()}


# --- the probe ---

def probe(**machine):
    done = subprocess.run([WORKER, "--probe"], env={**os.environ, **settings(machine)}, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_probe():
    found = probe(DEVICES=2, BYTES=5 << 30)
    assert found["kind"] == "cuda" and found["usable"] and found["reason"] == ""
    assert found["driver"] == found["runtime"] == "13.0"
    assert [device["index"] for device in found["devices"]] == [0, 1]
    assert found["devices"][0]["compute_capability"] == "8.6"
    assert found["devices"][0]["memory_total"] == 5 << 30
    assert found["devices"][1]["uuid"] == "GPU-e1e1e1e1-e1e1-e1e1-e1e1-e1e1e1e1e1e1"
    assert [device["peers"] for device in found["devices"]] == [[1], [0]]
    assert [device["peers"] for device in probe(PEERS=0)["devices"]] == [[], []]


@pytest.mark.parametrize("named, opened", [("1", [1]), ("gpu-e0", [0]), ("1,0", [0, 1]), ("7,x", [0, 1]), ("", [0, 1])])
def test_probe_opens_those_that_are_named(named, opened):
    """And tells of the others what is known without; a list that names none is wrong, and for others to refuse."""
    done = subprocess.run([WORKER, "--probe=" + named], capture_output=True, text=True, timeout=60, check=False)
    found = json.loads(done.stdout)
    assert found["usable"] and found["reason"] == ""
    for device in found["devices"]:
        assert device["usable"] == (device["index"] in opened) and device["uuid"].startswith("GPU-e")
        assert (device["memory_free"] > 0) == device["usable"] and device["memory_total"] > 0
        assert device["reason"] == ("" if device["usable"] else "it was not opened: others were asked for")


def test_probe_names_who_holds_a_gpu():
    """NVML's card at the emulated one's place, held by this process."""
    found = probe(DEVICES=1)
    assert found["devices"][0]["holders"] == []
    done = subprocess.run([WORKER, "--probe"], capture_output=True, text=True, timeout=60, check=False,
                          env={**os.environ, "LD_LIBRARY_PATH": os.path.join(os.path.dirname(BIN), "fakes"),
                               "FAKE_NVML": "held", "FAKE_NVML_PID": str(os.getpid()), "CUDA_EMU_BUS": "101"})
    holder, = json.loads(done.stdout)["devices"][0]["holders"]
    assert holder["pid"] == os.getpid() and holder["name"].startswith("py") and holder["bytes"] == 39500000000


def test_probe_tells_where_nvlink_leads():
    """NVML's two cards at the places of the emulated ones, and only one of them."""
    for words, bus, expected in (("two,adjacent", 101, [[1], [0]]), ("two", 101, [[], []])):
        done = subprocess.run([WORKER, "--probe"], capture_output=True, text=True, timeout=60, check=False,
                              env={**os.environ, "LD_LIBRARY_PATH": os.path.join(os.path.dirname(BIN), "fakes"),
                                   "FAKE_NVML": words, "CUDA_EMU_BUS": str(bus)})
        assert [device["nvlinks"] for device in json.loads(done.stdout)["devices"]] == expected


def test_serve_tells_which_gpus_and_who_else_uses_them(installed):
    """Before it finds that nothing is left there for the model."""
    environment = {**settings({"BYTES": 300 << 20, "BUS": 101}), "FAKE_NVML": "held", "FAKE_NVML_PID": str(os.getpid()),
                   "CUDA_VISIBLE_DEVICES": "3,1", "LD_LIBRARY_PATH": os.path.join(os.path.dirname(BIN), "fakes")}
    done = subprocess.run([os.path.join(BIN, "shardd"), "serve", "--model", MODEL, "--port", "0", "--devices", "0,0",
                           "--libexec-dir", installed["with"]], env={**os.environ, **environment}, capture_output=True,
                          text=True, timeout=120, check=False)
    assert done.returncode == 1 and "the model does not fit" in done.stderr
    assert "CUDA_VISIBLE_DEVICES=3,1: CUDA shows 2 GPUs, counted from 0" in done.stderr
    assert "rank 1: GPU 0, emulation, GPU-e0e0" in done.stderr
    assert "several ranks share a GPU" in done.stderr
    assert re.search(r"GPU 0 is used by others too: process %d \(py.*\) holds 39.5 GB; 315 MB of 315 MB are free"
                     % os.getpid(), done.stderr), done.stderr


REASONS = [
    ({"DRIVER": 0}, "no NVIDIA driver is there"),
    ({"DRIVER": 12040}, "the driver can do CUDA 12.4 and this build needs 13.0"),
    ({"DEVICES": 0}, "the driver shows no GPU"),
    ({"CAPABILITY": 75}, "has compute capability 7.5; 8.0 or higher is needed"),
    ({"CAPABILITY": 80}, "this build has no code for compute capability 8.0"),
]


@pytest.mark.parametrize("machine, why", REASONS)
def test_probe_says_why_not(machine, why):
    found = probe(**machine)
    assert not found["usable"] and why in found["reason"]


# --- which device serves ---

@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folders of programs, with the emulated worker as shardd-worker-cuda and without any."""
    folders = {}
    for name, worker in (("with", WORKER), ("without", None)):
        folder = tmp_path_factory.mktemp(name)
        for program in ("shardd-coordinator", "shardd-worker-cpu"):
            os.symlink(os.path.join(BIN, program), folder / program)
        if worker:
            os.symlink(worker, folder / "shardd-worker-cuda")
        folders[name] = str(folder)
    return folders


@pytest.fixture(scope="module")
def machine_with_gpu(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    (root / "dev").mkdir()
    (root / "dev/nvidiactl").touch()
    return {"SHARDD_DOCTOR_ROOT": str(root)}


@pytest.fixture(scope="module")
def machine_without_driver(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    card = root / "sys/bus/pci/devices/0000:3b:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030200\n")
    return {"SHARDD_DOCTOR_ROOT": str(root)}


def refused(installed, machine, *flags):
    done = subprocess.run([os.path.join(BIN, "shardd"), "serve", "--model", MODEL, "--port", "0", "--device", "cuda",
                           "--libexec-dir", installed, *flags], env={**os.environ, **settings(machine)},
                          capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("machine, why", REASONS)
def test_device_cuda_is_refused_with_the_reason(installed, machine, why):
    code, last = refused(installed["with"], machine)
    assert code in (1, 2) and "--device cuda: " in last and why in last


def test_device_cuda_refused_before_it_starts(installed):
    code, last = refused(installed["without"], {})
    assert code == 2 and "shardd-worker-cuda is not installed here" in last
    code, last = refused(installed["with"], {"DEVICES": 1}, "--tensor-parallel-size", "2")
    assert code == 2 and "--tensor-parallel-size 2 needs 2 GPUs and CUDA shows 1 here; lower it" in last
    code, last = refused(installed["with"], {}, "--devices", "0,2")
    assert code == 2 and "there is no GPU 2; CUDA shows 2 here" in last
    code, last = refused(installed["with"], {}, "--devices", "GPU-e1,gpu-E")
    assert code == 2 and "--devices gpu-E: 2 GPUs have a UUID that begins so" in last
    code, last = refused(installed["with"], {"BYTES": 200 << 20})
    assert code == 1 and "the model does not fit" in last and "for graphs" in last


def served_by(environment, libexec, **machine):
    with Server(MODEL, "--libexec-dir", libexec, "--max-num-seqs", "2", "--kv-cache-memory", "64MiB",
                env={**environment, **settings(machine)}) as server:
        return server.log_text()


def test_auto_says_why_the_cpu_serves(installed, machine_with_gpu, machine_without_driver):
    log = served_by(machine_with_gpu, installed["without"])
    assert "the CPU serves although there is a GPU: the program shardd-worker-cuda is not installed here" in log
    log = served_by(machine_with_gpu, installed["with"], DRIVER=12040)
    assert "the CPU serves although there is a GPU: the driver can do CUDA 12.4" in log and "(tp 1, cpu)" in log
    log = served_by(machine_without_driver, installed["with"], DRIVER=0)
    assert "the GPU is on the PCI bus, but there is no /dev/nvidiactl" in log
    log = served_by({"SHARDD_DOCTOR_ROOT": "/nonexistent"}, installed["with"])
    assert "this machine shows no NVIDIA GPU; the CPU serves" in log and "although" not in log


# --- its answers ---

def some_records(n):
    """Short prompts of different groups."""
    with open(RECORDS, encoding="utf-8") as f:
        records = [json.loads(line) for line in f]
    records = [r for r in records if len(r["prompt_ids"]) < 60]
    return [records[i * len(records) // n] for i in range(n)]


FLAGS = ("--max-model-len", "256", "--max-num-seqs", "4", "--max-num-batched-tokens", "32", "--kv-cache-memory",
         "64MiB", "--kv-cache-dtype", "fp32")


@pytest.mark.slow
def test_the_emulated_gpu_answers_as_the_cpu(installed, machine_with_gpu):
    """auto takes it; prompts together and alone, with a prompt in chunks: what transformers said."""
    records = some_records(4)
    with Server(MODEL, *FLAGS, "--libexec-dir", installed["with"], "--step-timeout", "120s", "--numa-bind", "core",
                env=machine_with_gpu) as server:
        log = server.log_text()
        assert "(tp 1, cuda)" in log
        assert "rank 0 stays on core " in log or len(os.sched_getaffinity(0)) == 1

        def ids(record):
            with server.client() as client:
                return client.generate(make_request(ids=record["prompt_ids"], max_tokens=NEW_TOKENS),
                                       timeout=300 * PATIENCE).ids

        expected = [record["reply_ids"][:NEW_TOKENS] for record in records]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ids, records)) == expected
        assert ids(records[0]) == expected[0]


@pytest.mark.slow
def test_two_emulated_gpus_answer_as_one(installed, machine_with_gpu):
    """A process each, which meet and exchange sums and logits: two prompts at the same time, one of them in chunks."""
    with open(RECORDS, encoding="utf-8") as f:
        records = sorted(map(json.loads, f), key=lambda record: len(record["prompt_ids"]))[:2]
    with Server(MODEL, *FLAGS[:4], "--max-num-batched-tokens", "16", "--kv-cache-memory", "64MiB", "--kv-cache-dtype",
                "fp32", "--libexec-dir", installed["with"], "--step-timeout", "120s", "--devices", "GPU-e1,0",
                env=machine_with_gpu) as server:
        assert "(tp 2, cuda)" in server.log_text()
        assert "rank 0: GPU 1, emulation, GPU-e1e1" in server.log_text()

        def ids(record):
            with server.client() as client:
                return client.generate(make_request(ids=record["prompt_ids"], max_tokens=2),
                                       timeout=300 * PATIENCE).ids

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(ids, records)) == [record["reply_ids"][:2] for record in records]


# The grouping of the 27B model (6 query heads to a kv head, 3 value heads to a key head), sizes that nothing divides.
ODD = {"hidden_size": 232, "intermediate_size": 296, "num_attention_heads": 12, "num_key_value_heads": 2,
       "head_dim": 40,
       "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 24, "linear_value_head_dim": 44,
       "vocab_size": 787, "eos_token_id": 700, "pad_token_id": 700, "num_hidden_layers": 4,
       "full_attention_interval": 4, "mtp_num_hidden_layers": 0}
# Small, so that the emulation makes some tokens of it a second.
LITTLE = {**ODD, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 32,
          "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32, "num_hidden_layers": 2,
          "full_attention_interval": 2}


def config_file(path, sizes, rotary):
    with open(os.path.join(MODEL, "config.json"), encoding="utf-8") as f:
        fields = {**json.load(f), **sizes}
    fields.pop("layer_types")
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": rotary}
    path.write_text(json.dumps(fields))
    return str(path)


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    folder = tmp_path_factory.mktemp("little")
    done = shardd("synth", str(folder / "model"), "--config", config_file(folder / "little.json", LITTLE, 0.5))
    assert done.returncode == 0, done.stderr
    return str(folder / "model")


# --- two ranks ---

@pytest.mark.slow
def test_ranks_of_one_process_and_of_one_gpu(installed, machine_with_gpu, little):
    """Both in a process, a thread and a device each, by NCCL; then they share a device. One rank has the same bits, of
    the prompt's tokens too, and samples what it may."""
    request = make_request(ids=[1, 2, 3, 4], max_tokens=3)
    request.output.logprobs = True
    request.output.prompt_logprobs = 2
    request.sampling.allowed_token_ids.extend(range(100, 130))
    found = []
    for flags in ([], ["-tp", "2", "--ranks-per-process", "2", "--all-reduce", "nccl"],
                  ["--devices", "0,0", "--ranks-per-process", "2"]):
        with Server(little, *FLAGS, "--libexec-dir", installed["with"], "--step-timeout", "60s", *flags,
                    env=machine_with_gpu) as server, server.client() as client:
            answer, log = client.generate(request, timeout=300 * PATIENCE), server.log_text()
            assert ("several ranks share a GPU" in log) == ("0,0" in flags) and "cuda)" in log
            assert len(ranks_of(server)) == 1
            assert ("an emulated NCCL on =lo" in log) == ("nccl" in flags)  # which listens to nobody else
            assert all(100 <= token < 130 for token in answer.ids)
            found.append((answer.ids, [token.logprob for token in answer.logprobs],
                          [(token.logprob, [t.token_id for t in token.top]) for token in answer.prompt_logprobs]))
    assert found[0] == found[1] == found[2] and len(found[0][1]) == len(found[0][2]) == 3


@pytest.mark.slow
def test_prefixes_on_an_emulated_gpu(little, installed, machine_with_gpu):
    """A prompt, its next turn, and another that leaves it half way: the same bits as without a prefix cache. Less can
    be pinned than the cache takes, which costs pages and time, and nothing else."""
    found, few = [], settings({"PINNED": 20 << 20})
    for flags in (["--prefix-cache-memory", "64MiB"], ["--prefix-cache", "off"]):
        with Server(little, *FLAGS, "--libexec-dir", installed["with"], "--step-timeout", "60s", *flags,
                    env={**machine_with_gpu, **few}) as server, server.client() as client:
            assert ("to move states of prefixes" in server.log_text()) == ("off" not in flags), server.log_text()
            prompt, said, cached = [(7 * i) % 500 for i in range(83)], [], []
            for suffix in ([], [5, 6, 7], [9]):
                request = make_request(ids=prompt + suffix, max_tokens=3)
                request.output.logprobs = True
                answer = client.generate(request, timeout=300 * PATIENCE)
                said.append((answer.ids, [token.logprob for token in answer.logprobs]))
                cached.append(answer.finish.usage.cached_tokens)
            found.append(said)
            assert cached == ([0, 0, 0] if "off" in flags else [0, 80, 80])
    assert found[0] == found[1]


def ranks_of(server):
    """Pids of the ranks; keepers of weights are the same program."""
    found = []
    for pid in sorted(server.children()):
        with open("/proc/%d/cmdline" % pid, "rb") as f:
            if b"--comm-fd" in f.read().split(b"\0"):
                found.append(pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how, peers", [(signal.SIGKILL, 1), (signal.SIGSTOP, 0)])
def test_a_lost_rank_costs_nobody_a_request(installed, machine_with_gpu, little, how, peers):
    """Two ranks, by memory of the devices or of the host; one is killed, or stands still until the step's limit. The
    other one waits for its words meanwhile."""
    requests = [make_request(ids=[1 + i, 2, 3], max_tokens=8, temperature=0.8, seed=i) for i in range(2)]
    with Server(little, *FLAGS, "--libexec-dir", installed["with"], "--step-timeout", "10s", "-tp", "2",
                env={**machine_with_gpu, **settings({"PEERS": peers})}) as server, server.client() as client:
        with ThreadPoolExecutor(2) as pool:
            undisturbed = [answer.ids for answer in pool.map(client.generate, requests)]
            streams = [client.chunks(request) for request in requests]
            begun = [next(s) for s in streams]
            ranks = ranks_of(server)
            os.kill(ranks[1], how)
            found = list(pool.map(lambda i: Answer([begun[i], *streams[i]]).ids, range(2)))
        assert found == undisturbed
        assert len(ranks) == 2 and len(ranks_of(server)) == 2 and not set(ranks) & set(ranks_of(server))


@pytest.mark.slow
@pytest.mark.parametrize("what, flags, says", [
    ("FAULT", [], "illegal memory access"),
    ("NCCL_FAULT", ["--all-reduce", "nccl"], "NCCL"),
])
def test_a_failed_device_or_library_costs_nobody_a_request(installed, machine_with_gpu, little, tmp_path, what, flags,
                                                           says):
    """One of two ranks, while sums of both are on the way. The other one ends, too, both are started again, the streams
    go on with the tokens that would have come, and the log has the reason."""
    requests = [make_request(ids=[1 + i, 2, 3], max_tokens=8, temperature=0.8, seed=i) for i in range(2)]
    broken = tmp_path / "broken"
    with Server(little, *FLAGS, "--libexec-dir", installed["with"], "--step-timeout", "60s", "-tp", "2", *flags,
                env={**machine_with_gpu, **settings({what: broken})}) as server, server.client() as client:
        with ThreadPoolExecutor(2) as pool:
            undisturbed = [answer.ids for answer in pool.map(client.generate, requests)]
            streams = [client.chunks(request) for request in requests]
            begun = [[next(s), next(s)] for s in streams]
            ranks = ranks_of(server)
            broken.touch()
            found = list(pool.map(lambda i: Answer([*begun[i], *streams[i]]).ids, range(2)))
        assert found == undisturbed and not broken.exists()
        assert len(ranks) == 2 and len(ranks_of(server)) == 2 and not set(ranks) & set(ranks_of(server))
        assert says in server.log_text().split("ready", 1)[1], server.log_text()


@pytest.mark.slow
def test_a_device_that_hangs_is_noticed_where_it_is(installed, machine_with_gpu, tmp_path):
    """The device's own marks say where; the group is restarted, and the answer is the one that would have come."""
    record, hang = some_records(1)[0], tmp_path / "hang"
    with Server(MODEL, *FLAGS, "--libexec-dir", installed["with"], "--step-timeout", "30s",
                env={**machine_with_gpu, "CUDA_EMU_HANG": str(hang)}) as server, server.client() as client:
        with ThreadPoolExecutor(1) as pool:
            hang.write_text("12")  # works of the first step: in one of its layers
            answer = pool.submit(client.generate, make_request(ids=record["prompt_ids"], max_tokens=NEW_TOKENS),
                                 timeout=300 * PATIENCE)
            end = time.monotonic() + 60 * PATIENCE
            while "makes no progress" not in server.log_text():
                assert time.monotonic() < end, server.log_text()
                time.sleep(0.1)
            hang.unlink()
            assert answer.result().ids == record["reply_ids"][:NEW_TOKENS]
        assert re.search(r"no progress for \d+ ms at step \d+, layer [1-5], operation \d+", server.log_text())


def generated(worker, model, *flags):
    """[(id, log probability)] of a worker without a service, a prompt in chunks."""
    ids = ",".join(str(i * 37 % 200) for i in range(40))
    done = subprocess.run([os.path.join(BIN, worker), "--model", model, "--generate-ids", ids, "--max-tokens", "4",
                           "--max-model-len", "128", "--max-num-batched-tokens", "17", "--kv-cache-memory", "32MiB",
                           "--kv-cache-dtype", "fp32", *flags],
                          capture_output=True, text=True, timeout=300 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return [(int(a), float(b)) for a, b in re.findall(r"id +(\d+) +logprob (-?[\d.]+)", done.stdout)]


def test_drafts_on_an_emulated_gpu_change_no_token():
    """The model's MTP layer guesses, the next step verifies: graphs of both, and tokens of a CPU that does without."""
    prompt = ["--model", MODEL, "--generate-ids", "5,9,23,77,101,44,3,18,20,5,9,23,77", "--max-tokens", "7",
              "--max-model-len", "128", "--max-num-batched-tokens", "16", "--max-num-seqs", "2"]
    done = [subprocess.run([worker, *prompt, *flags], capture_output=True, text=True, timeout=300 * PATIENCE,
                           check=True)
            for worker, flags in ((os.path.join(BIN, "shardd-worker-cpu"), []),
                                  (WORKER, ["--mtp", "on", "--drafts-max", "3"]))]
    tokens = [re.findall(r"id +(\d+) +logprob", one.stdout) for one in done]
    assert tokens[1] == tokens[0] and len(tokens[0]) == 7
    guessed, accepted = map(int, re.search(r"(\d+) tokens guessed, (\d+) accepted", done[1].stderr).groups())
    assert 0 < accepted <= guessed


@pytest.mark.slow
@pytest.mark.parametrize("config, near, flags", [
    (("odd",), 1e-3, ()), (("tiny", "--weights", "int4"), 0.03, ()),
    (("odd",), 1e-3, ("--recurrent-state-dtype", "fp16"))])
def test_made_up_models(config, near, flags, tmp_path):
    """One forward after another on both workers, graphs and eager. Attention and dense products round in another order
    on a GPU, and where activations are rounded to INT8 one bit more may become a step of 1/127."""
    model = str(tmp_path / "model")
    if config == ("odd",):
        config = (config_file(tmp_path / "odd.json", ODD, 0.25),)
    done = shardd("synth", model, "--config", *config, "--seed", "5")
    assert done.returncode == 0, done.stderr
    expected = generated("shardd-worker-cpu", model, *flags)
    graphs = generated("shardd-worker-cuda-emu", model, *flags)
    assert [i for i, _ in graphs] == [i for i, _ in expected] and len(expected) == 4
    assert max(abs(a[1] - b[1]) for a, b in zip(graphs, expected)) < near
    assert generated("shardd-worker-cuda-emu", model, "--enforce-eager", *flags) == graphs


@pytest.mark.slow
def test_rows_of_a_step_are_chosen_by_memory():
    """2048 where their scratch is little of what weights leave, halved to 512 where it is much, and what is asked."""
    def rows(memory, *flags):
        done = subprocess.run([os.path.join(BIN, "shardd-worker-cuda-emu"), "--model", MODEL, "--plan", str(memory),
                               "--max-model-len", "64", *flags], capture_output=True, text=True, timeout=60,
                              check=False)
        plan = json.loads(done.stdout)
        return int(re.search(r"scratch of (\d+) rows", plan["text"])[1]), plan

    most, plan = rows(64 << 30)
    assert most == 2048
    half = rows(64 << 30, "--max-num-batched-tokens", "1024")[1]
    taken, margin = plan["least_bytes"] - plan["scratch_bytes"], 64 << 20
    assert 8 * half["scratch_bytes"] + 2 * margin < 8 * plan["scratch_bytes"]
    assert rows(8 * plan["scratch_bytes"] + taken + margin)[0] == 2048
    assert rows(8 * half["scratch_bytes"] + taken + margin)[0] == 1024
    assert rows(plan["least_bytes"])[0] == 512
    assert rows(64 << 30, "--max-num-batched-tokens", "77")[0] == 77
    assert rows(plan["least_bytes"], "--max-num-seqs", "600")[0] == 1024  # never less than the sequences


@pytest.mark.slow
def test_bench_tells_nodes_and_host_time(tmp_path):
    model = str(tmp_path / "model")
    done = shardd("synth", model, "--config", "tiny", "--weights", "int4", "--config-only")
    assert done.returncode == 0, done.stderr

    def tests_of(*flags):
        done = subprocess.run([os.path.join(BIN, "shardd-worker-cuda-emu"), "bench", "--model", model, "--load-format",
                               "dummy", "--prompt", "0", "--decode", "2", "--batch", "1,3", "--repeat", "1",
                               "--max-num-batched-tokens", "4", "--speed-memory", "0", "--json", "-", *flags],
                              capture_output=True, text=True, timeout=300 * PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        assert "host us" in done.stderr
        return json.loads(done.stdout)["tests"]

    with open(os.path.join(model, "config.json"), encoding="utf-8") as f:
        layers = json.load(f)["num_hidden_layers"]
    graphs, eager = tests_of(), tests_of("--enforce-eager")
    assert all(5 * layers < t["graph_nodes"] < 12 * layers + 48 and t["host_us"] > 0 for t in graphs)
    assert [t["graph_nodes"] for t in eager] == [0, 0] and all(t["host_us"] > 0 for t in eager)


@pytest.mark.slow
def test_packed_weights_are_mapped(tmp_path):
    """`shardd pack` makes a GPU's file on any host; the CUDA worker takes it as it is, to the same numbers."""
    model = str(tmp_path / "model")
    done = shardd("synth", model, "--config", "tiny", "--weights", "int4", "--seed", "6")
    assert done.returncode == 0, done.stderr
    from_checkpoint = generated("shardd-worker-cuda-emu", model, "--load-format", "safetensors")
    assert not [name for name in os.listdir(model) if "packed" in name]
    done = shardd("pack", model, "--layout", "cuda-mma-2")
    assert done.returncode == 0, done.stderr
    packed = os.path.join(model, "shardd-packed-cuda-mma-2.bin")
    made = os.stat(packed)
    assert generated("shardd-worker-cuda-emu", model, "--load-format", "packed") == from_checkpoint
    assert (os.stat(packed).st_ino, os.stat(packed).st_mtime_ns) == (made.st_ino, made.st_mtime_ns)  # not made anew
