"""scripted_child.py HOME PROGRAM ARGUMENTS... - stands in for a worker or the coordinator in tests of the supervisor.

Follows the control protocol of proto/step/control.h on fd 3 and appends one JSON line per thing that happened to
HOME/events. HOME/script.json says how to misbehave, per program ("shardd-coordinator", "shardd-worker-cpu") or per
rank ("worker-1"):
  fault: TEXT      say CONTROL_FAULT instead of READY and exit 1 (code: another)
  exit: CODE       exit before READY
  load: true       never become ready, and listen to nobody
  quiet: true      never say READY
  deaf: true       never answer a ping
  stuck: RANK      coordinator: report that rank once, after the first channel
  stubborn: true   ignore CONTROL_STOP
  linger: true     ignore the end of the control socket
The coordinator answers every connection with "PID EPOCH" and closes it."""
import array
import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import time

HEAD = struct.Struct("<IHHII4Q")
MAGIC, VERSION = 0x4C525443, 1
KINDS = ["?", "CHANNEL", "LISTENERS", "READY", "LOADING", "FAULT", "PING", "PONG", "STOP", "GROUP_LOST", "STUCK"]


class Child:
    def __init__(self, home, program, arguments):
        self.home, self.arguments = home, arguments
        fds = os.listdir("/proc/self/fd")
        self.inherited = sorted(int(fd) for fd in fds if os.path.exists("/proc/self/fd/" + fd))
        self.coordinator = program == "shardd-coordinator"
        rank = arguments[arguments.index("--ranks") + 1] if "--ranks" in arguments else ""
        self.who = "coordinator" if self.coordinator else "worker-" + rank
        with open(os.path.join(home, "script.json"), encoding="utf-8") as f:
            script = json.load(f)
        self.script = {**script.get(program, {}), **script.get(self.who, {})}
        self.control = socket.socket(fileno=3)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.control, selectors.EVENT_READ, self.on_control)
        self.epoch, self.told_stuck = 0, False

    def write(self, **event):
        line = json.dumps({"who": self.who, "pid": os.getpid(), **event}) + "\n"
        fd = os.open(os.path.join(self.home, "events"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, line.encode())
        os.close(fd)

    def say(self, kind, a=0, text="", groups=(0, 0)):
        data = text.encode()
        head = HEAD.pack(MAGIC, VERSION, KINDS.index(kind), 0, len(data), groups[0], groups[1], a, 0)
        self.control.send(head + data)

    def receive(self):
        fds = array.array("i")
        data, ancillary, _, _ = self.control.recvmsg(4096, socket.CMSG_SPACE(8 * 4))
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[:len(payload) - len(payload) % 4])
        return data, list(fds)

    def on_control(self):
        data, fds = self.receive()
        if not data:
            self.write(kind="EOF")
            if not self.script.get("linger"):
                sys.exit(1)
            self.selector.unregister(self.control)
            return
        magic, version, kind, n_fds, n_text, group, epoch, a, b = HEAD.unpack(data[:HEAD.size])
        assert magic == MAGIC and version == VERSION and n_fds == len(fds)
        text = data[HEAD.size:HEAD.size + n_text].decode()
        if KINDS[kind] == "PING":
            if not self.script.get("deaf"):
                self.say("PONG", a)
            return
        self.write(kind=KINDS[kind], group=group, coord=epoch, a=a, b=b, text=text, fds=len(fds))
        getattr(self, "on_" + KINDS[kind].lower(), lambda *_: None)(group, epoch, fds)

    def on_channel(self, group, epoch, fds):
        self.epoch = epoch
        for fd in fds:
            os.close(fd)
        if self.coordinator and not self.script.get("quiet"):
            self.say("READY", text="scripted", groups=(group, epoch))  # it serves with this group
        if "stuck" in self.script and not self.told_stuck:
            self.told_stuck = True
            self.say("STUCK", self.script["stuck"], "layer 3 of step 7", (group, epoch))

    def on_listeners(self, _group, epoch, fds):
        self.epoch = epoch
        for fd in fds:
            listener = socket.socket(fileno=fd)
            self.selector.register(listener, selectors.EVENT_READ, lambda l=listener: self.on_connection(l))

    def on_connection(self, listener):
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        with connection, contextlib.suppress(OSError):  # a peer may only have looked
            connection.sendall(b"%d %d" % (os.getpid(), self.epoch))

    def on_stop(self, *_):
        if not self.script.get("stubborn"):
            self.write(kind="END")
            sys.exit(0)

    def run(self):
        self.write(kind="START", arguments=self.arguments, fds=self.inherited,
                   group_leader=os.getpgid(0) == os.getpid(),
                   environment=sorted(k for k in os.environ if "NOTIFY" in k or "LISTEN" in k or "WATCHDOG" in k))
        if "fault" in self.script:
            self.say("FAULT", text=self.script["fault"])
            sys.exit(self.script.get("code", 1))
        if "exit" in self.script:
            sys.exit(self.script["exit"])
        while self.script.get("load"):
            time.sleep(1)
        if not self.script.get("quiet"):
            self.say("READY", text="scripted")
        while True:
            for key, _ in self.selector.select():
                key.data()


Child(sys.argv[1], sys.argv[2], sys.argv[3:]).run()
