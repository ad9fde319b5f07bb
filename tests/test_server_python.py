"""test_server_python.py FAKE_SERVER WIRE_DIR - an unmodified Python client against the
server: merx.v1 with generated messages, then health and merx.v1 again with messages
that are built from nothing but what reflection answers.  Exit 77: no grpcio here."""
import struct
import subprocess
import sys
import tempfile
import threading
import time

try:
    import grpc
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as e:
    print("skipped:", e)
    sys.exit(77)

sys.path.insert(0, sys.argv[2])
import merx_pb2 as pb

checks = failed = 0
GEN = "/merx.v1.Generation/"


def check(ok, *what):
    global checks, failed
    checks += 1
    if not ok:
        failed += 1
        line = sys._getframe(1).f_lineno
        print(f"  line {line}: failed:", *what)


class Server:
    def __init__(self, program, *more):
        self.process = subprocess.Popen([program, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        return self.process.wait(timeout=30)


def unary(channel, path, request, reply, **kw):
    return channel.unary_unary(path, type(request).SerializeToString, reply.FromString)(request, timeout=20, **kw)


def code_of(call):
    try:
        call()
        return grpc.StatusCode.OK, "", ()
    except grpc.RpcError as e:
        return e.code(), e.details(), e.trailing_metadata() or ()


def request(prompt="Say something", tokens=20, **kw):
    return pb.GenerateRequest(prompt=prompt, sampling=pb.Sampling(max_tokens=tokens, seed=7, **kw), request_id="py")


def test_styles(program):
    """An experiment chooses the words round a prompt; its outcome is told by the decision's id."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(program, folder + "/e.db")
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        EXP = "/merx.v1.Experiments/"
        unary(channel, EXP + "CreateExperiment", pb.CreateExperimentRequest(id="tone", arms=["plain", "warm"], seed=3), pb.Experiment)
        styles = [pb.Style(arm="warm", prefix="Warmly: ", suffix="!!!!")]
        def styled(unit, styles=styles, **kw):
            m = request(**kw)
            m.style.CopyFrom(pb.StyleChoice(experiment_id="tone", unit_id=unit, styles=styles))
            return m
        plain = unary(channel, GEN + "Generate", request(), pb.GenerateResponse)
        check(not plain.HasField("style"))
        seen = {}
        for k in range(60):
            r = unary(channel, GEN + "Generate", styled(f"u{k}"), pb.GenerateResponse)
            check(r.style.decision_id and 0 < r.style.propensity < 1 and r.style.experiment_id == "tone", r.style)
            check(r.usage.prompt_tokens - plain.usage.prompt_tokens == (12 if r.style.arm == "warm" else 0), r.style.arm, r.usage)
            seen[r.style.arm] = seen.get(r.style.arm, 0) + 1
            o = pb.Outcome(decision_id=r.style.decision_id, value=r.style.arm == "warm")
            ack = unary(channel, EXP + "ReportOutcome", pb.ReportOutcomeRequest(outcomes=[o]), pb.ReportOutcomeResponse)
            check(ack.accepted == 1, ack)
        check(seen["warm"] > seen.get("plain", 0), seen)                   # it learned
        stream = channel.unary_stream(GEN + "Stream", pb.GenerateRequest.SerializeToString, pb.GenerateEvent.FromString)
        events = list(stream(styled("u"), timeout=20))
        check(events[-1].last and events[-1].style.arm in seen and not events[0].HasField("style"), events[-1])
        batch = pb.GenerateBatchRequest(requests=[styled(f"b{k}") for k in range(50)] + [request()])
        r = unary(channel, GEN + "GenerateBatch", batch, pb.GenerateBatchResponse)
        check(len({i.response.style.decision_id for i in r.items[:50]}) == 50 and not r.items[50].response.HasField("style"), r.items[0])
        chat = styled("c", [pb.Style(arm="warm", system="Be warm."), pb.Style(arm="plain", system="Be plain.")])
        chat.chat.messages.add(role="user", content="Hi")
        check(unary(channel, GEN + "Generate", chat, pb.GenerateResponse).usage.prompt_tokens > 12)
        bad = [(styled("x", [pb.Style(arm="warm", system="s"), pb.Style(arm="plain", system="s")]), "system is for a chat"), (styled("x", [pb.Style()]), "arm is empty"),
               (styled("x", styles * 2), "has a style already"), (styled(""), "unit_id"), (styled("x", [pb.Style(arm=a, model="none") for a in ("warm", "plain")]), "none")]
        unknown = styled("x")
        unknown.style.experiment_id = "nobody"
        for m, part in bad + [(unknown, "nobody")]:
            code, text, _ = code_of(lambda: unary(channel, GEN + "Generate", m, pb.GenerateResponse))
            check(code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND) and part in text, code, text)
        for _ in range(30):                                                # clients that give up at once
            call = stream(styled("gone", tokens=2000), timeout=20)
            call.cancel()
        channel.close()
        check(server.close() == 0)


def test_generation(channel):
    r = unary(channel, GEN + "Generate", request(logprobs=2), pb.GenerateResponse)
    check(len(r.candidates) == 1 and len(r.candidates[0].text) == 20, r)
    check(r.usage.output_tokens == 20 and r.timings.total_ms > 0 and r.request_id == "py" and r.seed == 7, r)
    check(len(r.candidates[0].logprobs) == 20 and len(r.candidates[0].logprobs[0].top_token) == 2, r)
    stream = channel.unary_stream(GEN + "Stream", pb.GenerateRequest.SerializeToString, pb.GenerateEvent.FromString)
    events = list(stream(request(), timeout=20))
    check("".join(e.text for e in events) == r.candidates[0].text, events)
    check([e.last for e in events] == [False] * (len(events) - 1) + [True], events)
    check([e.finish for e in events if e.finish] == [pb.FINISH_LENGTH], events)
    check(events[-1].usage.output_tokens == 20 and events[-1].timings.total_ms > 0, events[-1])
    batch = pb.GenerateBatchRequest(requests=[request(), request(tokens=-1), request(prompt="为夏季防晒霜设计一条文案")])
    b = unary(channel, GEN + "GenerateBatch", batch, pb.GenerateBatchResponse)
    check([i.status.code for i in b.items] == [0, 3, 0] and "max_tokens" in b.items[1].status.message, b)
    text = "为夏季防晒霜 ☀".encode()
    t = unary(channel, GEN + "Tokenize", pb.TokenizeRequest(text=text), pb.TokenizeResponse)
    check(b"".join(t.tokens) == text and list(t.ids) == list(text), t)
    d = unary(channel, GEN + "Detokenize", pb.DetokenizeRequest(ids=t.ids), pb.DetokenizeResponse)
    check(d.text == text, d)
    m = unary(channel, GEN + "ListModels", pb.ListModelsRequest(), pb.ListModelsResponse)
    check([x.name for x in m.models] == ["fake", "plain"], m)
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello")])
    r = unary(channel, GEN + "Generate", pb.GenerateRequest(chat=chat, sampling=pb.Sampling(max_tokens=3)), pb.GenerateResponse)
    check(r.usage.prompt_tokens > 10 and r.seed != 0, r)


def retry_delay(trailers):
    """Seconds of google.rpc.RetryInfo in grpc-status-details-bin, read with google's own types' layout."""
    f = descriptor_pb2.FileDescriptorProto(name="rpc.proto", package="t", syntax="proto3")
    def message(name, *fields):
        m = f.message_type.add(name=name)
        for number, field, kind, label, ref in fields:
            m.field.add(name=field, number=number, type=kind, label=label, type_name=ref)
    message("Any", (1, "type_url", 9, 1, None), (2, "value", 12, 1, None))
    message("Status", (1, "code", 5, 1, None), (2, "message", 9, 1, None), (3, "details", 11, 3, ".t.Any"))
    message("Duration", (1, "seconds", 3, 1, None), (2, "nanos", 5, 1, None))
    message("RetryInfo", (1, "retry_delay", 11, 1, ".t.Duration"))
    types = classes([f.SerializeToString()])
    for key, value in trailers:
        if key == "grpc-status-details-bin":
            status = types("t.Status").FromString(value)
            check(status.code == 8 and status.details[0].type_url == "type.googleapis.com/google.rpc.RetryInfo", status)
            d = types("t.RetryInfo").FromString(status.details[0].value).retry_delay
            return d.seconds + d.nanos / 1e9
    return None


def test_errors(channel, server):
    code = grpc.StatusCode
    for wrong, want, text in [
        (request(temperature=float("nan")), code.INVALID_ARGUMENT, "temperature"),
        (pb.GenerateRequest(), code.INVALID_ARGUMENT, "input"),
        (pb.GenerateRequest(model="nöbody", prompt="x"), code.NOT_FOUND, "nöbody"),
        (pb.GenerateRequest(prompt="a\0b"), code.INVALID_ARGUMENT, "NUL"),
        (pb.GenerateRequest(model="plain", chat=pb.Chat(messages=[pb.ChatMessage(role="user")])), code.FAILED_PRECONDITION, "template"),
    ]:
        got, details, _ = code_of(lambda: unary(channel, GEN + "Generate", wrong, pb.GenerateResponse))
        check(got == want and text in details, got, details)
    raw = channel.unary_unary(GEN + "Generate")
    for bad in [b"\xff", b"\x0a\x05ab", b"\x12\x02\xc3\x28", b"\x2a\x02\x08\x96", b"\x0b\x0c"]:
        got, details, _ = code_of(lambda: raw(bad, timeout=5))
        check(got == code.INVALID_ARGUMENT, bad, got, details)
    got, details, _ = code_of(lambda: raw(b"\0" * (2 << 20), timeout=5))
    check(got == code.RESOURCE_EXHAUSTED, got, details)
    got, details, _ = code_of(lambda: channel.unary_unary(GEN + "Nothing")(b"", timeout=5))
    check(got == code.UNIMPLEMENTED, got, details)
    got, details, _ = code_of(lambda: channel.stream_unary(GEN + "Generate")(iter([]), timeout=5))
    check(got == code.INVALID_ARGUMENT and "no message" in details, got, details)
    got, details, _ = code_of(lambda: raw(request().SerializeToString(), timeout=5, compression=grpc.Compression.Gzip))
    check(got == code.UNIMPLEMENTED, "a compressed request", got, details)
    server.tell("turn 20000")
    got, details, _ = code_of(lambda: raw(request(tokens=500).SerializeToString(), timeout=0.2))
    check(got == code.DEADLINE_EXCEEDED, got, details)
    # up to 8 run, 16 wait, the others hear when to come again
    stream = channel.unary_stream(GEN + "Stream", pb.GenerateRequest.SerializeToString, pb.GenerateEvent.FromString)
    calls = [stream(request(tokens=2000)) for _ in range(40)]
    time.sleep(1)
    busy = [c for c in calls if c.done()]
    check(all(c.code() == code.RESOURCE_EXHAUSTED for c in busy) and 16 <= len(busy) <= 24, len(busy), [c.code() for c in busy])
    delays = [retry_delay(c.trailing_metadata()) for c in busy]
    check(all(d and 0.001 <= d <= 30 for d in delays), delays)
    for c in calls:
        c.cancel()
    for _ in range(200):
        if server.tell("running") == 0:
            break
        time.sleep(0.02)
    check(server.tell("running") == 0, "generations left")
    server.tell("turn 1000")


# ---- only what reflection says -----------------------------------------------------------


def fields(data):
    """(number, value) of a message's fields, by hand."""
    at = 0

    def varint():
        nonlocal at
        v = shift = 0
        while True:
            b = data[at]
            at += 1
            v |= (b & 127) << shift
            shift += 7
            if b < 128:
                return v

    while at < len(data):
        tag = varint()
        if tag & 7 == 2:
            n = varint()
            yield tag >> 3, data[at : at + n]
            at += n
        elif tag & 7 == 0:
            yield tag >> 3, varint()
        else:
            n = {1: 8, 5: 4}[tag & 7]
            yield tag >> 3, data[at : at + n]
            at += n


def classes(files):
    pool = descriptor_pool.DescriptorPool()
    for f in files:
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(f)) if hasattr(pool, "Add") else pool.AddSerializedFile(f)

    def find(name):
        d = pool.FindMessageTypeByName(name)
        if hasattr(message_factory, "GetMessageClass"):
            return message_factory.GetMessageClass(d)
        return message_factory.MessageFactory(pool).GetPrototype(d)

    return find


def text_field(number, text):
    return bytes([number << 3 | 2, len(text)]) + text.encode()


def reflect(channel, version, *questions):
    call = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    return [dict(fields(r)) for r in call(iter(questions), timeout=10)]


def test_reflection(channel, version):
    (r,) = reflect(channel, version, text_field(7, ""))
    names = [dict(fields(s))[1].decode() for n, s in fields(r[6]) if n == 1]
    want = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection", "merx.v1.Embeddings",
            "merx.v1.Experiments", "merx.v1.Generation", "merx.v1.Models", "merx.v1.Pricing", "merx.v1.Profiling", "merx.v1.Training"]
    check(sorted(names) == want, names)
    asked = names + ["merx.v1.Generation.Stream", "merx.v1.Sampling", "grpc.health.v1.HealthCheckResponse.ServingStatus", "merx.v1.FinishReason"]
    answers = reflect(channel, version, *[text_field(4, n) for n in asked])
    check(len(answers) == len(asked) and all(4 in a for a in answers), answers)
    files = {v for a in answers for n, v in fields(a[4]) if n == 1}
    check(len(files) == 4, len(files))
    for bad in [text_field(4, "nobody.Service"), text_field(3, "nobody.proto"), text_field(4, "merx.v1"), text_field(6, "merx.v1.Generation")]:
        (r,) = reflect(channel, version, bad)
        check(dict(fields(r[7]))[1] == 5, r)
    (r,) = reflect(channel, version, text_field(3, "merx.proto"))
    check(4 in r, r)
    (r,) = reflect(channel, version, text_field(6, "merx.v1.Sampling"))
    check(dict(fields(r[5]))[1] == b"merx.v1.Sampling", r)
    types = classes(files)
    health = channel.unary_unary("/grpc.health.v1.Health/Check", types("grpc.health.v1.HealthCheckRequest").SerializeToString,
                                 types("grpc.health.v1.HealthCheckResponse").FromString)
    for service in names + [""]:
        check(health(types("grpc.health.v1.HealthCheckRequest")(service=service), timeout=5).status == 1, service)
    got, _, _ = code_of(lambda: health(types("grpc.health.v1.HealthCheckRequest")(service="nobody"), timeout=5))
    check(got == grpc.StatusCode.NOT_FOUND, got)
    q = types("merx.v1.GenerateRequest")(prompt="Reflected", request_id="r")
    q.sampling.max_tokens = 5
    q.sampling.temperature = 0
    r = unary(channel, GEN + "Generate", q, types("merx.v1.GenerateResponse"))
    check(len(r.candidates[0].text) == 5 and r.request_id == "r", r)
    return types


