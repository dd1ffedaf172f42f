/** Dialogs about a conversation: its name, its end. */

import { type SubmitEvent, type ReactNode, useState } from "react";
import type { ConversationSummary } from "../api/types";
import { useApp } from "../state/app";
import { Dialog } from "./Dialog";
import { Field } from "./Field";
import { useWork } from "./useWork";

interface Props {
  conversation: Pick<ConversationSummary, "id" | "title">;
  onClose: () => void;
}

export function RenameDialog({ conversation, onClose }: Props): ReactNode {
  const app = useApp();
  const work = useWork();
  const [title, setTitle] = useState(conversation.title);
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    work.run(() => app.rename(conversation.id, title.trim()).then(onClose));
  };
  return (
    <Dialog title="Rename" onClose={onClose}>
      <form onSubmit={submit}>
        <Field
          label="Title"
          value={title}
          maxLength={200}
          required
          error={work.error ?? undefined}
          onChange={(event) => setTitle(event.target.value)}
        />
        <div className="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" className="primary" disabled={work.busy || title.trim() === ""}>
            Rename
          </button>
        </div>
      </form>
    </Dialog>
  );
}

export function DeleteDialog({ conversation, onClose }: Props): ReactNode {
  const app = useApp();
  const work = useWork();
  return (
    <Dialog title="Delete this conversation?" onClose={onClose}>
      <p>“{conversation.title || "New conversation"}” goes with all its messages and files. This cannot be undone.</p>
      {work.error && (
        <p className="error" role="alert">
          {work.error}
        </p>
      )}
      <div className="buttons">
        <button type="button" onClick={onClose}>
          Cancel
        </button>
        <button
          type="button"
          className="danger"
          disabled={work.busy}
          onClick={() => work.run(() => app.remove(conversation.id).then(onClose))}
        >
          Delete
        </button>
      </div>
    </Dialog>
  );
}
