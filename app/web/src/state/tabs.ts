/** Tells the other tabs what has changed here. */

export type Change = { conversation: string } | { list: true } | { session: true };

export class Tabs {
  private readonly channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("chatbot");

  tell(change: Change): void {
    this.channel?.postMessage(change);
  }

  /** Returns what ends that. */
  listen(callback: (change: Change) => void): () => void {
    const heard = (event: MessageEvent<Change>): void => callback(event.data);
    this.channel?.addEventListener("message", heard);
    return () => this.channel?.removeEventListener("message", heard);
  }
}
