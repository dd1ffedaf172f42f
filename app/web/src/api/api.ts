/** The API's requests, by what they are for. */

import { ApiError, BASE, Client, type Options } from "./client";
import type {
  Account,
  AdminAccount,
  ApiToken,
  Attachment,
  BrowserSession,
  Conversation,
  ConversationPage,
  ConversationSettings,
  ConversationSummary,
  Invitation,
  Model,
  MonthlyUsage,
  NewApiToken,
  NewInvitation,
  Scope,
  Session,
  SignedIn,
} from "./types";
import { upload } from "./upload";

const json = (body: unknown): Options => ({ body });

export class Api {
  constructor(readonly client: Client = new Client()) {}

  async session(): Promise<Session> {
    const session = await this.client.call<Session>("GET", "/session");
    this.client.csrf = session.csrf_token;
    return session;
  }

  signIn(email: string, password: string): Promise<SignedIn> {
    return this.begin("/session", { email, password });
  }

  signUp(form: { email: string; password: string; name?: string; invitation?: string }): Promise<SignedIn> {
    return this.begin("/account", form);
  }

  signOut(): Promise<void> {
    return this.client.call("DELETE", "/session");
  }

  async sessions(): Promise<BrowserSession[]> {
    return (await this.client.call<{ sessions: BrowserSession[] }>("GET", "/sessions")).sessions;
  }

  revokeSession(id: string): Promise<void> {
    return this.client.call("DELETE", `/sessions/${id}`);
  }

  signOutEverywhere(): Promise<void> {
    return this.client.call("DELETE", "/sessions");
  }

  rename(name: string): Promise<Account> {
    return this.client.call("PATCH", "/account", json({ name }));
  }

  changePassword(current: string, replacement: string): Promise<void> {
    return this.client.call("POST", "/account/password", json({ current, new: replacement }));
  }

  deleteAccount(password: string): Promise<void> {
    return this.client.call("DELETE", "/account", json({ password }));
  }

  usage(): Promise<MonthlyUsage> {
    return this.client.call("GET", "/account/usage");
  }

  async tokens(): Promise<ApiToken[]> {
    return (await this.client.call<{ tokens: ApiToken[] }>("GET", "/tokens")).tokens;
  }

  createToken(name: string, scopes: Scope[], expiresAt: string | null): Promise<NewApiToken> {
    return this.client.call("POST", "/tokens", json({ name, scopes, ...(expiresAt && { expires_at: expiresAt }) }));
  }

  deleteToken(id: string): Promise<void> {
    return this.client.call("DELETE", `/tokens/${id}`);
  }

  async accounts(search: string): Promise<AdminAccount[]> {
    const query = search ? `?${new URLSearchParams({ search }).toString()}` : "";
    return (await this.client.call<{ accounts: AdminAccount[] }>("GET", `/admin/accounts${query}`)).accounts;
  }

  changeAccount(
    id: string,
    change: Partial<Pick<AdminAccount, "role" | "disabled" | "monthly_token_budget">>,
  ): Promise<AdminAccount> {
    return this.client.call("PATCH", `/admin/accounts/${id}`, json(change));
  }

  async invitations(): Promise<Invitation[]> {
    return (await this.client.call<{ invitations: Invitation[] }>("GET", "/admin/invitations")).invitations;
  }

  invite(email: string, days: number): Promise<NewInvitation> {
    return this.client.call("POST", "/admin/invitations", json({ ...(email && { email }), expires_in_days: days }));
  }

  withdrawInvitation(id: string): Promise<void> {
    return this.client.call("DELETE", `/admin/invitations/${id}`);
  }

  async models(): Promise<Model[]> {
    return (await this.client.call<{ models: Model[] }>("GET", "/models")).models;
  }

  conversations(search: string, cursor: string | null, signal?: AbortSignal): Promise<ConversationPage> {
    const query = new URLSearchParams({ ...(search && { search }), ...(cursor && { cursor }) }).toString();
    return this.client.call("GET", `/conversations${query && `?${query}`}`, { signal });
  }

  createConversation(settings: ConversationSettings, signal?: AbortSignal): Promise<ConversationSummary> {
    return this.client.call("POST", "/conversations", { body: settings, signal });
  }

  conversation(id: string, signal?: AbortSignal): Promise<Conversation> {
    return this.client.call("GET", `/conversations/${id}`, { signal });
  }

  changeConversation(
    id: string,
    change: ConversationSettings & { current_message_id?: string },
  ): Promise<Conversation> {
    return this.client.call("PATCH", `/conversations/${id}`, json(change));
  }

  deleteConversation(id: string): Promise<void> {
    return this.client.call("DELETE", `/conversations/${id}`);
  }

  deleteAllConversations(): Promise<void> {
    return this.client.call("DELETE", "/conversations");
  }

  exportAddress(id: string, format: "markdown" | "json"): string {
    return `${BASE}/conversations/${id}/export?format=${format}`;
  }

  /** `path` begins behind `messages`: nothing to ask, `/<id>/edit`, `/<id>/regenerate`, `/<id>/continue`. */
  answer(conversation: string, path: string, body: object | undefined, signal: AbortSignal): Promise<Response> {
    return this.client.open("POST", `/conversations/${conversation}/messages${path}`, { body, signal });
  }

  tail(conversation: string, message: string, after: string | null, signal: AbortSignal): Promise<Response> {
    const headers: Record<string, string> = after === null ? {} : { "Last-Event-ID": after };
    return this.client.open("GET", `/conversations/${conversation}/messages/${message}/stream`, { headers, signal });
  }

  stop(conversation: string, message: string): Promise<{ status: string }> {
    return this.client.call("POST", `/conversations/${conversation}/messages/${message}/stop`);
  }

  async upload(
    conversation: string,
    file: File,
    progress: (part: number) => void,
    signal: AbortSignal,
  ): Promise<Attachment> {
    const send = (): Promise<Attachment> =>
      upload(`${BASE}/conversations/${conversation}/attachments`, file, this.client.csrf, progress, signal);
    try {
      return await send();
    } catch (error) {
      if (!(error instanceof ApiError && error.is("csrf"))) throw error;
      await this.session();
      return send();
    }
  }

  attachmentAddress(id: string): string {
    return `${BASE}/attachments/${id}/content`;
  }

  deleteAttachment(id: string): Promise<void> {
    return this.client.call("DELETE", `/attachments/${id}`);
  }

  private async begin(path: string, form: object): Promise<SignedIn> {
    const signedIn = await this.client.call<SignedIn>("POST", path, json(form));
    this.client.csrf = signedIn.csrf_token;
    return signedIn;
  }
}
