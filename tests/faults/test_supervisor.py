"""The supervisor with scripted children: epochs, channels, restarts, stopping, giving up, and no orphans."""
import os
import shutil
import signal
import socket
import stat
import subprocess
import time

import pytest

from common import BIN, PATIENCE, ROOT, SHARDD, Scripted, Serve, alive, run_serve, wait_for

KILL, TERM, STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP


def ask(path):
    """(pid, epoch) of the coordinator that answers a connection; waits as a client would while none is there."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(PATIENCE)
        s.connect(path)
        return tuple(int(word) for word in s.recv(100).split())


def started(run, **flags):
    run.wait_log("serving ")
    run.children()
    assert len(run.seen) == flags.get("processes", 3)
    return run


def pids(run, who, **match):
    return [e["pid"] for e in run.events(who=who, kind="START", **match)]


def gone(run):
    """Every process that the supervisor ever started has ended."""
    everybody = {e["pid"] for e in run.events(kind="START")} | run.seen
    wait_for(lambda: not any(alive(pid) for pid in everybody), "every child to end")


def test_everybody_gets_the_first_channel():
    with Scripted() as run:
        started(run)
        for who in ("worker-0", "worker-1", "coordinator"):
            channel = run.wait_event(who=who, kind="CHANNEL")
            assert (channel["group"], channel["coord"], channel["fds"]) == (1, 1, 1)
        listeners = run.wait_event(who="coordinator", kind="LISTENERS")
        assert listeners["fds"] == 1 and listeners["text"] == "unix:" + run.socket
        assert ask(run.socket) == (pids(run, "coordinator")[0], 1)
        assert "try:  shardd generate --server unix:" + run.socket in run.log()


def test_children_inherit_only_what_they_need():
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        with Scripted(pass_fds=[inherited], env={"WATCHDOG_USEC": "1000000000"}) as run:
            started(run)
            for event in run.events(kind="START"):
                assert event["fds"] == ([0, 1, 2, 3] if event["who"] == "coordinator" else [0, 1, 2, 3, 4])
                assert event["group_leader"] and event["environment"] == []
    finally:
        os.close(inherited)


def test_flags_reach_the_children():
    with Scripted("--max-num-seqs", "7", "--kv-cache-memory", "2MiB", "--served-model-name", "a",
                  "--served-model-name", "b", "--step-timeout", "1500ms", "--threads", "3", "--ranks-per-process", "2",
                  tp=4) as run:
        started(run)
        worker, coordinator = (" ".join(run.events(who=who, kind="START")[0]["arguments"])
                               for who in ("worker-2,3", "coordinator"))
        for words in ("--ranks 2,3", "--tensor-parallel-size 4", "--max-num-seqs 7", "--kv-cache-memory 2097152",
                      "--threads 3", "--control-fd 3", "--comm-fd 4"):
            assert words in worker
        for words in ("--served-model-name a --served-model-name b", "--step-timeout-ms 1500", "--max-num-seqs 7"):
            assert words in coordinator


def test_a_dead_worker_takes_its_group_and_both_come_back():
    with Scripted() as run:
        started(run)
        run.wait_event(who="coordinator", kind="CHANNEL")
        first = pids(run, "worker-0") + pids(run, "worker-1")
        os.kill(first[1], KILL)
        lost = run.wait_event(who="coordinator", kind="GROUP_LOST")
        assert lost["a"] == 1 and lost["b"] == KILL and "SIGKILL" in lost["text"]
        for who in ("worker-0", "worker-1", "coordinator"):
            run.wait_event(who=who, kind="CHANNEL", group=2, coord=1)
        assert not any(alive(pid) for pid in first)
        assert len(pids(run, "coordinator")) == 1
        run.wait_log("serving again")


def test_a_dead_coordinator_leaves_the_workers_and_the_listeners():
    with Scripted() as run:
        started(run)
        first = ask(run.socket)
        os.kill(first[0], KILL)
        wait_for(lambda: not alive(first[0]), "the coordinator to die")
        second = ask(run.socket)
        assert second[0] != first[0] and second[1] == 2
        for who in ("worker-0", "worker-1"):
            run.wait_event(who=who, kind="CHANNEL", group=1, coord=2)
            assert len(pids(run, who)) == 1


def test_restarts_leak_nothing():
    def fds():
        return sorted(os.readlink("/proc/%d/fd/%s" % (run.pid, fd)).split(":")[0]
                      for fd in os.listdir("/proc/%d/fd" % run.pid))
    with Scripted() as run:
        started(run)
        run.wait_event(who="coordinator", kind="CHANNEL")
        before = fds()
        for epoch in (2, 3, 4):
            os.kill(pids(run, "worker-0")[-1], KILL)
            run.wait_event(who="coordinator", kind="CHANNEL", group=epoch)
            os.kill(pids(run, "coordinator")[-1], KILL)
            run.wait_event(who="worker-0", kind="CHANNEL", group=epoch, coord=epoch)
            run.wait_log("serving again", 2 * (epoch - 1))
        assert fds() == before
        assert len(run.children()) == 3


def test_both_dead_at_once():
    with Scripted() as run:
        started(run)
        run.wait_event(who="coordinator", kind="CHANNEL")
        run.signal(STOP)  # so that both deaths are found together
        for pid in pids(run, "worker-0") + pids(run, "coordinator"):
            os.kill(pid, KILL)
        run.signal(signal.SIGCONT)
        for who in ("worker-0", "worker-1", "coordinator"):
            run.wait_event(who=who, kind="CHANNEL", group=2, coord=2)


@pytest.mark.parametrize("linger", [False, True])
def test_no_orphan_survives_the_supervisor(linger):
    with Scripted(script={"shardd-worker-cpu": {"linger": linger}, "shardd-coordinator": {"linger": linger}}) as run:
        started(run)
        run.process.kill()
        run.process.wait()
        gone(run)


@pytest.mark.parametrize("who", ["worker-1", "coordinator"])
def test_a_hung_process_is_replaced(who):
    with Scripted("--step-timeout", "1s") as run:
        started(run)
        run.wait_event(who="coordinator", kind="CHANNEL")
        hung = pids(run, who)[0]
        os.kill(hung, STOP)
        run.wait_log("does not answer")
        wait_for(lambda: len(pids(run, who)) >= 2, "another " + who)
        assert not alive(hung)
        epochs = {"group": 2} if who == "worker-1" else {"coord": 2}
        run.wait_event(who="worker-0", kind="CHANNEL", **epochs)


def test_a_stuck_rank_is_restarted_on_the_coordinators_word():
    with Scripted(script={"shardd-coordinator": {"stuck": 1}}) as run:
        run.wait_log("rank 1 makes no progress: layer 3 of step 7")
        run.wait_event(who="coordinator", kind="GROUP_LOST", a=1, b=0)
        run.wait_event(who="worker-1", kind="CHANNEL", group=2)
        assert len(pids(run, "coordinator")) == 1


@pytest.mark.parametrize("who", ["worker-1", "shardd-coordinator"])
@pytest.mark.parametrize("how,text", [({"fault": "model.safetensors: is cut short"}, "model.safetensors: is cut short"),
                                      ({"exit": 7}, "ended with exit code 7")])
def test_what_cannot_start_ends_the_service(who, how, text):
    with Scripted(script={who: how}) as run:
        assert run.wait() == 1
        assert text in run.log() and "serving" not in run.log()
        assert len(run.events(who="worker-0", kind="START")) <= 1
        gone(run)
        assert not os.path.exists(run.socket)


def test_a_group_that_always_dies_is_given_up():
    with Scripted() as run:
        started(run)
        run.script({"worker-1": {"exit": 9}})
        os.kill(pids(run, "worker-1")[0], KILL)
        assert run.wait() == 1
        assert "giving up" in run.log() and "exit code 9" in run.log()
        assert len(pids(run, "worker-1")) == 5
        gone(run)


def test_a_coordinator_that_always_dies_is_given_up():
    with Scripted() as run:
        started(run)
        run.script({"shardd-coordinator": {"fault": "the disk is gone"}})
        os.kill(pids(run, "coordinator")[0], KILL)
        assert run.wait() == 1
        assert "the disk is gone" in run.log() and "giving up" in run.log()
        gone(run)


@pytest.mark.parametrize("number", [TERM, signal.SIGINT])
def test_stopping_in_order(number):
    with Scripted("--shutdown-grace", "7s") as run:
        started(run)
        run.signal(number)
        assert run.wait() == 0
        events = [(e["who"], e["kind"]) for e in run.events() if e["kind"] in ("STOP", "END")]
        assert events[:2] == [("coordinator", "STOP"), ("coordinator", "END")]
        assert sorted(events[2:]) == sorted((w, k) for w in ("worker-0", "worker-1") for k in ("STOP", "END"))
        assert run.events(who="coordinator", kind="STOP")[0]["a"] == 7000
        gone(run)
        assert not os.path.exists(run.socket)


def test_a_second_signal_stops_at_once():
    with Scripted(script={"shardd-coordinator": {"stubborn": True}}) as run:
        started(run)
        run.signal(TERM)
        run.wait_event(who="coordinator", kind="STOP")
        run.signal(TERM)
        assert run.wait() == 0
        assert "at once" in run.log()
        gone(run)


def test_a_worker_that_does_not_stop_is_killed():
    with Scripted(script={"worker-0": {"stubborn": True}}) as run:
        started(run)
        run.signal(TERM)
        assert run.wait() == 0
        assert "did not stop in time" in run.log()
        gone(run)


def test_a_worker_that_dies_while_draining_is_replaced():
    with Scripted(script={"shardd-coordinator": {"stubborn": True}}) as run:
        started(run)
        run.signal(TERM)
        run.wait_event(who="coordinator", kind="STOP")
        os.kill(pids(run, "worker-0")[0], KILL)
        run.wait_event(who="coordinator", kind="CHANNEL", group=2)
        run.signal(TERM)
        assert run.wait() == 0


def test_stopping_while_loading():
    with Scripted(script={"worker-1": {"load": True}}) as run:
        run.wait_event(who="worker-1", kind="START")
        run.signal(TERM)
        assert run.wait() == 0
        assert "serving" not in run.log()
        gone(run)


def test_between_the_first_answer_and_ready():
    """The coordinator answers requests a moment before it says READY: nobody's stream may be cut then."""
    with Scripted(script={"shardd-coordinator": {"quiet": True}}) as run:
        run.wait_event(who="coordinator", kind="CHANNEL")
        os.kill(pids(run, "worker-0")[0], KILL)
        run.wait_event(who="coordinator", kind="CHANNEL", group=2)
        run.signal(TERM)
        assert run.wait() == 0
        run.wait_event(who="coordinator", kind="END")
        gone(run)


