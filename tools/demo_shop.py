"""demo_shop.py FILE - the events of an invented shop, for the demo: 400 users who buy, browse, write, follow and
share for half a year.  Each has hidden leanings (to bargains, to quality, to company) and friends who are like it;
nothing of that is in the file but what they did.  The same every time, but for the day it ends on: today."""
import json
import random
import sys
import time

random.seed(20)
DAY = 86400000
NOW = int(time.time()) // 86400 * DAY
CATEGORIES = {"shoes": 6000, "jackets": 12000, "bags": 8000, "skincare": 2500, "phones": 40000}
USERS, ITEMS, COMMUNITIES = 400, 60, 12

BARGAIN = ["What a bargain, half the price elsewhere.", "Only bought it because of the coupon, great deal.",
           "Too expensive without the discount, wait for the sale.", "Cheap and it does the job.",
           "Price dropped the week after I paid, annoying."]
QUALITY = ["Excellent quality, the stitching is flawless.", "Premium material, feels like it will last for years.",
           "Sturdy and well made, worth every cent.", "The craftsmanship is disappointing for this brand.",
           "Durable, survived a whole winter outside."]
NEUTRAL = ["Arrived on time, fits as expected.", "My sister loves the colour.", "Looks like on the picture.",
           "Returned it, the size was wrong.", "Nice, would buy again."]

items = []
for c, base in CATEGORIES.items():
    for i in range(ITEMS):
        items.append((f"{c}-{i:02}", c, int(base * random.lognormvariate(0, 0.5))))
by_category = {c: sorted((x for x in items if x[1] == c), key=lambda x: x[2]) for c in CATEGORIES}

names = [a + b for a in ("an", "ben", "cla", "dor", "el", "fin", "gus", "han", "ida", "jo", "kat", "li", "mar", "nor", "ol", "pia", "ros", "sam", "tea", "vi")
         for b in ("na", "ja", "ra", "is", "la", "ton", "tav", "nes", "mi", "ko", "rin", "sa", "tin", "ner", "le", "bel", "lin", "der", "go", "vy")]
users = [{"name": n, "bargain": random.betavariate(0.6, 0.9), "quality": random.betavariate(0.6, 0.9), "company": random.betavariate(0.5, 1.5)} for n in names[:USERS]]
out = []


def event(user, kind, ts, **kw):
    out.append({"event_id": "", "type": kind, "user": user["name"], "ts_ms": ts, **kw})


for u in users:
    favourite = random.sample(list(CATEGORIES), 3)
    shop = by_category
    for _ in range(random.randint(8, 40)):
        c = random.choice(favourite)
        rank = min(0.999, max(0, random.gauss(0.15 + 0.7 * u["quality"] * (1 - 0.6 * u["bargain"]), 0.18)))
        item, _, price = shop[c][int(rank * ITEMS)]
        ts = NOW - int(random.random() * 180 * DAY)
        kind = random.choices(["buy", "view", "cart"], [5, 3, 2])[0]
        if kind != "buy":
            event(u, kind, ts, object=item, category=c)
            continue
        promo = random.random() < 0.08 + 0.8 * u["bargain"]
        event(u, "buy", ts, object=item, category=c, price_minor=int(price * (0.7 if promo else 1)), currency="EUR", promo=promo)
        if random.random() < 0.25:
            words = random.choices([BARGAIN, QUALITY, NEUTRAL], [u["bargain"], u["quality"], 0.5])[0]
            event(u, "review", ts + 3 * DAY if ts + 3 * DAY < NOW else ts, object=item, category=c, text=random.choice(words))
    alike = sorted(users, key=lambda v: abs(v["bargain"] - u["bargain"]) + abs(v["quality"] - u["quality"]) + random.random())
    for v in alike[1:1 + int(8 * u["company"]) + random.randint(0, 2)]:
        event(u, "follow", NOW - int(random.random() * 180 * DAY), object=v["name"])
    for _ in range(int(random.expovariate(1) * 10 * u["company"])):
        ts = NOW - int(random.random() * 180 * DAY)
        if random.random() < 0.6:
            event(u, "share", ts)
        else:
            event(u, "join", ts, object=f"club-{random.randrange(COMMUNITIES)}")

out.sort(key=lambda e: e["ts_ms"])
with open(sys.argv[1], "w") as f:
    for i, e in enumerate(out):
        e["event_id"] = f"e{i}"
        f.write(json.dumps(e) + "\n")
print(f"demo: {len(out)} events of {USERS} invented users", file=sys.stderr)
