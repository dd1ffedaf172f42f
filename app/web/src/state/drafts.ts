/** What was typed and not sent yet: survives a reload and a sign-in, in this tab. */

const PREFIX = "chatbot.draft.";
const key = (conversation: string | null): string => PREFIX + (conversation ?? "new");

export function loadDraft(conversation: string | null): string {
  try {
    return sessionStorage.getItem(key(conversation)) ?? "";
  } catch {
    return "";
  }
}

export function saveDraft(conversation: string | null, text: string): void {
  try {
    if (text === "") sessionStorage.removeItem(key(conversation));
    else sessionStorage.setItem(key(conversation), text);
  } catch {
    // not kept, then
  }
}

/** Nothing stays behind for whoever uses this browser next. */
export function clearDrafts(): void {
  try {
    for (const name of Object.keys(sessionStorage)) if (name.startsWith(PREFIX)) sessionStorage.removeItem(name);
  } catch {
    // there are none, then
  }
}
