"""test_profiles_python.py MERX SOURCE WIRE_DIR - `merx serve --profiles` as its user runs it, with an unmodified
Python client: events in streams, reads of one's own writes, streams of profiles and of changes, sentiment with its
words, kill -9.  Exit 77: no grpcio here."""
import queue
import shutil
import signal
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

checks = failed = 0
PROFILING = "/merx.v1.Profiling/"
DAY = 86400000


def check(ok, *what):
    global checks, failed
    checks += 1
    if not ok:
        failed += 1
        print(f"  line {sys._getframe(1).f_lineno}: failed:", *what)


class Server:
    def __init__(self, folder):
        self.process = subprocess.Popen(
            [MERX, "serve", "--listen", "127.0.0.1:0", "--profiles", folder, "--model", f"mood={SOURCE}/tests/golden/encoder/bert",
             "--profiles-encoder", "mood", "--profiles-sentiment", "mood", "--threads", "1"], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "serving on " in line:
                self.address = line.split("serving on ")[1].strip()
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.channel = grpc.insecure_channel(self.address)

    def unary(self, method, request, reply):
        return self.channel.unary_unary(PROFILING + method, type(request).SerializeToString, reply.FromString)(request, timeout=30)

    def bidi(self, method, requests, reply):
        return self.channel.stream_stream(PROFILING + method, lambda m: m.SerializeToString(), reply.FromString)(requests, timeout=30)

    def stop(self, how=signal.SIGTERM):
        self.channel.close()
        self.process.send_signal(how)
        return self.process.wait(timeout=30)


def code_of(call):
    try:
        call()
        return grpc.StatusCode.OK, ""
    except grpc.RpcError as e:
        return e.code(), e.details()


def event(i, user, kind="buy", **kw):
    kw.setdefault("object", "" if kind in ("share", "consent") else f"i{i % 7}")
    return pb.Event(event_id=f"{user}.{kind}.{i}", type=kind, user=user, ts_ms=int(time.time() * 1000) - i * 1000, **kw)


def score(tag):
    return tag.base_score + tag.rest + sum(e.weight for e in tag.evidence)


def test_events(s):
    """Ten messages in one stream, an acknowledgement each; what was acknowledged is read."""
    messages = [pb.PutEventsRequest(events=[event(10 * m + i, f"u{i}", price_minor=1000 + i, currency="EUR", promo=i % 2 == 0) for i in range(10)])
                for m in range(10)]
    acks = list(s.bidi("PutEvents", iter(messages), pb.EventsAck))
    check([a.accepted for a in acks] == [10] * 10 and [a.watermark for a in acks] == list(range(10, 110, 10)), acks)
    again = list(s.bidi("PutEvents", iter(messages[:2]), pb.EventsAck))
    check([(a.accepted, a.duplicates) for a in again] == [(0, 10), (0, 10)], again)
    r = s.unary("GetProfile", pb.GetProfileRequest(user="u4", min_watermark=acks[-1].watermark), pb.ProfileAnswer)
    check(r.profile.events == 10 and r.profile.rfm.spent_minor == 10040 and r.profile.watermark >= 100, r)
    check(sorted(t.name for t in r.profile.tags) == ["price-sensitive", "quality-seeking", "socially-active"], r)
    check(all(abs(score(t) - t.score) < 1e-3 for t in r.profile.tags), r)
    # every write is read back, in step
    for i in range(5):
        ack = next(iter(s.bidi("PutEvents", iter([pb.PutEventsRequest(events=[event(1000 + i, "own")])]), pb.EventsAck)))
        r = s.unary("GetProfile", pb.GetProfileRequest(user="own", min_watermark=ack.watermark), pb.ProfileAnswer)
        check(r.profile.events == i + 1, r.profile.events)
    code, text = code_of(lambda: s.unary("GetProfile", pb.GetProfileRequest(user="u4", min_watermark=10**9), pb.ProfileAnswer))
    check(code == grpc.StatusCode.INVALID_ARGUMENT and "min_watermark" in text, code, text)
    check(code_of(lambda: s.unary("GetProfile", pb.GetProfileRequest(user="nobody"), pb.ProfileAnswer))[0] == grpc.StatusCode.NOT_FOUND)


def test_streams(s):
    users = ["u1", "nobody", "u2", "u1"]
    answers = list(s.bidi("StreamProfiles", (pb.GetProfileRequest(user=u) for u in users), pb.ProfileAnswer))
    check([a.profile.user for a in answers] == ["u1", "", "u2", "u1"] and answers[1].status.code == 5, answers)
    hidden = list(s.bidi("StreamProfiles", iter([pb.GetProfileRequest(user="u1", purpose=pb.PURPOSE_PRICE)]), pb.ProfileAnswer))
    check(not hidden[0].profile.tags and "tags" in hidden[0].profile.suppressed_fields, hidden)
    batch = s.unary("BatchGetProfiles", pb.BatchGetProfilesRequest(users=users), pb.BatchGetProfilesResponse)
    check([a.profile.user for a in batch.profiles] == ["u1", "", "u2", "u1"], batch)
    # changes as they come
    news = queue.Queue()
    watch = s.channel.unary_stream(PROFILING + "WatchProfile", pb.WatchProfileRequest.SerializeToString, pb.ProfileDelta.FromString)(
        pb.WatchProfileRequest(user="u3"), timeout=30)

    def listen():
        try:
            for d in watch:
                news.put(d)
        except grpc.RpcError:
            pass

    threading.Thread(target=listen, daemon=True).start()
    check(news.get(timeout=20).profile.user == "u3")
    list(s.bidi("PutEvents", iter([pb.PutEventsRequest(events=[event(i, "u3", "share") for i in range(20)])]), pb.EventsAck))
    delta = news.get(timeout=20)
    check("socially-active" in [t.name for t in delta.tags] and not delta.HasField("profile"), delta)
    watch.cancel()


def test_sentiment(s):
    q = pb.AnalyzeSentimentRequest(texts=["w5 w6 w7", "w90", ""], explain=True)
    one = s.unary("AnalyzeSentiment", q, pb.AnalyzeSentimentResponse)
    many = list(s.bidi("StreamSentiment", iter([q, pb.AnalyzeSentimentRequest(texts=["w5 w6 w7"]), q]), pb.AnalyzeSentimentResponse))
    check(len(many) == 3 and many[0] == one and many[2] == one, "streams say the same")
    check(many[1].results[0].probabilities == one.results[0].probabilities and not many[1].results[0].tokens)
    for r, words in zip(one.results, (["w5", "w6", "w7"], ["w90"], [])):
        check([t.text for t in r.tokens] == words, r)
        check(abs(r.base_score + sum(t.weight for t in r.tokens) - r.score) <= 1e-3 and abs(r.residual) <= 1e-3, r)
        check(abs(sum(r.probabilities) - 1) < 1e-5, r)
    code, text = code_of(lambda: s.unary("AnalyzeSentiment", pb.AnalyzeSentimentRequest(texts=["a"], model="none"), pb.AnalyzeSentimentResponse))
    check(code == grpc.StatusCode.NOT_FOUND, code, text)


def test_rest(s):
    texts = [pb.PutEventsRequest(events=[event(i, "u1", "review", text="w5 w6 quality")]) for i in range(3)]
    list(s.bidi("PutEvents", iter(texts), pb.EventsAck))
    x = s.unary("ExplainLabel", pb.ExplainLabelRequest(user="u1", tag="quality-seeking"), pb.LabelExplanation)
    check(abs(score(x.tag) - x.tag.score) < 1e-3 and x.definition.name == "quality-seeking", x)
    check(len(s.unary("SimilarUsers", pb.SimilarUsersRequest(user="u1", count=3), pb.SimilarUsersResponse).users) == 3)
    check(len(s.unary("Recommend", pb.RecommendRequest(user="own", count=3), pb.RecommendResponse).items) > 0)
    check(len(s.unary("ListTags", pb.ListTagsRequest(), pb.ListTagsResponse).tags) == 3)
    code, text = code_of(lambda: s.unary("BackfillTag", pb.BackfillTagRequest(name="quality-seeking"), pb.TagDefinition))
    check(code == grpc.StatusCode.FAILED_PRECONDITION and "40" in text, code, text)
    r = s.unary("DeleteSubject", pb.DeleteSubjectRequest(user="u9"), pb.ErasureReceipt)
    check(r.events == 10 and len(r.receipt) == 64, r)
    check(code_of(lambda: s.unary("GetProfile", pb.GetProfileRequest(user="u9"), pb.ProfileAnswer))[0] == grpc.StatusCode.NOT_FOUND)


def test_kill(folder):
    """kill -9 in a stream of events: everything that was acknowledged is there."""
    s = Server(folder)
    acked = 0

    def events():
        for i in range(100000):
            yield pb.PutEventsRequest(events=[event(i, "storm")])

    threading.Timer(0.7, lambda: s.process.send_signal(signal.SIGKILL)).start()
    try:
        for a in s.bidi("PutEvents", events(), pb.EventsAck):
            acked += a.accepted
    except grpc.RpcError:
        pass
    s.process.wait()
    s = Server(folder)
    again = list(s.bidi("PutEvents", iter([pb.PutEventsRequest(events=[event(i, "storm") for i in range(k, min(k + 1000, acked))]) for k in range(0, acked, 1000)]),
                        pb.EventsAck))
    check(acked > 0 and sum(a.duplicates for a in again) == acked, acked, again)
    check(code_of(lambda: s.unary("GetProfile", pb.GetProfileRequest(user="u9"), pb.ProfileAnswer))[0] == grpc.StatusCode.NOT_FOUND)
    shown = subprocess.run([MERX, "profile", "u1", "--server", s.address, "--timeout", "20"], capture_output=True, text=True)
    check(shown.returncode == 0 and "quality-seeking" in shown.stdout and "what is said of anybody" in shown.stdout, shown)
    check(s.stop() == 0)
    shown = subprocess.run([MERX, "profile", "u1", "--profiles", folder], capture_output=True, text=True)
    check(shown.returncode == 0 and "quality-seeking" in shown.stdout, shown)


folder = tempfile.mkdtemp()
try:
    server = Server(folder)
    test_events(server)
    test_streams(server)
    test_sentiment(server)
    test_rest(server)
    check(server.stop() == 0)
    test_kill(folder)
finally:
    shutil.rmtree(folder, ignore_errors=True)
print(f"{checks} checks, {failed} failed")
sys.exit(failed != 0 or checks == 0)
