#!/usr/bin/env python3
"""quotes.py [--build build] [--policy FOLDER] [--seconds 5] - price quotes a second and their
latency through gRPC, unary and 1,000 to a call, of merx serve --pricing and of a Python
grpcio + torch server that does the same step (an MLP of 12 numbers, 128, 128, to 7 rungs, the
best feasible one, clamped), in one run, asked by one load generator in C (build/bench/quotes).
Merx has every decision on disk before it answers (SQLite, one fsync for all that wait).  Two peers stand beside it: one
that logs nothing, and one that, like Merx, commits what it decided to SQLite (WAL, synchronous=FULL) before it answers.
--policy: a checkpoint of merx train dqn --env market; without it Merx prices by elasticity."""
import argparse, json, os, subprocess, sys, tempfile, time
from concurrent import futures

a = argparse.ArgumentParser()
a.add_argument("--build", default="build")
a.add_argument("--policy")
a.add_argument("--seconds", type=float, default=5)
a.add_argument("--peer", metavar="LOG", help="be the peer (used by this script); LOG: a file to commit to, or -")
a = a.parse_args()
sys.path.insert(0, a.build + "/tests/python")


def logger(path):
    import sqlite3, threading
    db, lock = sqlite3.connect(path, check_same_thread=False, isolation_level=None), threading.Lock()
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE log(id INTEGER PRIMARY KEY, data BLOB NOT NULL)")

    def commit(quotes):
        with lock:
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO log(data) VALUES(?)", [(q.SerializeToString(),) for q in quotes])
            db.execute("COMMIT")
        return quotes
    return commit


def peer():
    import grpc, torch
    import merx_pb2 as pb
    torch.set_num_threads(1)
    net = torch.nn.Sequential(torch.nn.Linear(12, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 7)).eval()
    commit = logger(a.peer) if a.peer != "-" else lambda quotes: quotes
    items, steps = {}, torch.tensor([-.10, -.05, -.02, 0, .02, .05, .10])

    def price(requests):
        found = [items[r.sku] for r in requests]
        x = torch.tensor([[i.published / i.cost - 1, i.published / i.reference_price - 1] + [0.0] * 10 for i in found])
        rungs = torch.round(torch.tensor([[float(i.published)] for i in found]) * (1 + steps))
        floor = torch.tensor([[i.cost * 1.1] for i in found])
        with torch.no_grad(): q = net(x).masked_fill(rungs < floor, float("-inf"))
        best = q.argmax(1).tolist()
        return commit([pb.QuoteResponse(sku=r.sku, price=int(rungs[k][b]), action=b, propensity=1, ladder=[pb.LadderRung(price=int(p), q=v) for p, v in zip(rungs[k].tolist(), q[k].tolist())])
                for k, (r, b) in enumerate(zip(requests, best))])

    def put(q, _):
        for i in q.items:
            i.published = i.published or i.reference_price
            items[i.sku] = i
        return pb.PutItemsResponse()

    def unary(f, kind, reply): return grpc.unary_unary_rpc_method_handler(f, kind.FromString, reply.SerializeToString)
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 1 << 28)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("merx.v1.Pricing", {
        "PutItems": unary(put, pb.PutItemsRequest, pb.PutItemsResponse),
        "ReportSales": unary(lambda q, _: pb.ReportSalesResponse(), pb.ReportSalesRequest, pb.ReportSalesResponse),
        "Quote": unary(lambda q, _: price([q])[0], pb.QuoteRequest, pb.QuoteResponse),
        "BatchQuote": unary(lambda q, _: pb.BatchQuoteResponse(items=[pb.BatchQuoteItem(status=pb.ItemStatus(), quote=x) for x in price(q.requests)]), pb.BatchQuoteRequest, pb.BatchQuoteResponse)}),))
    print(server.add_insecure_port("127.0.0.1:20982"), flush=True)
    server.start()
    server.wait_for_termination()


def load(address, *mode):
    return subprocess.run([a.build + "/bench/quotes", address, *map(str, mode)], check=True, capture_output=True, text=True).stdout


def measure(name, command, address):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        load(address, "put")
        rows = [json.loads(load(address, mode, a.seconds, calls)) for mode, calls in (("unary", 1), ("unary", 64), ("unary", 1024), ("batch", 4))]
    finally:
        process.terminate()
        process.wait()
    return {(r["mode"], r["calls"]): r for r in rows}


if a.peer:
    peer()
    sys.exit()
with tempfile.TemporaryDirectory() as folder:
    merx = [a.build + "/merx", "serve", "--pricing", folder + "/p.db", "--listen", "127.0.0.1:20981"] + (["--price-policy", "market=" + a.policy] if a.policy else [])
    ours = measure("merx", merx, "127.0.0.1:20981")
    peers = [measure("peer", [sys.executable, os.path.abspath(__file__), "--peer", log, "--build", a.build], "127.0.0.1:20982") for log in ("-", folder + "/peer.db")]
print("| calls under way | merx quotes/s | p50, p99 ms | grpcio + torch, logs nothing | p50, p99 ms | ratio | grpcio + torch, commits | p50, p99 ms | ratio |\n|---|---|---|---|---|---|---|---|---|")
for key, m in ours.items():
    row = f"| {key[1]}{' of 1,000' if key[0] == 'batch' else ''} | {m['quotes_per_s']} | {m['p50_ms']}, {m['p99_ms']} |"
    for t in (p[key] for p in peers): row += f" {t['quotes_per_s']} | {t['p50_ms']}, {t['p99_ms']} | {m['quotes_per_s'] / max(t['quotes_per_s'], 1e-9):.1f} |"
    print(row)
