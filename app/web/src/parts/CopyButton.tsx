/** Copies a text, and says so. */

import { type ReactNode, useEffect, useState } from "react";
import { Icon } from "./Icon";

interface Props {
  text: () => string;
  label: string;
}

export function CopyButton({ text, label }: Props): ReactNode {
  const [state, setState] = useState<"idle" | "copied" | "failed">("idle");
  useEffect(() => {
    if (state === "idle") return undefined;
    const timer = setTimeout(() => setState("idle"), 2000);
    return () => clearTimeout(timer);
  }, [state]);
  const words = { idle: label, copied: "Copied", failed: "Could not copy" }[state];
  const copy = (): void => {
    navigator.clipboard.writeText(text()).then(
      () => setState("copied"),
      () => setState("failed"),
    );
  };
  return (
    <button type="button" className="icon-button" aria-label={words} title={words} onClick={copy}>
      <Icon name={state === "copied" ? "check" : "copy"} />
    </button>
  );
}