def test_watch_and_drain(channel, server, types):
    check_type, reply = types("grpc.health.v1.HealthCheckRequest"), types("grpc.health.v1.HealthCheckResponse")
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch", check_type.SerializeToString, reply.FromString)
    seen = []

    def follow():
        try:
            for r in watch(check_type(service="merx.v1.Generation"), timeout=30):
                seen.append(r.status)
        except grpc.RpcError:
            seen.append("end")

    follower = threading.Thread(target=follow)
    follower.start()
    time.sleep(0.3)
    server.tell("starting")
    time.sleep(0.4)
    got, details, _ = code_of(lambda: unary(channel, GEN + "ListModels", pb.ListModelsRequest(), pb.ListModelsResponse))
    check(got == grpc.StatusCode.UNAVAILABLE, got, details)
    server.tell("serving")
    time.sleep(0.4)
    stream = channel.unary_stream(GEN + "Stream", pb.GenerateRequest.SerializeToString, pb.GenerateEvent.FromString)
    running = stream(request(tokens=400), timeout=20)
    next(running)
    start = time.time()
    check(server.tell("drain 10000") == 0, "calls were cut off")
    check(time.time() - start < 8, time.time() - start)
    check(sum(1 for _ in running) > 0 and running.code() == grpc.StatusCode.OK, running.code())
    follower.join(10)
    check(seen == [1, 2, 1, 2, "end"], seen)
    got, details, _ = code_of(lambda: unary(channel, GEN + "Generate", request(), pb.GenerateResponse))
    check(got == grpc.StatusCode.UNAVAILABLE, got, details)


server = Server(sys.argv[1])
with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
    test_generation(channel)
    test_errors(channel, server)
    test_reflection(channel, "v1alpha")
    types = test_reflection(channel, "v1")
    test_watch_and_drain(channel, server, types)
check(server.close() == 0, "the server did not end well")
test_styles(sys.argv[1])
print(f"{checks} checks, {failed} failed")
sys.exit(1 if failed or not checks else 0)
