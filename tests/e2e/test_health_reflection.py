"""grpc.health.v1 (Check, Watch) and reflection (v1 and v1alpha), as generic tools use them. Messages are made by hand:
the package name `grpc` belongs to the client library here."""
import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from shardd_client import Server

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def field(number, data):
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


def parse(data):
    """Wire fields of a message: list of (number, value); value is an int or bytes."""
    def varint(at):
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at
    out, i = [], 0
    while i < len(data):
        key, i = varint(i)
        if key & 7 == 0:
            value, i = varint(i)
        else:
            assert key & 7 == 2
            size, i = varint(i)
            value, i = data[i:i + size], i + size
        out.append((key >> 3, value))
    return out


def identity(data):
    return data


def check(client, service):
    call = client.channel.unary_unary("/grpc.health.v1.Health/Check", identity, identity)
    return dict(parse(call(field(1, service) if service else b"", timeout=10))).get(1, 0)


@pytest.mark.parametrize("service", [b"", b"shardd.v1.Shardd"])
def test_check(client, service):
    assert check(client, service) == SERVING


def test_check_unknown_service(client):
    with pytest.raises(grpc.RpcError) as caught:
        check(client, b"no.Such")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def watch(client, service):
    call = client.channel.unary_stream("/grpc.health.v1.Health/Watch", identity, identity)
    return call(field(1, service) if service else b"", timeout=60)


def test_watch_unknown_service_stays_open(client):
    stream = watch(client, b"no.Such")
    assert dict(parse(next(stream)))[1] == SERVICE_UNKNOWN
    stream.cancel()


def test_watch_sees_the_shutdown(model):
    with Server(model) as running:
        with running.client() as connected:
            stream = watch(connected, b"")
            assert dict(parse(next(stream)))[1] == SERVING
            running.process.terminate()
            assert dict(parse(next(stream)))[1] == NOT_SERVING
            with pytest.raises(grpc.RpcError) as caught:
                next(stream)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def reflect(client, version, *requests):
    call = client.channel.stream_stream("/grpc.reflection.%s.ServerReflection/ServerReflectionInfo" % version,
                                        identity, identity)
    return [parse(answer) for answer in call(iter(requests), timeout=10)]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_list_services(client, version):
    answers = reflect(client, version, field(7, b"*"))
    assert len(answers) == 1
    services = {dict(parse(entry))[1] for number, value in answers[0] if number == 6 for _, entry in parse(value)}
    assert {b"shardd.v1.Shardd", b"grpc.health.v1.Health"} <= services
    assert any(name.endswith(b".ServerReflection") for name in services)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize("query", [(4, b"shardd.v1.Shardd"), (4, b"shardd.v1.Shardd.Generate"),
                                   (4, b"shardd.v1.GenerateRequest"), (3, b"shardd/v1/shardd.proto")])
def test_descriptors_rebuild_the_service(client, version, query):
    answers = reflect(client, version, field(*query))
    files = [value for number, response in answers[0] if number == 4 for _, value in parse(response)]
    pool = descriptor_pool.DescriptorPool()
    for data in reversed(files):
        proto = descriptor_pb2.FileDescriptorProto()
        proto.ParseFromString(data)
        pool.Add(proto)
    service = pool.FindServiceByName("shardd.v1.Shardd")
    assert {m.name for m in service.methods} == {"Generate", "Tokenize", "Detokenize", "GetModelInfo", "GetServerInfo",
                                                 "Abort"}


def test_unknown_symbol_is_an_error_response(client):
    answers = reflect(client, "v1", field(4, b"no.Such"), field(4, b"shardd.v1.Shard"))
    assert len(answers) == 2
    for answer in answers:
        errors = [parse(value) for number, value in answer if number == 7]
        assert errors and dict(errors[0])[1] == grpc.StatusCode.NOT_FOUND.value[0]
