/** Requests to the API: JSON in and out, the CSRF token, and problem documents as errors. */

import type { Problem, Session } from "./types";

export const BASE = "/api/v1";

/** The server answered with an error. `retryAfter` is in seconds. */
export class ApiError extends Error {
  constructor(
    readonly problem: Problem,
    readonly retryAfter: number | null,
  ) {
    super(problem.detail || problem.title);
    this.name = "ApiError";
  }

  get status(): number {
    return this.problem.status;
  }

  is(kind: "budget-reached" | "rate-limited" | "sign-in-required" | "csrf" | "streams-limit" | "model"): boolean {
    return this.problem.type === `urn:chatbot:${kind}`;
  }

  /** What is wrong with one field of a form. */
  field(name: string): string | undefined {
    return this.problem.errors?.find((error) => error.field === name)?.message;
  }
}

/** No answer at all: offline, or the server cannot be reached. */
export class NetworkError extends Error {
  constructor() {
    super("The server cannot be reached.");
    this.name = "NetworkError";
  }
}

export interface Options {
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal | undefined;
}

export class Client {
  csrf = "";
  /** Told when a request finds that nobody is signed in (any more). */
  onSignedOut: () => void = () => undefined;

  constructor(private readonly send: typeof fetch = (...request) => fetch(...request)) {}

  /** The answer's JSON; undefined where it has none. Throws ApiError, NetworkError, or the signal's reason. */
  async call<T>(method: string, path: string, options: Options = {}): Promise<T> {
    const response = await this.open(method, path, options);
    return (response.status === 204 ? undefined : await whole(response.json())) as T;
  }

  /** The same for an answer that is read as it comes. */
  async open(method: string, path: string, options: Options = {}): Promise<Response> {
    const response = await this.request(method, path, options);
    if (response.ok) return response;
    const error = await problem(response);
    if (error.status === 403 && error.is("csrf")) {
      // The token has changed with a sign-in elsewhere, or the session has ended: once more with the new one.
      this.csrf = (await this.call<Session>("GET", "/session")).csrf_token;
      const again = await this.request(method, path, options);
      if (again.ok) return again;
      throw await problem(again);
    }
    if (error.status === 401 && path !== "/session") this.onSignedOut();
    throw error;
  }

  private async request(method: string, path: string, { body, headers, signal }: Options): Promise<Response> {
    const sent = new Headers({ Accept: "application/json", ...headers });
    if (body !== undefined) sent.set("Content-Type", "application/json");
    if (method !== "GET") sent.set("X-CSRFToken", this.csrf);
    const init: RequestInit = { method, headers: sent, credentials: "same-origin" };
    if (body !== undefined) init.body = JSON.stringify(body);
    if (signal) init.signal = signal;
    return whole(this.send(BASE + path, init));
  }
}

/** fetch and its bodies throw TypeErrors when the network fails. */
async function whole<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw error instanceof TypeError || error instanceof SyntaxError ? new NetworkError() : error;
  }
}

async function problem(response: Response): Promise<ApiError> {
  const after = Number(response.headers.get("Retry-After") ?? NaN);
  const retryAfter = Number.isFinite(after) ? after : null;
  const text = await whole(response.text());
  return new ApiError(parseProblem(response.status, response.statusText, text), retryAfter);
}

/** The problem document in a body, or one in its place where a proxy has answered with a page of its own. */
export function parseProblem(status: number, title: string, text: string): Problem {
  try {
    const document: unknown = JSON.parse(text);
    if (typeof document === "object" && document !== null && "title" in document) {
      return { type: "about:blank", detail: "", ...(document as Partial<Problem> & { title: string }), status };
    }
  } catch {
    // not JSON
  }
  const detail = status >= 502 ? "The service is not available right now." : `The server answered with ${status}.`;
  return { type: "about:blank", title: title || `Error ${status}`, status, detail };
}

/** What a person is told about any error. */
export function explain(error: unknown): string {
  if (error instanceof ApiError || error instanceof NetworkError) return error.message;
  return "Something went wrong in this page; reload it and try again.";
}
