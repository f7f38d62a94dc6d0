"""The shardd command as a person uses it: generate, chat, status, inspect, synth, help; and what it says when it is
used wrongly."""
import json
import os
import shutil
import socket

import pytest

from shardd_client import Server, shardd


def test_help_teaches():
    for arguments in (["--help"], ["help"], ["serve", "--help"], ["generate", "--help"], ["chat", "--help"],
                      ["status", "--help"], ["doctor", "--help"], ["bench", "--help"],
                      ["inspect", "--help"], ["synth", "--help"]):
        done = shardd(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        assert "shardd" in done.stdout
    assert "--tensor-parallel-size" in shardd("serve", "--help").stdout


def test_unknown_verb_and_flag():
    done = shardd("srve")
    assert done.returncode == 2 and "srve" in done.stderr
    done = shardd("serve", "--tensor-paralel-size", "2")
    assert done.returncode == 2 and "tensor-paralel-size" in done.stderr


def test_generate_streams_text(server):
    done = shardd("generate", "--server", server.address, "--max-tokens", "8", "--temperature", "0", "Hello")
    assert done.returncode == 0, done.stderr
    assert done.stdout and "tok" in done.stderr


def test_generate_from_stdin_and_json(server):
    done = shardd("generate", "--server", server.address, "--max-tokens", "4", "--json", "-", stdin="From a pipe")
    assert done.returncode == 0, done.stderr
    chunks = [json.loads(line) for line in done.stdout.splitlines()]
    assert chunks and "finish" in chunks[-1]


def test_generate_refused(server):
    done = shardd("generate", "--server", server.address, "--temperature", "-3", "x")
    assert done.returncode in (1, 2) and "temperature" in done.stderr


def test_unreachable_server():
    done = shardd("generate", "--server", "unix:/nonexistent/shardd.sock", "x")
    assert done.returncode == 3 and "/nonexistent/shardd.sock" in done.stderr
    assert shardd("status", "--server", "unix:/nonexistent/shardd.sock").returncode == 3


def test_status(server):
    done = shardd("status", "--server", server.address)
    assert done.returncode == 0 and "serving" in done.stdout
    done = shardd("status", "--server", server.address, "--json")
    assert done.returncode == 0
    json.loads(done.stdout)


@pytest.mark.parametrize("layers", [1, 0])
def test_model_info_has_mtp_as_inspect_says(model, tmp_path, layers):
    """Whether the checkpoint has an MTP layer, though serve does not run it."""
    for name in os.listdir(model):
        if name != "config.json":
            os.symlink(os.path.join(model, name), tmp_path / name)
    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    sizes = config.get("text_config", config)
    assert sizes["mtp_num_hidden_layers"] == 1
    sizes["mtp_num_hidden_layers"] = layers
    (tmp_path / "config.json").write_text(json.dumps(config))
    inspected = json.loads(shardd("inspect", str(tmp_path), "--json").stdout)
    assert inspected["tensors"]["mtp"] == bool(layers)
    with Server(str(tmp_path), "--tensor-parallel-size", "2") as running:
        done = shardd("status", "--server", running.address, "--json")
        assert json.loads(done.stdout)["model"]["has_mtp"] == bool(layers)


def test_chat_keeps_the_conversation(server):
    done = shardd("chat", "--server", server.address, "--max-tokens", "6", stdin="Hello\nAnd again\n/quit\n")
    assert done.returncode == 0, done.stderr


def test_offline_generate_equals_the_served_one(server, model):
    flags = ["--max-tokens", "8", "--temperature", "0", "The same either way"]
    served = shardd("generate", "--server", server.address, *flags)
    offline = shardd("generate", "--model", model, *flags)
    assert offline.returncode == 0, offline.stderr
    assert served.stdout == offline.stdout


def test_inspect(model):
    done = shardd("inspect", model)
    assert done.returncode == 0, done.stderr
    assert "qwen3_5" in done.stdout
    done = shardd("inspect", model, "--tensor-parallel-size", "2", "--json")
    assert done.returncode == 0
    json.loads(done.stdout)


def test_synth_is_seeded(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        done = shardd("synth", str(tmp_path / name), "--config", "tiny", "--seed", seed)
        assert done.returncode == 0, done.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def serve_fails(*arguments):
    done = shardd("serve", *arguments)
    assert done.returncode not in (0, -6, -11), done.stderr
    return done.stderr


def test_serve_refuses_what_cannot_work(model, tmp_path):
    assert "/no/such/model" in serve_fails("--model", "/no/such/model")
    assert "config.json" in serve_fails("--model", str(tmp_path))
    text = serve_fails("--model", model, "--tensor-parallel-size", "3")
    assert "tensor-parallel-size" in text and "3" in text
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        text = serve_fails("--model", model, "--port", port)
        assert port in text and "port" in text


BROKEN = [
    ("config.json", lambda b: b"{", "config.json"),
    ("config.json", lambda b: b.replace(b'"hidden_size"', b'"hidden_sise"'), "hidden_size"),
    ("tokenizer.json", lambda b: b[:len(b) // 2], "tokenizer.json"),
    ("tokenizer.json", lambda b: b'{"model": {"type": "Unigram"}}', "tokenizer.json"),
    ("model.safetensors", lambda b: b[:len(b) // 2], "model.safetensors"),
    ("model.safetensors", lambda b: b"\xff" * 8 + b[8:], "model.safetensors"),
    ("model.safetensors", lambda b: b.replace(b'"BF16"', b'"BF61"', 1), "BF61"),
    ("model.safetensors", lambda b: b.replace(b"mlp.down_proj", b"mlp.dawn_proj", 1), "mlp.down_proj"),
]


@pytest.mark.parametrize("name,damage,word", BROKEN, ids=["%s-%d" % (b[0], i) for i, b in enumerate(BROKEN)])
def test_serve_refuses_broken_files(model, tmp_path, name, damage, word):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    path = broken / name
    before = path.read_bytes()
    os.unlink(path)
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    text = serve_fails("--model", str(broken))
    assert word in text, text
