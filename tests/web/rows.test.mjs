// Claims about frames and numbers, without any connection.

import assert from "node:assert/strict";
import test from "node:test";

import { applyFrames, cursorOf, parseJson, writeJson } from "../../host/src/gateway/client/client.js";
import { enter, leave, move, numbers, reset, row, update } from "./fakes.mjs";
import { Oracle } from "./oracle.mjs";

const keys = (rows) => rows.map((row) => row.key).join("");

test("each kind of frame does what the wire says", () => {
  const abc = applyFrames([], [reset, enter("a", 0), enter("c", 1), enter("b", 1)]);
  assert.equal(keys(abc), "abc");
  assert.deepEqual(abc[1], row("b"));
  assert.equal(keys(applyFrames(abc, [leave("b", 1)])), "ac");
  assert.equal(keys(applyFrames(abc, [move("a", 0, 2)])), "bca");
  assert.equal(keys(applyFrames(abc, [move("c", 2, 0)])), "cab");
  assert.equal(applyFrames(abc, [update("b", 1, { name: "new" })])[1].name, "new");
  assert.equal(keys(applyFrames(abc, [enter("d", 3), leave("a", 0)])), "bcd");
  assert.equal(keys(applyFrames(abc, [reset, enter("x", 0)])), "x");
  assert.equal(keys(applyFrames(abc, [{ op: "ready" }, { op: "of a later host" }])), "abc");
  assert.equal(keys(abc), "abc", "the array before is as it was");
});

test("frames that do not fit are refused", () => {
  const abc = applyFrames([], [enter("a", 0), enter("b", 1), enter("c", 2)]);
  for (const wrong of [
    enter("d", 4), enter("d", -1), enter("b", 0), leave("a", 1), leave("a", 3), leave("a", -1), move("a", 1, 0),
    move("a", 0, 3), move("a", 0, -1), update("a", 1), update("a", 3), { ...enter("d", 0), row: row("e") },
    { ...enter("d", 0), row: null }, { ...update("a", 0), row: row("b") }, { op: "enter" },
  ]) {
    assert.throws(() => applyFrames(abc, [wrong]), /does not fit \d rows/, JSON.stringify(wrong));
  }
});

test("a streamed query keeps what matches", () => {
  const match = (op, key, more) => ({ op, agg_id: key, row: op === "unmatch" ? undefined : row(key, more), old_index: 0, new_index: 0 });
  const rows = applyFrames([], [reset, enter("a", 0), match("match", "b"), match("match", "c"), match("unmatch", "a")], true);
  assert.equal(keys(rows), "bc");
  const next = applyFrames(rows, [match("update", "b", { name: "new" }), match("unmatch", "z"), match("match", "a")], true);
  assert.equal(keys(next), "bca");
  assert.equal(next[0].name, "new");
  assert.equal(keys(applyFrames(next, [match("unmatch", "c"), match("match", "c"), match("match", "b")], true)), "bac");
  assert.equal(keys(applyFrames(next, [reset, match("match", "x"), match("match", "b")], true)), "xb");
});

test("the place of a row is known", () => {
  const [first] = applyFrames([], [enter("a", 0)]);
  assert.deepEqual(cursorOf(first), { values: ["A", "a"] });
  assert.equal(cursorOf({}), undefined);
});

test("200 random sequences end as the oracle says, after every commit", () => {
  let frames = 0;
  for (let seed = 1; seed <= 200; seed += 1) {
    const oracle = new Oracle(seed, 1 + (seed % 50));
    let rows = applyFrames([], oracle.snapshot());
    for (let step = 0; step < 100; step += 1) {
      const commit = oracle.random(30) === 0 ? oracle.snapshot() : oracle.commit();
      frames += commit.length;
      rows = applyFrames(rows, commit);
      assert.deepEqual(rows, oracle.window(), `seed ${seed}, step ${step}`);
    }
  }
  assert.ok(frames > 20_000, `${frames} frames`);
});

// A host with source text access has the first as well; the tokens are read everywhere.
let hasSource = false;
JSON.parse("1", (_, value, context) => (hasSource = context?.source === "1"));
const parsers = [["tokens", (text) => parseJson(text, false)], ["default", parseJson]];
if (hasSource) parsers.push(["source", (text) => parseJson(text, true)]);

for (const [name, parse] of parsers) {
  test(`whole numbers of any size arrive exactly (${name})`, () => {
    const text = '{"a":9007199254740993,"b":[-9223372036854775808,18446744073709551615],"c":9007199254740991,"d":1}';
    assert.deepEqual(parse(text), {
      a: 9007199254740993n, b: [-9223372036854775808n, 18446744073709551615n], c: 9007199254740991, d: 1,
    });
    assert.equal(writeJson(parse(text)), text);
  });

  test(`nothing else is taken for such a number (${name})`, () => {
    const value = {
      "1234567890123456789": "1234567890123456789", "~n1234567890123456789": "~n1234567890123456789",
      text: 'a "quoted" 1234567890123456789, \\"1234567890123456789\\": x', tilde: "~", twice: "~~", t: "~tx",
      line: "\n~n1", tab: "\t", back: "\\", float: 0.1234567890123456, nothing: null, yes: true, no: false, list: [],
    };
    const text = JSON.stringify({ ...value, big: 0 }).replace('"big":0', '"big":1234567890123456789 , "e":1e21,"f":1234567890123456789.5');
    const escaped = text.replace('"~~"', '"\\u007e~"');
    for (const each of [text, escaped]) {
      assert.deepEqual(parse(each), { ...value, big: 1234567890123456789n, e: 1e21, f: 1234567890123456789.5 });
    }
    assert.throws(() => parse("[1234567890123456789"), SyntaxError);
    assert.throws(() => parse("[01234567890123456789]"), SyntaxError);
  });

  test(`random values survive the way through text (${name})`, () => {
    const random = numbers(7);
    const make = (depth) => {
      switch (random(depth > 3 ? 6 : 8)) {
        case 0: return BigInt(random(1e9)) * 10n ** 12n + 9_007_199_254_740_993n;
        case 1: return -BigInt(random(1e9)) * 10n ** 12n - 9_007_199_254_740_993n;
        case 2: return random(1e9) / 7;
        case 3: return "~n\\\"\u0001:,1234567890123456".slice(random(8), 8 + random(18));
        case 4: return random(2) === 0;
        case 5: return null;
        case 6: return Array.from({ length: random(4) }, () => make(depth + 1));
        default: return Object.fromEntries(Array.from({ length: random(4) }, (_, at) => [`~"${at}`, make(depth + 1)]));
      }
    };
    for (let turn = 0; turn < 500; turn += 1) {
      const value = make(0);
      assert.deepEqual(parse(writeJson(value)), value);
    }
  });
}

test("what is written is JSON", () => {
  assert.equal(writeJson({ a: undefined, b: [undefined, null], c: new Date(0) }), '{"b":[null,null],"c":"1970-01-01T00:00:00.000Z"}');
  assert.equal(writeJson({ where: [{ column: "a", op: "eq", value: 2n ** 63n }] }), '{"where":[{"column":"a","op":"eq","value":9223372036854775808}]}');
});
