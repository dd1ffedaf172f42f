/** A block of code: its language, a button that copies it, and colours as soon as it is complete. */

import type { ElementContent, Root, RootContent } from "hast";
import { memo, type ReactNode, useEffect, useState } from "react";
import { CopyButton } from "../parts/CopyButton";

/** Colours for more than this (characters) cost more time than they are worth. */
const MAX_COLOURED = 60_000;

interface Props {
  code: string;
  language: string | null;
  finished: boolean;
}

export const CodeBlock = memo(function CodeBlock({ code, language, finished }: Props): ReactNode {
  const tree = useHighlighted(code, language, finished);
  return (
    <figure className="code">
      <figcaption>
        <span>{language ?? "text"}</span>
        <CopyButton text={() => code} label="Copy code" />
      </figcaption>
      {/* A scrolling region has to be reachable by keyboard. */}
      {/* eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex */}
      <pre tabIndex={0}>
        <code>{tree ? elements(tree.children) : code}</code>
      </pre>
    </figure>
  );
});

function useHighlighted(code: string, language: string | null, finished: boolean): Root | null {
  const [result, setResult] = useState<{ code: string; tree: Root | null } | null>(null);
  useEffect(() => {
    if (!finished || language === null || code.length > MAX_COLOURED) return undefined;
    let wanted = true;
    import("./highlight").then(
      ({ highlight }) => wanted && setResult({ code, tree: highlight(code, language.toLowerCase()) }),
      () => undefined, // without colours, then
    );
    return () => {
      wanted = false;
    };
  }, [code, language, finished]);
  return result?.code === code ? result.tree : null;
}

function elements(nodes: readonly (RootContent | ElementContent)[]): ReactNode[] {
  return nodes.map((node, index) => {
    if (node.type === "text") return node.value;
    if (node.type !== "element") return null;
    const names = node.properties.className;
    return (
      <span key={index} className={Array.isArray(names) ? names.join(" ") : undefined}>
        {elements(node.children)}
      </span>
    );
  });
}
