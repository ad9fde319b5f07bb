#!/usr/bin/env python3
"""Graph networks beside PyTorch Geometric, in one run.

    gnn.py lightgcn GRAPH.safetensors [--epochs 60]     PyG's LightGCN with the settings of `merx train gnn --network lightgcn
                                                        --layers 3 --outputs 64 --batch 2048 --lr 0.005 --l2-rows 1e-4`: recall@20, NDCG@20
    gnn.py speed --merx BUILD [--nodes 1000000 --edges 10000000] [--threads 2]
                                                        a synthetic power-law graph: a full-graph SAGE layer, sampled edges/s, a sampled
                                                        training epoch, of both (BUILD/bench/gnn is Merx' part)

PyG's NeighborLoader wants pyg-lib or torch-sparse, which PyPI does not have as wheels for every platform; where neither is, PyG's own
sampling is not available, and the script says so and draws with torch (uniform, with replacement), the way its pure-torch users do.
"""
import argparse, json, subprocess, sys, time
import numpy as np
import torch
from safetensors.numpy import load_file, save_file


def recall_ndcg(z, train, test, users, items, k=20):
    known, held = [set() for _ in range(users)], [set() for _ in range(users)]
    for u, i in train: known[u].add(i)
    for u, i in test: held[u].add(i)
    scores = z[:users] @ z[users:].T
    recall = gain = n = 0.0
    for u in range(users):
        if not held[u]: continue
        s = scores[u].copy()
        if known[u]: s[[i - users for i in known[u]]] = -np.inf
        top = np.argsort(-s, kind="stable")[:k] + users
        hit = np.array([t in held[u] for t in top])
        recall += hit.sum() / len(held[u])
        gain += (hit / np.log2(np.arange(2, k + 2))).sum() / (1 / np.log2(np.arange(2, min(len(held[u]), k) + 2))).sum()
        n += 1
    return recall / n, gain / n


def lightgcn(a):
    from torch_geometric.nn import LightGCN
    d = load_file(a.graph)
    kind, pairs = d["type"], torch.from_numpy(d["pairs"].astype(np.int64))
    users, n = int((kind == 0).sum()), len(kind)
    train, test = pairs[torch.from_numpy(d["train"].astype(np.int64))], pairs[torch.from_numpy(d["test"].astype(np.int64))]
    edge = torch.cat([train.t(), train.t().flip(0)], 1)
    known = set(map(tuple, train.tolist()))
    out = []
    for seed in range(a.seeds):
        torch.manual_seed(seed)
        model = LightGCN(n, 64, 3)
        torch.nn.init.normal_(model.embedding.weight, std=0.1)
        opt = torch.optim.Adam(model.parameters(), lr=0.005)
        for epoch in range(a.epochs):
            for b in torch.randperm(len(train)).split(2048):
                u, i = train[b].t()
                j = torch.randint(users, n, (len(b),))
                for _ in range(5):
                    bad = torch.tensor([(x, y) in known for x, y in zip(u.tolist(), j.tolist())])
                    if not bad.any(): break
                    j[bad] = torch.randint(users, n, (int(bad.sum()),))
                z = model.get_embedding(edge)
                e = model.embedding.weight
                loss = torch.nn.functional.softplus((z[u] * (z[j] - z[i])).sum(1)).mean()
                loss = loss + 1e-4 * 0.5 * (e[u].pow(2).sum() + e[i].pow(2).sum() + e[j].pow(2).sum()) / len(b)
                opt.zero_grad(); loss.backward(); opt.step()
        with torch.no_grad(): z = model.get_embedding(edge).numpy()
        r, g = recall_ndcg(z, train.tolist(), test.tolist(), users, n - users)
        print(json.dumps({"peer": "PyTorch Geometric LightGCN", "seed": seed, "epochs": a.epochs, "loss": round(loss.item(), 4), "recall@20": round(r, 6), "ndcg@20": round(g, 6)}), flush=True)


