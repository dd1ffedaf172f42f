/** What went wrong with the last thing somebody did, in the kinds that a person deals with differently. */

import { ApiError, NetworkError, explain } from "../api/client";

export interface Notice {
  kind: "error" | "offline" | "rate-limited" | "budget" | "model";
  text: string;
  /** When another attempt makes sense, in milliseconds since 1970. */
  until: number | null;
}

export function noticeOf(error: unknown): Notice {
  const notice: Notice = { kind: "error", text: explain(error), until: null };
  if (error instanceof NetworkError) return { ...notice, kind: "offline" };
  if (!(error instanceof ApiError)) return notice;
  if (error.retryAfter !== null) notice.until = Date.now() + error.retryAfter * 1000;
  if (error.is("budget-reached")) return { ...notice, kind: "budget", until: null };
  if (error.status === 429) return { ...notice, kind: "rate-limited" };
  if (error.is("model")) return { ...notice, kind: "model" };
  return notice;
}
