#!/usr/bin/env python3
"""chaos.py MERX PYTHON_WIRE SOURCE_DIR [--seconds N] [--seed N] [--result FILE]

A server under mixed load while clients are killed and stopped, calls cancelled by the
hundred, readers crawl, frames are garbage, the disk fills, models come, are swapped and go, and
the server itself is killed, in the midst of a swap too.  What must hold at the end:

  - every answer is the answer to its own request, once; no call is without an end;
  - after kill -9 of the server it answers again within 2 s of its restart, and every quote
    that was acknowledged before is still there, the same, and every sale reported counts once:
    those that were acknowledged, and in the end, told again, those that were not;
  - a full disk is an error of the call, never an acknowledged quote that is not on disk;
  - no request fails by a swap, and every text is wholly one network's;
  - every event that was acknowledged counts once in its user's profile;
  - memory (RssAnon) and open files do not grow.

20 seconds are the short form (CI); 1200 and more the soak, whose figures --result keeps.  Exit 77: grpcio is missing.
"""
import argparse, json, os, random, re, shutil, signal, socket, subprocess, sys, tempfile, threading, time

try:
    import grpc
except ImportError:
    print("skipped: no python3-grpcio")
    sys.exit(77)

args = argparse.ArgumentParser()
args.add_argument("merx")
args.add_argument("wire")
args.add_argument("source")
args.add_argument("--seconds", type=float, default=20)
args.add_argument("--seed", type=int, default=1)
args.add_argument("--result")
args.add_argument("--any-memory", action="store_true")      # a sanitizer keeps what is freed
a = args.parse_args()
sys.path.insert(0, a.wire)
import merx_pb2 as pb

rnd = random.Random(a.seed)
folder = tempfile.mkdtemp(prefix="merx-chaos-")
disk = os.path.join(folder, "disk")
os.mkdir(disk)
small_disk = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={24 + 2 * int(a.seconds)}m", "tmpfs", disk], capture_output=True).returncode == 0
failures = []
tally = {}
lock = threading.Lock()


def fail(text):
    with lock:
        failures.append(text)
        if len(failures) <= 20:
            print("  failed:", text, flush=True)


def count(what, n=1):
    with lock:
        tally[what] = tally.get(what, 0) + n


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


port, http = free_port(), free_port()
address = f"127.0.0.1:{port}"


running = []                      # the server's process


class Server:
    """Restarted when it dies, as systemd would."""

    def __init__(self):
        self.log = open(os.path.join(folder, "server.log"), "ab")
        self.p = None
        self.recoveries = []
        self.start()

    def start(self):
        began = time.monotonic()
        self.p = subprocess.Popen([a.merx, "serve", "-m", "g=" + os.path.join(a.source, "tests/golden/decoder/llama"),
                                   "-m", "h=" + os.path.join(a.source, "tests/golden/decoder/gpt2"), "-m", "s=" + os.path.join(a.source, "tests/golden/decoder/llama"),
                                   "--kv-cache-bytes", "4000000", "--profiles", os.path.join(folder, "profiles"), "-m", "e=" + os.path.join(a.source, "tests/golden/encoder/bert"), "--listen", address,
                                   "--http-listen", f"127.0.0.1:{http}", "--pricing", os.path.join(disk, "pricing.db"),
                                   "--training-folder", os.path.join(folder, "training"),
                                   "--training-data", os.path.join(a.source, "tests/golden"), "--log-level", "warn"],
                                  stdout=self.log, stderr=self.log)
        running[:] = [self.p]
        while True:
            try:
                text = get("/readyz")
                if text.startswith("HTTP/1.1 200"):
                    break
            except OSError:
                pass
            if self.p.poll() is not None or time.monotonic() - began > 20:
                raise AssertionError("the server does not come up")
            time.sleep(0.01)
        return time.monotonic() - began

    def kill(self):
        self.p.kill()
        self.p.wait()
        self.recoveries.append(self.start())

    def rss_anon_kb(self):
        with open(f"/proc/{self.p.pid}/status") as f:
            return int(re.search(r"RssAnon:\s+(\d+)", f.read()).group(1))

    def files(self):
        return len(os.listdir(f"/proc/{self.p.pid}/fd"))


