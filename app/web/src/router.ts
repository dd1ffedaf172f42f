/** The page's addresses. The server answers each of them with the same page: see chatbot/web.py. */

import { useSyncExternalStore } from "react";

export type Route =
  | { page: "chat"; id: string | null }
  | { page: "account" }
  | { page: "admin" }
  | { page: "sign-in" }
  | { page: "unknown" };

export function parseRoute(path: string): Route {
  const conversation = /^\/c\/([0-9a-f-]{36})$/.exec(path);
  if (conversation) return { page: "chat", id: conversation[1] ?? null };
  if (path === "/") return { page: "chat", id: null };
  if (path === "/account") return { page: "account" };
  if (path === "/admin") return { page: "admin" };
  if (path === "/sign-in") return { page: "sign-in" };
  return { page: "unknown" };
}

export function pathOf(id: string | null): string {
  return id === null ? "/" : `/c/${id}`;
}

const MOVED = "chatbot:moved";

export function navigate(path: string, { replace = false } = {}): void {
  if (replace) history.replaceState(null, "", path);
  else history.pushState(null, "", path);
  window.dispatchEvent(new Event(MOVED));
}

function subscribe(listener: () => void): () => void {
  window.addEventListener("popstate", listener);
  window.addEventListener(MOVED, listener);
  return () => {
    window.removeEventListener("popstate", listener);
    window.removeEventListener(MOVED, listener);
  };
}

export function usePath(): string {
  return useSyncExternalStore(subscribe, () => location.pathname);
}
