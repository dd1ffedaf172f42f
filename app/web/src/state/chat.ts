/** One open conversation: what is shown of it, and everything that can be done with it. */

import type { Api } from "../api/api";
import { ApiError } from "../api/client";
import type {
  Attachment,
  Conversation,
  ConversationSettings,
  ConversationSummary,
  Limits,
  Message,
  Usage,
} from "../api/types";
import { type End, follow, UnknownOutcome } from "../stream/follow";
import { backoff, onWake, pause } from "../stream/pause";
import { Live } from "./live";
import { type Notice, noticeOf } from "./notice";
import { Store } from "./store";
import type { Change, Tabs } from "./tabs";
import { branchThrough } from "./tree";
import { Uploads } from "./uploads";

export interface ChatState {
  /** Null until the first message or file makes the conversation. */
  id: string | null;
  phase: "loading" | "ready" | "missing" | "unreachable";
  title: string;
  model: string | null;
  systemPrompt: string | null;
  usage: Usage;
  messages: Message[];
  branch: string[];
  live: ReadonlyMap<string, Live>;
  notice: Notice | null;
}

export interface Surroundings {
  api: Api;
  limits: Limits;
  tabs: Tabs;
  /** The conversation has got its identifier, a new title, or a new message. */
  onChange: (conversation: ConversationSummary) => void;
}

/** Identifiers of messages that the server has not named yet. */
const NEW_QUESTION = "new-question";
const NEW_ANSWER = "new-answer";
const NOTHING: Usage = { prompt_tokens: 0, completion_tokens: 0 };

/** What one request for an answer adds to the conversation until the server has confirmed it. */
interface Attempt {
  path: string;
  body?: object;
  question?: Message;
  answer: Message;
  branch: string[];
}

export class Chat {
  readonly state: Store<ChatState>;
  readonly uploads: Uploads;
  private readonly closing = new AbortController();
  private readonly api: Api;
  private readonly ends: (() => void)[] = [];
  private creating: Promise<string> | null = null;
  private asking = false;
  private stopWanted = false;

  constructor(
    private readonly surroundings: Surroundings,
    id: string | null,
  ) {
    this.api = surroundings.api;
    this.state = new Store<ChatState>({
      id,
      phase: id === null ? "ready" : "loading",
      title: "",
      model: null,
      systemPrompt: null,
      usage: NOTHING,
      messages: [],
      branch: [],
      live: new Map<string, Live>(),
      notice: null,
    });
    this.uploads = new Uploads(this.api, surroundings.limits, () => this.ensureConversation());
  }

  /** Begin: load what there is, and notice what other tabs do. */
  start(): void {
    if (this.state.get().id !== null) void this.load();
    this.ends.push(
      this.surroundings.tabs.listen((change: Change) => {
        if ("conversation" in change && change.conversation === this.state.get().id) void this.load();
      }),
      onWake(() => void this.load()),
    );
  }

  /** Leave. Answers go on without this reader. */
  close(): void {
    this.closing.abort();
    this.uploads.close();
    for (const end of this.ends) end();
  }

  /** Fetch the conversation (again), and follow the answers in it that are being written. */
  async load(): Promise<void> {
    const { id, phase } = this.state.get();
    if (id === null || this.busyOrLeft()) return;
    try {
      const conversation = await this.api.conversation(id, this.closing.signal);
      // Meanwhile a message may have been sent from here: then this is old.
      if (!this.busyOrLeft()) this.take(conversation);
    } catch (error) {
      if (this.left) return;
      if (error instanceof ApiError && error.status === 404) this.state.update({ phase: "missing" });
      else if (phase !== "ready") this.state.update({ phase: "unreachable", notice: noticeOf(error) });
    }
  }

  /** Send a message. False when it was not taken: then nothing has changed but the notice. */
  ask(content: string, attachments: Attachment[]): Promise<boolean> {
    const { messages, branch } = this.state.get();
    const known = new Map(messages.map((message) => [message.id, message]));
    const parent = branch.findLast((id) => known.get(id)?.role === "assistant") ?? null;
    const question = newMessage("user", parent, content, attachments);
    return this.attempt({
      path: "",
      body: { content, ...(parent !== null && { parent_id: parent }), ...withAttachments(attachments) },
      question,
      answer: newMessage("assistant", question.id),
      branch: [...branch.slice(0, parent === null ? 0 : branch.indexOf(parent) + 1), question.id, NEW_ANSWER],
    });
  }

