/** What belongs to the whole page: who is signed in, the list of conversations, and the one that is open. */

import { createContext, useContext } from "react";
import type { Api } from "../api/api";
import { explain } from "../api/client";
import type { Account, Model, Session, SignedIn } from "../api/types";
import { navigate, pathOf } from "../router";
import { Chat } from "./chat";
import { clearDrafts } from "./drafts";
import { ConversationList } from "./list";
import { Store } from "./store";
import { Tabs } from "./tabs";

export interface AppState {
  session: Session | null;
  /** Why there is no session. */
  error: string | null;
  models: Model[];
  chat: Chat | null;
}

export class App {
  readonly state = new Store<AppState>({ session: null, error: null, models: [], chat: null });
  /** What a screen reader says. */
  readonly announcement = new Store("");
  readonly list: ConversationList;
  private readonly tabs = new Tabs();

  constructor(readonly api: Api) {
    this.list = new ConversationList(api);
    api.client.onSignedOut = () => this.signedOut();
  }

  /** Returns what ends it. */
  start(): () => void {
    void this.load();
    return this.tabs.listen((change) => {
      if ("list" in change || "conversation" in change) void this.list.load();
      if ("session" in change) void this.load();
    });
  }

  async load(): Promise<void> {
    this.state.update({ error: null });
    try {
      const session = await this.api.session();
      const before = this.state.get().session?.account?.id;
      if (before !== session.account?.id) this.leave();
      this.state.update({ session });
      if (session.account) this.enter();
    } catch (error) {
      this.state.update({ error: explain(error) });
    }
  }

  /** Open a conversation, or a new one. */
  open(id: string | null): void {
    const { chat, session } = this.state.get();
    if (!session?.account || (chat !== null && chat.state.get().id === id)) return;
    this.restart(id);
  }

  /** A new conversation, also where an empty one is open. */
  restart(id: string | null = null): void {
    const { chat, session } = this.state.get();
    if (!session) return;
    chat?.close();
    const next = new Chat(
      {
        api: this.api,
        limits: session.limits,
        tabs: this.tabs,
        onChange: (conversation) => {
          this.list.touch(conversation);
          const path = pathOf(conversation.id);
          if (this.state.get().chat === next && location.pathname === "/") navigate(path, { replace: true });
        },
      },
      id,
    );
    this.state.update({ chat: next });
    next.start();
  }

  signedIn({ account, csrf_token }: SignedIn): void {
    const { session } = this.state.get();
    if (!session) return;
    this.state.update({ session: { ...session, account, csrf_token } });
    this.tabs.tell({ session: true });
    this.enter();
    if (location.pathname === "/sign-in" || location.search !== "") navigate("/", { replace: true });
  }

  async signOut(everywhere = false): Promise<void> {
    await (everywhere ? this.api.signOutEverywhere() : this.api.signOut());
    this.signedOut();
    clearDrafts();
    this.tabs.tell({ session: true });
    await this.load();
  }

  changed(account: Account): void {
    const { session } = this.state.get();
    if (session) this.state.update({ session: { ...session, account } });
  }

  async rename(id: string, title: string): Promise<void> {
    const { chat } = this.state.get();
    if (chat?.state.get().id === id) await chat.configure({ title });
    else await this.api.changeConversation(id, { title });
    this.list.rename(id, title);
    this.tabs.tell({ conversation: id });
  }

  async remove(id: string): Promise<void> {
    await this.api.deleteConversation(id);
    this.list.remove(id);
    this.tabs.tell({ list: true });
    if (this.state.get().chat?.state.get().id === id) this.beginNew();
  }

  async removeAll(): Promise<void> {
    await this.api.deleteAllConversations();
    await this.list.load();
    this.tabs.tell({ list: true });
    this.restart();
  }

  beginNew(): void {
    this.restart();
    navigate("/");
  }

  private enter(): void {
    void this.list.load();
    // Without the list there is the default model.
    this.api.models().then(
      (models) => this.state.update({ models }),
      () => undefined,
    );
  }

  private leave(): void {
    this.state.get().chat?.close();
    this.state.update({ chat: null });
    this.list.clear();
  }

  private signedOut(): void {
    const { session } = this.state.get();
    this.leave();
    if (session?.account) this.state.update({ session: { ...session, account: null } });
  }
}

export const AppContext = createContext<App | null>(null);

export function useApp(): App {
  const app = useContext(AppContext);
  if (!app) throw new Error("no app around this component");
  return app;
}
