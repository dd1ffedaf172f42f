/** What the model has answered, or is answering. */

import { type ReactNode, useEffect, useRef } from "react";
import type { Message } from "../api/types";
import { count } from "../format";
import { Markdown } from "../markdown/Markdown";
import type { Chat } from "../state/chat";
import type { Live, LiveState } from "../state/live";
import { useApp } from "../state/app";
import { Store, useStore } from "../state/store";
import { CopyButton } from "./CopyButton";
import { Icon } from "./Icon";

interface Props {
  chat: Chat;
  message: Message;
  live: Live | undefined;
  switcher: ReactNode;
  last: boolean;
  busy: boolean;
}

const NOT_LIVE = new Store<LiveState>({ text: "", connection: "open" });

export function Answer({ chat, message, live, switcher, last, busy }: Props): ReactNode {
  const { text, connection } = useStore(live?.shown ?? NOT_LIVE);
  const shown = live ? text : message.content;
  useAnnouncements(message, live !== undefined);
  return (
    <article className={last ? "answer last" : "answer"} aria-label="Answer" aria-busy={live !== undefined}>
      <h2 className="visually-hidden">Answer</h2>
      {shown !== "" && <Markdown text={shown} finished={live === undefined} />}
      {live && (
        <p className="writing">{connection === "reconnecting" ? "Reconnecting…" : shown === "" && "Thinking…"}</p>
      )}
      {!live && <Ending message={message} />}
      {!live && (
        <footer>
          {switcher}
          {message.content !== "" && <CopyButton text={() => message.content} label="Copy answer" />}
          <button
            type="button"
            className="icon-button"
            aria-label="Answer again"
            title="Answer again"
            disabled={busy}
            onClick={() => void chat.regenerate(message.id)}
          >
            <Icon name="retry" />
          </button>
          {continuable(message) && (
            <button
              type="button"
              className="text-button"
              disabled={busy}
              onClick={() => void chat.continue(message.id)}
            >
              <Icon name="continue" />
              Continue
            </button>
          )}
          <Tokens message={message} />
        </footer>
      )}
    </article>
  );
}

function continuable({ status, content }: Message): boolean {
  return (status === "stopped" || status === "interrupted" || status === "failed") && content !== "";
}

const REASONS: Record<string, string> = {
  time_limit: "The answer took too long and was cut.",
  size_limit: "The answer grew too long and was cut.",
  shutdown: "The service was restarted and the answer cut.",
  superseded: "A new message has cut this answer.",
  worker_lost: "The answer was lost on the way.",
};

function Ending({ message }: { message: Message }): ReactNode {
  const { status, finish_reason: reason, error } = message;
  if (status === "failed") return <p className="ending error">{error ?? "The model did not answer."}</p>;
  if (status === "stopped") return <p className="ending">Stopped.</p>;
  if (status === "interrupted") return <p className="ending">{REASONS[reason ?? ""] ?? "The answer was cut."}</p>;
  if (reason === "length") return <p className="ending">The answer has reached the longest length that is allowed.</p>;
  return null;
}

function Tokens({ message: { usage, model } }: { message: Message }): ReactNode {
  const { prompt_tokens: read, completion_tokens: written } = usage;
  if (written === null) return null;
  const title = [read !== null && `${count(read)} tokens read,`, `${count(written)} written`, model && `by ${model}`]
    .filter(Boolean)
    .join(" ");
  return (
    <span className="tokens" title={title}>
      {count(written + (read ?? 0))} tokens
    </span>
  );
}

/** Tell screen readers that an answer is coming, and then all of it at once. */
function useAnnouncements(message: Message, live: boolean): void {
  const { announcement } = useApp();
  const was = useRef(live);
  useEffect(() => {
    if (live) announcement.set("The answer is being written.");
    else if (was.current) announcement.set(spoken(message));
    was.current = live;
  }, [announcement, live, message]);
}

function spoken({ status, content, error }: Message): string {
  if (status === "failed") return `No answer: ${error ?? "the model failed."}`;
  return `${status === "complete" ? "Answer" : "Answer, cut"}: ${content.replace(/[*_`#>|]+/g, "")}`;
}