def get(path):
    with socket.create_connection(("127.0.0.1", http), timeout=5) as s:
        s.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        out = b""
        while True:
            part = s.recv(65536)
            if not part:
                return out.decode(errors="replace")
            out += part


def dial():
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50),
                                                   ("grpc.max_reconnect_backoff_ms", 200)])


def rpc(ch, name, request, answer, kind="unary_unary"):
    return getattr(ch, kind)("/merx.v1." + name, type(request).SerializeToString, answer.FromString)


def generate_request(i, n=4):
    return pb.GenerateRequest(model="g", prompt="ab", request_id=f"r{i}", sampling=pb.Sampling(max_tokens=n, seed=i, ignore_eos=True))


# The codes that a server which is killed, full or refused a disk may answer with.
SANE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}


def put_item(ch):
    item = pb.PriceItem(sku="s", channel="web", currency="USD", cost=100, reference_price=200, published=200)
    rpc(ch, "Pricing/PutItems", pb.PutItemsRequest(), pb.PutItemsResponse)(pb.PutItemsRequest(items=[item]), timeout=10)


# ---- those who behave: threads that check every answer ------------------------------------------

acknowledged = {}            # request id -> decision id, price
sold, unsure = {}, {}        # sale id -> the sale: acknowledged; not known whether it counted
stop = threading.Event()
full = threading.Event()     # the disk is being filled
full_ended = 0.0             # when it was last


def text_refused(call, e):
    count("texts refused")
    if e.code() not in SANE:
        fail(f"{call}: {e.code()} {e.details()}")
    time.sleep(0.02)


def texts(n):
    ch, known = dial(), {}
    call = rpc(ch, "Generation/Generate", pb.GenerateRequest(), pb.GenerateResponse)
    i = n
    while not stop.is_set():
        i += 10
        try:
            r = call(generate_request(i % 1000), timeout=10)
            if r.request_id != f"r{i % 1000}":
                fail(f"request r{i % 1000} got the answer of {r.request_id}")
            text = r.candidates[0].text
            if known.setdefault(i % 1000, text) != text:
                fail(f"request r{i % 1000}: another text than before")
            count("texts")
        except grpc.RpcError as e:
            text_refused("Generate", e)
    ch.close()


NETWORKS = ("llama", "gpt2")      # that s is swapped between; g and h are one each
alone = {}                        # (network, seed): its text


def learn_texts():
    ch = dial()
    call = rpc(ch, "Generation/Generate", pb.GenerateRequest(), pb.GenerateResponse)
    for name, network in (("g", "llama"), ("h", "gpt2")):
        for seed in range(8):
            q = generate_request(seed, 8)
            q.model = name
            alone[network, seed] = call(q, timeout=10).candidates[0].text
    ch.close()


def swapped_texts():
    """Texts of a model that is replaced all the time: each is one network's, and only a dying server refuses."""
    ch, i = dial(), 0
    call = rpc(ch, "Generation/Generate", pb.GenerateRequest(), pb.GenerateResponse)
    while not stop.is_set():
        i += 1
        q = generate_request(i % 8, 8)
        q.model = "s"
        try:
            r = call(q, timeout=10)
            if r.candidates[0].text not in [alone[n, i % 8] for n in NETWORKS]:
                fail(f"s, version {r.model_version}: a text of no network")
            count("texts of swapped versions")
        except grpc.RpcError as e:
            text_refused("swapped Generate", e)
    ch.close()


EACH = 100
events = 0                        # acknowledged: EACH of a user, then the next one's


