/** The API as this client knows it: see app/README.md. Times are ISO 8601, sizes bytes. */

export type Role = "user" | "assistant";
export type Status = "streaming" | "complete" | "stopped" | "interrupted" | "failed";

export interface Account {
  id: string;
  email: string;
  name: string;
  role: "user" | "admin";
  created_at: string;
}

export interface Limits {
  max_message_chars: number;
  max_upload_bytes: number;
  max_attachments: number;
  upload_types: string[];
  password_min_length: number;
}

/** Who is asking, and what a client must know before it may ask for anything else. */
export interface Session {
  account: Account | null;
  csrf_token: string;
  sign_up: "closed" | "invitation" | "open";
  openid: { name: string } | null;
  release: string;
  demo_model: boolean;
  limits: Limits;
}

export interface SignedIn {
  account: Account;
  csrf_token: string;
}

export interface BrowserSession {
  id: string;
  current: boolean;
  created_at: string;
  last_seen_at: string;
  address: string | null;
  user_agent: string | null;
}

export interface Usage {
  prompt_tokens: number | null;
  completion_tokens: number | null;
}

export interface MonthlyUsage {
  month: string;
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  budget: number | null;
  instance_total_tokens: number | null;
  instance_budget: number | null;
}

export type Scope = "read" | "chat" | "admin";

export interface ApiToken {
  id: string;
  name: string;
  scopes: Scope[];
  created_at: string;
  expires_at: string | null;
  last_used_at?: string | null;
}

/** `token` is shown this once. */
export interface NewApiToken extends ApiToken {
  token: string;
}

export interface AdminAccount extends Account {
  disabled: boolean;
  monthly_token_budget: number | null;
  total_tokens?: number;
}

export interface Invitation {
  id: string;
  email: string | null;
  created_at: string;
  expires_at: string | null;
  used_at?: string | null;
}

/** `code` and `url` are shown this once. */
export interface NewInvitation extends Invitation {
  code: string;
  url: string;
}

export interface Attachment {
  id: string;
  name: string;
  type: string;
  bytes: number;
  pages: number | null;
  characters: number;
  created_at: string;
}

export interface ConversationSummary {
  id: string;
  title: string;
  model: string | null;
  system_prompt: string | null;
  created_at: string;
  updated_at: string;
}

export interface ConversationPage {
  conversations: ConversationSummary[];
  next_cursor: string | null;
}

export interface Message {
  id: string;
  parent_id: string | null;
  role: Role;
  status: Status;
  finish_reason: string | null;
  content: string;
  model: string | null;
  usage: Usage;
  error: string | null;
  attachments?: Attachment[];
  created_at: string;
}

/** `messages` is a tree, in the order in which they were written; `current_branch` is the path to show. */
export interface Conversation extends ConversationSummary {
  usage?: Usage;
  messages: Message[];
  current_branch: string[];
  attachments?: Attachment[];
}

export interface ConversationSettings {
  title?: string;
  model?: string | null;
  system_prompt?: string | null;
}

export interface Model {
  id: string;
  default: boolean;
}

/** A problem document (RFC 9457). The last two come with a model's refusal. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  request_id?: string;
  errors?: { field: string; message: string }[];
  message_id?: string;
  user_message_id?: string;
}

export interface StartEvent {
  conversation_id: string;
  title: string;
  message_id: string;
  user_message_id: string;
}

export interface DoneEvent {
  message_id: string;
  status: Exclude<Status, "streaming" | "failed">;
  finish_reason: string | null;
  usage: Usage;
}