def test_hangup_is_ignored():
    with Scripted() as run:
        started(run)
        run.signal(signal.SIGHUP)
        run.wait_log("SIGHUP: ignoring it")
        assert ask(run.socket)[1] == 1


# ---------------------------------------------------------------- systemd


def notices(s):
    s.settimeout(PATIENCE)
    return s.recv(4096).decode().splitlines()


def wait_notice(s, line):
    lines = []
    while line not in lines:
        lines = notices(s)


def test_systemd_is_told(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(path)
        with Scripted(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}) as run:
            wait_notice(s, "READY=1")
            wait_notice(s, "WATCHDOG=1")
            wait_notice(s, "WATCHDOG=1")
            run.signal(TERM)
            wait_notice(s, "STOPPING=1")
            assert run.wait() == 0


def test_systemds_sockets_are_taken(tmp_path):
    path = str(tmp_path / "activated")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        # LISTEN_PID must be the pid of the service itself: whoever execs it knows it.
        program = ("import os, sys\nos.dup2(int(sys.argv[1]), 3)\n"
                   "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
                   "os.execv(sys.argv[2], [sys.argv[2], 'serve'] + sys.argv[3:])")
        command = ["/usr/bin/python3", "-c", program, str(listener.fileno()), SHARDD]
        with Scripted(command=command, listen=False, pass_fds=[listener.fileno()]) as run:
            started(run)
            assert run.wait_event(kind="LISTENERS")["text"] == "unix:" + path
            assert run.wait_event(kind="START", who="coordinator")["environment"] == []
            assert ask(path)[1] == 1
        assert os.path.exists(path)  # systemd's socket is not ours to remove


