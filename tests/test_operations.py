#!/usr/bin/env python3
"""The program as an operator runs it: TLS, mTLS, tokens, reloading, logs, traces.

usage: test_operations.py MERX PYTHON_WIRE SOURCE_DIR
Exit 77 (skipped) without grpcio or openssl.
"""
import json, os, re, shutil, signal, subprocess, sys, tempfile, time, urllib.error, urllib.request

try:
    import grpc
except ImportError:
    print("skipped: no python3-grpcio")
    sys.exit(77)
if not shutil.which("openssl"):
    print("skipped: no openssl")
    sys.exit(77)

merx, wire, source = sys.argv[1:4]
sys.path.insert(0, wire)
import merx_pb2

model = os.path.join(source, "tests/golden/decoder/llama")
folder = tempfile.mkdtemp(prefix="merx-ops-")
checks = failures = 0


def check(what, cond, detail=""):
    global checks, failures
    checks += 1
    if not cond:
        failures += 1
        print(f"  failed: {what} {detail}")


def at(name):
    return os.path.join(folder, name)


def read(name):
    with open(at(name), "rb") as f:
        return f.read()


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def make_ca(name):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-keyout", at(name + ".key"), "-out", at(name + ".pem"), "-subj", f"/CN={name}")


def make_cert(name, ca, out=None):
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", at(name + ".key"), "-out", at(name + ".req"), "-subj", f"/CN={name}")
    with open(at("san"), "w") as f:
        f.write("subjectAltName=DNS:localhost,IP:127.0.0.1")
    openssl("x509", "-req", "-in", at(name + ".req"), "-CA", at(ca + ".pem"), "-CAkey", at(ca + ".key"), "-CAcreateserial",
            "-days", "2", "-out", at(name + ".pem"), "-extfile", at("san"))


class Server:
    def __init__(self, *args):
        self.log = at("log")
        self.p = subprocess.Popen([merx, "serve", "-m", "g=" + model, "--listen", "127.0.0.1:0", "--threads", "1", *args],
                                  stderr=open(self.log, "wb"))
        self.port = int(self.wait(r"serving on [^\"\n]*:(\d+)").group(1))

    def text(self):
        with open(self.log, encoding="utf-8") as f:
            return f.read()

    def wait(self, pattern, seconds=20, start=0):
        end = time.time() + seconds
        while time.time() < end:
            m = re.search(pattern, self.text()[start:])
            if m:
                return m
            if self.p.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"the server did not say {pattern}: {self.text()}")

    def http(self, path):
        port = int(self.wait(r"health on port (\d+)").group(1))
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as r:
                return r.status, r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def stop(self):
        self.p.send_signal(signal.SIGTERM)
        check("the server ends well", self.p.wait(20) == 0, self.text()[-300:])


def channel(server, ca=None, cert=None):
    if not ca:
        return grpc.insecure_channel(f"127.0.0.1:{server.port}")
    creds = grpc.ssl_channel_credentials(read(ca + ".pem"), read(cert + ".key") if cert else None, read(cert + ".pem") if cert else None)
    return grpc.secure_channel(f"127.0.0.1:{server.port}", creds)


def generate(ch, metadata=(), timeout=10):
    """(code, details, initial metadata) of one Generate."""
    call = ch.unary_unary("/merx.v1.Generation/Generate", merx_pb2.GenerateRequest.SerializeToString,
                          merx_pb2.GenerateResponse.FromString)
    request = merx_pb2.GenerateRequest(prompt="a", sampling=merx_pb2.Sampling(max_tokens=2, temperature=0))
    try:
        _, c = call.with_call(request, timeout=timeout, metadata=metadata)
        return c.code(), c.details(), dict(c.initial_metadata()), dict(c.trailing_metadata())
    except grpc.RpcError as e:
        return e.code(), e.details(), dict(e.initial_metadata() or ()), dict(e.trailing_metadata() or ())


def health(ch):
    """Health.Check by hand: empty request, the reply's one varint."""
    return ch.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)


def token(name, *args):
    return subprocess.run([merx, "token", name, "--tokens", at("tokens"), *args], check=True, capture_output=True, text=True).stdout.strip()


def bearer(t):
    return (("authorization", "Bearer " + t),)