def profiles():
    """Events one by one, each again until it is acknowledged; and the profile they make."""
    global events
    ch = dial()
    put = rpc(ch, "Profiling/PutEvents", pb.PutEventsRequest(), pb.EventsAck, "stream_stream")
    look = rpc(ch, "Profiling/GetProfile", pb.GetProfileRequest(), pb.ProfileAnswer)
    while not stop.is_set():
        user = f"u{events // EACH}"
        e = pb.Event(event_id=f"e{events}", type="buy", user=user, object=f"o{events % 50}", ts_ms=1764230400000 + events, price_minor=1000, currency="EUR")
        try:
            ack = next(iter(put(iter([pb.PutEventsRequest(events=[e])]), timeout=10)))
            if ack.accepted + ack.duplicates != 1:
                fail(f"event {e.event_id}: {ack}")
            events += 1
            if events % 5 == 0:
                count("profiles", 1 if look(pb.GetProfileRequest(user=user), timeout=10).profile.events > 0 else 0)
            time.sleep(0.02)
        except (grpc.RpcError, StopIteration) as x:
            count("events refused")
            if isinstance(x, grpc.RpcError) and x.code() not in SANE:
                fail(f"profiles: {x.code()} {x.details()}")
            time.sleep(0.05)
    ch.close()


def check_events():
    ch = dial()
    look = rpc(ch, "Profiling/GetProfile", pb.GetProfileRequest(), pb.ProfileAnswer)
    for u in range((events + EACH - 1) // EACH):
        wanted = min(EACH, events - u * EACH)
        # one more may be on disk whose acknowledgement was lost at the very end
        n = look(pb.GetProfileRequest(user=f"u{u}"), timeout=10).profile.events
        if n != wanted and not (wanted == events - u * EACH and n == wanted + 1):
            fail(f"user u{u}: {wanted} events were acknowledged, the profile has {n}")
    ch.close()


def vectors():
    ch, first = dial(), None
    call = rpc(ch, "Embeddings/Embed", pb.EmbedRequest(), pb.EmbedResponse)
    while not stop.is_set():
        try:
            r = call(pb.EmbedRequest(model="e", texts=["a b c", "d"]), timeout=10)
            now = [list(e.values) for e in r.embeddings]
            first = first or now
            if now != first:
                fail("Embed: another vector than before")
            count("vectors", 2)
        except grpc.RpcError as e:
            if e.code() not in SANE:
                fail(f"Embed: {e.code()} {e.details()}")
            time.sleep(0.02)
    ch.close()


def report(ch, sale):
    return rpc(ch, "Pricing/ReportSales", pb.ReportSalesRequest(), pb.ReportSalesResponse)(pb.ReportSalesRequest(sales=[sale]), timeout=10)


def sell(ch, name, decision, price):
    sale = pb.SaleObservation(sale_id=name, sku="s", channel="web", price=price, units=3, decision_id=decision)
    with lock:
        unsure[name] = sale
    r = report(ch, sale)
    if r.accepted != 1:
        fail(f"{name}: a new sale, answered with {r}")
    with lock:
        sold[name] = unsure.pop(name)
    count("sales")


def check_sales():
    ch = dial()
    for name, sale in list(unsure.items()):
        r = report(ch, sale)
        if r.accepted + r.duplicate != 1:
            fail(f"{name}: told again, answered with {r}")
        sold[name] = sale
    for name in rnd.sample(sorted(sold), min(len(sold), 20)):
        if report(ch, sold[name]).duplicate != 1:
            fail(f"{name}: acknowledged, and told again it counts again")
    item = rpc(ch, "Pricing/GetItem", pb.ItemKey(), pb.PriceItem)(pb.ItemKey(sku="s", channel="web"), timeout=10)
    if item.sales != len(sold):
        fail(f"{len(sold)} sales were told, {item.sales} count")
    ch.close()


def quotes(n):
    ch, i = dial(), 0
    call = rpc(ch, "Pricing/Quote", pb.QuoteRequest(), pb.QuoteResponse)
    while not stop.is_set():
        i += 1
        name = f"q{n}-{i}"
        request = pb.QuoteRequest(sku="s", channel="web", mode=pb.QUOTE_LIVE, request_id=name)
        began = time.monotonic()
        try:
            r = call(request, timeout=10)
            with lock:
                acknowledged[name] = (r.decision_id, r.price)
            count("quotes")
            sell(ch, name, r.decision_id, r.price)
            time.sleep(0.04)
            if i % 5 == 0 and call(request, timeout=10).decision_id != r.decision_id:
                fail(f"{name}: asked again, decided again")
        except grpc.RpcError as e:
            count("quotes refused")
            disk_error = (full.is_set() or began < full_ended) and e.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
            if e.code() not in SANE and not disk_error:
                fail(f"Quote: {e.code()} {e.details()}")
            time.sleep(0.02)
    ch.close()


# ---- those who do not ------------------------------------------------------------------------------

def kill_clients(server):
    command = [a.merx, "client", "-s", address, "-m", "g", "--no-chat", "-n", "80", "--ignore-eos", "-q", "--timeout", "10", "ab"]
    crowd = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(4)]
    time.sleep(0.05 * rnd.random())
    for p in crowd:
        p.kill()
        p.wait()


