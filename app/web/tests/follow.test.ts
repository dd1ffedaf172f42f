import fc from "fast-check";
import { afterEach, describe, expect, test, vi } from "vitest";
import { ApiError, NetworkError } from "../src/api/client";
import { type Connection, type End, follow, type Requests, SILENCE_MS, UnknownOutcome } from "../src/stream/follow";
import { backoff, pause } from "../src/stream/pause";
import { DONE, event, eventsOf, START, streamed } from "./server";

const TEXT = 'Über 🎉 die\nStröme: "Zitat" — Ende.';
const AT_ONCE = (): Promise<void> => Promise.resolve();

interface Outcome {
  end: End;
  text: string;
  connections: Connection[];
  resumed: (string | null)[];
}

async function run(
  requests: Pick<Requests, "first">,
  answer: (after: string | null, number: number) => Response | Promise<Response>,
  wait: (milliseconds: number) => Promise<void> = AT_ONCE,
): Promise<Outcome> {
  const outcome: Omit<Outcome, "end"> = { text: "", connections: [], resumed: [] };
  const end = await follow(
    {
      ...requests,
      resume: async (after) => {
        outcome.resumed.push(after);
        return answer(after, outcome.resumed.length);
      },
    },
    {
      start: (started) => expect(started).toEqual(START),
      text: (text) => (outcome.text += text),
      connection: (state) => outcome.connections.push(state),
    },
    new AbortController().signal,
    wait,
  );
  return { end, ...outcome };
}

afterEach(() => vi.useRealTimers());

