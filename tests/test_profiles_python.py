"""test_profiles_python.py MERX SOURCE WIRE_DIR - `merx serve --profiles` as its user runs it, with an unmodified
Python client: events in streams, reads of one's own writes, streams of profiles and of changes, sentiment with its
words, kill -9; a network that a job of the server trains from its events, and a classifier of moods that merx train makes,
are served.  Exit 77: no grpcio here."""
import json
import os
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


servers = []


class Server:
    def __init__(self, folder, *more, mood=None):
        self.process = subprocess.Popen(
            [MERX, "serve", "--listen", "127.0.0.1:0", "--profiles", folder, "--model", f"mood={mood or SOURCE + '/tests/golden/encoder/bert'}",
             "--profiles-encoder", "mood", "--profiles-sentiment", "mood", "--threads", "1", *more], stderr=subprocess.PIPE, text=True)
        servers.append(self.process)
        for line in self.process.stderr:
            if "serving on " in line:
                self.address = line.split("serving on ")[1].strip()
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.channel = grpc.insecure_channel(self.address)

    def unary(self, method, request, reply, service=PROFILING):
        return self.channel.unary_unary(service + method, type(request).SerializeToString, reply.FromString)(request, timeout=30)

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
    for r, text, words in zip(one.results, q.texts, (["w5", "w6", "w7"], ["w90"], [])):
        check([t.text for t in r.tokens] == words and [text.encode()[t.begin:t.end].decode() for t in r.tokens] == words, r)
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

    kill = threading.Timer(0.3, lambda: s.process.send_signal(signal.SIGKILL))
    try:
        for a in s.bidi("PutEvents", events(), pb.EventsAck):
            acked += a.accepted
            if acked == 5:
                kill.start()
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


def vectors(s, users):
    answers = s.unary("BatchGetProfiles", pb.BatchGetProfilesRequest(users=users, embedding=True), pb.BatchGetProfilesResponse).profiles
    return [(list(a.profile.embedding.graph), list(a.profile.embedding.fused)) for a in answers]


def settled(s, watermark):
    """The network has taken in what was acknowledged, and profiles follow."""
    said = []
    for _ in range(600):
        p = s.unary("GetProfile", pb.GetProfileRequest(user="u1"), pb.ProfileAnswer).profile
        now = vectors(s, ["u0", "u1", "own"])
        if p.network.watermark >= watermark and said == now:
            return
        said = now
        time.sleep(0.05)
    check(False, "the network does not follow")


def models(s, *args):
    r = subprocess.run([MERX, "models", *args, "--server", s.address, "--timeout", "60"], capture_output=True, text=True)
    return r.returncode, r.stdout + r.stderr


def test_swap(s, job, network, runs):
    """What the job made is loaded, replaced and unloaded while profiles are read."""
    code, said = models(s, "load", "users", job.id)
    check(code == 0 and "users: version 1 serves" in said, said)
    p = s.unary("GetProfile", pb.GetProfileRequest(user="u4", embedding=True), pb.ProfileAnswer).profile
    check((p.network.name, p.network.version, len(p.embedding.graph)) == ("users", 1, 8), p.network)
    code, said = models(s, "load", "users", network)
    check(code == 0 and "version 2 serves, version 1 drains" in said, said)
    code, said = models(s)
    check(code == 0 and any(l.split()[:4] == ["users", "2", "serving", "network"] and l.rstrip().endswith(network) for l in said.splitlines()), said)
    broken = os.path.join(runs, "broken")
    shutil.copytree(network, broken)
    with open(os.path.join(broken, "model.safetensors"), "r+b") as f:
        f.truncate(100)
    for folder, name, why in ((broken, "users", "model.safetensors"), (network, "shop", 'it is "users"')):
        code, said = models(s, "load", name, folder)
        check(code != 0 and why in said, said)
    p = s.unary("GetProfile", pb.GetProfileRequest(user="u4", embedding=True), pb.ProfileAnswer).profile
    check((p.network.version, len(p.embedding.graph)) == (2, 8), p.network)
    code, said = models(s, "unload", "users")
    check(code == 0 and "users has gone" in said, said)
    p = s.unary("GetProfile", pb.GetProfileRequest(user="u4", embedding=True), pb.ProfileAnswer).profile
    check(not p.HasField("network") and not p.embedding.graph, p.network)
    code, said = models(s, "unload", "users")
    check(code != 0 and "NOT_FOUND" in said, said)


