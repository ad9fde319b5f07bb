"""test_pricing_python.py MERX WIRE_DIR - merx serve --pricing and an unmodified Python
client: streams of quotes and feeds, segments, offers to users, retries, explanations.
Exit 77: no grpcio here."""
import atexit
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

sys.path.insert(0, sys.argv[2])
import merx_pb2 as pb

checks = failed = 0
P = "/merx.v1.Pricing/"


def check(ok, *what):
    global checks, failed
    checks += 1
    if not ok:
        failed += 1
        print(f"  line {sys._getframe(1).f_lineno}: failed:", *what)


class Server:
    def __init__(self, folder, *more):
        self.process = subprocess.Popen([sys.argv[1], "serve", "--pricing", folder + "/p.db", "--listen", "127.0.0.1:0", *more], stderr=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)             # a failed test leaves nothing running
        for line in self.process.stderr:
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            if found: break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.channel = grpc.insecure_channel("127.0.0.1:" + found.group(1))

    def close(self):
        self.channel.close()
        self.process.terminate()
        check(self.process.wait(timeout=30) == 0, "the server's end")

    def ask(self, method, request, reply):
        return self.channel.unary_unary(P + method, type(request).SerializeToString, reply.FromString)(request, timeout=20)

    def feed(self, method, requests, kind, reply):
        return self.channel.stream_unary(P + method, kind.SerializeToString, reply.FromString)(iter(requests), timeout=20)

    def quotes(self, requests):
        return self.channel.stream_stream(P + "StreamQuotes", pb.QuoteRequest.SerializeToString, pb.BatchQuoteItem.FromString)(requests, timeout=60)


def code_of(call):
    try:
        call()
        return grpc.StatusCode.OK, ""
    except grpc.RpcError as e:
        return e.code(), e.details()


def item(sku, **kw):
    return pb.PriceItem(sku=sku, currency="EUR", cost=500, reference_price=1000, **kw)


def test_streams(s):
    r = s.ask("PutItems", pb.PutItemsRequest(items=[item(f"s{k}") for k in range(100)]), pb.PutItemsResponse)
    check(all(x.code == 0 for x in r.statuses), r)
    asked = [pb.QuoteRequest(sku=f"s{k % 101}", request_id=f"r{k}") for k in range(2000)]
    got = list(s.quotes(iter(asked)))
    check(len(got) == 2000)
    for k, g in enumerate(got):                # each its own end, in the order of the requests
        if k % 101 == 100: check(g.status.code == 5 and "PutItems" in g.status.message and not g.quote.decision_id, g)
        else: check(g.status.code == 0 and g.quote.request_id == f"r{k}" and g.quote.sku == asked[k].sku, g)
    check(len({g.quote.decision_id for g in got if g.status.code == 0}) == sum(g.status.code == 0 for g in got))
    again = list(s.quotes(iter(asked[:50])))
    check(again == got[:50], "the same request is the same decision")
    code, text = code_of(lambda: s.ask("Quote", pb.QuoteRequest(sku="s1", request_id="r0"), pb.QuoteResponse))
    check(code == grpc.StatusCode.INVALID_ARGUMENT and "request_id" in text, text)
    # one by one: an answer comes before the next question is asked
    turn, ready = threading.Semaphore(1), []
    def slowly():
        for k in range(5):
            turn.acquire()
            yield pb.QuoteRequest(sku=f"s{k}")
    for g in s.quotes(slowly()):
        ready.append(g.quote.sku)
        turn.release()
    check(ready == [f"s{k}" for k in range(5)], ready)
    # a client that goes away in the middle leaves the server well
    for _ in range(20):
        call = s.quotes(iter(asked))
        next(call)
        call.cancel()
    # a reader that is slow holds itself back alone
    call = s.quotes(iter(asked * 3))
    time.sleep(0.3)
    began = time.time()
    s.ask("Quote", pb.QuoteRequest(sku="s1"), pb.QuoteResponse)
    check(time.time() - began < 10)
    check(sum(1 for _ in call) == 6000)
    code, text = code_of(lambda: list(s.channel.stream_stream(P + "StreamQuotes", lambda b: b, pb.BatchQuoteItem.FromString)(iter([b"\xff\xff"]), timeout=20)))
    check(code == grpc.StatusCode.INVALID_ARGUMENT, code, text)