def test_the_unit_is_well_formed(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "shardd.service"
    with open(os.path.join(ROOT, "deploy/systemd/shardd.service"), encoding="utf-8") as f:
        unit.write_text(f.read().replace("/usr/bin/shardd ", SHARDD + " "))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, "shardd.service" in done.stderr) == (0, False), done.stderr


# ---------------------------------------------------------------- listeners


def test_two_listeners_and_a_free_port():
    with Scripted("--port", "0", "--host", "127.0.0.1") as run:
        started(run)
        names = run.wait_event(kind="LISTENERS")["text"].split("\n")
        assert names[0] == "unix:" + run.socket and names[1].startswith("127.0.0.1:")
        assert "open to other machines" not in run.log()
        port = int(names[1].split(":")[1])
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as s:
            assert s.recv(100).split()[1] == b"1"
        flags = ["--model", run.home + "/model", "--libexec-dir", run.home]
        assert "--host" in run_serve(*flags, "--host", "no-such-host.invalid").stderr
        assert "not an address of this machine" in run_serve(*flags, "--host", "192.0.2.1").stderr
        second = run_serve(*flags, "--port", str(port))
        assert second.returncode == 1 and "port %d" % port in second.stderr and "--port" in second.stderr


def test_a_listener_for_everybody_is_pointed_out():
    with Scripted("--host", "0.0.0.0", "--port", "0", listen=False) as run:
        started(run)
        assert "open to other machines" in run.log()


