/** Files on their way into the next message. */

import type { Api } from "../api/api";
import { explain } from "../api/client";
import type { Attachment, Limits } from "../api/types";
import { megabytes } from "../format";
import { Store } from "./store";

export interface Upload {
  key: number;
  name: string;
  /** From 0 to 1. */
  part: number;
  attachment: Attachment | null;
  error: string | null;
}

export class Uploads {
  readonly state = new Store<Upload[]>([]);
  private readonly running = new Map<number, AbortController>();
  private nextKey = 0;

  /** `conversation` gives the conversation that the files belong to, and makes it where there is none yet. */
  constructor(
    private readonly api: Api,
    private readonly limits: Limits,
    private readonly conversation: () => Promise<string>,
  ) {}

  add(files: Iterable<File>): void {
    for (const file of files) {
      const key = this.nextKey++;
      const error = this.refusal(file);
      this.state.set([...this.state.get(), { key, name: file.name, part: 0, attachment: null, error }]);
      if (error === null) void this.send(key, file);
    }
  }

  /** Files that were uploaded before the page was loaded. */
  restore(attachments: Attachment[]): void {
    const known = new Set(this.state.get().map((each) => each.attachment?.id));
    const restored = attachments
      .filter((attachment) => !known.has(attachment.id))
      .map((attachment) => ({ key: this.nextKey++, name: attachment.name, part: 1, attachment, error: null }));
    if (restored.length > 0) this.state.set([...this.state.get(), ...restored]);
  }

  remove(key: number): void {
    const upload = this.state.get().find((each) => each.key === key);
    this.running.get(key)?.abort();
    this.state.set(this.state.get().filter((each) => each.key !== key));
    // Where it cannot be deleted now it goes with its conversation.
    if (upload?.attachment) this.api.deleteAttachment(upload.attachment.id).catch(() => undefined);
  }

  /** Whether the message has to wait for one of them. */
  get busy(): boolean {
    return this.state.get().some((each) => each.attachment === null && each.error === null);
  }

  /** Hand over what is there; `restore` takes it back when the message could not be sent. */
  take(): Attachment[] {
    const attachments = this.state.get().flatMap((each) => each.attachment ?? []);
    this.state.set(this.state.get().filter((each) => each.attachment === null && each.error === null));
    return attachments;
  }

  close(): void {
    for (const request of this.running.values()) request.abort();
  }

  private refusal(file: File): string | null {
    const { max_attachments: most, max_upload_bytes: largest } = this.limits;
    const others = this.state.get().filter((each) => each.error === null).length;
    if (others >= most) return `At most ${most} files go with a message.`;
    if (file.size > largest) return `Larger than ${megabytes(largest)}.`;
    if (file.size === 0) return "The file is empty.";
    return null;
  }

  private async send(key: number, file: File): Promise<void> {
    const request = new AbortController();
    this.running.set(key, request);
    try {
      const conversation = await this.conversation();
      const progress = (part: number): void => this.change(key, { part });
      const attachment = await this.api.upload(conversation, file, progress, request.signal);
      this.change(key, { attachment, part: 1 });
    } catch (error) {
      if (!request.signal.aborted) this.change(key, { error: explain(error) });
    } finally {
      this.running.delete(key);
    }
  }

  private change(key: number, change: Partial<Upload>): void {
    this.state.set(this.state.get().map((each) => (each.key === key ? { ...each, ...change } : each)));
  }
}
