"""A checkpoint with weights that are no numbers: only requests that meet them end, with the reason, and the rank group
stays up. And sampling parameters at the ends of their ranges: a token of the distribution, or a refusal."""
import json
import os
import shutil
import struct
import tempfile
import threading

import grpc
import pytest

from shardd_client import Refused, Server, make_request

BAD_ID = 7


def poison(folder, tensor, first, n):
    """Makes elements first .. first + n - 1 of a BF16 tensor NaN."""
    path = os.path.join(folder, "model.safetensors")
    with open(path, "r+b") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        entry = json.loads(f.read(size))[tensor]
        assert entry["dtype"] == "BF16"
        f.seek(8 + size + entry["data_offsets"][0] + 2 * first)
        f.write(b"\xc0\x7f" * n)


@pytest.fixture(scope="module")
def damaged(model):
    """One row of the embedding and the whole first matrix of the MTP layer are damaged."""
    folder = tempfile.mkdtemp(prefix="shardd-damaged-")
    path = os.path.join(folder, "tiny")
    shutil.copytree(model, path)
    poison(path, "model.embed_tokens.weight", BAD_ID * 256, 256)
    poison(path, "mtp.fc.weight", 0, 256 * 512)
    with Server(path, "--tensor-parallel-size", "2", "--max-model-len", "2048", "--max-num-seqs", "4") as running:
        yield running
    shutil.rmtree(folder)


def request_of(seed, bad):
    ids = [20 + (seed * 31 + i * 7) % 200 for i in range(60 + 9 * seed)]
    if bad:
        ids[len(ids) // 2] = BAD_ID
    request = make_request(ids=ids, max_tokens=30, temperature=1.0, seed=seed)
    request.stopping.ignore_eos = True
    request.sampling.logit_bias[BAD_ID] = -100.0
    return request


def test_only_the_sequence_that_meets_damaged_weights_ends(damaged, client):
    good = [request_of(i, False) for i in range(6)]
    expected = [client.generate(r).ids for r in good]
    got, refused = [None] * len(good), []
    with damaged.client() as d:
        epoch = d.call("GetServerInfo").group_epoch

        def run_good(i):
            got[i] = d.generate(good[i]).ids

        def run_bad(i):
            with pytest.raises(Refused) as caught:
                d.generate(request_of(i, True))
            refused.append(caught.value)

        threads = [threading.Thread(target=f, args=(i,)) for i in range(6) for f in (run_good, run_bad)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        # More sequences than slots: the slots and pages of damaged ones were used again, and nothing is left in them.
        assert got == expected
        assert len(refused) == 6
        for one in refused:
            assert one.code == grpc.StatusCode.INTERNAL and "not a finite number" in one.sentence, one
        d.wait_idle()
        assert d.call("GetServerInfo").group_epoch == epoch


@pytest.mark.parametrize("temperature", [0.0, 1e-38, 1.0, 2.0])
def test_a_tiny_repetition_penalty_gives_tokens_of_the_prompt(client, temperature):
    """Positive logits of ids that were seen become the highest: whatever comes is one of them, and seeds differ."""
    prompt = list(range(40, 240))
    answers = set()
    for seed in range(3):
        request = make_request(ids=prompt, max_tokens=8, temperature=temperature, seed=seed)
        request.sampling.repetition_penalty = 1e-40
        request.stopping.ignore_eos = True
        ids = client.generate(request).ids
        assert len(ids) == 8 and set(ids) <= set(prompt), ids
        assert client.generate(request).ids == ids
        answers.add(tuple(ids))
    assert len(answers) == (1 if temperature == 0.0 else 3)
