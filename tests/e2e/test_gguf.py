"""A GGUF file alone in its folder answers as the checkpoint that holds the same model, and wrong ones are refused."""
import os
import shutil

import pytest

from shardd_client import shardd

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "gguf")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    made, folder = tmp_path_factory.mktemp("made") / "tiny", tmp_path_factory.mktemp("alone")
    done = shardd("synth", str(made), "--config", "tiny", "--seed", "7", "--format", "gguf")
    assert done.returncode == 0, done.stderr
    shutil.move(made / "model.gguf", folder / "Tiny-BF16.gguf")
    return folder


def answer(model, *more):
    done = shardd("generate", "--model", str(model), "--max-tokens", "12", "--temperature", "0", *more, "Hello there")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_answers_as_the_checkpoint(model, alone):
    expected = answer(model)
    assert answer(alone / "Tiny-BF16.gguf") == expected
    assert answer(alone, "--tensor-parallel-size", "2") == expected


def test_inspect_says_what_is_in_it():
    done = shardd("inspect", os.path.join(GOLDEN, "q8_0.gguf"))
    assert done.returncode == 0, done.stderr
    assert "gguf q8_0" in done.stdout and "copied out of the GGUF file" in done.stdout
    assert "2 files" in shardd("inspect", os.path.join(GOLDEN, "f32-00002-of-00002.gguf")).stdout


def test_quantised_blocks_are_written(tmp_path):
    """Q4_0 layers and a Q8_0 head, read as what they are, and sound (a number that is none ends a sequence)."""
    made = tmp_path / "blocks"
    done = shardd("synth", str(made), "--config", "tiny", "--format", "gguf", "--weights", "int4", "--lm-head", "int8")
    assert done.returncode == 0, done.stderr
    said = shardd("inspect", str(made / "model.gguf")).stdout
    assert "gguf q4_0" in said and "gguf q8_0" in said
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.move(made / "model.gguf", alone / "model.gguf")
    answer(alone, "--ignore-eos")


def test_refusals(tmp_path, alone):
    whole = (alone / "Tiny-BF16.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:len(whole) // 2])
    done = shardd("inspect", str(cut))
    assert done.returncode == 1 and "truncated" in done.stderr
    cut.write_bytes(whole.replace(b"qwen35", b"qwen99"))
    done = shardd("serve", "--model", str(tmp_path))
    assert done.returncode == 1 and "general.architecture is 'qwen99'" in done.stderr
    shutil.copy(cut, tmp_path / "other.gguf")
    done = shardd("serve", "--model", str(tmp_path))
    assert done.returncode == 2 and "give the path of one file" in done.stderr
    missing = tmp_path / "part-00002-of-00002.gguf"
    shutil.copy(os.path.join(GOLDEN, "f32-00002-of-00002.gguf"), missing)
    done = shardd("inspect", str(missing))
    assert done.returncode == 1 and "part-00001-of-00002.gguf" in done.stderr
