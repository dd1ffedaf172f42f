/** The place to write: text, files, send and stop, and why something does not work right now. */

import { type SubmitEvent, type KeyboardEvent, type ReactNode, useEffect, useRef, useState } from "react";
import type { Chat } from "../state/chat";
import { loadDraft, saveDraft } from "../state/drafts";
import { useApp } from "../state/app";
import { useStore } from "../state/store";
import { Icon } from "./Icon";
import { NoticeBar } from "./NoticeBar";
import { UploadList } from "./UploadList";

export function Composer({ chat }: { chat: Chat }): ReactNode {
  const { session, models } = useStore(useApp().state);
  const { id, branch, live, model, phase } = useStore(chat.state);
  const uploads = useStore(chat.uploads.state);
  const [text, setText] = useState(() => loadDraft(id));
  const field = useRef<HTMLTextAreaElement>(null);
  const picker = useRef<HTMLInputElement>(null);
  const busy = branch.some((each) => live.has(each));
  const limits = session?.limits;
  const ready = phase === "ready" && !busy && text.trim() !== "" && !chat.uploads.busy;

  const drafted = useRef(id);
  useEffect(() => {
    // The draft goes along when the conversation gets its identifier.
    if (drafted.current !== id) saveDraft(drafted.current, "");
    drafted.current = id;
    saveDraft(id, text);
  }, [id, text]);
  useEffect(() => grow(field.current), [text]);
  useEffect(() => {
    // Not where that opens a keyboard over the half of the screen.
    if (phase === "ready" && matchMedia("(pointer: fine)").matches) field.current?.focus();
  }, [phase]);

  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    if (!ready) return;
    const content = text.trim();
    const attachments = chat.uploads.take();
    setText("");
    void chat.ask(content, attachments).then((taken) => {
      if (taken) return;
      // Also for a page that has gone meanwhile: to sign in, for example.
      saveDraft(chat.state.get().id, content);
      setText((since) => since || content);
      chat.uploads.restore(attachments);
    });
  };
  const typed = (event: KeyboardEvent<HTMLTextAreaElement>): void => {
    // On a phone Enter begins a line, as everywhere there.
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    if (!matchMedia("(pointer: fine)").matches) return;
    event.preventDefault();
    event.currentTarget.form?.requestSubmit();
  };
  const name = model ?? models.find((each) => each.default)?.id;

  return (
    <div className="composer-frame">
      <NoticeBar chat={chat} />
      <form className="composer" onSubmit={submit}>
        <UploadList uploads={uploads} onRemove={(key) => chat.uploads.remove(key)} />
        <textarea
          ref={field}
          rows={1}
          value={text}
          maxLength={limits?.max_message_chars}
          placeholder="Write a message"
          aria-label="Your message"
          onChange={(event) => setText(event.target.value)}
          onKeyDown={typed}
          onPaste={(event) => {
            if (event.clipboardData.files.length === 0) return;
            event.preventDefault();
            chat.uploads.add(event.clipboardData.files);
          }}
        />
        <div className="composer-row">
          <input
            ref={picker}
            type="file"
            multiple
            hidden
            accept={limits?.upload_types.join(",")}
            onChange={(event) => {
              chat.uploads.add(event.target.files ?? []);
              event.target.value = "";
            }}
          />
          <button
            type="button"
            className="icon-button"
            aria-label="Attach files"
            title="Attach files"
            onClick={() => picker.current?.click()}
          >
            <Icon name="attach" />
          </button>
          {name && <span className="model">{name}</span>}
          {busy ? (
            <button
              type="button"
              className="send"
              aria-label="Stop the answer"
              title="Stop"
              onClick={() => void chat.stop()}
            >
              <Icon name="stop" />
            </button>
          ) : (
            <button type="submit" className="send" aria-label="Send" title="Send" disabled={!ready}>
              <Icon name="send" />
            </button>
          )}
        </div>
      </form>
    </div>
  );
}

/** As high as its text, where the style sheet cannot do it (`field-sizing`). */
function grow(field: HTMLTextAreaElement | null): void {
  if (!field || CSS.supports("field-sizing", "content")) return;
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}
