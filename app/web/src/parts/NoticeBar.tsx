/** Why something does not work right now, and what can be done about it. */

import { type ReactNode, useEffect, useState, useSyncExternalStore } from "react";
import type { Chat } from "../state/chat";
import type { Notice } from "../state/notice";
import { useStore } from "../state/store";
import { plural } from "../format";
import { Icon } from "./Icon";
import { Link } from "./Link";

export function NoticeBar({ chat }: { chat: Chat }): ReactNode {
  const { notice } = useStore(chat.state);
  const online = useOnline();
  if (!online) {
    return (
      <div className="notice offline" role="status">
        <p>
          <strong>You are offline.</strong> Answers go on without you and are here when you are back.
        </p>
      </div>
    );
  }
  if (!notice) return null;
  return (
    <div className={`notice ${notice.kind}`} role="alert">
      <p>
        <strong>{TITLES[notice.kind]}</strong> {notice.text}{" "}
        {notice.until !== null && <Wait key={notice.until} notice={notice} />}
      </p>
      {notice.kind === "budget" && <Link href="/account">Your usage</Link>}
      <button type="button" className="icon-button" aria-label="Dismiss" onClick={() => chat.dismiss()}>
        <Icon name="close" />
      </button>
    </div>
  );
}

const TITLES: Record<Notice["kind"], string> = {
  error: "That did not work.",
  offline: "No connection.",
  "rate-limited": "A little slower, please.",
  budget: "This month’s budget is used up.",
  model: "The model does not answer.",
};

/** Counts the seconds down, for the eyes only: nobody wants to hear each of them. */
function Wait({ notice }: { notice: Notice }): ReactNode {
  const [now, setNow] = useState(() => Date.now());
  const left = Math.ceil(((notice.until ?? 0) - now) / 1000);
  useEffect(() => {
    if (left <= 0) return undefined;
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [left]);
  const time = left < 120 ? plural(left, "second", "seconds") : plural(Math.ceil(left / 60), "minute", "minutes");
  return (
    <span aria-hidden="true" className="wait">
      {left > 0 ? `Again in ${time}.` : "You can try again now."}
    </span>
  );
}

function useOnline(): boolean {
  return useSyncExternalStore(
    (listener) => {
      window.addEventListener("online", listener);
      window.addEventListener("offline", listener);
      return () => {
        window.removeEventListener("online", listener);
        window.removeEventListener("offline", listener);
      };
    },
    () => navigator.onLine,
  );
}