def stop_client(server):
    p = subprocess.Popen([a.merx, "client", "-s", address, "-m", "g", "--no-chat", "-n", "80", "-q", "--timeout", "10", "ab"],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.05)
    p.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    p.kill()
    p.wait()


def stop_server(server):
    server.p.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    server.p.send_signal(signal.SIGCONT)


def cancel_storm(server):
    ch = dial()
    call = rpc(ch, "Generation/Stream", pb.GenerateRequest(), pb.GenerateEvent, "unary_stream")
    running = [call(generate_request(i, 60), timeout=10) for i in range(100)]
    for c in running:
        c.cancel()
    ch.close()


def slow_reader(server):
    ch = dial()
    call = rpc(ch, "Generation/Stream", pb.GenerateRequest(), pb.GenerateEvent, "unary_stream")(generate_request(7, 40), timeout=20)
    tokens, last = 0, False
    try:
        for e in call:
            tokens += len(e.ids)
            last = last or e.last
            time.sleep(0.01)
        if tokens != 40 or not last:
            fail(f"a slow reader got {tokens} of 40 tokens")
    except grpc.RpcError as e:
        if e.code() not in SANE:
            fail(f"slow reader: {e.code()} {e.details()}")
    ch.close()


def garbage(server):
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for at in (port, http):
        for _ in range(5):
            try:
                with socket.create_connection(("127.0.0.1", at), timeout=2) as s:
                    s.sendall((preface if rnd.random() < 0.5 else b"") + rnd.randbytes(rnd.randrange(1, 4000)))
            except OSError:
                pass
    ch = dial()
    for name in ("Generation/Generate", "Embeddings/Embed", "Pricing/Quote"):
        try:
            ch.unary_unary("/merx.v1." + name)(rnd.randbytes(rnd.randrange(1, 300)), timeout=5)
        except grpc.RpcError as e:
            if e.code() not in SANE | {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}:
                fail(f"garbage in {name}: {e.code()} {e.details()}")
    ch.close()


def fill_disk(server):
    global full_ended
    if not small_disk:
        return
    full.set()
    filler = os.path.join(disk, "filler")
    try:
        with open(filler, "wb", buffering=0) as f:
            while True:
                f.write(bytes(65536))
    except OSError:
        pass
    time.sleep(0.5)
    os.unlink(filler)
    time.sleep(0.3)
    full_ended = time.monotonic()
    full.clear()


loads = 0


def load_model(server):
    """A model that comes in while others are served, answers, and goes again."""
    global loads
    loads += 1
    ch = dial()
    try:
        request = pb.LoadModelRequest(name=f"g{loads}", path=os.path.join(a.source, "tests/golden/decoder/llama"))
        rpc(ch, "Models/Load", pb.LoadModelRequest(), pb.LoadModelResponse)(request, timeout=20)
        r = rpc(ch, "Generation/Generate", pb.GenerateRequest(), pb.GenerateResponse)(
            pb.GenerateRequest(model=request.name, prompt="ab", sampling=pb.Sampling(max_tokens=2)), timeout=10)
        count("models loaded", 1 if r.candidates else 0)
        rpc(ch, "Models/Unload", pb.UnloadModelRequest(), pb.UnloadModelResponse)(pb.UnloadModelRequest(name=request.name), timeout=20)
    except grpc.RpcError as e:
        if e.code() not in SANE:
            fail(f"Load: {e.code()} {e.details()}")
    ch.close()