  /** Ask something else in the place of a question: a new branch. */
  edit(id: string, content: string): Promise<boolean> {
    const before = this.message(id);
    const attachments = before?.attachments ?? [];
    const question = newMessage("user", before?.parent_id ?? null, content, attachments);
    return this.attempt({
      path: `/${id}/edit`,
      body: { content, ...withAttachments(attachments) },
      question,
      answer: newMessage("assistant", question.id),
      branch: [...this.before(id), question.id, NEW_ANSWER],
    });
  }

  /** Another answer to the same question: a new branch. */
  regenerate(id: string): Promise<boolean> {
    const answer = newMessage("assistant", this.message(id)?.parent_id ?? null);
    return this.attempt({ path: `/${id}/regenerate`, answer, branch: [...this.before(id), NEW_ANSWER] });
  }

  /** The rest of an answer that was cut. */
  continue(id: string): Promise<boolean> {
    const answer = this.message(id);
    if (!answer) return Promise.resolve(false);
    const again: Message = { ...answer, status: "streaming", finish_reason: null, error: null };
    return this.attempt({ path: `/${id}/continue`, answer: again, branch: this.state.get().branch });
  }

  /** End the answer that is being written, and keep its text. */
  async stop(): Promise<void> {
    const { id, branch, live } = this.state.get();
    const running = branch.findLast((each) => live.has(each));
    if (running === NEW_ANSWER || id === null) this.stopWanted = true;
    else if (running !== undefined) await this.attended(this.api.stop(id, running));
  }

  /** Show the branch through this message. */
  async show(message: string): Promise<void> {
    const { id, messages } = this.state.get();
    this.state.update({ branch: branchThrough(messages, message), notice: null });
    this.followStreaming();
    if (id !== null) await this.attended(this.api.changeConversation(id, { current_message_id: message }));
  }

  /** Title, model and system prompt. A conversation that does not exist yet is made with them. */
  async configure(change: ConversationSettings): Promise<void> {
    const { id } = this.state.get();
    if (id !== null) await this.api.changeConversation(id, change);
    this.state.update({
      ...(change.title !== undefined && { title: change.title }),
      ...(change.model !== undefined && { model: change.model }),
      ...(change.system_prompt !== undefined && { systemPrompt: change.system_prompt }),
    });
    if (id !== null) this.tell();
  }

  dismiss(): void {
    this.state.update({ notice: null });
  }

  /** Whether somebody has gone on to another conversation meanwhile. */
  private get left(): boolean {
    return this.closing.signal.aborted;
  }

  private busyOrLeft(): boolean {
    return this.asking || this.left;
  }

  private message(id: string): Message | undefined {
    return this.state.get().messages.find((message) => message.id === id);
  }

  private before(id: string): string[] {
    const { branch } = this.state.get();
    return branch.slice(0, branch.indexOf(id));
  }

  private take(conversation: Conversation): void {
    const { branch, live, phase, title } = this.state.get();
    // Where an answer is followed here, this tab knows more of it than the database.
    const messages = conversation.messages.map((message) =>
      live.has(message.id) ? { ...message, status: "streaming" as const } : message,
    );
    const end = branch.findLast((id) => messages.some((message) => message.id === id));
    this.state.update({
      phase: "ready",
      title: conversation.title,
      model: conversation.model ?? null,
      systemPrompt: conversation.system_prompt ?? null,
      usage: conversation.usage ?? usageOf(messages),
      messages,
      branch: end === undefined ? conversation.current_branch : branchThrough(messages, end),
    });
    const sent = new Set(messages.flatMap((message) => message.attachments ?? []).map((each) => each.id));
    // It may have been named meanwhile, here or elsewhere.
    if (phase === "ready" && conversation.title !== title) this.surroundings.onChange(conversation);
    this.uploads.restore((conversation.attachments ?? []).filter((each) => !sent.has(each.id)));
    this.followStreaming();
  }

  private ensureConversation(): Promise<string> {
    const { id, model, systemPrompt, title } = this.state.get();
    if (id !== null) return Promise.resolve(id);
    const settings: ConversationSettings = {
      ...(title && { title }),
      ...(model !== null && { model }),
      ...(systemPrompt !== null && { system_prompt: systemPrompt }),
    };
    this.creating ??= this.api.createConversation(settings).then(
      (conversation) => {
        this.state.update({ id: conversation.id });
        this.surroundings.onChange(conversation);
        return conversation.id;
      },
      (error: unknown) => {
        this.creating = null;
        throw error;
      },
    );
    return this.creating;
  }

