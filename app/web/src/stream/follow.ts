/** Follows an answer to its end, over as many connections as that takes. */

import { ApiError, NetworkError } from "../api/client";
import type { DoneEvent, Problem, StartEvent } from "../api/types";
import { backoff, onWake, pause } from "./pause";
import { readEvents } from "./sse";

/** The server sends a comment every 10 seconds: a connection that has been silent for longer is dead. */
export const SILENCE_MS = 25_000;
/** The same for somebody who comes back from sleep and would like to read on. */
const SILENCE_AFTER_WAKE_MS = 11_000;

export type Connection = "waiting" | "open" | "reconnecting";

export interface Listener {
  start: (event: StartEvent) => void;
  text: (text: string) => void;
  connection: (state: Connection) => void;
}

export interface Requests {
  /** The request that makes the answer; without it the answer exists and is only read. */
  first?: (signal: AbortSignal) => Promise<Response>;
  /** The answer's stream, behind the event of that identifier, from the beginning when there was none. */
  resume: (lastEventId: string | null, signal: AbortSignal) => Promise<Response>;
}

export type End = { done: DoneEvent } | { error: Problem };

/** The first request has failed in a way that does not tell whether the server has got it. */
export class UnknownOutcome extends NetworkError {}

/**
 * Reads until `done` or `error`, and goes on elsewhere after `resume`. Events after a reconnection begin where the last
 * complete one ended, so that the listener gets every character once. Throws ApiError for a refusal, UnknownOutcome, or
 * the signal's reason.
 */
export async function follow(requests: Requests, listener: Listener, signal: AbortSignal, wait = pause): Promise<End> {
  let first = requests.first;
  let lastEventId: string | null = null;
  for (let attempt = 0; ; attempt += 1) {
    const connection = new Connected(signal);
    let sentOn = false;
    try {
      const response: Response = first
        ? await first(connection.signal)
        : await requests.resume(lastEventId, connection.signal);
      if (!response.body) throw new NetworkError();
      for await (const event of readEvents(response.body, () => connection.alive())) {
        first = undefined;
        if (event.name === "start") listener.start(JSON.parse(event.data) as StartEvent);
        else if (event.name === "delta") {
          attempt = 0;
          listener.text((JSON.parse(event.data) as { text: string }).text);
        } else if (event.name === "done") return { done: JSON.parse(event.data) as DoneEvent };
        else if (event.name === "error") return { error: JSON.parse(event.data) as Problem };
        else if (event.name === "resume") sentOn = true;
        // Only now: what was not worked off is asked for again.
        lastEventId = event.id;
        listener.connection("open");
      }
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof ApiError && !(first ? gateway(error) : passing(error))) throw error;
      if (error instanceof SyntaxError) throw error;
      if (error instanceof ApiError && error.retryAfter !== null && !first) {
        listener.connection("reconnecting");
        await wait(error.retryAfter * 1000, signal);
        continue;
      }
    } finally {
      connection.close();
    }
    if (first) throw new UnknownOutcome();
    // The server is being replaced, and its successor is there: nothing has broken, so the reader need not know.
    if (sentOn && attempt === 0) continue;
    listener.connection("reconnecting");
    await wait(backoff(attempt), signal);
  }
}

/** Errors of a reader that pass: a release or restart under way, the database away, too many streams. */
function passing(error: ApiError): boolean {
  return error.status >= 500 || error.status === 429;
}

/** An answer of the proxy, not of the application: nobody knows what has become of the request. */
function gateway(error: ApiError): boolean {
  return error.status >= 502 && error.problem.request_id === undefined;
}

/** One connection, given up when it is silent for too long: after a sleep they only look alive. */
class Connected {
  readonly signal: AbortSignal;
  private readonly controller = new AbortController();
  private readonly stopListening: () => void;
  private last = Date.now();
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(outer: AbortSignal) {
    this.signal = AbortSignal.any([outer, this.controller.signal]);
    this.alive();
    this.stopListening = onWake(() => {
      if (Date.now() - this.last > SILENCE_AFTER_WAKE_MS) this.controller.abort();
    });
  }

  /** Something has arrived. */
  alive(): void {
    this.last = Date.now();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.controller.abort(), SILENCE_MS);
  }

  close(): void {
    clearTimeout(this.timer);
    this.stopListening();
    this.controller.abort();
  }
}
