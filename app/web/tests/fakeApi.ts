/** A fake of the API's conversations: one conversation, whose answers a test writes and cuts. */

import { Api } from "../src/api/api";
import { Client } from "../src/api/client";
import type { Conversation, Message, Session, StartEvent } from "../src/api/types";
import { branchThrough } from "../src/state/tree";
import { event, json, problem } from "./server";

export const CONVERSATION = "11111111-1111-1111-1111-111111111111";

export const SESSION: Session = {
  account: { id: "a1", email: "maria@example.org", name: "Maria", role: "user", created_at: "2026-01-01T00:00:00Z" },
  csrf_token: "token",
  sign_up: "invitation",
  openid: null,
  release: "test",
  demo_model: false,
  limits: {
    max_message_chars: 1000,
    max_upload_bytes: 1000,
    max_attachments: 2,
    upload_types: ["text/plain"],
    password_min_length: 10,
  },
};

/** One reader's response, which the test writes. */
export class Stream {
  readonly response: Response;
  private controller!: ReadableStreamDefaultController<Uint8Array>;
  private open = true;

  constructor(signal?: AbortSignal | null) {
    this.response = new Response(
      new ReadableStream<Uint8Array>({ start: (controller) => (this.controller = controller) }),
    );
    signal?.addEventListener("abort", () => this.lose());
  }

  send(name: string, id: number, data: unknown): this {
    this.controller.enqueue(new TextEncoder().encode(event(name, id, data)));
    return this;
  }

  close(): void {
    if (this.open) this.controller.close();
    this.open = false;
  }

  lose(): void {
    if (this.open) this.controller.error(new TypeError("network error"));
    this.open = false;
  }
}

export class FakeApi {
  session = SESSION;
  messages: Message[] = [];
  current: string | null = null;
  title = "";
  exists = false;
  /** What was asked for, as "METHOD path". */
  readonly requests: { what: string; body: Record<string, unknown>; headers: Headers }[] = [];
  /** The responses that stream, the newest last. */
  readonly streams: Stream[] = [];
  /** Answers of the next requests whose "METHOD path" fits, in the place of the usual ones. */
  readonly instead: { what: RegExp; answer: () => Response | Promise<Response> }[] = [];
  private number = 0;

  readonly api = new Api(new Client((path, init) => this.answer(path as string, init ?? {})));

  asked(what: RegExp): Record<string, unknown>[] {
    return this.requests.filter((request) => what.test(request.what)).map((request) => request.body);
  }

  get stream(): Stream {
    const last = this.streams.at(-1);
    if (!last) throw new Error("nothing streams");
    return last;
  }

  add(role: Message["role"], parent: string | null, content: string, change: Partial<Message> = {}): Message {
    const message: Message = {
      id: `m${(this.number += 1)}`,
      parent_id: parent,
      role,
      status: "complete",
      finish_reason: null,
      content,
      model: null,
      error: null,
      usage: { prompt_tokens: null, completion_tokens: null },
      attachments: [],
      created_at: "2026-11-01T10:00:00Z",
      ...change,
    };
    this.messages.push(message);
    this.current = message.id;
    this.exists = true;
    return message;
  }

  /** What the server has stored of an answer that its readers saw end. */
  store(id: string, change: Partial<Message>): void {
    this.messages = this.messages.map((message) => (message.id === id ? { ...message, ...change } : message));
  }

  private conversation(): Conversation {
    return {
      id: CONVERSATION,
      title: this.title,
      model: null,
      system_prompt: null,
      messages: this.messages,
      created_at: "2026-11-01T10:00:00Z",
      updated_at: "2026-11-01T10:00:00Z",
      usage: { prompt_tokens: 10, completion_tokens: 5 },
      current_branch: this.current === null ? [] : branchThrough(this.messages, this.current),
    };
  }

  private async answer(path: string, init: RequestInit): Promise<Response> {
    const what = `${init.method ?? "GET"} ${path.replace("/api/v1", "").replace(CONVERSATION, "C")}`;
    const body = typeof init.body === "string" ? (JSON.parse(init.body) as Record<string, unknown>) : {};
    this.requests.push({ what, body, headers: new Headers(init.headers) });
    const at = this.instead.findIndex((each) => each.what.test(what));
    const [special] = at < 0 ? [] : this.instead.splice(at, 1);
    if (special) return special.answer();
    return this.usual(what, body, init.signal);
  }

  private usual(what: string, body: Record<string, unknown>, signal?: AbortSignal | null): Response {
    const [, id = "", action = ""] = /^POST \/conversations\/C\/messages(?:\/(\w+)\/(\w+))?$/.exec(what) ?? [];
    if (what === "GET /session") return json(this.session);
    if (what === "GET /models")
      return json({
        models: [
          { id: "small", default: true },
          { id: "large", default: false },
        ],
      });
    if (what.startsWith("GET /conversations?") || what === "GET /conversations") {
      return json({ conversations: this.exists ? [this.conversation()] : [], next_cursor: null });
    }
    if (what === "POST /conversations") {
      this.exists = true;
      return json(this.conversation(), 201);
    }
    if (what === "GET /conversations/C") return this.exists ? json(this.conversation()) : problem(404);
    if (what === "PATCH /conversations/C") {
      this.title = (body.title as string | undefined) ?? this.title;
      this.current = (body.current_message_id as string | undefined) ?? this.current;
      return json(this.conversation());
    }
    if (what === "DELETE /conversations/C") {
      this.exists = false;
      return json(null, 204);
    }
    if (what.endsWith("/stream")) return this.open(signal).response;
    if (what.endsWith("/stop")) return json({ status: "stopped" });
    if (what.startsWith("POST /conversations/C/messages")) return this.begin(id, action, body, signal).response;
    return problem(404);
  }

  /** Save question and answer, and say so to the reader. */
  begin(id: string, action: string, body: Record<string, unknown>, signal?: AbortSignal | null): Stream {
    const before = this.messages.find((message) => message.id === id);
    let answer = before;
    if (action === "continue") this.store(id, { status: "streaming" });
    else {
      const parent = action === "edit" ? before?.parent_id : body.parent_id;
      const question =
        action === "regenerate"
          ? before?.parent_id
          : this.add("user", (parent ?? null) as string | null, body.content as string).id;
      answer = this.add("assistant", question ?? null, "", { status: "streaming" });
      this.title ||= body.content as string;
    }
    const start: StartEvent = {
      conversation_id: CONVERSATION,
      title: this.title,
      message_id: answer?.id ?? "",
      user_message_id: answer?.parent_id ?? "",
    };
    return this.open(signal).send("start", answer?.content.length ?? 0, start);
  }

  private open(signal?: AbortSignal | null): Stream {
    const stream = new Stream(signal);
    this.streams.push(stream);
    return stream;
  }
}

export function done(message: string, change: object = {}): object {
  const usage = { prompt_tokens: 7, completion_tokens: 3 };
  return { message_id: message, status: "complete", finish_reason: "stop", usage, ...change };
}
