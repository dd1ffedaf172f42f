// @vitest-environment node
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { readEvents, type SseEvent, SseParser } from "../src/stream/sse";

const STREAM = [
  'event: start\nid: 0\ndata: {"a": 1}\n\n: ping\n\n',
  'event: delta\nid: 4\ndata: {"text": "Grüße 🎉"}\r\n\r\n',
  "data: two\rdata:lines\r\rid\nevent:done\ndata\n\nevent: no data\n\n",
  "unknown: x\nid: 7\ndata: :end\n\nevent: cut\ndata: x",
].join("");

const EVENTS: SseEvent[] = [
  { name: "start", data: '{"a": 1}', id: "0" },
  { name: "delta", data: '{"text": "Grüße 🎉"}', id: "4" },
  { name: "message", data: "two\nlines", id: "4" },
  { name: "done", data: "", id: "" },
  { name: "message", data: ":end", id: "7" },
];

function body(pieces: Uint8Array[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(piece);
      controller.close();
    },
  });
}

async function read(pieces: Uint8Array[]): Promise<SseEvent[]> {
  const events: SseEvent[] = [];
  for await (const event of readEvents(body(pieces))) events.push(event);
  return events;
}

const BYTES = new TextEncoder().encode(STREAM);

describe("Server-Sent Events", () => {
  test("are the same wherever the stream is split, also inside characters and line ends", async () => {
    for (let at = 0; at <= BYTES.length; at += 1) {
      expect(await read([BYTES.slice(0, at), BYTES.slice(at)]), `split at ${at}`).toEqual(EVENTS);
    }
  });

  test("are the same in any number of pieces", async () => {
    const cuts = fc.array(fc.nat(BYTES.length), { maxLength: 30 });
    await fc.assert(
      fc.asyncProperty(cuts, async (places) => {
        const ends = [...places.sort((one, other) => one - other), BYTES.length];
        expect(await read(ends.map((end, index) => BYTES.slice(ends[index - 1] ?? 0, end)))).toEqual(EVENTS);
      }),
    );
  });

  test("carry any text through any split", () => {
    fc.assert(
      fc.property(fc.array(fc.string({ unit: "binary" })), fc.nat(200), (texts, at) => {
        const stream = texts.map((text) => `data: ${JSON.stringify(text)}\n\n`).join("");
        const parser = new SseParser();
        const events = [...parser.feed(stream.slice(0, at)), ...parser.feed(stream.slice(at))];
        expect(events.map((event) => JSON.parse(event.data) as string)).toEqual(texts);
      }),
    );
  });

  test("begin behind a byte-order mark", async () => {
    expect(await read([new TextEncoder().encode("\ufeffdata: x\n\n")])).toEqual([
      { name: "message", data: "x", id: "" },
    ]);
  });

  test("tell that the connection lives, comments too, and let go of the body", async () => {
    let alive = 0;
    let left = false;
    const stream = new ReadableStream<Uint8Array>({
      pull: (controller) => controller.enqueue(new TextEncoder().encode(alive < 3 ? ": ping\n\n" : "data: x\n\n")),
      cancel: () => {
        left = true;
      },
    });
    const events = readEvents(stream, () => (alive += 1));
    expect((await events.next()).value).toMatchObject({ data: "x" });
    await events.return(undefined);
    expect(alive).toBeGreaterThanOrEqual(4);
    expect(left).toBe(true);
  });
});
