"""demo_margarine.py MARGARINE.csv EVENTS.jsonl - purchases of real households as events, for the demo.  Every purchase is a
buy at the price paid and nine views, of the kinds that stood beside it at their prices; reduced is what cost 15 % less than the
kind's median.  The panel has no dates: a household's purchases are a week apart, the last one today.  Prints the households that buy
reduced most and least, of those with ten purchases or more."""
import collections
import csv
import json
import statistics
import sys
import time

KINDS = {"PPk_Stk": "parkay-stick", "PBB_Stk": "blue-bonnet-stick", "PFl_Stk": "fleischmanns-stick", "PHse_Stk": "house-stick", "PGen_Stk": "generic-stick",
         "PImp_Stk": "imperial-stick", "PSS_Tub": "shedds-tub", "PPk_Tub": "parkay-tub", "PFl_Tub": "fleischmanns-tub", "PHse_Tub": "house-tub"}
WEEK = 7 * 86400000
NOW = int(time.time()) // 86400 * 86400000

rows = list(csv.DictReader(open(sys.argv[1])))
usual = {k: statistics.median(float(r[k]) for r in rows) for k in KINDS}
homes = collections.defaultdict(list)
for r in rows: homes[r["hhid"]].append(r)
reduced, events = {}, 0
with open(sys.argv[2], "w") as f:
    for home, trips in homes.items():
        for i, r in enumerate(trips):
            ts, chosen = NOW - (len(trips) - 1 - i) * WEEK, int(float(r["choice"])) - 1
            for n, (k, name) in enumerate(KINDS.items()):
                price, buys = float(r[k]), n == chosen
                e = {"event_id": f"{home}.{i}.{n}", "type": "buy" if buys else "view", "user": "home-" + home, "ts_ms": ts + n * 1000, "object": name, "category": "margarine",
                     "price_minor": round(100 * price), "currency": "USD", "promo": buys and price <= 0.85 * usual[k]}
                f.write(json.dumps(e) + "\n")
                events += 1
                if buys: reduced.setdefault(home, []).append(e["promo"])
order = sorted((h for h in homes if len(homes[h]) >= 10), key=lambda h: (sum(reduced[h]) / len(reduced[h]), float(homes[h][0]["PFl_Tub"]), h))
for h in (order[-1], order[0]):
    r = homes[h][0]
    print(f"home-{h} {len(homes[h])} purchases, {sum(reduced[h])} of them reduced; a family of {r['Fam_Size']}, income ${1000 * float(r['Income']):,.0f} (which the profile does not know)")
print(f"demo: {len(homes)} households, {len(rows)} purchases, {events} events", file=sys.stderr)
