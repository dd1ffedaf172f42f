/** A conversation: its head, what was said, and the place to write. */

import { lazy, type DragEvent, type ReactNode, Suspense, useState } from "react";
import { Composer } from "../parts/Composer";
import { DeleteDialog, RenameDialog } from "../parts/ConversationDialogs";
import { Icon } from "../parts/Icon";
import { Menu } from "../parts/Menu";
import { exports } from "../parts/Sidebar";
import { Transcript } from "../parts/Transcript";
import { count } from "../format";
import type { Chat } from "../state/chat";
import { useApp } from "../state/app";
import { useStore } from "../state/store";

const SettingsDialog = lazy(() => import("../parts/SettingsDialog"));

export function ChatPage(): ReactNode {
  const { chat } = useStore(useApp().state);
  return chat && <Open key={chatKey(chat)} chat={chat} />;
}

const keys = new WeakMap<Chat, number>();
let lastKey = 0;

/** A page of its own for each Chat, also while it has no identifier yet. */
function chatKey(chat: Chat): number {
  const key = keys.get(chat) ?? (lastKey += 1);
  keys.set(chat, key);
  return key;
}

function Open({ chat }: { chat: Chat }): ReactNode {
  const app = useApp();
  const state = useStore(chat.state);
  const { session } = useStore(app.state);
  const [dialog, setDialog] = useState<"rename" | "delete" | "settings" | null>(null);
  const [dragging, setDragging] = useState(false);
  const close = (): void => setDialog(null);

  if (state.phase === "missing") {
    return (
      <div className="gate">
        <h1>No such conversation</h1>
        <p>It was deleted, or it belongs to somebody else.</p>
        <button type="button" className="primary" onClick={() => app.beginNew()}>
          New conversation
        </button>
      </div>
    );
  }
  if (state.phase === "unreachable") {
    return (
      <div className="gate">
        <h1>Not there right now</h1>
        <p role="alert">{state.notice?.text}</p>
        <button type="button" className="primary" onClick={() => void chat.load()}>
          Try again
        </button>
      </div>
    );
  }

  const { id, title } = state;
  const empty = state.phase === "ready" && state.branch.length === 0;
  const read = state.usage.prompt_tokens ?? 0;
  const written = state.usage.completion_tokens ?? 0;
  const hasFiles = (event: DragEvent): boolean => event.dataTransfer.types.includes("Files");
  return (
    // Dropping is one more way to attach files: the button there is for all.
    // eslint-disable-next-line jsx-a11y/no-static-element-interactions
    <div
      className={`chat${empty ? " empty" : ""}${dragging ? " dragging" : ""}`}
      onDragOver={(event) => {
        if (!hasFiles(event)) return;
        event.preventDefault();
        setDragging(true);
      }}
      onDragLeave={(event) => {
        if (!event.currentTarget.contains(event.relatedTarget as Node | null)) setDragging(false);
      }}
      onDrop={(event) => {
        if (!hasFiles(event)) return;
        event.preventDefault();
        setDragging(false);
        chat.uploads.add(event.dataTransfer.files);
      }}
    >
      <header className="chat-head">
        <title>{title || "New conversation"}</title>
        {empty ? <span className="no-title" /> : <h1>{title || "New conversation"}</h1>}
        {read + written > 0 && (
          <span className="tokens" title={`${count(read)} read, ${count(written)} written`}>
            {count(read + written)} tokens
          </span>
        )}
        <button
          type="button"
          className="icon-button"
          aria-label="Model and instructions"
          title="Model and instructions"
          onClick={() => setDialog("settings")}
        >
          <Icon name="settings" />
        </button>
        {id !== null && (
          <Menu
            icon="more"
            label="Conversation"
            items={[
              { label: "Rename", action: () => setDialog("rename") },
              ...exports(app.api, id),
              { label: "Delete", danger: true, action: () => setDialog("delete") },
            ]}
          />
        )}
      </header>
      <Transcript chat={chat} />
      <Composer chat={chat} />
      {session?.demo_model && (
        <p className="demo">A small demo model on this server answers here. It is often wrong.</p>
      )}
      {dragging && (
        <p className="drop" aria-hidden="true">
          Drop the files to attach them
        </p>
      )}
      {dialog === "rename" && id !== null && <RenameDialog conversation={{ id, title }} onClose={close} />}
      {dialog === "delete" && id !== null && <DeleteDialog conversation={{ id, title }} onClose={close} />}
      <Suspense fallback={null}>{dialog === "settings" && <SettingsDialog chat={chat} onClose={close} />}</Suspense>
    </div>
  );
}
