"""client.py - a gRPC client for the fault tests: Debian's grpcio, messages made by protoc, generic handlers."""
import importlib
import os
import subprocess
import sys
import tempfile
import threading

import grpc

from common import PATIENCE, ROOT, wait_for


def load_messages():
    out = tempfile.mkdtemp(prefix="shardd-proto-")
    proto = os.path.join(ROOT, "proto")
    subprocess.run(["protoc", "-I", proto, "--python_out", out, "shardd/v1/shardd.proto"], check=True)
    sys.path.insert(0, out)
    return importlib.import_module("shardd.v1.shardd_pb2")


pb = load_messages()


class Client:
    def __init__(self, address):
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1),
                                                               ("grpc.enable_http_proxy", 0),
                                                               ("grpc.max_reconnect_backoff_ms", 200)])
        self.generate = self.channel.unary_stream("/shardd.v1.Shardd/Generate", pb.GenerateRequest.SerializeToString,
                                                  pb.GenerateChunk.FromString)
        self.server_info = self.channel.unary_unary("/shardd.v1.Shardd/GetServerInfo",
                                                    pb.GetServerInfoRequest.SerializeToString,
                                                    pb.GetServerInfoResponse.FromString)

    def info(self):
        call = self.server_info.future(pb.GetServerInfoRequest(), timeout=PATIENCE, wait_for_ready=True)
        return call.result(2 * PATIENCE)  # grpcio 1.51 once did not tell the end of a call whose deadline was over

    def state(self):
        """"serving", or what else it says; "gone" when the coordinator dies under the question."""
        try:
            return self.info().state
        except grpc.RpcError:
            return "gone"

    def stream(self, prompt, n, seed, wait_for_ready=True):
        return Stream(self, prompt, n, seed, wait_for_ready)

    def tokens(self, prompt, n, seed):
        return self.stream(prompt, n, seed).finish()

    def close(self):
        self.channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Stream:
    """One sampled answer of n tokens, read by a thread of its own."""

    def __init__(self, client, prompt, n, seed, wait_for_ready):
        request = pb.GenerateRequest()
        request.token_ids.ids.extend(prompt)
        request.sampling.temperature = 0.9
        request.sampling.seed = seed
        request.stopping.max_tokens = n
        request.stopping.ignore_eos = True
        request.output.token_ids = True
        request.output.skip_text = True
        self.ids, self.code, self.details, self.finished = [], None, "", False
        self.call = client.generate(request, timeout=PATIENCE, wait_for_ready=wait_for_ready)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        try:
            for chunk in self.call:
                self.ids += list(chunk.token_ids)
                self.finished = self.finished or chunk.HasField("finish")
            self.code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            self.details = error.details()
            self.code = error.code()

    def wait_tokens(self, n):
        wait_for(lambda: len(self.ids) >= n or self.code, "%d tokens" % n)
        assert len(self.ids) >= n, "over after %d tokens: %s %s" % (len(self.ids), self.code, self.details)

    def join(self):
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the stream did not end"
        return self.code

    def cut(self):
        """Cancels what has not ended by itself: the tokens that came."""
        self.call.cancel()
        assert self.join() == grpc.StatusCode.CANCELLED, self.details
        return self.ids

    def finish(self):
        assert self.join() == grpc.StatusCode.OK, self.details
        assert self.finished
        return self.ids
