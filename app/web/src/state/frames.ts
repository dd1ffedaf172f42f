/** Work that is done once per frame, however often it is asked for. */

/** Runs `work` before the next frame; soon also where there are no frames, in a tab that nobody sees. */
export class OncePerFrame {
  private frame = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly work: () => void) {}

  request(): void {
    if (this.timer !== undefined) return;
    this.frame = requestAnimationFrame(() => this.flush());
    this.timer = setTimeout(() => this.flush(), 250);
  }

  /** Do now what was asked for, if anything was. */
  flush(): void {
    if (this.timer === undefined) return;
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.timer = undefined;
    this.work();
  }
}
