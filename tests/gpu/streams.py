"""streams.py - answers of a service as they come, and what it costs them when a rank's process is lost: for check2,
bench and bench2."""
import json
import os
import signal
import subprocess
import threading
import time

from gpu import Failed, descendants

BEGUN = 20  # chunks that each stream has when a rank is lost
RENEWED_SECONDS = 30
RESTARTS, STREAMS, TOKENS = 12, 16, 120
SETTLE_SECONDS = 1.5  # served for so long, a group that is lost is not one that dies again and again
PAUSE_AIM = 3.0  # seconds, of nearly all streams, with the weights at hand


class Stream:
    """One answer as it comes. Lines are only read and given their time: 64 streams leave no time to look into them, and
    one that is read late looks as if it still ran."""

    def __init__(self, service, ids, tokens, *flags):
        self.lines, self.error = [], ""
        self.process = subprocess.Popen(
            [service.build.program("shardd"), "generate", "--server", service.address, "--json", "--logprobs", "0",
             "--quiet", "--ignore-eos", "--max-tokens", str(tokens), "--prompt-token-ids", *flags,
             " ".join(map(str, ids))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line))
        self.error = self.process.stderr.read()

    def finish(self):
        """ids, log probabilities"""
        self.reader.join()
        tokens = [token for _, line in self.lines for token in json.loads(line).get("logprobs", [])]
        if self.process.wait() != 0:
            raise Failed("an answer ended after %d tokens: %s" % (len(tokens), self.error[-500:]))
        return [token["token_id"] for token in tokens], [token["logprob"] for token in tokens]

    def pause(self, at):
        """How long nothing came around that time; None where it had ended before."""
        times = [when for when, _ in self.lines]
        return max((b - a for a, b in zip(times[1:], times[2:]) if b > at), default=None)


def seeded(service, n, tokens):
    """n streams that are the same each time."""
    return [Stream(service, [1 + i, 2, 3, 100 + 7 * i] * (1 + i % 5), tokens, "--temperature", "0.8", "--seed",
                   str(i + 1)) for i in range(n)]


def workers(service):
    """Pids of the ranks' processes, in their order."""
    found = {}
    for pid in descendants(service.process.pid):
        try:
            with open("/proc/%d/cmdline" % pid, encoding="utf-8") as f:
                words = f.read().split("\0")
        except OSError:
            continue  # it has ended
        if "--comm-fd" in words:  # a keeper of weights has none
            found[words[words.index("--ranks") + 1]] = pid
    return [found[rank] for rank in sorted(found)]


def renewed(service, old):
    """Waits until other processes than the old ones are the ranks."""
    end = time.monotonic() + RENEWED_SECONDS
    while len(workers(service)) != len(old) or set(old) & set(workers(service)):
        if time.monotonic() > end:
            raise Failed("%d s after a rank was lost the ranks are %s, before it %s: %s" % (
                RENEWED_SECONDS, workers(service), old, service.said()[-500:]))
        time.sleep(0.01)


def lose(service, rank, how, running):
    """Sends a rank's process that signal once all of these streams have begun: what each of them finishes with, and how
    long those paused that it met, longest last."""
    pids = workers(service)
    while min(len(s.lines) for s in running) < BEGUN and all(s.process.poll() is None for s in running):
        time.sleep(0.01)
    if len(pids) <= rank:
        raise Failed("%d processes are ranks" % len(pids))
    at = time.monotonic()
    os.kill(pids[rank], how)
    answers = [s.finish() for s in running]
    renewed(service, pids)
    pauses = sorted(pause for pause in (s.pause(at) for s in running) if pause is not None)
    if not pauses:
        raise Failed("no stream was running any more when rank %d was to be lost" % rank)
    return answers, pauses


def restarts(service):
    """Kills one rank after another under streams: (seconds of all pauses, ascending, and what to say of them)."""
    undisturbed, pauses = [s.finish() for s in seeded(service, STREAMS, TOKENS)], []
    for i in range(RESTARTS):
        time.sleep(SETTLE_SECONDS)
        answers, these = lose(service, i % len(workers(service)), signal.SIGKILL, seeded(service, STREAMS, TOKENS))
        if [ids for ids, _ in answers] != [ids for ids, _ in undisturbed]:
            raise Failed("other tokens after restart %d" % (i + 1))
        pauses += these
    pauses.sort()
    found = service.said().count("weights found where the rank before had them")
    most = pauses[int(len(pauses) * 0.99)]
    said = "%d restarts under %d streams, weights were found %d times: paused %.2f s, p99 %.2f s (aim %.0f)%s" % (
        RESTARTS, STREAMS, found, pauses[len(pauses) // 2], most, PAUSE_AIM, "  above" if most > PAUSE_AIM else "")
    return pauses, said
