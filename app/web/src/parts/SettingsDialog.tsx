/** Model and system prompt of a conversation. They count from the next answer on. */

import { type SubmitEvent, type ReactNode, useId, useState } from "react";
import type { Chat } from "../state/chat";
import { useApp } from "../state/app";
import { useStore } from "../state/store";
import { Dialog } from "./Dialog";
import { useWork } from "./useWork";

export default function SettingsDialog({ chat, onClose }: { chat: Chat; onClose: () => void }): ReactNode {
  const { models } = useStore(useApp().state);
  const state = chat.state.get();
  const [model, setModel] = useState(state.model ?? "");
  const [prompt, setPrompt] = useState(state.systemPrompt ?? "");
  const work = useWork();
  const id = useId();
  const fallback = models.find((each) => each.default)?.id;
  const known = models.map((each) => each.id);
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    work.run(() => chat.configure({ model: model || null, system_prompt: prompt.trim() || null }).then(onClose));
  };
  return (
    <Dialog title="Model and instructions" onClose={onClose}>
      <form onSubmit={submit}>
        <div className="field">
          <label htmlFor={`${id}-model`}>Model</label>
          <select id={`${id}-model`} value={model} onChange={(event) => setModel(event.target.value)}>
            <option value="">{fallback ? `Default (${fallback})` : "Default"}</option>
            {model !== "" && !known.includes(model) && <option value={model}>{model} (no longer offered)</option>}
            {known.map((each) => (
              <option key={each} value={each}>
                {each}
              </option>
            ))}
          </select>
        </div>
        <div className="field">
          <label htmlFor={`${id}-prompt`}>Instructions for this conversation</label>
          <textarea
            id={`${id}-prompt`}
            rows={6}
            value={prompt}
            aria-describedby={`${id}-hint`}
            onChange={(event) => setPrompt(event.target.value)}
          />
          <p id={`${id}-hint`} className="hint">
            The model reads them before every answer (its system prompt).
          </p>
        </div>
        {work.error && (
          <p className="error" role="alert">
            {work.error}
          </p>
        )}
        <div className="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" className="primary" disabled={work.busy}>
            Save
          </button>
        </div>
      </form>
    </Dialog>
  );
}
