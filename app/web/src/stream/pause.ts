/** Waiting between attempts, no longer than makes sense. */

/** How long to wait before another attempt, in milliseconds: half a second at first, 15 at most, never all at once. */
export function backoff(attempt: number, random: () => number = Math.random): number {
  return Math.min(15_000, 500 * 2 ** attempt) * (0.75 + random() / 2);
}

/** Wait; at most so long, and only until the network is back or the page is looked at again. Throws when aborted. */
export function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stopListening = onWake(() => finish(resolve));
    const timer = setTimeout(() => finish(resolve), milliseconds);
    const abort = (): void => finish(() => reject(signal.reason as Error));
    function finish(settle: () => void): void {
      clearTimeout(timer);
      stopListening();
      signal.removeEventListener("abort", abort);
      settle();
    }
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort);
  });
}

/** Calls back when connections may have died unnoticed or may work again. Returns what ends that. */
export function onWake(callback: () => void): () => void {
  const visible = (): void => {
    if (document.visibilityState === "visible") callback();
  };
  window.addEventListener("online", callback);
  window.addEventListener("pageshow", callback);
  document.addEventListener("visibilitychange", visible);
  return () => {
    window.removeEventListener("online", callback);
    window.removeEventListener("pageshow", callback);
    document.removeEventListener("visibilitychange", visible);
  };
}