def test_tokens():
    shop = token("shop", "--services", "Generation", "--rate", "1000")
    slow = token("slow", "--rate", "0.5", "--burst", "1")
    other = token("other", "--services", "Pricing")
    check("the file does not hold the token", shop.encode() not in read("tokens"))
    s = Server("--tokens", at("tokens"), "--log-format", "json", "--log-calls", "--http-listen", "127.0.0.1:0", "--spans", at("spans"))
    ch = channel(s)
    check("no token", generate(ch)[0] == grpc.StatusCode.UNAUTHENTICATED)
    check("a wrong token", generate(ch, bearer("mx_wrong"))[0] == grpc.StatusCode.UNAUTHENTICATED)
    check("not a bearer", generate(ch, (("authorization", "Basic " + shop),))[0] == grpc.StatusCode.UNAUTHENTICATED)
    check("another service's token", generate(ch, bearer(other))[0] == grpc.StatusCode.PERMISSION_DENIED)
    check("a good token", generate(ch, bearer(shop))[0] == grpc.StatusCode.OK)
    check("health needs none", health(ch) == b"\x08\x01")
    check("one call of the slow tenant", generate(ch, bearer(slow))[0] == grpc.StatusCode.OK)
    code, text, _, trailing = generate(ch, bearer(slow))
    check("the second is over its rate", code == grpc.StatusCode.RESOURCE_EXHAUSTED and "rate" in text, text)
    check("with RetryInfo", b"google.rpc.RetryInfo" in trailing.get("grpc-status-details-bin", b""))
    reflection = ch.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    try:
        list(reflection(iter([b"\x3a\x00"]), timeout=5))
        check("reflection needs a token", False)
    except grpc.RpcError as e:
        check("reflection needs a token", e.code() == grpc.StatusCode.UNAUTHENTICATED, str(e.code()))

    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    code, _, headers, _ = generate(ch, bearer(shop) + (("traceparent", trace), ("x-request-id", "order-17")))
    back = headers.get("traceparent", "")
    check("the trace goes on", back[:35] == trace[:35] and back[36:52] != trace[36:52] and back.endswith("-01"), back)
    check("the id comes back", headers.get("x-request-id") == "order-17")
    for bad in ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
                "ff", trace + "0"):
        check("not a trace: " + bad, generate(ch, bearer(shop) + (("traceparent", bad),))[2]["traceparent"][3:35] != bad[3:35])
    s.wait("order-17")
    lines = [json.loads(line) for line in s.text().splitlines()]
    mine = [l for l in lines if l.get("request_id") == "order-17"]
    check("one line for the call", len(mine) == 1 and mine[0]["tenant"] == "shop" and mine[0]["code"] == "OK" and
          mine[0]["trace_id"] == trace[3:35] and mine[0]["span_id"] == back[36:52] and float(mine[0]["ms"]) > 0, str(mine))
    check("no token in the log", not any(t in s.text() for t in (shop, slow, other)))

    # Reloading: a new token is known within seconds, one that is gone is not.
    new = token("late")
    end = time.time() + 10
    while generate(ch, bearer(new))[0] != grpc.StatusCode.OK and time.time() < end:
        time.sleep(0.1)
    check("a token of later", generate(ch, bearer(new))[0] == grpc.StatusCode.OK)
    kept = [l for l in read("tokens").decode().splitlines() if not l.startswith("shop ")]
    with open(at("tokens"), "w") as f:
        f.write("\n".join(kept) + "\n")
    start = len(s.text())
    s.p.send_signal(signal.SIGHUP)
    s.wait("tokens read again", start=start)
    check("a token that is gone", generate(ch, bearer(shop))[0] == grpc.StatusCode.UNAUTHENTICATED)
    with open(at("tokens"), "a") as f:
        f.write("broken line\n")
    start = len(s.text())
    s.p.send_signal(signal.SIGHUP)
    s.wait("stay as they were", start=start)
    check("a broken file changes nothing", generate(ch, bearer(new))[0] == grpc.StatusCode.OK)
    status, metrics = s.http("/metrics")
    check("metrics count refusals", status == 200 and 'code="UNAUTHENTICATED"' in metrics and 'code="PERMISSION_DENIED"' in metrics)
    check("an idle server says so", 'merx_num_requests_running{model="g"} 0' in metrics)
    check("ready", s.http("/readyz")[0] == 200)
    check_names(metrics)
    ch.close()
    s.stop()
    check_spans(trace, back)


def check_spans(trace, back):
    """The file as the collector's otlpjsonfile receiver takes it: ExportTraceServiceRequest, a line each."""
    spans = [span for line in read("spans").decode().splitlines() for r in json.loads(line)["resourceSpans"]
             for scope in r["scopeSpans"] for span in scope["spans"]]
    check("ids are hex", all(re.fullmatch("[0-9a-f]{32}", x["traceId"]) and re.fullmatch("[0-9a-f]{16}", x["spanId"]) for x in spans))
    check("ids differ", len({x["spanId"] for x in spans}) == len(spans))
    check("times", all(0 < int(x["startTimeUnixNano"]) <= int(x["endTimeUnixNano"]) < 1e9 * (time.time() + 1) for x in spans))
    mine = [x for x in spans if x["traceId"] == trace[3:35] and x["kind"] == 2]
    check("one span for the call", len(mine) == 1 and mine[0]["spanId"] == back[36:52] and mine[0]["parentSpanId"] == trace[36:52], str(mine))
    about = {a["key"]: list(a["value"].values())[0] for a in mine[0]["attributes"]}
    check("what the call was", about == {"rpc.system": "grpc", "rpc.service": "merx.v1.Generation", "rpc.method": "Generate", "rpc.grpc.status_code": "0",
                                         "merx.tenant": "shop", "merx.request_id": "order-17"}, str(about))
    turn = [x for x in spans if x.get("parentSpanId") == mine[0]["spanId"]]
    check("its turn is a child", len(turn) == 1 and turn[0]["name"] == "turn" and int(mine[0]["startTimeUnixNano"]) <= int(turn[0]["startTimeUnixNano"]) <=
          int(turn[0]["endTimeUnixNano"]) <= int(mine[0]["endTimeUnixNano"]), str(turn))
    failed = [x for x in spans if x["kind"] == 2 and x["status"].get("code") == 2]
    check("failures say why", failed and all(x["status"]["message"] for x in failed), str(failed[:1]))


