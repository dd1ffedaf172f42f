/** A release while the page is open takes the old one's files away: parts that were not loaded yet are gone. */

const KEY = "chatbot.reloaded";
const ONCE_IN_MS = 60_000;

/** Load the page again when a part of it is missing; answers and drafts survive that. Not over and over. */
export function reloadAfterRelease(): void {
  window.addEventListener("vite:preloadError", () => {
    try {
      if (Date.now() - Number(sessionStorage.getItem(KEY) ?? 0) < ONCE_IN_MS) return;
      sessionStorage.setItem(KEY, String(Date.now()));
    } catch {
      return; // without a memory it could go on for ever
    }
    location.reload();
  });
}