def test_the_unix_socket(tmp_path):
    with Scripted() as run:
        started(run)
        assert stat.S_IMODE(os.stat(run.socket).st_mode) == 0o660
        flags = ["--model", run.home + "/model", "--libexec-dir", run.home]
        taken = run_serve(*flags, "--uds", run.socket)
        assert taken.returncode == 1 and "another program is listening" in taken.stderr
        assert ask(run.socket)[1] == 1
        (tmp_path / "file").write_text("precious")
        done = run_serve(*flags, "--uds", str(tmp_path / "file"))
        assert done.returncode == 2 and "not a socket" in done.stderr
        assert (tmp_path / "file").read_text() == "precious"
        assert "folder must exist" in run_serve(*flags, "--uds", "/no/such/folder/s").stderr
        assert "107 bytes" in run_serve(*flags, "--uds", "/tmp/" + "x" * 200).stderr


def test_a_killed_services_socket_is_replaced():
    with Scripted() as run:
        started(run)
        run.process.kill()
        run.process.wait()
        gone(run)
        assert os.path.exists(run.socket)
        with Serve("--model", run.home + "/model", "--libexec-dir", run.home, "-tp", "1", "--uds", run.socket) as again:
            again.wait_log("serving ")
            assert ask(run.socket)[1] == 1


# ---------------------------------------------------------------- what cannot be served


