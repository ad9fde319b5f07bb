#!/usr/bin/env python3
"""Graph networks beside PyTorch Geometric, in one run.

    gnn.py lightgcn GRAPH.safetensors [--epochs 60]     PyG's LightGCN with the settings of `merx train gnn --network lightgcn
                                                        --layers 3 --outputs 64 --batch 2048 --lr 0.005 --l2-rows 1e-4`: recall@20, NDCG@20
    gnn.py speed --merx BUILD [--nodes 1000000 --edges 10000000] [--threads 2] [--repeats 3]
                                                        a synthetic power-law graph: a full-graph SAGE layer, sampled edges/s (fan-out 10, 25; nodes
                                                        by local numbers), a sampled training epoch, of both (BUILD/gnn is Merx' part)

PyG's NeighborLoader wants pyg-lib or torch-sparse, and PyPI has wheels of neither for every torch (`pip install --no-build-isolation
torch-sparse torch-scatter` builds them). Where neither is there the script says so and draws with torch, uniformly with replacement. PyG's layer
runs over edge_index and over a sparse CSR matrix; the faster one counts.
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


def power_law(a):
    rng = np.random.default_rng(1)
    to = (a.nodes * rng.random(a.edges) ** 3).astype(np.int64)       # who hears falls off as a power law, who is heard is uniform
    frm = rng.integers(0, a.nodes, a.edges)
    features = rng.standard_normal((a.nodes, a.columns), dtype=np.float32)
    label = rng.integers(0, 16, a.nodes).astype(np.int32)
    train = rng.permutation(a.nodes)[: max(512, a.nodes // 100)].astype(np.int32)
    save_file({"edges": np.stack([frm, to], 1).astype(np.int32), "features": features, "label": label, "train": train, "test": train[:1]}, a.file)
    return frm, to, features, label, train


class TorchSampler:
    """Uniform, with replacement, in torch; nodes get local numbers, those of the batch first."""
    def __init__(self, begin, ids): self.begin, self.ids = begin, ids

    def draw(self, nodes, fan):
        first, degree = self.begin[nodes], self.begin[nodes + 1] - self.begin[nodes]
        keep = degree > 0
        nodes, first, degree = nodes[keep], first[keep], degree[keep]
        at = first[:, None] + (torch.rand(len(nodes), fan) * degree[:, None]).long()
        return self.ids[at].reshape(-1), nodes.repeat_interleave(fan)

    def __call__(self, seeds):
        edges, nodes = [], seeds
        for fan in (10, 25):
            s, d = self.draw(nodes, fan)
            everyone, local = torch.cat([nodes, s, d]).unique(return_inverse=True)
            rest = torch.ones(len(everyone), dtype=torch.bool); rest[local[: len(nodes)]] = False
            rank = torch.empty(len(everyone), dtype=torch.long)
            rank[local[: len(nodes)]] = torch.arange(len(nodes)); rank[rest] = torch.arange(int(rest.sum())) + len(nodes)
            edges.append((rank[local[len(nodes):]].reshape(2, -1), len(nodes)))
            nodes = torch.cat([nodes, everyone[rest]])
        return nodes, edges[::-1]


def speed(a):
    import torch_geometric
    from torch_geometric.nn import SAGEConv
    from torch_geometric.data import Data
    from torch_geometric.loader import NeighborLoader
    from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE
    torch.set_num_threads(a.threads)
    frm, to, features, label, train = power_law(a)
    merx = {}
    for _ in range(a.repeats if a.merx else 0):
        got = json.loads(subprocess.run([f"{a.merx}/gnn", a.file, str(a.threads)], check=True, stdout=subprocess.PIPE, text=True).stdout)
        merx = {k: (max if k == "sampled_edges_per_s" else min)(v, merx.get(k, v)) for k, v in got.items()}
    edge, x, y = torch.from_numpy(np.stack([frm, to])), torch.from_numpy(features), torch.from_numpy(label.astype(np.int64))
    seeds = torch.from_numpy(train.astype(np.int64))

    def best(run):
        return min(run() for _ in range(a.repeats))

    def timed(f):
        t = time.perf_counter(); f(); return time.perf_counter() - t
    conv, layers = SAGEConv(a.columns, 64), {}
    order = np.argsort(to, kind="stable")
    begin, ids = torch.from_numpy(np.concatenate([[0], np.bincount(to, minlength=a.nodes).cumsum()])), torch.from_numpy(frm[order])
    with torch.no_grad():
        layers["edge_index"] = best(lambda: timed(lambda: conv(x, edge).relu()))
        adj = torch.sparse_csr_tensor(begin, ids, torch.ones(a.edges), size=(a.nodes, a.nodes))
        layers["sparse CSR"] = best(lambda: timed(lambda: conv(x, adj).relu()))
    how = min(layers, key=layers.get)

    net = torch.nn.ModuleList([SAGEConv(a.columns, 64), SAGEConv(64, 16)])
    opt = torch.optim.Adam(net.parameters(), lr=0.01)
    if WITH_PYG_LIB or WITH_TORCH_SPARSE:
        sampler = "NeighborLoader (" + ("pyg-lib" if WITH_PYG_LIB else "torch-sparse") + ")"
        loader = NeighborLoader(Data(edge_index=edge, num_nodes=a.nodes), [10, 25], seeds, batch_size=512)
        def batches():
            for b in loader: yield b.n_id, [(b.edge_index, len(b.n_id))] * 2, b.batch_size, b.edge_index.shape[1]
    else:
        sampler = "torch, uniform with replacement (neither pyg-lib nor torch-sparse is there)"
        draw = TorchSampler(begin, ids)
        def batches():
            for b in seeds.split(512):
                nodes, edges = draw(b)
                yield nodes, edges, len(b), edges[0][0].shape[1] + edges[1][0].shape[1]

    def drawn():
        n, t = 0, time.perf_counter()
        for _, _, _, k in batches(): n += k
        return (time.perf_counter() - t) / n

    def epoch():
        for nodes, edges, n, _ in batches():
            h = x[nodes]
            for l, (e, k) in enumerate(edges):
                h = net[l]((h, h[:k]), e)
                if l == 0: h = h.relu()
            loss = torch.nn.functional.cross_entropy(h[:n], y[nodes[:n]])
            opt.zero_grad(); loss.backward(); opt.step()
    pyg = {"layer_s": layers[how], "sampled_edges_per_s": 1 / best(drawn), "epoch_s": best(lambda: timed(epoch))}
    print(f"{a.nodes} nodes, {a.edges} edges, {a.columns} columns, {a.threads} threads, best of {a.repeats}; PyTorch Geometric {torch_geometric.__version__}, "
          f"layer by {how}, sampler: {sampler}; Merx {merx.get('bytes_per_edge', 0)} bytes an edge\n")
    print("| | Merx | PyTorch Geometric | ratio |\n|---|---|---|---|")
    for name, key, more in (("full-graph SAGE layer, s", "layer_s", False), ("sampled training epoch, s", "epoch_s", False), ("sampled edges/s", "sampled_edges_per_s", True)):
        m, p = merx.get(key, float("nan")), pyg[key]
        print(f"| {name} | {m:,.0f} | {p:,.0f} | {m / p:.1f} |" if more else f"| {name} | {m:.3f} | {p:.3f} | {p / m:.1f} |")


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
sub = p.add_subparsers(dest="what", required=True)
q = sub.add_parser("lightgcn"); q.add_argument("graph"); q.add_argument("--epochs", type=int, default=60); q.add_argument("--seeds", type=int, default=1)
q = sub.add_parser("speed"); q.add_argument("--merx"); q.add_argument("--nodes", type=int, default=1000000); q.add_argument("--edges", type=int, default=10000000)
q.add_argument("--columns", type=int, default=64); q.add_argument("--threads", type=int, default=2); q.add_argument("--file", default="/tmp/graph.safetensors"); q.add_argument("--repeats", type=int, default=3)
a = p.parse_args()
{"lightgcn": lightgcn, "speed": speed}[a.what](a)
