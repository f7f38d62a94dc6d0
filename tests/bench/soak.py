#!/usr/bin/python3
"""Unfriendly clients against one service for as long as you like: it stays whole, and it does not grow.

    tests/bench/soak.py                              # 30 minutes, a small made-up model on this machine's CPU
    tests/bench/soak.py --minutes 600 --model DIR [-- FLAGS OF shardd serve ...]
    tests/bench/soak.py --rounds 5 --seconds 2 --counts-only       # of CI

Each client asks one thing after another: to the end, cancelled or cut off in the middle, read slowly or not at all,
with a deadline that is too short, several answers at once, aborted by its name, refused, and turn after turn of a
conversation; and sockets that say half of a sentence and hang up. What a request says it has to say every time.

After each round of --seconds everybody pauses. Then nothing may run or wait, every page has to be free, no process may
have ended, and none has more threads and descriptors than after the first rounds, but for a few that libraries make
when they first need them. Memory of each is printed, its own and shared: the latter is rings of a fixed size, which are
touched little by little. Between the middle third of the time and the last one its own may grow by --growth MiB. Exit
status 1 where something of that is not so.
"""
import argparse
import json
import os
import random
import socket
import sys
import tempfile
import threading
import time

import grpc

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
from shardd_client import ROOT, Client, Refused, Server, make_request, pb, shardd

FLAGS = ["--max-model-len", "2048", "--max-num-seqs", "12", "--prefix-cache-memory", "24MiB",
         "--speculative-tokens", "3", "--threads", "1"]
KINDS = 40
PATIENCE_S = 1200  # of a client, on a machine that has much else to do
WARM_ROUNDS = 2
THREADS_MORE, DESCRIPTORS_MORE = 2, 8  # than after those; what is lost of each round's connections would be more


class Failures(list):
    """What went wrong, said at once."""

    def add(self, text):
        self.append(text)
        print("soak.py: " + text, file=sys.stderr, flush=True)


