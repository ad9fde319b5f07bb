"""test_slow_readers.py MERX SOURCE WIRE_DIR - clients of streams both ways that send and do not read: each holds back only
itself.  The server's memory stays bounded, others are answered meanwhile, and when at last it reads, every answer is there in
order.  (How far it gets depends on what its own gRPC and the kernel take from it.)  Exit 77: no grpcio here."""
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

try:
    import grpc
except ImportError as e:
    print("skipped:", e)
    sys.exit(77)

MERX, SOURCE, WIRE = sys.argv[1:4]
sys.path.insert(0, WIRE)
import merx_pb2 as pb

NARROW = [("grpc.http2.lookahead_bytes", 65535), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
checks = failed = 0


def check(ok, *what):
    global checks, failed
    checks += 1
    if not ok:
        failed += 1
        print(f"  line {sys._getframe(1).f_lineno}: failed:", *what)


class Server:
    def __init__(self, folder):
        self.process = subprocess.Popen(
            [MERX, "serve", "--listen", "127.0.0.1:0", "--profiles", folder + "/profiles", "--pricing", folder + "/p.db", "--model",
             f"mood={SOURCE}/tests/golden/encoder/bert", "--profiles-sentiment", "mood", "--threads", "1"], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "serving on " in line:
                self.address = line.split("serving on ")[1].strip()
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.channel = grpc.insecure_channel(self.address)

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"RssAnon:\s+(\d+)", f.read()).group(1)) / 1024

    def unary(self, method, request, reply):
        return self.channel.unary_unary("/merx.v1." + method, type(request).SerializeToString, reply.FromString)(request, timeout=60)


class Slow:
    """Sends as fast as it may and reads nothing until asked to."""

    def __init__(self, address, method, make, reply, enough):
        self.most = enough
        self.channel = grpc.insecure_channel(address, options=NARROW)
        self.sent = 0
        self.enough = False
        self.make = make
        self.call = self.channel.stream_stream("/merx.v1." + method, lambda m: m.SerializeToString(), reply.FromString)(self.requests(), timeout=120)

    def requests(self):
        while self.sent < self.most and not self.enough:
            self.sent += 1
            yield self.make(self.sent)

    def stalls(self):
        """How many requests it got rid of before nothing went any more."""
        was, since, end = -1, time.time(), time.time() + 20
        while time.time() < end and time.time() - since < 1.5:
            if self.sent != was:
                was, since = self.sent, time.time()
            time.sleep(0.05)
        return self.sent

    def rest(self):
        self.enough = True
        return list(self.call)


def event(k):
    return pb.Event(event_id="", type="view", user="anna", object="item")      # malformed: its refusal is told in words


def test(server, name, method, enough, make, reply, good, other):
    other()
    before = server.memory()
    slow = Slow(server.address, method, make, reply, enough)
    stalled = slow.stalls()
    for _ in range(20):
        other()                                                  # a client that reads is answered
    grown = server.memory() - before
    check(grown < 12, name, f"{grown:.1f} MiB for one client that does not read")
    answers = slow.rest()
    check(len(answers) == slow.sent, name, f"{len(answers)} answers to {slow.sent} requests")
    wrong = [i for i, a in enumerate(answers) if not good(a, i + 1)]
    check(not wrong, name, "wrong answers", wrong[:5])
    check(slow.call.code() == grpc.StatusCode.OK, name, slow.call.code())
    print(f"  {name}: {stalled} requests went, nothing was read: {grown:.1f} MiB; then all {len(answers)} answered in order")
    slow.channel.close()


folder = tempfile.mkdtemp(prefix="merx-slow-")
try:
    s = Server(folder)
    items = [pb.PriceItem(sku=f"item-{k}", currency="EUR", cost=600, reference_price=1000) for k in range(10)]
    s.unary("Pricing/PutItems", pb.PutItemsRequest(items=items), pb.PutItemsResponse)
    acks = list(s.channel.stream_stream("/merx.v1.Profiling/PutEvents", lambda m: m.SerializeToString(), pb.EventsAck.FromString)(
        iter([pb.PutEventsRequest(events=[pb.Event(event_id=str(k), type="view", user="anna", object=f"item-{k % 10}") for k in range(200)])]), timeout=60))
    s.unary("Profiling/GetProfile", pb.GetProfileRequest(user="anna", min_watermark=acks[-1].watermark), pb.Profile)

    def quote():
        return s.unary("Pricing/Quote", pb.QuoteRequest(sku="item-1"), pb.QuoteResponse)

    def profile():
        return s.unary("Profiling/GetProfile", pb.GetProfileRequest(user="anna"), pb.Profile)

    test(s, "StreamQuotes", "Pricing/StreamQuotes", 20000, lambda k: pb.QuoteRequest(sku=f"item-{k % 10}"), pb.BatchQuoteItem,
         lambda a, k: a.quote.sku == f"item-{k % 10}", quote)
    test(s, "StreamProfiles", "Profiling/StreamProfiles", 20000, lambda k: pb.GetProfileRequest(user="anna" if k % 2 else "nobody"), pb.ProfileAnswer,
         lambda a, k: (a.status.code == 0) == (k % 2 == 1), profile)
    test(s, "PutEvents", "Profiling/PutEvents", 10000, lambda k: pb.PutEventsRequest(events=[event(k)] * (1 + k % 40)), pb.EventsAck,
         lambda a, k: len(a.rejected) == 1 + k % 40, profile)
    test(s, "StreamSentiment", "Profiling/StreamSentiment", 4000, lambda k: pb.AnalyzeSentimentRequest(texts=["good shoes"] * (1 + k % 7)), pb.AnalyzeSentimentResponse,
         lambda a, k: len(a.results) == 1 + k % 7, quote)
    s.process.terminate()
    check(s.process.wait(30) == 0, "the server's end")
finally:
    shutil.rmtree(folder)
print(f"{checks} checks, {failed} failed")
sys.exit(1 if failed or not checks else 0)
