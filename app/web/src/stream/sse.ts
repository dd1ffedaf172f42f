/**
 * Server-Sent Events from a response's body.
 *
 * https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
 */

export interface SseEvent {
  name: string;
  data: string;
  /** The last identifier that was seen, empty when there was none. */
  id: string;
}

/** Takes a stream in pieces of any size and gives the events that each piece ends. */
export class SseParser {
  private rest = "";
  private afterCr = false;
  private name = "";
  private data: string[] = [];
  private id = "";

  feed(piece: string): SseEvent[] {
    if (piece === "") return [];
    if (this.afterCr && piece.startsWith("\n")) piece = piece.slice(1);
    this.afterCr = piece === "" ? false : piece.endsWith("\r");
    const lines = (this.rest + piece).split(/\r\n|\r|\n/);
    this.rest = lines.pop() ?? "";
    const events: SseEvent[] = [];
    for (const line of lines) {
      if (line !== "") this.field(line);
      else {
        if (this.data.length > 0) {
          events.push({ name: this.name || "message", data: this.data.join("\n"), id: this.id });
        }
        this.name = "";
        this.data = [];
      }
    }
    return events;
  }

  private field(line: string): void {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "event") this.name = value;
    else if (name === "data") this.data.push(value);
    else if (name === "id" && !value.includes("\0")) this.id = value;
  }
}

/** All events of a body. `alive` is called for all that arrives, comments too. Throws what the network throws. */
export async function* readEvents(
  body: ReadableStream<Uint8Array>,
  alive: () => void = () => undefined,
): AsyncGenerator<SseEvent> {
  const parser = new SseParser();
  const decoder = new TextDecoder(); // drops a byte-order mark, as the specification wants
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      yield* parser.feed(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}
