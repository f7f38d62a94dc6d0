"""`shardd doctor` as a person and as a program use it: text, JSON and exit codes, on machines that are made up: a
folder in place of / (SHARDD_DOCTOR_ROOT), a libnvidia-ml.so.1 of our own (tests/fakes/nvml.c), and a CUDA worker that
answers what a script says."""
import json
import os
import stat

import pytest

from shardd_client import BIN, ROOT, shardd

FAKES = os.path.join(os.path.dirname(BIN), "fakes")
GB = 10**9


def device(index=0, **more):
    return {"index": index, "name": "NVIDIA RTX A6000", "place": "00000000:%s:00.0" % ("65", "B3", "C1", "C2")[index],
            "compute_capability": "8.6", "units": 84, "memory_total": 48 * GB, "memory_free": 47 * GB, "usable": True,
            "reason": "", **more}


def probe(*devices, **more):
    return {"kind": "cuda", "version": "0.1.0", "driver": "12.8", "runtime": "12.4", "usable": True, "reason": "",
            "devices": list(devices), **more}


class Machine:
    """One with a card and a driver that works, unless told otherwise."""

    def __init__(self, folder, gpus=1, answer=None, worker=True):
        self.root = folder / "root"
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name in ("shardd-coordinator", "shardd-worker-cpu"):
            os.symlink(os.path.join(BIN, name), self.bin / name)
        self.put("proc/meminfo", "MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n")
        self.put("proc/cpuinfo", "processor : 0\nmodel name : Fake CPU\nflags : fpu avx2 fma f16c\n")
        self.put("proc/77/comm", "greedy\n")
        if gpus:
            self.put("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  x\n")
        for i in range(gpus):
            place = ("0000:65:00.0", "0000:b3:00.0")[i]
            self.put("sys/bus/pci/devices/%s/vendor" % place, "0x10de\n")
            self.put("sys/bus/pci/devices/%s/class" % place, "0x030200\n")
        for name in ["nvidiactl", "nvidia-uvm"] + ["nvidia%d" % i for i in range(gpus)] if gpus else []:
            self.put("dev/" + name, "")
        if gpus and worker:
            self.worker(answer or probe(*[device(i) for i in range(gpus)]))

    def put(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def worker(self, answer):
        """A shardd-worker-cuda that answers --probe with this, and what is asked besides as the CPU's does."""
        path = self.bin / "shardd-worker-cuda"
        path.write_text("#!/bin/sh\n[ \"$1\" = --probe ] || exec %s/shardd-worker-cpu \"$@\"\ncat <<'END'\n%s\nEND\n"
                        % (BIN, answer if isinstance(answer, str) else json.dumps(answer)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def doctor(self, *arguments, cards="", **env):
        return shardd("doctor", "--libexec-dir", str(self.bin), *arguments,
                      env={"SHARDD_DOCTOR_ROOT": str(self.root), "LD_LIBRARY_PATH": FAKES, "FAKE_NVML": cards,
                           "FAKE_NVML_PID": "77", **env})

    def report(self, *arguments, **more):
        done = self.doctor(*arguments, "--json", **more)
        report = json.loads(done.stdout)
        assert report["would_serve"] == (done.returncode == 0)
        assert report["problems"] == len([f for f in report["findings"] if f["level"] == "problem"])
        assert (report["problems"] == 0) == report["would_serve"]
        for finding in report["findings"]:
            assert set(finding) == {"check", "where", "level", "text", "advice"}
            assert finding["level"] in ("ok", "note", "warning", "problem") and finding["text"]
            assert finding["advice"] or finding["level"] in ("ok", "note"), finding
        return report


def found(report, check):
    return [f for f in report["findings"] if f["check"] == check]


def test_a_healthy_machine(tmp_path):
    machine = Machine(tmp_path)
    done = machine.doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("driver 570.86.15, CUDA up to 12.8", "NVIDIA RTX A6000 at 00000000:65:00.0", "48.0 GB, 47.5 GB free",
                 "compute capability 8.6", "ECC is on", "PCIe generation 1 of 4", "300 W", "built with CUDA 12.4",
                 "for rank 0", "serving on 1 GPU would work"):
        assert text in done.stdout, text
    assert "problem" not in done.stdout and "warning" not in done.stdout
    report = machine.report()
    assert report["device"] == "cuda" and report["version"] == "0.1.0" and report["warnings"] == 0
    gpu, = report["gpus"]
    assert gpu["name"] == "NVIDIA RTX A6000" and gpu["compute_capability"] == "8.6" and gpu["used"] is True
    assert gpu["memory_total_bytes"] == 48 * GB and gpu["power_limit_mw"] == 300000 and gpu["ecc_enabled"] == 1
    assert gpu["mig_mode"] is None and gpu["processes"] == [] and len(gpu["nvlink"]) == 4
    assert report["driver"]["module"] == report["driver"]["version"] == "570.86.15"
    assert report["driver"]["cuda"] == "12.8" and [d["usable"] for d in report["driver"]["devices"]] == [True] * 3
    assert report["workers"]["cuda"]["devices"][0]["units"] == 84 and report["workers"]["cpu"]["kind"] == "cpu"
    assert report["machine"]["memory_total_bytes"] == 64000000 * 1024 and report["model"] is None


def test_a_machine_without_a_gpu(tmp_path):
    machine = Machine(tmp_path, gpus=0)
    nothing = {"LD_LIBRARY_PATH": ""}
    report = machine.report(**nothing)
    assert report["device"] == "cpu" and report["would_serve"] and report["gpus"] == []
    hardware, = found(report, "driver.hardware")
    assert hardware["level"] == "note" and "--device auto serves on the CPU" in hardware["text"]
    done = machine.doctor("--device", "cuda", **nothing)
    assert done.returncode == 1 and "no NVIDIA GPU" in done.stdout and "--device cpu" in done.stdout
    assert "serving on 1 GPU would not work" in done.stdout
    assert machine.doctor("--device", "cpu", **nothing).returncode == 0


@pytest.mark.parametrize("cards,check,text,advice", [
    ("mismatch", "driver.library", "different versions", "Reboot"),
    ("denied", "driver.library", "not permitted", "devices"),
    ("old", "gpu.capability", "7.5", "Take another GPU"),
    ("none", "driver.gpus", "shows no GPU", "dmesg"),
])
def test_what_keeps_a_gpu_from_serving(tmp_path, cards, check, text, advice):
    machine = Machine(tmp_path)
    finding = [f for f in found(machine.report(cards=cards), check) if f["level"] == "problem"][0]
    assert text in finding["text"] and advice in finding["advice"]
    done = machine.doctor(cards=cards)
    assert done.returncode == 1 and text in done.stdout and advice in done.stdout
    # Without the GPU nothing of this matters; NVML is not even opened.
    report = machine.report("--device", "cpu", cards=cards)
    assert report["would_serve"] and report["device"] == "cpu" and report["gpus"] == []


@pytest.mark.parametrize("cards,check,text", [
    ("ecc-off", "gpu.ecc", "ECC is off"),
    ("hot", "gpu.throttled", "too hot"),
    ("held", "gpu.holder", "process 77 (greedy) holds 39.5 GB"),
    ("low-power", "gpu.power", "150 W, below the card's own 300 W"),
])
def test_what_a_gpu_serves_with(tmp_path, cards, check, text):
    report = Machine(tmp_path).report(cards=cards)
    assert report["would_serve"] and any(text in f["text"] and f["level"] in ("note", "warning")
                                         for f in found(report, check))


@pytest.mark.parametrize("cards", ["silly", "failing", "crowd,silly,two", "crowd,lost"])
def test_values_that_nobody_should_believe(tmp_path, cards):
    machine = Machine(tmp_path)
    for arguments in ([], ["--json"]):
        done = machine.doctor(*arguments, cards=cards)
        assert done.returncode in (0, 1), done
    assert not any(ord(c) < 32 and c != "\n" for c in done.stdout)
    machine.report(cards=cards)


def test_devices_that_are_missing(tmp_path):
    machine = Machine(tmp_path)
    os.unlink(machine.root / "dev/nvidia-uvm")
    uvm, = found(machine.report(), "driver.uvm_device")
    assert uvm["level"] == "problem" and "modprobe nvidia-uvm" in uvm["advice"]
    assert found(machine.report(CUDA_VISIBLE_DEVICES="-1"), "driver.visible")[0]["level"] == "problem"


def test_what_the_cuda_worker_says(tmp_path):
    machine = Machine(tmp_path, worker=False)
    absent, = found(machine.report(), "programs.cuda_worker")
    assert absent["level"] == "problem" and "nvcc" in absent["advice"]
    machine.worker(probe(usable=False, reason="the driver can do CUDA 11.4 and this build needs 12.4"))
    refused, = found(machine.report(), "programs.cuda_worker")
    assert refused["level"] == "problem" and "needs 12.4" in refused["text"]
    machine.worker(probe(device(usable=False, reason="device 0 is busy", memory_free=0)))
    busy, = found(machine.report(), "programs.cuda_device")
    assert busy["level"] == "problem" and "rank 0" in busy["text"] and "busy" in busy["text"]
    machine.worker("Segmentation fault")
    broken, = found(machine.report(), "programs.cuda_worker")
    assert broken["level"] == "problem" and "--probe" in broken["advice"]
    machine.worker(probe(device(), version="9.9.9"))
    other = found(machine.report(), "programs.cuda_worker")
    assert any("9.9.9" in f["text"] and f["level"] == "warning" for f in other)


def test_two_gpus(tmp_path):
    two = Machine(tmp_path, gpus=2)
    report = two.report(cards="two")
    assert report["would_serve"] and [g["used"] for g in report["gpus"]] == [True, False]
    # What is wrong with a card that no rank takes does not count; which one that is, the CUDA worker says. One that
    # cannot be used is passed over.
    two.worker(probe(device(1), device(0, usable=False, reason="lost")))
    report = two.report(cards="two")
    assert report["would_serve"] and [g["used"] for g in report["gpus"]] == [False, True]
    two.worker(probe(device(0, usable=False, reason="lost"), device(1)))
    report = two.report(cards="two")
    assert report["would_serve"] and [g["used"] for g in report["gpus"]] == [False, True]
    two.worker(probe(device(0), device(1, usable=False, reason="lost")))
    assert two.report(cards="two,lost")["would_serve"]
    report = two.report("-tp", "2", cards="two")
    assert "4 to GPU 1" in found(report, "gpu.nvlink")[0]["text"]
    ranks, = found(report, "programs.ranks")
    assert ranks["level"] == "problem" and "1 of the 2 that CUDA shows here can be used" in ranks["text"]
    two.worker(probe(device(0, uuid="GPU-aa", peers=[1]), device(1, uuid="GPU-ab", peers=[0])))
    report = two.report("--devices", "GPU-ab,GPU-aa", cards="two")
    assert report["would_serve"] and report["tensor_parallel_size"] == 2
    assert ["for rank 1" in f["text"] for f in found(report, "programs.cuda_device")] == [True, False]
    assert "reach each other's memory" in found(report, "programs.peers")[0]["text"]
    two.worker(probe(device(0, peers=[1]), device(1, peers=[])))
    peers, = found(two.report("-tp", "2", cards="two"), "programs.peers")
    assert peers["level"] == "warning" and "0 and 1" in peers["text"]
    two.worker(probe(*(device(i, peers=[0, 1, 2, 3], nvlinks=[(i + 2) % 4]) for i in range(4))))
    assert not found(two.report("--devices", "0,2,1,3"), "programs.order")
    order, = found(two.report("--devices", "0,1,2,3"), "programs.order")
    assert order["level"] == "warning" and "--devices 0,2,1,3" in order["advice"]


def test_a_model_that_fits(tmp_path, model):
    machine = Machine(tmp_path)
    report = machine.report("--model", model)
    assert report["would_serve"] and report["model"]["fits"] is True
    assert report["model"]["memory_bytes"] == 47 * GB  # of the device, not of this machine
    needs, = found(report, "model.needs")
    for word in ("weights", "embedding", "scratch", "a token", "a sequence"):
        assert word in needs["text"]
    report = machine.report("--model", model, "--device", "cpu", "-tp", "2")
    assert report["would_serve"] and report["model"]["memory_bytes"] == 60000000 * 512


def test_drafts_are_counted(tmp_path):
    """As the workers would take them: places in every state, and the weights, pages and scratch of the MTP layer."""
    model, machine = os.path.join(ROOT, "models/shardd-tiny"), Machine(tmp_path, gpus=0)
    keys = ("weight_bytes", "token_bytes", "scratch_bytes", "slot_bytes")

    def sizes(*more):
        plan = machine.report("--model", model, "--device", "cpu", *more, LD_LIBRARY_PATH="")["model"]
        return [plan[key] for key in keys]

    plain, copies, all_of_it = sizes(), sizes("--speculation", "lookup"), sizes("--speculative-tokens", "7")
    assert plain[:2] == copies[:2] and copies[2] >= plain[2] and copies[3] > plain[3]
    assert all(a > b for a, b in zip(all_of_it[:3], copies[:3])) and all_of_it[3] >= copies[3]
    assert sizes("--speculation", "off", "--speculative-tokens", "7") == plain


def test_a_model_that_does_not_fit(tmp_path, model):
    machine = Machine(tmp_path)
    needed = machine.report("--model", model)["model"]["least_bytes"]
    machine.worker(probe(device(memory_free=needed - 1)))
    done = machine.doctor("--model", model)
    assert done.returncode == 1 and "does not fit" in done.stdout and "shardd quantize" in done.stdout
    fits, = found(machine.report("--model", model), "model.fits")
    assert fits["level"] == "problem" and "It would fit on 2 GPUs like this" in fits["advice"]
    machine.worker(probe(device(memory_free=needed - 1), device(1)))
    fits, = found(machine.report("--model", model), "model.fits")
    assert fits["advice"] == "--tensor-parallel-size 2: it fits on 2 of the GPUs here."
    machine.worker(probe(device(memory_free=needed)))  # one sequence of one page
    report = machine.report("--model", model, "--max-model-len", "4096", "--max-num-seqs", "8")
    assert report["would_serve"]
    assert found(report, "model.length")[0]["level"] == found(report, "model.sequences")[0]["level"] == "warning"
    assert found(machine.report("--model", model), "model.length")[0]["level"] == "note"


def test_without_a_cuda_worker_the_cpu_worker_counts(tmp_path, model):
    machine = Machine(tmp_path, worker=False)
    report = machine.report("--model", model)
    assert "as the CPU worker counts" in found(report, "model.needs")[0]["text"]
    assert report["model"]["memory_bytes"] == 47.5 * GB - report["model"]["mapped_bytes"]


def test_a_model_that_cannot_be(tmp_path):
    machine = Machine(tmp_path)
    for arguments, text in ((["--model", "/no/such/model"], "/no/such/model"),
                            (["--model", str(tmp_path)], str(tmp_path))):
        readable, = found(machine.report(*arguments), "model.readable")
        assert readable["level"] == "problem" and text in readable["text"] and "shardd inspect" in readable["advice"]


def test_settings_come_from_a_file_too(tmp_path, model):
    machine = Machine(tmp_path)
    (tmp_path / "shardd.conf").write_text("[server]\nport = 7\n[model]\nmodel = %s\n[engine]\ndevice = cpu\n"
                                          "max-num-seqs = 3\n" % model)
    report = machine.report("--config", str(tmp_path / "shardd.conf"))
    assert report["device"] == "cpu" and report["model"]["max_num_seqs"] == 3


def test_a_folder_without_weights(tmp_path):
    machine, sizes = Machine(tmp_path), str(tmp_path / "sizes")
    assert shardd("synth", sizes, "--config", "27b", "--weights", "int4", "--config-only").returncode == 0
    assert found(machine.report("--model", sizes), "model.readable")[0]["level"] == "problem"
    report = machine.report("--model", sizes, "--load-format", "dummy")
    assert report["model"]["fits"] and 13 * GB < report["model"]["weight_bytes"] < 19 * GB


def test_wrong_usage(tmp_path):
    machine = Machine(tmp_path)
    for arguments, word in ((["--port", "1"], "port"), (["somewhere"], "somewhere"), (["--device", "null"], "null"),
                            (["--device", "tpu"], "tpu"), (["-tp", "3"], "tensor-parallel-size")):
        done = machine.doctor(*arguments)
        assert done.returncode == 2 and word in done.stderr and not done.stdout
    done = machine.doctor("--help")
    assert done.returncode == 0 and "--tensor-parallel-size" in done.stdout and "Exit code" in done.stdout
