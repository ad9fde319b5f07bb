#!/usr/bin/env python3
"""demo_quotes.py HOST:PORT PANEL.csv - one store's orange juice put up for sale: items, its
logged sales, a guardrail; then a quote for each brand, and one explained."""
import csv, math, sys
import grpc
import merx_pb2 as pb

channel = grpc.insecure_channel(sys.argv[1])
def ask(method, q, reply):
    return channel.unary_unary("/merx.v1.Pricing/" + method, type(q).SerializeToString, reply.FromString)(q, timeout=60, wait_for_ready=True)

rows = [r for r in csv.DictReader(open(sys.argv[2])) if r["store"] == "2"]
cents = lambda r: round(float(r["price" + r["brand"]]) * 6400)
brands = {}
for r in rows: brands.setdefault(int(r["brand"]), []).append(r)
items, sales = [], []
for b, weeks in brands.items():
    now, mean = weeks[-1], sum(map(cents, weeks)) / len(weeks)
    rivals = [pb.Competitor(name=f"brand {k}", price=round(float(now[f"price{k}"]) * 6400)) for k in brands if k != b]
    items.append(pb.PriceItem(sku=f"oj-{b}", channel="store-2", currency="USD", cost=round(cents(now) * (1 - float(now["profit"]) / 100)), reference_price=round(mean),
                              published=cents(now), competitors=rivals, inventory=round(3 * math.exp(float(now["logmove"])) / 64)))
    sales += [pb.SaleObservation(sale_id=f"{b}/{r['week']}", sku=f"oj-{b}", channel="store-2", price=cents(r), units=math.exp(float(r["logmove"])) / 64) for r in weeks[-26:]]
ask("PutItems", pb.PutItemsRequest(items=items), pb.PutItemsResponse)
ask("ReportSales", pb.ReportSalesRequest(sales=sales), pb.ReportSalesResponse)
ask("PutGuardrails", pb.GuardrailSet(id="store", min_margin_pct=10, max_change_pct_step=6, author="demo"), pb.GuardrailSet)
r = ask("BatchQuote", pb.BatchQuoteRequest(requests=[pb.QuoteRequest(sku=i.sku, channel=i.channel) for i in items]), pb.BatchQuoteResponse)
print(f"\n{'item':8}{'cost':>7}{'now':>7}{'price':>7}   {'elasticity (95 %)':26}{'margin a week':>14}   policy, guardrails")
for i, q in zip(items, (x.quote for x in r.items)):
    rules = ", ".join(f"{a.rule} {a.before / 100:.2f} -> {a.after / 100:.2f}" for a in q.applied if a.before != a.after) or "-"
    print(f"{i.sku:8}{i.cost / 100:7.2f}{q.baseline_price / 100:7.2f}{q.price / 100:7.2f}   {q.elasticity:5.2f} ({q.elasticity_low:5.2f} .. {q.elasticity_high:5.2f})    "
          f"${q.expected_margin / 100:12.2f}   {q.policy}@{q.policy_version} ({q.fallback}), {rules}")
moved = max((x.quote for x in r.items), key=lambda q: abs(q.price - q.baseline_price))
e = ask("ExplainDecision", pb.GetDecisionRequest(decision_id=moved.decision_id), pb.ExplainDecisionResponse)
print(f"\nwhy {moved.price / 100:.2f} for {moved.sku} (decision {e.decision_id}, {e.method}):\n  {'if nothing were known':34}{e.base_price / 100:8.2f}")
for f in e.features[:6]: print(f"  {f.name:34}{f.contribution / 100:+8.2f}")
rest = sum(f.contribution for f in e.features[6:])
print(f"  {'the other ' + str(len(e.features) - 6):34}{rest / 100:+8.2f}\n  {'guardrails':34}{e.residual / 100:+8.2f}\n  {'price':34}{moved.price / 100:8.2f}\n")
