/** What somebody has asked; can be asked differently. */

import { type SubmitEvent, type ReactNode, useState } from "react";
import type { Message } from "../api/types";
import type { Chat } from "../state/chat";
import { AttachmentList } from "./AttachmentList";
import { CopyButton } from "./CopyButton";
import { Icon } from "./Icon";

interface Props {
  chat: Chat;
  message: Message;
  switcher: ReactNode;
  busy: boolean;
  editing: boolean;
  onEdit: (id: string | null) => void;
}

export function Question({ chat, message, switcher, busy, editing, onEdit }: Props): ReactNode {
  return (
    <article className="question" aria-label="Your message">
      <h2 className="visually-hidden">You</h2>
      {editing ? <Editor chat={chat} message={message} onEdit={onEdit} /> : <p className="said">{message.content}</p>}
      <AttachmentList attachments={message.attachments ?? []} />
      {!editing && (
        <footer>
          {switcher}
          <CopyButton text={() => message.content} label="Copy message" />
          <button
            type="button"
            className="icon-button"
            aria-label="Edit message"
            title="Edit message"
            disabled={busy}
            onClick={() => onEdit(message.id)}
          >
            <Icon name="edit" />
          </button>
        </footer>
      )}
    </article>
  );
}

function Editor({ chat, message, onEdit }: Pick<Props, "chat" | "message" | "onEdit">): ReactNode {
  const [text, setText] = useState(message.content);
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    void chat.edit(message.id, text.trim()).then((taken) => !taken && onEdit(message.id));
    onEdit(null);
  };
  return (
    <form className="editor" onSubmit={submit}>
      <textarea
        aria-label="Edit message"
        // The person has just asked for this field.
        // eslint-disable-next-line jsx-a11y/no-autofocus
        autoFocus
        rows={Math.min(12, text.split("\n").length + 1)}
        value={text}
        onChange={(event) => setText(event.target.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") onEdit(null);
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.currentTarget.form?.requestSubmit();
        }}
      />
      <div className="buttons">
        <span className="hint">The old version stays as a branch.</span>
        <button type="button" onClick={() => onEdit(null)}>
          Cancel
        </button>
        <button type="submit" className="primary" disabled={text.trim() === "" || text.trim() === message.content}>
          Ask again
        </button>
      </div>
    </form>
  );
}