def test_feeds(s):
    s.ask("PutItems", pb.PutItemsRequest(items=[item("tea", channel="web"), item("tea", channel="shop"), item("tea", channel="web", segment="students")]), pb.PutItemsResponse)
    rival = lambda price, name="x": pb.Competitor(name=name, price=price)
    r = s.feed("PutCompetitorPrices", [pb.CompetitorPrices(sku="tea", competitors=[rival(900)]), pb.CompetitorPrices(sku="tea", channel="web", competitors=[rival(950), rival(990, "y")]),
                                       pb.CompetitorPrices(sku="none", competitors=[rival(1)]), pb.CompetitorPrices(sku="tea", competitors=[rival(0)])], pb.CompetitorPrices, pb.FeedResponse)
    check((r.accepted, r.unknown, r.wrong) == (5, 1, 1), r)
    i = s.ask("GetItem", pb.ItemKey(sku="tea", channel="web"), pb.PriceItem)
    check([(c.name, c.price) for c in i.competitors] == [("x", 950), ("y", 990)], i)
    r = s.feed("PutInventory", [pb.InventoryLevels(levels=[pb.InventoryLevel(sku="tea", channel="web", on_hand=7, delivery_periods=2), pb.InventoryLevel(sku="tea", channel="sea", on_hand=7),
                                                           pb.InventoryLevel(sku="tea", channel="shop", on_hand=-7)])], pb.InventoryLevels, pb.FeedResponse)
    check((r.accepted, r.unknown, r.wrong) == (1, 1, 1), r)
    i = s.ask("GetItem", pb.ItemKey(sku="tea", channel="web"), pb.PriceItem)
    check(i.inventory == 7 and i.delivery_periods == 2)
    check(s.feed("PutInventory", [], pb.InventoryLevels, pb.FeedResponse).accepted == 0)
    sale = lambda k, **kw: pb.ReportSalesRequest(sales=[pb.SaleObservation(sale_id=f"{kw.get('segment', '')}{k}", sku="tea", channel="web", price=800 + 10 * k, units=round(50 * (0.8 + 0.01 * k) ** -3, 3), **kw)])
    r = s.feed("ReportSales", [sale(k) for k in range(40)] + [sale(3)], pb.ReportSalesRequest, pb.ReportSalesResponse)      # a stream
    check((r.accepted, r.duplicate) == (40, 1), r)
    r = s.ask("ReportSales", sale(41), pb.ReportSalesResponse)                                                            # and the same bytes as a unary call
    check(r.accepted == 1, r)
    code, text = code_of(lambda: s.feed("ReportSales", [], pb.ReportSalesRequest, pb.ReportSalesResponse))
    check(code == grpc.StatusCode.INVALID_ARGUMENT and "no message" in text, text)
    # a segment's own item learns by itself; a segment without one is everybody's
    r = s.ask("ReportSales", sale(50, segment="students"), pb.ReportSalesResponse)
    e, own = s.ask("Elasticity", pb.ItemKey(sku="tea", channel="web"), pb.ElasticityResponse), s.ask("Elasticity", pb.ItemKey(sku="tea", channel="web", segment="students"), pb.ElasticityResponse)
    other = s.ask("Elasticity", pb.ItemKey(sku="tea", channel="web", segment="others"), pb.ElasticityResponse)
    check(e.sales == 41 and own.sales == 1 and own.own and not other.own and other.sales == 41 and other.elasticity == e.elasticity, e, own, other)
    check(e.low < -3 < e.high and e.level_low < e.level < e.level_high and own.high - own.low > e.high - e.low, e)
    q = s.ask("Quote", pb.QuoteRequest(sku="tea", channel="web", segment="students"), pb.QuoteResponse)
    check(q.segment == "students" and s.ask("Quote", pb.QuoteRequest(sku="tea", channel="web", segment="?"), pb.QuoteResponse).segment == "", q)