  /** Ask for an answer and follow it. Resolves as soon as it is known whether the server has taken it. */
  private async attempt({ path, body, question, answer, branch }: Attempt): Promise<boolean> {
    if (this.asking) return false;
    const before = this.state.get();
    this.asking = true;
    this.stopWanted = false;
    const live = new Live(answer.content, answer.content);
    // `continue` writes on in the place of what there is.
    const messages =
      answer.id === NEW_ANSWER
        ? [...before.messages, ...(question ? [question] : []), answer]
        : before.messages.map((message) => (message.id === answer.id ? answer : message));
    this.state.update({
      messages,
      branch,
      live: new Map(before.live).set(answer.id, live),
      notice: null,
    });
    return new Promise<boolean>((taken) => {
      void this.write(path, body, live, answer.id, taken).catch(async (error: unknown) => {
        const known = new Set(before.messages.map((message) => message.id));
        // Who has left learns of a refusal all the same: to sign in is to leave.
        const gone = this.left && !(error instanceof ApiError);
        if (gone || (error instanceof UnknownOutcome && (await this.reconcile(live, known, answer.id)))) {
          taken(true);
          return;
        }
        this.asking = false;
        // A refusal of the model is kept with its question; all others leave no trace.
        const kept = error instanceof ApiError && error.problem.message_id !== undefined;
        this.state.update({
          messages: before.messages,
          branch: before.branch,
          live: without(this.state.get().live, answer.id),
        });
        if (kept) {
          this.state.update({ branch: [error.problem.message_id ?? ""] });
          await this.load();
          this.tell();
        }
        this.state.update({ notice: kept ? null : noticeOf(error) });
        taken(kept);
      });
    });
  }

  /** The first request for an answer, and what follows. */
  private async write(
    path: string,
    body: object | undefined,
    live: Live,
    temporary: string,
    taken: (yes: boolean) => void,
  ): Promise<void> {
    const conversation = await this.ensureConversation();
    let message = temporary;
    const end = await follow(
      {
        first: (signal) => this.api.answer(conversation, path, body, signal),
        resume: (after, signal) => this.api.tail(conversation, message, after, signal),
      },
      {
        start: (event) => {
          if (!this.asking) return;
          this.name(message, event.message_id, event.user_message_id, event.title);
          message = event.message_id;
          this.asking = false;
          taken(true);
          if (this.stopWanted) void this.stop();
        },
        text: (text) => live.append(text),
        connection: (state) => live.connected(state),
      },
      this.closing.signal,
    );
    this.finish(message, live, end);
  }

  /** Give what was just sent the names that the server has for it. */
  private name(temporary: string, answer: string, question: string, title: string): void {
    const { messages, branch, live, title: before } = this.state.get();
    const names = new Map([
      [temporary, answer],
      [NEW_QUESTION, question],
    ]);
    const named = (id: string): string => names.get(id) ?? id;
    this.state.update({
      title: before || title,
      messages: messages.map((message) => ({
        ...message,
        id: named(message.id),
        parent_id: message.parent_id && named(message.parent_id),
      })),
      branch: branch.map(named),
      live: new Map([...live].map(([id, each]) => [named(id), each])),
    });
    this.tell();
  }

  /** Follow every shown answer that somebody else has begun. */
  private followStreaming(): void {
    const { id: conversation, branch, messages, live } = this.state.get();
    if (conversation === null) return;
    for (const message of messages) {
      if (message.status !== "streaming" || live.has(message.id) || !branch.includes(message.id)) continue;
      const reader = new Live("", message.content);
      this.state.update({ live: new Map(this.state.get().live).set(message.id, reader) });
      void this.tail(conversation, message.id, reader);
    }
  }