def test_refusals(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    good = ["--model", str(model)]
    cases = [
        (2, [], "--model"),
        (2, ["--model", "/no/such/model"], "/no/such/model does not exist"),
        (2, ["--model", str(model / "config.json")], "is neither a folder nor a GGUF file"),
        (2, ["--model", str(tmp_path)], "has neither a config.json"),
        (2, ["--model", str(model), str(model)], "given twice"),
        (2, good + ["--tensor-parallel-size", "3"], "--tensor-parallel-size 3"),
        (2, good + ["--tensor-parallel-size", "16"], "1 to 8"),
        (2, good + ["-tp", "2", "--ranks-per-process", "4"], "--ranks-per-process"),
        (2, good + ["--max-num-seqs", "64", "--max-num-batched-tokens", "8"], "--max-num-seqs"),
        (2, good + ["--port", "65536"], "--port"),
        (2, good + ["--port", "http"], "'http' is not a whole number"),
        (2, good + ["--max-num-sequences", "4"], "did you mean --max-num-seqs"),
        (2, good + ["--config", "/no/such/file"], "/no/such/file"),
        (2, good + ["--libexec-dir", str(tmp_path)], "shardd-worker-cpu is not in " + str(tmp_path)),
        (2, good + ["--libexec-dir", str(tmp_path), "--device", "cuda"], "--device cuda"),
    ]
    for code, flags, text in cases:
        done = run_serve(*flags)
        assert (done.returncode, text in done.stderr) == (code, True), (flags, done.returncode, done.stderr)
        assert "serving" not in done.stdout


# ---------------------------------------------------------------- pauses of everything, and deaf sockets


def test_a_pause_of_everything_is_no_hang():
    """A paused machine or a closed laptop: for longer than the limit nobody ran, so nobody is to blame. Pings are under
    way when it happens: one goes out every second, and the children were stopped first."""
    with Scripted("--step-timeout", "2s") as run:
        started(run)
        run.wait_event(who="coordinator", kind="CHANNEL")
        children = list(run.children())
        for _ in range(2):
            for pid in children:
                os.kill(pid, STOP)
            time.sleep(1.1)  # a ping goes out and is not answered
            run.signal(STOP)
            time.sleep(3)
            run.signal(signal.SIGCONT)
            time.sleep(0.3)
            for pid in children:
                os.kill(pid, signal.SIGCONT)
            time.sleep(1)
        assert "does not answer" not in run.log()
        assert sorted(run.children()) == sorted(children)
        os.kill(children[0], STOP)  # a hang of one is still found
        run.wait_log("does not answer")


def test_restarts_are_counted_by_the_settings():
    for flags, starts in ((["--max-restarts", "0"], 1), (["--max-restarts", "2"], 3)):
        with Scripted(*flags) as run:
            started(run)
            run.script({"worker-1": {"exit": 9}})
            os.kill(pids(run, "worker-1")[0], KILL)
            assert run.wait() == 1
            assert "giving up" in run.log().splitlines()[-1] and "--max-restarts" in run.log()
            assert len(pids(run, "worker-1")) == starts


def test_a_worker_with_a_broken_control_socket_ends(tmp_path):
    """Its descriptor is no socket: reading it fails at once, and for ever. One line, then it ends."""
    subprocess.run([SHARDD, "synth", str(tmp_path / "tiny"), "--config", "tiny"], check=True, capture_output=True)
    with open("/dev/zero", "rb") as wrong, open(tmp_path / "log", "wb") as log:
        program = ("import os, sys\nos.dup2(int(sys.argv[1]), 3)\nos.execv(sys.argv[2], sys.argv[2:])\n")
        worker = subprocess.Popen(
            ["/usr/bin/python3", "-c", program, str(wrong.fileno()), os.path.join(BIN, "shardd-worker-cpu"), "--model",
             str(tmp_path / "tiny"), "--control-fd", "3", "--load-format", "dummy"],
            pass_fds=[wrong.fileno()], stdout=log, stderr=log)
    try:
        assert worker.wait(PATIENCE) == 1
    finally:
        worker.kill()
        worker.wait()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) <= 3 and sum("cannot be heard" in line for line in lines) == 1, lines[:5]
