#!/usr/bin/env python3
"""first.py --model GENERATOR --encoder ENCODER [--build build] [--starts 7] [--later 30] [--db /dev/shm] - the first request after SERVING beside later ones.
A server is started, its connection made, and of each kind (a text of 8 tokens after 32 ids, a vector, a price quote) the first call timed, then
so many more.  The figure is the first one over the median of the others, each start its own; told is the median over starts, the
first start left out (Python itself warms up; "client alone" is a call that the
server has answered before, so what its first one takes longer is the client's).  Needs grpcio and the build's tests/python/merx_pb2.py."""
import argparse, os, statistics, subprocess, sys, tempfile, time, urllib.request
import grpc

ap = argparse.ArgumentParser()
ap.add_argument("--build", default="build")
ap.add_argument("--model", required=True)
ap.add_argument("--encoder", required=True)
ap.add_argument("--db", default="/dev/shm")
ap.add_argument("--starts", type=int, default=7)
ap.add_argument("--later", type=int, default=30)
a = ap.parse_args()
sys.path.insert(0, os.environ.get("MERX_WIRE", a.build + "/tests/python"))
import merx_pb2 as pb

AT, HTTP = "127.0.0.1:20987", "127.0.0.1:20988"


def ready():
    try: return urllib.request.urlopen(f"http://{HTTP}/readyz", timeout=1).status == 200
    except OSError: return False


def start(folder):
    began = time.monotonic()
    p = subprocess.Popen([a.build + "/merx", "serve", "--model", "g=" + a.model, "--model", "e=" + a.encoder, "--pricing", folder + "/p.db", "--listen", AT, "--http-listen", HTTP],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ready(): time.sleep(0.005)
    return p, time.monotonic() - began


def once(folder):
    p, took = start(folder)
    try:
        with grpc.insecure_channel(AT) as c:
            grpc.channel_ready_future(c).result(10)
            call = lambda m, q, r: c.unary_unary("/merx.v1." + m, request_serializer=type(q).SerializeToString, response_deserializer=r.FromString)
            call("Generation/ListModels", pb.ListModelsRequest(), pb.ListModelsResponse)(pb.ListModelsRequest())
            item = pb.PutItemsRequest(items=[pb.PriceItem(sku="s", currency="EUR", cost=600, reference_price=1000)])
            call("Pricing/PutItems", item, pb.PutItemsResponse)(item)
            def text(i): return pb.GenerateRequest(model="g", ids=pb.TokenIds(ids=range(40 + i, 72 + i)), sampling=pb.Sampling(max_tokens=8, temperature=0, ignore_eos=True))
            def vector(i): return pb.EmbedRequest(model="e", texts=[f"light running shoes {i} for the rain and for the road"])
            kinds = {"client alone": ("Generation/ListModels", lambda i: pb.ListModelsRequest(), pb.ListModelsResponse), "generate": ("Generation/Generate", text, pb.GenerateResponse), "embed": ("Embeddings/Embed", vector, pb.EmbedResponse),
                     "quote": ("Pricing/Quote", lambda i: pb.QuoteRequest(sku="s"), pb.QuoteResponse)}
            out = {"start": took}
            for kind, (m, q, r) in kinds.items():
                ask, times = call(m, q(0), r), []
                for i in range(1 + a.later):
                    request, t = q(i), time.perf_counter()
                    ask(request)
                    times.append(time.perf_counter() - t)
                out[kind] = times[0], statistics.median(times[1:])
            return out
    finally:
        p.terminate()
        p.wait()


with tempfile.TemporaryDirectory(dir=a.db) as folder:
    all = [once(folder) for _ in range(a.starts + 1)][1:]
print(f"{a.starts} starts, {statistics.median(r['start'] for r in all):.2f} s to SERVING\n| kind | first, ms | later, ms | first / later |\n|---|---|---|---|")
for kind in ("client alone", "generate", "embed", "quote"):
    f = [r[kind][0] * 1e3 for r in all]
    l = [r[kind][1] * 1e3 for r in all]
    print(f"| {kind} | {statistics.median(f):.2f} | {statistics.median(l):.2f} | {statistics.median(x / y for x, y in zip(f, l)):.2f} |")
