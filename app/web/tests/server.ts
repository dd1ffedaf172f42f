/** A fake of the server: it keeps one answer and cuts its streams where a test wants it. */

import type { DoneEvent } from "../src/api/types";

const encoder = new TextEncoder();

export function event(name: string, id: number, data: unknown): string {
  return `event: ${name}\nid: ${id}\ndata: ${JSON.stringify(data)}\n\n`;
}

export const START = { conversation_id: "c1", title: "A title", message_id: "m2", user_message_id: "m1" };
export const DONE: DoneEvent = {
  message_id: "m2",
  status: "complete",
  finish_reason: "stop",
  usage: { prompt_tokens: 7, completion_tokens: 3 },
};

/** The events behind the first `after` characters (code points) of a text, in deltas of `step`. */
export function eventsOf(text: string, after: number, step: number): string {
  const characters = Array.from(text);
  let events = event("start", after, START);
  for (let at = after; at < characters.length; at += step) {
    const piece = characters.slice(at, at + step);
    events += event("delta", at + piece.length, { text: piece.join("") });
  }
  return events + event("done", characters.length, DONE);
}

/** A response whose connection breaks after so many bytes; whole without a number. */
export function streamed(events: string, bytes?: number): Response {
  const all = encoder.encode(events);
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(all.slice(0, bytes));
      if (bytes === undefined || bytes >= all.length) controller.close();
      else setTimeout(() => controller.error(new TypeError("network error")), 0);
    },
  });
  return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
}

export function json(value: unknown, status = 200, headers: Record<string, string> = {}): Response {
  return new Response(status === 204 ? null : JSON.stringify(value), {
    status,
    headers: { "Content-Type": "application/json", ...headers },
  });
}

export function problem(status: number, type = "about:blank", more: object = {}, headers = {}): Response {
  const document = { type, title: "Problem", status, detail: `The detail of ${status}.`, request_id: "r1", ...more };
  return json(document, status, headers);
}
