/** The branch that is shown, from its first question to its last answer. */

import { type ReactNode, useMemo, useState } from "react";
import type { Message } from "../api/types";
import type { Chat } from "../state/chat";
import { useStore } from "../state/store";
import { alternativesOf } from "../state/tree";
import { Answer } from "./Answer";
import { Icon } from "./Icon";
import { Question } from "./Question";
import { useStickToEnd } from "./useStickToEnd";

export function Transcript({ chat }: { chat: Chat }): ReactNode {
  const { messages, branch, live, phase } = useStore(chat.state);
  const known = useMemo(() => new Map(messages.map((message) => [message.id, message])), [messages]);
  const alternatives = useMemo(() => alternativesOf(messages), [messages]);
  const [editing, setEditing] = useState<string | null>(null);
  const { scroller, content, atEnd, toEnd } = useStickToEnd();
  const busy = branch.some((id) => live.has(id));

  if (phase === "loading")
    return (
      <div className="transcript" aria-busy="true">
        <p className="quiet">Loading…</p>
      </div>
    );
  if (branch.length === 0) {
    return (
      <div className="transcript greeting">
        <h1>What would you like to talk about?</h1>
      </div>
    );
  }
  return (
    <div className="transcript-frame">
      {/* A scrolling region has to be reachable by keyboard. */}
      {/* eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex */}
      <div className="transcript" ref={scroller} role="region" aria-label="Messages" tabIndex={0}>
        <div className="turns" ref={content}>
          {branch.map((id, place) => {
            const message = known.get(id);
            return (
              message && (
                <Turn
                  // The place is the identity: names change when the server gives them, and branches share places.
                  key={place}
                  chat={chat}
                  message={message}
                  live={live.get(id)}
                  switcher={<Switcher chat={chat} id={id} all={alternatives.get(id) ?? [id]} />}
                  last={place === branch.length - 1}
                  busy={busy}
                  editing={editing === id}
                  onEdit={setEditing}
                />
              )
            );
          })}
        </div>
      </div>
      {!atEnd && (
        <button type="button" className="to-end icon-button" aria-label="To the end" onClick={toEnd}>
          <Icon name="down" />
        </button>
      )}
    </div>
  );
}

interface TurnProps {
  chat: Chat;
  message: Message;
  live: Parameters<typeof Answer>[0]["live"];
  switcher: ReactNode;
  last: boolean;
  busy: boolean;
  editing: boolean;
  onEdit: (id: string | null) => void;
}

function Turn({ editing, onEdit, ...props }: TurnProps): ReactNode {
  return props.message.role === "user" ? (
    <Question {...props} editing={editing} onEdit={onEdit} />
  ) : (
    <Answer {...props} />
  );
}

/** ‹ 2/3 › */
function Switcher({ chat, id, all }: { chat: Chat; id: string; all: string[] }): ReactNode {
  if (all.length < 2) return null;
  const at = all.indexOf(id);
  const button = (to: number, label: string, icon: "left" | "right"): ReactNode => {
    const target = all[to];
    return (
      <button
        type="button"
        className="icon-button"
        aria-label={label}
        disabled={target === undefined}
        onClick={() => target !== undefined && void chat.show(target)}
      >
        <Icon name={icon} />
      </button>
    );
  };
  return (
    <span className="switcher" role="group" aria-label="Versions">
      {button(at - 1, "Previous version", "left")}
      <span>
        <span className="visually-hidden">Version </span>
        {at + 1}/{all.length}
      </span>
      {button(at + 1, "Next version", "right")}
    </span>
  );
}