def test_questions(s):
    r = s.ask("SimulateLadder", pb.SimulateLadderRequest(sku="tea", channel="web"), pb.SimulateLadderResponse)
    q = s.ask("Quote", pb.QuoteRequest(sku="tea", channel="web"), pb.QuoteResponse)
    check([x.price for x in r.rungs] == [x.price for x in q.ladder] and r.best == q.action and r.published == 1000, r)
    r = s.ask("SimulateLadder", pb.SimulateLadderRequest(sku="tea", channel="web", prices=range(600, 1200, 10)), pb.SimulateLadderResponse)
    check(len(r.rungs) == 60 and 680 < r.rungs[r.best].price < 820, r.rungs[r.best])              # cost 500, elasticity -3: 750
    revenue = s.ask("SimulateLadder", pb.SimulateLadderRequest(sku="tea", channel="web", prices=range(600, 1200, 10), objective=pb.OBJECTIVE_REVENUE), pb.SimulateLadderResponse)
    check(revenue.rungs[revenue.best].price == 600, revenue.rungs[revenue.best])
    for bad, part in ((pb.SimulateLadderRequest(sku="tea", channel="web", prices=[0]), "prices[0]"), (pb.SimulateLadderRequest(sku="tea", channel="web", prices=[1] * 257), "256"),
                      (pb.SimulateLadderRequest(sku="tea", channel="web", revenue_share=2), "revenue_share")):
        code, text = code_of(lambda: s.ask("SimulateLadder", bad, pb.SimulateLadderResponse))
        check(code == grpc.StatusCode.INVALID_ARGUMENT and part in text, text)
    blend = s.ask("Quote", pb.QuoteRequest(sku="tea", channel="web", objective=pb.OBJECTIVE_BLEND, revenue_share=0.5), pb.QuoteResponse)
    rung = blend.ladder[0]
    check(abs(rung.q - 0.5 * (rung.revenue + rung.margin)) < 1e-6 and blend.objective == pb.OBJECTIVE_BLEND, rung)
    check(q.expected_margin_low < q.expected_margin < q.expected_margin_high and q.reference_margin > 0 and q.cost == 500 and q.policy_version == 41, q)
    e = s.ask("ExplainDecision", pb.GetDecisionRequest(decision_id=q.decision_id), pb.ExplainDecisionResponse)
    check(abs(e.base_price + sum(f.contribution for f in e.features) - q.raw_price) < 1e-6 and len(e.features) == 3 and "exact" in e.method, e)
    sizes = [abs(f.contribution) for f in e.features]
    check(sizes == sorted(sizes, reverse=True) and all(f.text for f in e.features), e)
    s.ask("PutGuardrails", pb.GuardrailSet(id="step", sku_prefix="tea", max_change_pct_step=1), pb.GuardrailSet)
    q = s.ask("Quote", pb.QuoteRequest(sku="tea", channel="web"), pb.QuoteResponse)
    e = s.ask("ExplainDecision", pb.GetDecisionRequest(decision_id=q.decision_id), pb.ExplainDecisionResponse)
    check(abs(e.residual - (q.price - q.raw_price)) < 1e-6 and e.residual != 0 and "max_change_step" in e.rules[0], e)


def test_users(s, allowed):
    code, text = code_of(lambda: s.ask("Quote", pb.QuoteRequest(sku="s1", user_id="u"), pb.QuoteResponse))
    check(code == (grpc.StatusCode.OK if allowed else grpc.StatusCode.INVALID_ARGUMENT), text)
    if not allowed:
        check("individual users" in text, text)
        return
    before = s.ask("GetItem", pb.ItemKey(sku="s1"), pb.PriceItem)
    for k in range(20): s.ask("ReportSales", pb.ReportSalesRequest(sales=[pb.SaleObservation(sale_id=f"up{k}", sku="s1", price=900 + 10 * k, units=20)]), pb.ReportSalesResponse)
    everybody = s.ask("Quote", pb.QuoteRequest(sku="s1"), pb.QuoteResponse)
    one = s.ask("Quote", pb.QuoteRequest(sku="s1", user_id="u"), pb.QuoteResponse)
    check(everybody.price == 1100 and one.price <= 1000 and one.status == "offered", everybody.price, one)       # demand that does not mind: everybody's price rises, an offer never
    check(s.ask("GetItem", pb.ItemKey(sku="s1"), pb.PriceItem).published == before.published)
    code, text = code_of(lambda: s.ask("Quote", pb.QuoteRequest(sku="s1", user_id="u", mode=pb.QUOTE_LIVE), pb.QuoteResponse))
    check(code == grpc.StatusCode.INVALID_ARGUMENT and "never published" in text, text)


def test_kill_switch(s):
    """In a storm of live quotes: what is asked after Freeze has answered publishes nothing."""
    stop, late = threading.Event(), []
    frozen_at = [None]
    def storm():
        while not stop.is_set():
            asked, was = time.time(), frozen_at[0]
            q = s.ask("Quote", pb.QuoteRequest(sku="s2", mode=pb.QUOTE_LIVE), pb.QuoteResponse)
            if was and asked > was and q.status != "frozen": late.append(q)
    threads = [threading.Thread(target=storm) for _ in range(4)]
    for t in threads: t.start()
    time.sleep(0.2)
    began = time.time()
    s.ask("Freeze", pb.FreezeRequest(frozen=True), pb.FreezeResponse)
    frozen_at[0] = time.time()
    check(frozen_at[0] - began < 1, frozen_at[0] - began)
    time.sleep(0.2)
    stop.set()
    for t in threads: t.join()
    check(not late, late[:1])
    s.ask("Freeze", pb.FreezeRequest(), pb.FreezeResponse)


folder = tempfile.mkdtemp(prefix="merx-pricing-")
server = Server(folder)
test_streams(server)
test_feeds(server)
test_questions(server)
test_users(server, False)
test_kill_switch(server)
server.close()
server = Server(folder, "--price-discounts")
test_users(server, True)
e = server.ask("Elasticity", pb.ItemKey(sku="tea", channel="web", segment="students"), pb.ElasticityResponse)
check(e.sales == 1 and e.own, e)                # the segment's item came back from the disk
server.close()
shutil.rmtree(folder)
print(f"{checks} checks, {failed} failed")
sys.exit(failed > 0)