def test_network(folder, runs):
    """A job of the server learns from its events; what it learned speaks, follows events, and survives kill -9 bit for bit."""
    s = Server(folder, "--training-folder", runs)
    more = [event(3000 + i, f"u{i % 41}", "buy", price_minor=500 + i + 5000 * (i % 2)) for i in range(410)]
    for i, e in enumerate(more):
        e.object, e.promo, e.category = f"i{(i * i + i // 41) % 23}", i % 2 == 0, "shoes"
    list(s.bidi("PutEvents", iter([pb.PutEventsRequest(events=more)]), pb.EventsAck))
    settings = {"profiles": "served", "epochs": "20", "hidden-size": "16", "outputs": "8", "id-cols": "4", "eval-every": "10"}
    q = pb.SubmitTrainingRequest(kind="gnn", name="users", settings=[pb.TrainingSetting(name=k, value=v) for k, v in settings.items()])
    job = s.unary("Submit", q, pb.TrainingJob, "/merx.v1.Training/")
    for _ in range(600):
        job = s.unary("Get", pb.GetTrainingRequest(id=job.id), pb.TrainingJob, "/merx.v1.Training/")
        if job.state not in (pb.TRAINING_QUEUED, pb.TRAINING_RUNNING):
            break
        time.sleep(0.05)
    check(job.state == pb.TRAINING_DONE and job.step == 20 and job.eval_loss > 0, job)
    bad = pb.SubmitTrainingRequest(kind="gnn", settings=[pb.TrainingSetting(name="profiles", value="/elsewhere")])
    code, text = code_of(lambda: s.unary("Submit", bad, pb.TrainingJob, "/merx.v1.Training/"))
    check(code == grpc.StatusCode.INVALID_ARGUMENT and "served" in text, code, text)
    network = os.path.join(job.folder, sorted(d for d in os.listdir(job.folder) if d.startswith("checkpoint-"))[-1])
    test_swap(s, job, network, runs)
    s.stop(signal.SIGKILL)
    s = Server(folder, "--profiles-network", "users=" + network)
    p = s.unary("GetProfile", pb.GetProfileRequest(user="u4", embedding=True), pb.ProfileAnswer).profile
    check(p.network.kind == "sage" and p.network.watermark >= p.watermark > 0 and len(p.embedding.graph) == 8, p.network)
    r = s.unary("Recommend", pb.RecommendRequest(user="u4", count=5), pb.RecommendResponse)
    check(r.method == "network" and len(r.items) > 0 and r.network.name == p.network.name, r)
    s.unary("DefineTag", pb.TagDefinition(name="bargains", bias=-1, rules=[pb.TagRule(feature="promo_share", at_least=0.5, weight=2)]), pb.TagDefinition)
    tag = s.unary("BackfillTag", pb.BackfillTagRequest(name="bargains"), pb.TagDefinition)
    check(tag.calibrated and tag.head_network and len(tag.head) > 8, tag.name)
    x = s.unary("ExplainLabel", pb.ExplainLabelRequest(user="u4", tag="bargains"), pb.LabelExplanation).tag
    check(abs(score(x) - x.score) < 1e-3 and any(e.kind == pb.EVIDENCE_NETWORK for e in x.evidence), x)
    users = [f"u{i}" for i in range(40) if i != 9] + ["own", "newcomer"]
    events = [event(5000 + i, users[i % len(users)], ("buy", "view", "review")[i % 3], text="w5 w90" if i % 3 == 2 else "") for i in range(120)]
    acks = list(s.bidi("PutEvents", (pb.PutEventsRequest(events=[e]) for e in events), pb.EventsAck))
    settled(s, acks[-1].watermark)
    before = vectors(s, users)
    check(all(len(g) == 8 for g, _ in before))
    s.stop(signal.SIGKILL)
    s = Server(folder, "--profiles-network", network)
    check(vectors(s, users) == before, "vectors after kill -9")
    shown = subprocess.run([MERX, "profile", "u4", "--server", s.address, "--timeout", "20"], capture_output=True, text=True)
    check(shown.returncode == 0 and "(sage, version 1) speaks of the events up to number" in shown.stdout, shown)
    r = s.unary("DeleteSubject", pb.DeleteSubjectRequest(user="u4"), pb.ErasureReceipt)
    check(r.vectors == 2 and r.text_vectors >= 1, r)
    check(s.stop() == 0)


