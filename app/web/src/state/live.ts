/** An answer that is being written: its text so far, drawn at most once per frame. */

import type { Connection } from "../stream/follow";
import { OncePerFrame } from "./frames";
import { Store } from "./store";

export interface LiveState {
  text: string;
  connection: Connection;
}

export class Live {
  readonly shown: Store<LiveState>;
  private text: string;
  private connection: Connection = "waiting";
  private readonly drawing = new OncePerFrame(() => this.draw());

  /** `base` is what the stream continues; `saved` is shown until the stream, which may begin anew, has more. */
  constructor(
    readonly base: string,
    private readonly saved: string,
  ) {
    this.text = base;
    this.shown = new Store<LiveState>({ text: saved, connection: "waiting" });
  }

  append(text: string): void {
    this.text += text;
    this.drawing.request();
  }

  connected(state: Connection): void {
    if (state === this.connection) return;
    this.connection = state;
    this.drawing.request();
  }

  /** The whole text. Nothing is drawn any more. */
  end(): string {
    this.drawing.flush();
    return this.text;
  }

  private draw(): void {
    const text = this.text.length >= this.saved.length ? this.text : this.saved;
    this.shown.set({ text, connection: this.connection });
  }
}