def swap_models(server, n=4):
    """The next versions of s, and one that is broken."""
    ch = dial()
    call = rpc(ch, "Models/Load", pb.LoadModelRequest(), pb.LoadModelResponse)
    try:
        for i in range(n):
            call(pb.LoadModelRequest(name="s", path=os.path.join(a.source, "tests/golden/decoder", NETWORKS[(i + 1) % 2])), timeout=20)
            count("swaps")
        call(pb.LoadModelRequest(name="s", path=os.path.join(a.source, "tests/golden/train")), timeout=20)
        fail("a folder without a model was loaded")
    except grpc.RpcError as e:
        if e.code() not in SANE | {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL}:
            fail(f"swap: {e.code()} {e.details()}")
    ch.close()


def kill_server(server):
    swapping = threading.Thread(target=swap_models, args=(server,))
    swapping.start()
    time.sleep(0.03 * rnd.random())
    server.kill()
    swapping.join()
    ch = dial()
    call = rpc(ch, "Pricing/Quote", pb.QuoteRequest(), pb.QuoteResponse)
    look = rpc(ch, "Pricing/GetDecision", pb.GetDecisionRequest(), pb.QuoteResponse)
    with lock:
        names = list(acknowledged.items())
    for name, (decision, price) in rnd.sample(names, min(len(names), 50)) + names[-20:]:
        try:
            r = look(pb.GetDecisionRequest(decision_id=decision), timeout=10, wait_for_ready=True)
            again = call(pb.QuoteRequest(sku="s", channel="web", mode=pb.QUOTE_LIVE, request_id=name), timeout=10)
            if r.price != price or again.decision_id != decision:
                fail(f"{name}: acknowledged with {price}, now {r.price} and decision {again.decision_id}")
            count("decisions found again")
        except grpc.RpcError as e:
            if e.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL):
                fail(f"{name}: acknowledged, and lost: {e.details()}")
    ch.close()


def fill_caches(server):
    """The database keeps 16 MiB of pages, malloc what its arenas once held: both are full before memory is judged."""
    ch = dial()
    ask = rpc(ch, "Pricing/BatchQuote", pb.BatchQuoteRequest(), pb.BatchQuoteResponse)
    for k in range(12):
        ask(pb.BatchQuoteRequest(requests=[pb.QuoteRequest(sku="s", channel="web", mode=pb.QUOTE_LIVE, request_id=f"w{len(server.recoveries)}-{k}-{i}") for i in range(2000)]),
            timeout=60)
    ch.close()
    swap_models(server, 300)


# ---- the run -----------------------------------------------------------------------------------------

def show_progress(start):
    """Every 30 seconds a line (on a terminal one line, anew each second): nobody waits 20 minutes before a silent window."""
    tty = sys.stderr.isatty()
    while not stop.wait(1 if tty else 30):
        with lock:
            done = f"{tally.get('texts', 0)} texts, {tally.get('quotes', 0)} quotes, {tally.get('swaps', 0)} swaps, {len(failures)} failures"
        print(f"chaos: {time.monotonic() - start:.0f} of {a.seconds:.0f} s, {done}", end="\r" if tty else "\n", file=sys.stderr, flush=True)