def speed(a):
    import torch_geometric
    from torch_geometric.nn import SAGEConv
    torch.set_num_threads(a.threads)
    rng = np.random.default_rng(1)
    # targets of edges fall off as a power law, sources are uniform
    to = (a.nodes * rng.random(a.edges) ** 3).astype(np.int64)
    frm = rng.integers(0, a.nodes, a.edges)
    features = rng.standard_normal((a.nodes, a.columns), dtype=np.float32)
    label = rng.integers(0, 16, a.nodes).astype(np.int32)
    train = rng.permutation(a.nodes)[: max(512, a.nodes // 100)].astype(np.int32)
    save_file({"edges": np.stack([frm, to], 1).astype(np.int32), "features": features, "label": label, "train": train, "test": train[:1]}, a.file)
    rows = {}
    if a.merx:
        done = subprocess.run([f"{a.merx}/gnn", a.file, str(a.threads)], check=True, stdout=subprocess.PIPE, text=True).stdout
        rows["merx"] = json.loads(done)
    edge, x = torch.from_numpy(np.stack([frm, to])), torch.from_numpy(features)
    conv = SAGEConv(a.columns, 64)
    with torch.no_grad():
        conv(x, edge)
        t = time.time(); conv(x, edge); layer = time.time() - t
    order = np.argsort(to, kind="stable")
    begin, ids = np.concatenate([[0], np.bincount(to, minlength=a.nodes).cumsum()]), frm[order]
    begin, ids = torch.from_numpy(begin), torch.from_numpy(ids)
    try:
        import pyg_lib  # noqa: F401
        how = "pyg-lib"
    except ImportError:
        how = "torch (pyg-lib is not installed; uniform, with replacement)"

    def draw(nodes, fan):
        first, degree = begin[nodes], begin[nodes + 1] - begin[nodes]
        keep = degree > 0
        nodes, first, degree = nodes[keep], first[keep], degree[keep]
        at = first[:, None] + (torch.rand(len(nodes), fan) * degree[:, None]).long()
        return ids[at].reshape(-1), nodes.repeat_interleave(fan)

    def block(seeds):
        layers, nodes = [], seeds
        for fan in (10, 25):
            s, d = draw(nodes, fan)
            everyone, local = torch.cat([nodes, s, d]).unique(return_inverse=True)
            rest = torch.ones(len(everyone), dtype=torch.bool); rest[local[: len(nodes)]] = False
            rank = torch.empty(len(everyone), dtype=torch.long)
            rank[local[: len(nodes)]] = torch.arange(len(nodes)); rank[rest] = torch.arange(int(rest.sum())) + len(nodes)
            layers.append((rank[local[len(nodes):]].reshape(2, -1), len(nodes)))
            nodes = torch.cat([nodes, everyone[rest]])
        return layers[::-1], nodes

    net = torch.nn.ModuleList([SAGEConv(a.columns, 64), SAGEConv(64, 16)])
    opt, seeds_all, y = torch.optim.Adam(net.parameters(), lr=0.01), torch.from_numpy(train.astype(np.int64)), torch.from_numpy(label.astype(np.int64))
    t = time.time(); n = 0
    for b in seeds_all.split(512): n += sum(e.shape[1] for e, _ in block(b)[0])
    sampled = n / (time.time() - t)
    t = time.time()
    for b in seeds_all.split(512):
        layers, nodes = block(b)
        h = x[nodes]
        for l, (e, k) in enumerate(layers):
            h = net[l]((h, h[:k]), e)
            if l == 0: h = h.relu()
        loss = torch.nn.functional.cross_entropy(h, y[b])
        opt.zero_grad(); loss.backward(); opt.step()
    rows["pyg"] = {"version": torch_geometric.__version__, "sampler": how, "layer_s": layer, "sampled_edges_per_s": sampled, "epoch_s": time.time() - t}
    print(json.dumps({"nodes": a.nodes, "edges": a.edges, "columns": a.columns, "threads": a.threads, **rows}, indent=1))


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
sub = p.add_subparsers(dest="what", required=True)
q = sub.add_parser("lightgcn"); q.add_argument("graph"); q.add_argument("--epochs", type=int, default=60); q.add_argument("--seeds", type=int, default=1)
q = sub.add_parser("speed"); q.add_argument("--merx"); q.add_argument("--nodes", type=int, default=1000000); q.add_argument("--edges", type=int, default=10000000)
q.add_argument("--columns", type=int, default=64); q.add_argument("--threads", type=int, default=2); q.add_argument("--file", default="/tmp/graph.safetensors")
a = p.parse_args()
{"lightgcn": lightgcn, "speed": speed}[a.what](a)