def check_names(metrics):
    """What dashboards, alerts, the autoscaler and the documentation name is there."""
    there = set(re.findall(r"^# TYPE (\S+)", metrics, re.M))
    for path in ("docker/compose/dashboard.json", "docker/compose/alerts.yml", "docker/kubernetes/serve.yaml", "docs/operate.md"):
        with open(os.path.join(source, path), encoding="utf-8") as f:
            text = f.read()
        for name in sorted(set(re.findall(r"\b(?:merx|process)_[a-z0-9_]+\b", text))):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            check(f"{path} names {name}", base in there or name in ("merx_pb2", "merx_pb2_grpc"))


def test_tls():
    make_ca("ca")
    make_ca("strange")
    make_cert("server", "ca")
    s = Server("--tls-cert", at("server.pem"), "--tls-key", at("server.key"), "--no-reflection")
    ch = channel(s, "ca")
    check("TLS", generate(ch)[0] == grpc.StatusCode.OK)
    check("plain to TLS", generate(channel(s), timeout=2)[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))
    check("a strange CA", generate(channel(s, "strange"), timeout=2)[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))
    run = subprocess.run([merx, "client", "-s", f"127.0.0.1:{s.port}", "--tls-ca", at("ca.pem"), "--no-chat", "-n", "3", "--timeout", "10", "a"],
                         capture_output=True, timeout=30)
    check("merx client over TLS", run.returncode == 0, run.stderr.decode())
    try:
        list(ch.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")(iter([b"\x3a\x00"]), timeout=5))
        check("reflection is off", False)
    except grpc.RpcError as e:
        check("reflection is off", e.code() == grpc.StatusCode.PERMISSION_DENIED)
    # A new certificate of a new CA, without a restart; the old connection lives on.
    make_ca("ca2")
    make_cert("next", "ca2")
    for end in ("key", "pem"):
        shutil.copy(at("next." + end), at("server." + end))
    ok = False
    for _ in range(50):
        fresh = channel(s, "ca2")
        ok = generate(fresh, timeout=2)[0] == grpc.StatusCode.OK
        fresh.close()
        if ok:
            break
        time.sleep(0.1)
    check("the new certificate is shown", ok, s.text()[-300:])
    check("the old connection lives", generate(ch)[0] == grpc.StatusCode.OK)
    with open(at("server.pem"), "w") as f:
        f.write("not a certificate\n")
    check("a broken file keeps the last good one", generate(channel(s, "ca2"), timeout=3)[0] == grpc.StatusCode.OK, s.text()[-300:])
    ch.close()
    s.stop()

    make_cert("server", "ca")
    make_cert("client", "ca")
    make_cert("imposter", "strange")
    s = Server("--tls-cert", at("server.pem"), "--tls-key", at("server.key"), "--tls-client-ca", at("ca.pem"))
    check("mTLS", generate(channel(s, "ca", "client"))[0] == grpc.StatusCode.OK)
    for who in (None, "imposter"):
        check(f"mTLS with {who}", generate(channel(s, "ca", who), timeout=2)[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))
    s.stop()

    for args, words in ((["--tls-cert", at("server.pem")], "one without the other"),
                        (["--tls-cert", at("server.pem"), "--tls-key", at("client.key")], "is not the key of"),
                        (["--tls-cert", at("tokens"), "--tls-key", at("client.key")], "no PEM certificate"),
                        (["--tokens", at("nowhere")], "No such file"), (["--http-listen", "nonsense"], "HOST:PORT"),
                        (["-m", "h=" + model, "--kv-cache-bytes", str(memory() * 3 // 4)], "are held, it is")):
        run = subprocess.run([merx, "serve", "-m", "g=" + model, "--listen", "127.0.0.1:0", *args], capture_output=True, text=True, timeout=30)
        check(words, run.returncode in (1, 2) and words in run.stderr, run.stderr)


try:
    test_tokens()
    test_tls()
finally:
    shutil.rmtree(folder)
print(f"{checks} checks, {failures} failed")
sys.exit(1 if failures or not checks else 0)
