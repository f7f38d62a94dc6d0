"""test_watched.py - a call whose end the client's library never tells becomes a failure, not a hang."""
import threading

import grpc
import pytest

from shardd_client import Client, Watched


class Silent:
    """A call that never says anything again, also when it is cancelled."""

    def __init__(self):
        self.cancelled = False

    def __next__(self):
        threading.Event().wait()

    def cancel(self):
        self.cancelled = True


def test_an_end_that_is_not_told():
    call = Silent()
    with pytest.raises(AssertionError, match="not told the end of a stream"):
        list(Watched(call, 0.1))
    assert call.cancelled


def test_an_answer_that_is_not_told():
    class Late:
        def future(self, _request, timeout):
            return self

        def result(self, timeout):
            raise grpc.FutureTimeoutError()

    with Client("unix:/nonexistent") as client:
        client.methods["Abort"] = Late()
        with pytest.raises(AssertionError, match="not told the end of Abort"):
            client.call("Abort")
