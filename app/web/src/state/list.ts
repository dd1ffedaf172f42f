/** The list of conversations, with its search. */

import type { Api } from "../api/api";
import { explain } from "../api/client";
import type { ConversationSummary } from "../api/types";
import { Store } from "./store";

export interface ListState {
  conversations: ConversationSummary[];
  search: string;
  next: string | null;
  loading: boolean;
  error: string | null;
}

const EMPTY: ListState = { conversations: [], search: "", next: null, loading: false, error: null };
const TYPING_MS = 200;

export class ConversationList {
  readonly state = new Store<ListState>(EMPTY);
  private request = new AbortController();
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly api: Api) {}

  search(text: string): void {
    this.state.update({ search: text });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.load(), TYPING_MS);
  }

  /** The first page anew. */
  load(): Promise<void> {
    return this.page(null);
  }

  async more(): Promise<void> {
    const { next } = this.state.get();
    if (next !== null) await this.page(next);
  }

  /** A conversation that has changed here goes to the top without asking the server. */
  touch(changed: ConversationSummary): void {
    const { conversations, search } = this.state.get();
    const known = conversations.find((each) => each.id === changed.id);
    if (search !== "" && !known) return;
    const others = conversations.filter((each) => each.id !== changed.id);
    this.state.update({ conversations: [{ ...known, ...changed }, ...others] });
  }

  rename(id: string, title: string): void {
    const conversations = this.state.get().conversations.map((each) => (each.id === id ? { ...each, title } : each));
    this.state.update({ conversations });
  }

  remove(id: string): void {
    this.state.update({ conversations: this.state.get().conversations.filter((each) => each.id !== id) });
  }

  clear(): void {
    this.request.abort();
    this.state.set(EMPTY);
  }

  private async page(cursor: string | null): Promise<void> {
    this.request.abort();
    const { signal } = (this.request = new AbortController());
    this.state.update({ loading: true, error: null });
    try {
      const page = await this.api.conversations(this.state.get().search.trim(), cursor, signal);
      const before = cursor === null ? [] : this.state.get().conversations;
      const known = new Set(before.map((each) => each.id));
      const fresh = page.conversations.filter((each) => !known.has(each.id));
      this.state.update({ conversations: [...before, ...fresh], next: page.next_cursor ?? null, loading: false });
    } catch (error) {
      if (!signal.aborted) this.state.update({ loading: false, error: explain(error) });
    }
  }
}