def main():
    server = Server()
    ch = dial()
    put_item(ch)
    ch.close()
    learn_texts()
    crowd = [threading.Thread(target=texts, args=(n,)) for n in range(2)] + [threading.Thread(target=quotes, args=(n,)) for n in range(2)]
    crowd += [threading.Thread(target=f) for f in (vectors, swapped_texts, swapped_texts, profiles)]
    for t in crowd:
        t.start()
    gentle = [kill_clients, stop_client, stop_server, cancel_storm, slow_reader, garbage, load_model, swap_models, fill_disk]
    # First half: kills too.  Second half: one process lives, so that its memory can be judged.
    start, half, kills = time.monotonic(), a.seconds / 2, 0
    threading.Thread(target=show_progress, args=(start,), daemon=True).start()
    turn = 0
    while time.monotonic() - start < half:
        gentle[turn % len(gentle)](server)
        turn += 1
        if time.monotonic() - start > half * (kills + 1) / 4:
            kills += 1
            kill_server(server)
    kill_server(server)
    if server.p.poll() is not None:
        fail("the server is gone")
    for g in gentle:
        g(server)
    if a.seconds >= 300:
        fill_caches(server)
    settled, files, samples = None, None, []
    while time.monotonic() - start < a.seconds:
        gentle[turn % len(gentle)](server)
        turn += 1
        if not samples or time.monotonic() - start > samples[-1]["seconds"] + a.seconds / 60:
            samples.append({"seconds": round(time.monotonic() - start, 1), "rss_anon_kb": server.rss_anon_kb(), "files": server.files()})
        if settled is None and time.monotonic() - start > half + a.seconds / 6:
            settled, files = server.rss_anon_kb(), server.files()
    stop.set()
    for t in crowd:
        t.join(30)
        if t.is_alive():
            fail("a call has no end")
    check_events()
    time.sleep(0.5)
    grown = server.rss_anon_kb() - (settled or server.rss_anon_kb())
    room = 8192 if a.seconds < 300 else 4096
    if grown > room and not a.any_memory:
        fail(f"RssAnon grew by {grown} KiB")
    if files and server.files() > files:
        fail(f"open files: {server.files()}, {files} before")
    metrics = get("/metrics")
    left = [l for l in metrics.splitlines() if re.match(r"merx_lane_(waiting|running)\S* [1-9]", l) or re.match(r"merx_rpc_inflight [1-9]", l)]
    if left:
        fail(f"work is left: {left}")
    if server.p.poll() is not None or not get("/healthz").startswith("HTTP/1.1 200"):
        fail("the server is not well")
    check_sales()
    slow = [r for r in server.recoveries if r > 2]
    if slow:
        fail(f"recovery took {slow}")
    server.p.send_signal(signal.SIGTERM)
    if server.p.wait(40) != 0:
        fail("the server did not end well")
    replay = subprocess.run([a.merx, "evaluate", "--pricing", os.path.join(disk, "pricing.db")], capture_output=True, text=True)
    if replay.returncode or not json.loads(replay.stdout)["same"]:
        fail(f"the log does not replay: {replay.stdout}{replay.stderr}")
    print(f"seed {a.seed}, {turn} disturbances, {len(server.recoveries)} kills, recovery at most "
          f"{max(server.recoveries):.2f} s; RssAnon {grown:+d} KiB over the second half; "
          + ", ".join(f"{v} {k}" for k, v in sorted(tally.items())) + ("" if small_disk else "; the full disk was skipped: no mount"))
    if a.result:
        with open(a.result, "w") as f:
            json.dump({"seconds": a.seconds, "seed": a.seed, "disturbances": turn, "kills": len(server.recoveries),
                       "recovery_seconds": [round(r, 3) for r in server.recoveries], "rss_anon_grown_kb": grown, "events": events,
                       "counts": dict(sorted(tally.items())), "failures": failures, "memory": samples}, f, indent=1)
            f.write("\n")
    for needed in ("texts", "texts of swapped versions", "swaps", "profiles", "quotes", "sales", "vectors", "decisions found again"):
        if not tally.get(needed):
            fail(f"no {needed}")


try:
    main()
except Exception as e:
    stop.set()
    fail(f"{type(e).__name__}: {e}")
    with open(os.path.join(folder, "server.log"), errors="replace") as f:
        print(f.read()[-3000:])
finally:
    for p in running:
        p.kill()
        p.wait()
    if small_disk:
        subprocess.run(["umount", "-l", disk])
    shutil.rmtree(folder, ignore_errors=True)
sys.exit(1 if failures else 0)