def test_trained_mood(folder):
    """A classifier that merx train makes of reviews tells their mood, with the words that carried it."""
    words = {0: ["w5 w6", "w7 w8 w5", "w6 w6 w8"], 1: ["w90 w91", "w92 w90 w93", "w91 w91"]}
    data, run = os.path.join(folder, "mood.jsonl"), os.path.join(folder, "mood")
    with open(data, "w") as f:
        for i in range(96):
            f.write(json.dumps({"text": words[i % 2][i % 3] + f" w{20 + i % 9}", "label": i % 2}) + "\n")
    made = subprocess.run([MERX, "train", "encoder", "-m", SOURCE + "/tests/golden/encoder/bert", "--task", "classify", "--from-scratch", "--label-names", "bad", "--label-names", "good", "-d", data,
                           "--run", run, "--epochs", "15", "--batch", "16", "--lr", "3e-3", "--warmup", "0", "--threads", "1", "--quiet"], capture_output=True, text=True)
    check(made.returncode == 0, made)
    model = os.path.join(run, sorted(d for d in os.listdir(run) if d.startswith("checkpoint-"))[-1])
    s = Server(os.path.join(folder, "moods"), mood=model)
    r = s.unary("AnalyzeSentiment", pb.AnalyzeSentimentRequest(texts=["w5 w6 w25", "w90 w91 w25"], explain=True), pb.AnalyzeSentimentResponse)
    check(list(r.labels) == ["bad", "good"] and [x.label for x in r.results] == ["bad", "good"], r)
    for x in r.results:
        check(abs(x.base_score + sum(t.weight for t in x.tokens) + x.residual - x.score) < 1e-6 and abs(x.residual) <= 1e-3, x)
    check(r.results[0].polarity < -0.5 < 0.5 < r.results[1].polarity, r)
    weight = {t.text: t.weight for t in r.results[1].tokens}
    check(max(weight["w90"], weight["w91"]) > weight["w25"], weight)
    list(s.bidi("PutEvents", iter([pb.PutEventsRequest(events=[event(i, "glad", "review", text="w90 w91 w92") for i in range(3)])]), pb.EventsAck))
    ack = next(iter(s.bidi("PutEvents", iter([pb.PutEventsRequest()]), pb.EventsAck)))
    p = s.unary("GetProfile", pb.GetProfileRequest(user="glad", min_watermark=ack.watermark), pb.ProfileAnswer).profile
    check({f.name: f.value for f in p.features}["sentiment"] > 0.6, p.features)
    check(s.stop() == 0)


folder = tempfile.mkdtemp()
more = tempfile.mkdtemp()
try:
    server = Server(folder)
    test_events(server)
    test_streams(server)
    test_sentiment(server)
    test_rest(server)
    check(server.stop() == 0)
    test_kill(folder)
    test_network(folder, more)
    test_trained_mood(more)
finally:
    for process in servers:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(more, ignore_errors=True)
print(f"{checks} checks, {failed} failed")
sys.exit(failed != 0 or checks == 0)