describe("an answer that is followed", () => {
  test("comes whole from one connection", async () => {
    const { end, text, resumed } = await run({ first: () => Promise.resolve(streamed(eventsOf(TEXT, 0, 3))) }, () => {
      throw new Error("no need to resume");
    });
    expect(end).toEqual({ done: DONE });
    expect(text).toBe(TEXT);
    expect(resumed).toEqual([]);
  });

  test("comes whole wherever the connection breaks", async () => {
    const length = new TextEncoder().encode(eventsOf(TEXT, 0, 3)).length;
    for (let bytes = 0; bytes <= length; bytes += 1) {
      const { end, text } = await run({}, (after, number) =>
        streamed(eventsOf(TEXT, Number(after ?? 0), 3), number === 1 ? bytes : undefined),
      );
      expect(text, `broken after ${bytes} bytes`).toBe(TEXT);
      expect(end).toEqual({ done: DONE });
    }
  });

  test("comes whole over any number of broken connections and refusals", async () => {
    const trouble = fc.array(fc.oneof(fc.nat(400), fc.constantFrom("network", "502", "429")), { maxLength: 12 });
    await fc.assert(
      fc.asyncProperty(
        fc.string({ unit: "grapheme", maxLength: 60 }),
        trouble,
        fc.integer({ min: 1, max: 7 }),
        async (whole, troubles, step) => {
          const { text } = await run({}, (after, number) => {
            const now = troubles[number - 1];
            if (now === "network") throw new NetworkError();
            if (now === "502") throw refusal(502);
            if (now === "429") throw refusal(429);
            return streamed(eventsOf(whole, Number(after ?? 0), step), now);
          });
          expect(text).toBe(whole);
        },
      ),
    );
  });

  test("asks for what is behind the last whole event", async () => {
    const first = event("start", 0, START) + event("delta", 4, { text: "Über" });
    const cut = new TextEncoder().encode(first).length + 25;
    const { resumed, connections, text } = await run(
      { first: () => Promise.resolve(streamed(eventsOf(TEXT, 0, 4), cut)) },
      (after) => streamed(eventsOf(TEXT, Number(after), 4)),
    );
    expect(resumed).toEqual(["4"]);
    expect(text).toBe(TEXT);
    expect(connections).toContain("reconnecting");
    expect(connections.at(-1)).toBe("open");
  });

  test("goes on at once and without a word where the server sends its readers on", async () => {
    const waited: number[] = [];
    const told = { message_id: "m2", position: 4 };
    const start = event("start", 0, START) + event("delta", 4, { text: "Über" });
    const { end, resumed, connections, text } = await run(
      { first: () => Promise.resolve(streamed(`${start}retry: 500\n${event("resume", 4, told)}`)) },
      (after) => streamed(eventsOf(TEXT, Number(after), 4)),
      (milliseconds) => {
        waited.push(milliseconds);
        return Promise.resolve();
      },
    );
    expect(resumed).toEqual(["4"]);
    expect(text).toBe(TEXT);
    expect(end).toEqual({ done: DONE });
    expect(connections).not.toContain("reconnecting");
    expect(waited).toEqual([]);
  });

  test("does not run in circles between servers that all send it on", async () => {
    const waited: number[] = [];
    const told = (after: string | null): Response =>
      streamed(event("start", Number(after), START) + event("resume", Number(after), { position: Number(after) }));
    const { text } = await run(
      {},
      (after, number) => (number < 5 ? told(after) : streamed(eventsOf(TEXT, Number(after), 4))),
      (milliseconds) => {
        waited.push(milliseconds);
        return Promise.resolve();
      },
    );
    expect(text).toBe(TEXT);
    expect(waited).toHaveLength(3);
  });

  test("ends with the model's error", async () => {
    const error = { type: "about:blank", title: "No answer", status: 502, detail: "The model failed." };
    const { end, text } = await run({}, () =>
      streamed(event("start", 0, START) + event("delta", 2, { text: "So" }) + event("error", 2, error)),
    );
    expect(end).toEqual({ error });
    expect(text).toBe("So");
  });

  test("waits as long as the server asks for", async () => {
    const waited: number[] = [];
    await run(
      {},
      (_, number) => {
        if (number === 1) throw refusal(429, 7);
        return streamed(eventsOf("x", 0, 1));
      },
      (milliseconds) => {
        waited.push(milliseconds);
        return Promise.resolve();
      },
    );
    expect(waited).toEqual([7000]);
  });

  test.each([400, 401, 403, 404])("does not insist after %i", async (status) => {
    await expect(run({}, () => Promise.reject(refusal(status)))).rejects.toMatchObject({ status });
  });

  test.each([409, 422, 429, 503])("hands on a refusal of the question itself: %i", async (status) => {
    const first = (): Promise<Response> => Promise.reject(refusal(status));
    await expect(run({ first }, () => streamed(""))).rejects.toBeInstanceOf(ApiError);
  });

  test("says when nobody knows whether the question has arrived", async () => {
    const lost = (): Promise<Response> => Promise.reject(new NetworkError());
    const gateway = (): Promise<Response> =>
      Promise.reject(new ApiError({ type: "about:blank", title: "Bad gateway", status: 502, detail: "" }, null));
    const silent = (): Promise<Response> => Promise.resolve(streamed(": ping\n\n"));
    for (const first of [lost, gateway, silent]) {
      await expect(run({ first }, () => streamed(""))).rejects.toBeInstanceOf(UnknownOutcome);
    }
  });

  test("gives a silent connection up, and comes back", async () => {
    vi.useFakeTimers();
    const result = follow(
      {
        resume: vi
          .fn()
          .mockImplementationOnce((_, signal: AbortSignal) => Promise.resolve(hanging(signal)))
          .mockImplementation(() => Promise.resolve(streamed(eventsOf("there", 0, 2)))),
      },
      { start: () => undefined, text: () => undefined, connection: () => undefined },
      new AbortController().signal,
      AT_ONCE,
    );
    await vi.advanceTimersByTimeAsync(SILENCE_MS + 1);
    expect(await result).toEqual({ done: DONE });
  });

  test("looks at its connection when the laptop wakes up", async () => {
    vi.useFakeTimers();
    const resume = vi
      .fn()
      .mockImplementationOnce((_, signal: AbortSignal) => Promise.resolve(hanging(signal)))
      .mockImplementation(() => Promise.resolve(streamed(eventsOf("there", 0, 2))));
    const listener = { start: () => undefined, text: () => undefined, connection: () => undefined };
    const result = follow({ resume }, listener, new AbortController().signal, AT_ONCE);
    await vi.advanceTimersByTimeAsync(1000);
    vi.setSystemTime(Date.now() + 3_600_000); // timers stand still in a sleep
    window.dispatchEvent(new Event("online"));
    expect(await result).toEqual({ done: DONE });
    expect(resume).toHaveBeenCalledTimes(2);
  });

  test("is left when nobody wants it any more", async () => {
    const controller = new AbortController();
    const listener = { start: () => undefined, text: () => undefined, connection: () => undefined };
    const resume = (_: string | null, signal: AbortSignal): Promise<Response> => Promise.resolve(hanging(signal));
    const result = follow({ resume }, listener, controller.signal, AT_ONCE);
    controller.abort(new Error("closed"));
    await expect(result).rejects.toThrow("closed");
  });
});

describe("waiting", () => {
  test("grows to a quarter of a minute and never falls together", () => {
    expect(backoff(0, () => 0)).toBe(375);
    expect(backoff(3, () => 0.5)).toBe(4000);
    expect(backoff(30, () => 1)).toBe(18_750);
  });

  test.each(["online", "visibilitychange"])("ends early with %s", async (name) => {
    const waiting = pause(60_000, new AbortController().signal);
    (name === "online" ? window : document).dispatchEvent(new Event(name));
    await waiting;
  });

  test("ends with the abort of what it waits for", async () => {
    const controller = new AbortController();
    const waiting = pause(60_000, controller.signal);
    controller.abort(new Error("left"));
    await expect(waiting).rejects.toThrow("left");
  });
});

function refusal(status: number, retryAfter: number | null = null): ApiError {
  return new ApiError({ type: "about:blank", title: "No", status, detail: "No.", request_id: "r1" }, retryAfter);
}

/** A response that says `start` and then nothing. */
function hanging(signal: AbortSignal): Response {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(new TextEncoder().encode(event("start", 0, START)));
      signal.addEventListener("abort", () => controller.error(new DOMException("aborted", "AbortError")));
    },
  });
  return new Response(body);
}