  private async tail(conversation: string, message: string, live: Live): Promise<void> {
    const requests = {
      resume: (after: string | null, signal: AbortSignal) => this.api.tail(conversation, message, after, signal),
    };
    const listener = {
      start: () => undefined,
      text: (text: string) => live.append(text),
      connection: live.connected.bind(live),
    };
    try {
      this.finish(message, live, await follow(requests, listener, this.closing.signal));
    } catch (error) {
      if (this.left) return;
      this.state.update({ live: without(this.state.get().live, message), notice: noticeOf(error) });
      if (error instanceof ApiError && error.status === 404) this.state.update({ phase: "missing" });
    }
  }

  private finish(id: string, live: Live, end: End): void {
    const { messages, live: all, usage } = this.state.get();
    const content = live.end();
    const outcome: Partial<Message> =
      "done" in end
        ? { status: end.done.status, finish_reason: end.done.finish_reason, usage: end.done.usage, error: null }
        : { status: "failed", finish_reason: "error", error: end.error.detail };
    this.state.update({
      messages: messages.map((message) => (message.id === id ? { ...message, content, ...outcome } : message)),
      live: without(all, id),
      usage: outcome.usage ? sum(usage, outcome.usage) : usage,
    });
    this.tell();
    // A process that was lost may have taken the last words with it: what is stored counts.
    if ("error" in end || end.done.status === "interrupted") void this.load();
    else if (messages.length === 2) void this.learnTitle();
  }

  /** The server may find a title only when there is an answer. */
  private async learnTitle(): Promise<void> {
    const { id, title } = this.state.get();
    const found = id === null ? undefined : await this.api.conversation(id, this.closing.signal).catch(() => undefined);
    if (!found || found.title === title) return;
    this.state.update({ title: found.title });
    this.surroundings.onChange(found);
  }

  /** After a request that may have got lost: whether the server has it after all; then it is followed. */
  private async reconcile(live: Live, known: ReadonlySet<string>, answer: string): Promise<boolean> {
    const { id } = this.state.get();
    if (id === null) return false;
    live.connected("reconnecting");
    for (let attempt = 0; ; attempt += 1) {
      try {
        const conversation = await this.api.conversation(id, this.closing.signal);
        const found = conversation.messages.some((message) =>
          message.id === answer ? message.status === "streaming" : !known.has(message.id),
        );
        if (!found) return false;
        this.asking = false;
        this.state.update({ live: without(this.state.get().live, answer), branch: conversation.current_branch });
        this.take(conversation);
        this.tell();
        return true;
      } catch (error) {
        if (this.left) return true;
        if (error instanceof ApiError && error.status < 500 && error.status !== 429) return false;
        await pause(backoff(attempt), this.closing.signal).catch(() => undefined);
      }
    }
  }

  private tell(): void {
    const { id, title, model, systemPrompt, messages } = this.state.get();
    if (id === null) return;
    const now = new Date().toISOString();
    const created = messages[0]?.created_at ?? now;
    this.surroundings.onChange({ id, title, model, system_prompt: systemPrompt, created_at: created, updated_at: now });
    this.surroundings.tabs.tell({ conversation: id });
  }

  /** Work whose failure is worth a notice and nothing else. */
  private async attended(work: Promise<unknown>): Promise<void> {
    try {
      await work;
    } catch (error) {
      this.state.update({ notice: noticeOf(error) });
    }
  }
}

function newMessage(
  role: Message["role"],
  parent: string | null,
  content = "",
  attachments: Attachment[] = [],
): Message {
  return {
    id: role === "user" ? NEW_QUESTION : NEW_ANSWER,
    parent_id: parent,
    role,
    status: role === "user" ? "complete" : "streaming",
    finish_reason: null,
    content,
    model: null,
    usage: { prompt_tokens: null, completion_tokens: null },
    error: null,
    attachments,
    created_at: new Date().toISOString(),
  };
}

function withAttachments(attachments: Attachment[]): { attachments?: string[] } {
  return attachments.length > 0 ? { attachments: attachments.map((each) => each.id) } : {};
}

function without(live: ReadonlyMap<string, Live>, id: string): ReadonlyMap<string, Live> {
  const rest = new Map(live);
  rest.delete(id);
  return rest;
}

function sum(one: Usage, other: Usage): Usage {
  return {
    prompt_tokens: (one.prompt_tokens ?? 0) + (other.prompt_tokens ?? 0),
    completion_tokens: (one.completion_tokens ?? 0) + (other.completion_tokens ?? 0),
  };
}

function usageOf(messages: readonly Message[]): Usage {
  return messages.map((message) => message.usage).reduce(sum, NOTHING);
}