def make_model(folder):
    tiny = os.path.join(ROOT, "models", "shardd-tiny")
    with open(os.path.join(tiny, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    path = os.path.join(folder, "config.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump({**config, "hidden_size": 128, "intermediate_size": 128}, f)
    made = shardd("synth", os.path.join(folder, "model"), "--config", path, "--tokenizer", tiny)
    if made.returncode != 0:
        sys.exit("soak.py: " + made.stderr)
    return os.path.join(folder, "model")


def request_of(kind):
    """Forty different ones, of up to some pages: four beginnings that many share, answers of up to 80 tokens."""
    r = random.Random(kind)
    beginning = [(7 * i + kind % 4) % 3000 for i in range(r.choice([0, 60, 200]))]
    ids = beginning + [r.randrange(3000) for _ in range(r.randrange(1, 100))]
    request = make_request(ids=ids, max_tokens=r.randrange(1, 80), seed=kind, temperature=kind % 3 / 2)
    request.stopping.ignore_eos = kind % 2 == 0
    request.priority = kind % 5 - 2
    if kind % 7 == 0:
        request.cache_salt = "salt %d" % (kind % 2)
    if kind % 8 == 0:
        request.sampling.repetition_penalty, request.sampling.presence_penalty = 1.2, 0.5
    return request


class Soaker(threading.Thread):
    def __init__(self, soak, number):
        super().__init__(daemon=True)
        self.soak, self.random, self.number = soak, random.Random(number), number

    def run(self):
        actions = [self.whole, self.whole, self.cancel, self.cut, self.slow, self.late, self.several, self.abort,
                   self.refused, self.half_a_sentence, self.turns]
        client = Client(self.soak.address)
        while self.soak.may_go_on():
            action = self.random.choice(actions)
            try:
                action(client)
            except (AssertionError, Refused, grpc.RpcError) as error:
                self.soak.failures.add("%s: %s" % (action.__name__, error))
            with self.soak.lock:
                self.soak.done[action.__name__] = self.soak.done.get(action.__name__, 0) + 1
        client.close()

    def kind(self):
        return self.random.randrange(KINDS)

    def whole(self, client):
        kind = self.kind()
        self.soak.expect(kind, client.generate(request_of(kind), timeout=PATIENCE_S).ids)

    def some_chunks(self, client, request, most):
        stream = client.stream(request, timeout=PATIENCE_S)
        for _ in range(self.random.randrange(1, most)):
            if next(stream, None) is None:
                break
        return stream

    def cancel(self, client):
        self.some_chunks(client, request_of(self.kind()), 30).cancel()

    def cut(self, _client):
        other = Client(self.soak.address)
        self.some_chunks(other, request_of(self.kind()), 8)
        other.close()  # the stream is open

    def slow(self, client):
        kind = self.kind()
        stream = self.some_chunks(client, request_of(kind), 3)
        time.sleep(self.random.random())
        if self.random.randrange(2):
            stream.cancel()
        else:
            for _ in stream:
                pass

    def late(self, client):
        try:
            client.generate(request_of(self.kind()), timeout=self.random.choice([0.001, 0.01, 0.05, 0.2]))
        except Refused as refused:
            assert refused.code == grpc.StatusCode.DEADLINE_EXCEEDED, refused

    def several(self, client):
        kind = self.kind()
        request = request_of(kind)
        request.n = self.random.randrange(2, 5)
        ids = []
        for chunk in client.chunks(request, timeout=PATIENCE_S):
            if chunk.answer == 0:
                ids += list(chunk.token_ids)
        self.soak.expect(kind, ids)

    def abort(self, client):
        request = request_of(self.kind())
        request.request_id = "soak-%d-%d" % (self.number, self.random.randrange(1 << 60))
        stream = self.some_chunks(client, request, 10)
        client.call("Abort", request_ids=[request.request_id])
        try:
            for _ in stream:
                pass
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.ABORTED, error

    def refused(self, client):
        request = request_of(self.kind())
        request.token_ids.ids.append(1 << 30)
        try:
            client.generate(request)
        except Refused as refused:
            assert refused.code == grpc.StatusCode.INVALID_ARGUMENT, refused
            return
        raise AssertionError("an id that the vocabulary has not was taken")

    def half_a_sentence(self, _client):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(self.soak.address[len("unix:"):])
            frames = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 40, 1, 37, 0, 0, 0, 1])  # settings, and half of headers
            whole = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames
            s.sendall(whole[:self.random.randrange(len(whole))])

    def turns(self, client):
        """Of two conversations, each turn the one before, its answer and something new."""
        which, ids = self.random.randrange(2), []
        for turn in range(4):
            ids += [(11 * i + 5 * turn + which) % 3000 for i in range(90)]
            answer = client.generate(make_request(ids=ids, max_tokens=70, seed=which, cache_salt="turns"),
                                     timeout=PATIENCE_S)
            self.soak.expect("turn %d of %d" % (turn, which), answer.ids)
            ids += answer.ids


def of_process(pid):
    """(KiB of its own, threads, descriptors, KiB of shared memory); None: it is gone."""
    try:
        with open("/proc/%d/status" % pid, encoding="utf-8") as f:
            status = dict(line.split(":", 1) for line in f if ":" in line)
        own, shared = (int(status[key].split()[0]) for key in ("RssAnon", "RssShmem"))
        return own, int(status["Threads"]), len(os.listdir("/proc/%d/fd" % pid)), shared
    except (OSError, KeyError):
        return None


class Soak:
    def __init__(self, server, clients):
        self.server, self.address = server, server.address
        self.lock, self.failures = threading.Lock(), Failures()
        self.answers, self.done = {}, {}
        self.paused, self.stopped = False, False
        self.resting = threading.Condition()
        self.n_resting = 0
        self.soakers = [Soaker(self, i) for i in range(clients)]
        self.processes = {**server.children(), server.process.pid: "shardd"}
        self.rows = []  # {pid: of_process()} after each round

    def may_go_on(self):
        """Waits while there is a pause."""
        with self.resting:
            self.n_resting += 1
            self.resting.notify_all()
            while self.paused and not self.stopped:
                self.resting.wait(1)
            self.n_resting -= 1
            return not self.stopped

    def expect(self, what, ids):
        with self.lock:
            first = self.answers.setdefault(what, ids)
        if first != ids:
            self.failures.add("%s: other tokens than before: %s, not %s" % (what, ids[:20], first[:20]))

    def pause(self):
        with self.resting:
            self.paused = True
            if not self.resting.wait_for(lambda: self.n_resting == len(self.soakers), timeout=PATIENCE_S):
                self.failures.add("a client did not come to its end within %d s" % PATIENCE_S)

    def go_on(self, stop=False):
        with self.resting:
            self.paused, self.stopped = False, stop
            self.resting.notify_all()

    def look(self):
        """Nothing runs: what there is of processes, and of everything that can leak."""
        with Client(self.address) as client:
            client.wait_idle()
            info = client.call("GetServerInfo")
        time.sleep(1)  # connections that were cut are closed a little later
        row = {pid: of_process(pid) for pid in self.processes}
        gone = [self.processes[pid] for pid, what in row.items() if what is None]
        if gone or info.group_epoch != 1 or info.coord_epoch != 1:
            self.failures.add("a process died: %s" % (", ".join(gone) or "it was started again"))
        self.rows.append(row)
        warm = self.rows[:WARM_ROUNDS]
        for pid, name in self.processes.items():
            if len(self.rows) <= WARM_ROUNDS or not all(r[pid] for r in self.rows):
                continue
            threads, descriptors = max(r[pid][1] for r in warm), max(r[pid][2] for r in warm)
            if row[pid][1] > threads + THREADS_MORE or row[pid][2] > descriptors + DESCRIPTORS_MORE:
                self.failures.add("%s has %d threads and %d descriptors; there were %d and %d" % (
                    name, row[pid][1], row[pid][2], threads, descriptors))
        return info

    def growth(self):
        """KiB by which each process grew from the middle third of the rows to the last one, as the least of each."""
        third = len(self.rows) // 3
        middle, last = self.rows[third:2 * third], self.rows[2 * third:]
        return {pid: min(r[pid][0] for r in last) - min(r[pid][0] for r in middle)
                for pid in self.processes if all(r[pid] for r in middle + last)} if third > 0 else {}


def tell(soak, info):
    last = soak.rows[-1]
    sizes = "  ".join("%s %.1f + %.1f" % (name.replace("shardd-", ""), last[pid][0] / 1024, last[pid][3] / 1024)
                      for pid, name in soak.processes.items() if last[pid])
    print("%7d requests  %9d tokens  %6d states given up  MiB: %s" % (
        info.requests_total, info.generated_tokens_total, info.prefix_cache.evictions, sizes), flush=True)


def run(options, model):
    with Server(model, *(options.flags or FLAGS)) as server:
        soak, end = Soak(server, options.clients), time.monotonic() + options.minutes * 60
        for soaker in soak.soakers:
            soaker.start()
        while len(soak.failures) < 20 and (
                len(soak.rows) < options.rounds if options.rounds else time.monotonic() < end):
            time.sleep(options.seconds)
            soak.pause()
            tell(soak, soak.look())
            soak.go_on()
        soak.go_on(stop=True)
        for soaker in soak.soakers:
            soaker.join(PATIENCE_S)
        growth = soak.growth()
        for pid, kib in growth.items():
            print("%s: %+.1f MiB" % (soak.processes[pid], kib / 1024))
            if not options.counts_only and kib > options.growth * 1024:
                soak.failures.add("%s grew by %.1f MiB" % (soak.processes[pid], kib / 1024))
        print("done: " + ", ".join("%d %s" % (n, name) for name, n in sorted(soak.done.items())))
        if "ERROR" in server.log_text():
            soak.failures.add("the log has an error:\n" + server.log_text()[-2000:])
    if server.process.returncode != 0:
        soak.failures.add("shardd serve ended with %s" % server.process.returncode)
    print("%d findings" % len(soak.failures))
    return 1 if soak.failures else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rounds", type=int, help="so many, however long they take")
    parser.add_argument("--seconds", type=float, default=20, help="of a round, before everybody pauses")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--growth", type=float, default=2, help="MiB a process may grow by")
    parser.add_argument("--counts-only", action="store_true", help="memory is printed and not judged")
    parser.add_argument("--model")
    parser.add_argument("flags", nargs="*", help="of shardd serve, after --")
    options = parser.parse_args()
    if options.model:
        sys.exit(run(options, options.model))
    with tempfile.TemporaryDirectory(prefix="shardd-soak-") as folder:
        sys.exit(run(options, make_model(folder)))


if __name__ == "__main__":
    main()
